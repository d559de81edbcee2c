"""The demo model for training: DeepSeek-V3's architecture, written for speed on a few CPU cores.

Same mathematics and parameter names as transformers' ``DeepseekV3ForCausalLM`` (multi-head latent
attention, one dense layer, then mixture-of-experts layers with sigmoid scores and a selection
bias); the difference is the execution: the experts run as one grouped product over tokens sorted
by expert, in bfloat16 with float32 master weights. See DeepSeek-V3 (arXiv 2412.19437), 2.1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Names as in the Hugging Face ``config.json``."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 384
    moe_intermediate_size: int = 48
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    q_lora_rank: int = 96
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 48
    qk_rope_head_dim: int = 16
    v_head_dim: int = 64
    n_routed_experts: int = 32
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    routed_scaling_factor: float = 2.5
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def to_hugging_face(self) -> dict[str, object]:
        values: dict[str, object] = {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **asdict(self),
            "num_key_value_heads": self.num_attention_heads,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "num_nextn_predict_layers": 0,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_interleave": True,
            "rope_scaling": None,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "use_cache": True,
            "torch_dtype": "bfloat16",
        }
        return values


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Linear(nn.Module):
    """y = x Wᵀ in the dtype of x; the weight itself stays float32."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434), 2.1, in its expanded form."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        heads, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank)
        self.q_b_proj = Linear(c.q_lora_rank, heads * qk)
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = Linear(heads * c.v_head_dim, c.hidden_size, (2 * c.num_hidden_layers) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, H]; cos, sin [T, rope/2]; mask [T, T], 0 or -inf -> [B, T, H]."""
        c = self.c
        batch, length, _ = x.shape
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.view(batch, length, heads, nope + rope).transpose(1, 2)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent))
        kv = kv.view(batch, length, heads, nope + c.v_head_dim).transpose(1, 2)
        k_nope, v = kv.split([nope, c.v_head_dim], dim=-1)
        q = torch.cat((q[..., :nope], _rotate(q[..., nope:], cos, sin)), dim=-1)
        k_rope = _rotate(k_rope[:, None], cos, sin).expand(-1, heads, -1, -1)
        k = torch.cat((k_nope, k_rope), dim=-1)
        # Written out: at 512 tokens this is faster on a CPU than the fused kernel.
        scores = torch.matmul(q * (nope + rope) ** -0.5, k.transpose(2, 3)) + mask
        out = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs (x0, x1), (x2, x3), ...; halves come out split."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)


class MLP(nn.Module):
    def __init__(self, c: Config, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, inner)
        self.up_proj = Linear(c.hidden_size, inner)
        self.down_proj = Linear(inner, c.hidden_size, (2 * c.num_hidden_layers) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Gather(torch.autograd.Function):
    """Token rows in expert order: its gradient is a gather and a sum over the K choices.

    ``index_add_``, the generic gradient of indexing, is several times slower on a CPU.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, slots: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(slots)
        return x[rows]

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (slots,) = ctx.saved_tensors
        return grad[slots].sum(1), None, None


class _Return(torch.autograd.Function):
    """The opposite direction, expert order back to [T, K, H]: a permutation both ways."""

    @staticmethod
    def forward(ctx, y: Tensor, order: Tensor, slots: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(order)
        return y[slots]

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (order,) = ctx.saved_tensors
        return grad.reshape(-1, grad.shape[-1])[order], None, None


class MoE(nn.Module):
    """Shared expert plus routed experts, DeepSeek-V3 (arXiv 2412.19437), equations 12-16."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        experts, inner, hidden = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
        depth = (2 * c.num_hidden_layers) ** -0.5
        self.gate = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.register_buffer("bias", torch.zeros(experts))
        self.gate_proj = nn.Parameter(torch.randn(experts, inner, hidden) * hidden**-0.5)
        self.up_proj = nn.Parameter(torch.randn(experts, inner, hidden) * hidden**-0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner) * inner**-0.5 * depth)
        self.shared_experts = MLP(c, inner * c.n_shared_experts)
        self.counts = torch.zeros(experts, dtype=torch.long)  # load of the last forward pass

    bias: Tensor

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H] -> scores [N, E], chosen experts [N, K], their weights [N, K] (float32)."""
        scores = torch.sigmoid(F.linear(x.float(), self.gate))
        chosen = torch.topk(scores.detach() + self.bias, self.c.num_experts_per_tok, -1)[1]
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return scores, chosen, weights * self.c.routed_scaling_factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, H] -> output [B, T, H], the sequence-wise balance loss (equations 17-20)."""
        batch, length, hidden = x.shape
        flat = x.reshape(-1, hidden)
        experts, k = self.c.n_routed_experts, self.c.num_experts_per_tok
        scores, chosen, weights = self.route(flat)

        # Stable sort by expert; `slots` is the sorted position of a token's K choices.
        order = torch.argsort(chosen.view(-1), stable=True)
        self.counts = torch.bincount(chosen.view(-1), minlength=experts)
        ends = self.counts.cumsum(0).to(torch.int32)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(order.numel())
        slots = slots.view(-1, k)

        picked = _Gather.apply(flat, order // k, slots)
        both = torch.cat((self.gate_proj, self.up_proj), dim=1).to(x.dtype)
        gate, up = F.grouped_mm(picked, both.mT, offs=ends).chunk(2, dim=-1)
        # The routing weight scales the narrow inner vector: the product is linear behind it.
        inner = F.silu(gate) * up * weights.to(x.dtype).view(-1)[order][:, None]
        down = F.grouped_mm(inner, self.down_proj.to(x.dtype).mT, offs=ends)
        routed = _Return.apply(down, order, slots).sum(1)
        out = (routed + self.shared_experts(flat)).view(batch, length, hidden)

        share = scores / scores.sum(-1, keepdim=True)
        load = torch.zeros(batch, experts).scatter_add_(
            1, chosen.view(batch, -1), torch.ones(batch, length * k)
        )
        balance = (load * (experts / (k * length)) * share.view(batch, length, -1).mean(1)).sum(-1)
        return out, balance.mean()


class Layer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c, c.intermediate_size) if index < c.first_k_dense_replace else MoE(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        inner = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            y, balance = self.mlp(inner)
            return x + y, balance
        return x + self.mlp(inner), x.new_zeros((), dtype=torch.float32)


class _TiedLoss(torch.autograd.Function):
    """Summed cross entropy of ``h Eᵀ`` in slices, gradients made in the same pass.

    The [tokens, vocabulary] logits of a whole batch never exist: on a CPU their memory traffic
    costs more than the product itself.
    """

    SLICE = 256

    @staticmethod
    def forward(ctx, h: Tensor, table: Tensor, targets: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        low = table.to(h.dtype)
        grad_h = torch.empty_like(h)
        grad_table = torch.zeros_like(table)
        losses = []
        for start in range(0, h.shape[0], _TiedLoss.SLICE):
            piece = h[start : start + _TiedLoss.SLICE]
            goal = targets[start : start + _TiedLoss.SLICE]
            logits = (piece @ low.t()).float()
            log_p = torch.log_softmax(logits, -1)
            losses.append(-log_p.gather(1, goal[:, None]).squeeze(1))
            p = log_p.exp_()
            p[torch.arange(goal.numel()), goal] -= 1
            p = p.to(h.dtype)
            grad_h[start : start + _TiedLoss.SLICE] = p @ low
            grad_table += (p.t() @ piece).float()
        ctx.save_for_backward(grad_h, grad_table)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        grad_h, grad_table = ctx.saved_tensors
        scale = grad / grad_h.shape[0]
        return (grad_h * scale).to(grad_h.dtype), grad_table * scale, None


class DeepseekV3(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.02)
        self.layers = nn.ModuleList([Layer(c, i) for i in range(c.num_hidden_layers)])
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def moe_layers(self) -> list[MoE]:
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoE)]

    def hidden(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """ids [B, T] -> normalised hidden states [B, T, H], summed balance loss."""
        half = self.c.qk_rope_head_dim // 2
        steps = torch.arange(0, half) * 2 / self.c.qk_rope_head_dim
        angles = torch.arange(ids.shape[1])[:, None] * self.c.rope_theta**-steps
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        mask = torch.full((ids.shape[1],) * 2, -math.inf, dtype=dtype).triu(1)
        x = F.embedding(ids, self.embed_tokens).to(dtype)
        balance = torch.zeros(())
        for layer in self.layers:
            x, extra = layer(x, cos, sin, mask)
            balance = balance + extra
        return self.norm(x), balance

    def logits(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        h, _ = self.hidden(ids, dtype)
        return F.linear(h, self.embed_tokens.to(dtype)).float()

    def loss(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """ids [B, T+1] -> mean next-token cross entropy in nats, balance loss."""
        h, balance = self.hidden(ids[:, :-1], dtype)
        targets = ids[:, 1:].reshape(-1)
        value = _TiedLoss.apply(h.reshape(-1, h.shape[-1]), self.embed_tokens, targets)
        return value, balance

    @torch.no_grad()
    def update_bias(self, gamma: float) -> None:
        """Auxiliary-loss-free balancing (arXiv 2408.15664): raise the bias of idle experts."""
        for moe in self.moe_layers():
            load = moe.counts.float()
            moe.bias += gamma * torch.sign(load.mean() - load)

    def export(self) -> dict[str, Tensor]:
        """Tensors under Hugging Face's names: bfloat16, the selection bias float32."""
        out: dict[str, Tensor] = {"model.embed_tokens.weight": self.embed_tokens}
        for name, value in self.state_dict().items():
            if name == "embed_tokens":
                continue
            prefix, _, leaf = name.rpartition(".")
            if leaf in ("gate_proj", "up_proj", "down_proj") and value.dim() == 3:
                for e in range(value.shape[0]):
                    out[f"model.{prefix}.experts.{e}.{leaf}.weight"] = value[e]
            elif leaf == "gate":
                out[f"model.{prefix}.gate.weight"] = value
            elif leaf == "bias":
                out[f"model.{prefix}.gate.e_score_correction_bias"] = value
            else:
                out[f"model.{name}"] = value
        return {
            k: v.detach().to(torch.float32 if "bias" in k else torch.bfloat16).contiguous()
            for k, v in out.items()
        }


def count_parameters(c: Config) -> tuple[int, int]:
    """(total, active for one token), the tied embedding counted once."""
    total = sum(p.numel() for p in DeepseekV3(c).parameters())
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    idle = (c.n_routed_experts - c.num_experts_per_tok) * expert
    return total, total - idle * (c.num_hidden_layers - c.first_k_dense_replace)


def learning_rate_share(progress: float, decay: float) -> float:
    """Stable, then decay as 1 - sqrt: share of the peak rate at ``progress`` in [0, 1]."""
    return 1.0 - math.sqrt(max(0.0, (progress - (1 - decay)) / decay))
