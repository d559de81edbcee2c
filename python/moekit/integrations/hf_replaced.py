"""Experts of the families of transformers that do not use its experts interface.

Their modules get another `forward`, each with the meaning of the one it stands for; routers, shared
experts and everything around stay the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .hf_modules import INTERFACE
from .torch_experts import OWN_FORMATS, Functions, NotRunnable, TorchExperts, is_fixed
from .torch_run import Experts, run

# Called with the module, the format of its experts and what the module is called with.
Forward = Callable[..., torch.Tensor | tuple[torch.Tensor, torch.Tensor]]


def _own_format(tensor: torch.Tensor, name: str) -> str:
    if tensor.dtype not in OWN_FORMATS:
        raise NotRunnable(
            f"[moekit] {name} is {tensor.dtype}; float32, bfloat16 or float16 is required"
        )
    return OWN_FORMATS[tensor.dtype]


# --- Llama 4: the router's weight scales the input; every expert saw every token, mostly zeros ---


def _llama4_source(moe: Any) -> TorchExperts:
    experts = moe.experts
    count, hidden, rows = experts.gate_up_proj.shape
    stored = {"first": experts.gate_up_proj.detach(), "down": experts.down_proj.detach()}
    return TorchExperts(
        count=count,
        inter=rows // 2,
        hidden=hidden,
        format=_own_format(experts.gate_up_proj, "gate_up_proj"),
        gated=True,
        matrix=lambda part, expert: stored[part][expert].T,
    )


def _llama4_eager(
    moe: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    scores = torch.zeros(len(hidden), moe.num_experts, dtype=weights.dtype)
    scores = scores.scatter(1, ids, weights)
    routed = hidden.repeat(moe.num_experts, 1) * scores.transpose(0, 1).reshape(-1, 1)
    out: torch.Tensor = moe.experts(routed)
    return out.view(moe.num_experts, -1, hidden.shape[-1]).sum(dim=0)


_LLAMA4 = Experts(
    tensors=lambda moe: (moe.experts.gate_up_proj, moe.experts.down_proj),
    source=_llama4_source,
    functions=lambda moe: Functions.gated(moe.experts.act_fn),
    eager=_llama4_eager,
    on_input=True,
)


def _llama4_moe(
    self: Any, format: str | None, hidden_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(hidden)
    weights, ids = torch.topk(scores, self.top_k, dim=1)
    out = self.shared_expert(hidden)
    out = out + run(self, _LLAMA4, format, hidden, ids, weights)
    return out, logits


# --- DBRX: three stacked weights, the last one transposed ---


def _dbrx_source(experts: Any) -> TorchExperts:
    mlp = experts.mlp
    shape = (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)
    w1, v1, w2 = (weight.detach().view(shape) for weight in (mlp.w1, mlp.v1, mlp.w2))

    def matrix(part: str, expert: int) -> torch.Tensor:
        return torch.cat((w1[expert], v1[expert])) if part == "first" else w2[expert].T

    return TorchExperts(
        count=shape[0],
        inter=shape[1],
        hidden=shape[2],
        format=_own_format(mlp.w1, "w1"),
        gated=True,
        matrix=matrix,
    )


_DBRX = Experts(
    tensors=lambda experts: (experts.mlp.w1, experts.mlp.v1, experts.mlp.w2),
    source=_dbrx_source,
    functions=lambda experts: Functions.gated(experts.mlp.activation_fn),
    eager=lambda experts, *inputs: type(experts).forward(experts, *inputs),
)


def _dbrx_experts(
    self: Any,
    format: str | None,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    out = run(self, _DBRX, format, hidden_states, ids, weights)
    return out.view(hidden_states.shape[0], -1, self.hidden_size)


# --- Switch and NLLB: a dictionary of two-layer experts without a gate ---


def _each(experts: Any) -> list[Any]:
    return [experts[f"expert_{index}"] for index in range(experts.num_experts)]


def _dense_tensors(first: str, second: str) -> Callable[[Any], Sequence[torch.Tensor]]:
    def tensors(experts: Any) -> Sequence[torch.Tensor]:
        return [
            tensor
            for expert in _each(experts)
            for layer in (getattr(expert, first), getattr(expert, second))
            for tensor in (layer.weight, layer.bias)
            if tensor is not None
        ]

    return tensors


def _dense_source(first: str, second: str) -> Callable[[Any], TorchExperts]:
    def source(experts: Any) -> TorchExperts:
        each = _each(experts)
        up, down = ([getattr(expert, name) for expert in each] for name in (first, second))

        def bias(layers: Sequence[Any]) -> torch.Tensor | None:
            if layers[0].bias is None:
                return None
            return torch.stack([layer.bias.detach() for layer in layers])

        inter, hidden = up[0].weight.shape
        return TorchExperts(
            count=len(each),
            inter=inter,
            hidden=hidden,
            format=_own_format(up[0].weight, first),
            down_format=_own_format(down[0].weight, second),
            gated=False,
            matrix=lambda part, e: (up if part == "first" else down)[e].weight.detach(),
            first_bias=bias(up),
            down_bias=bias(down),
        )

    return source


def _dense_functions(experts: Any) -> Functions:
    act = experts["expert_0"].act
    return Functions(act, fixed=is_fixed(act))


def _switch_eager(
    experts: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    chosen = torch.nn.functional.one_hot(ids, experts.num_experts + 1)[..., :-1]
    out: torch.Tensor = type(experts).forward(experts, hidden, chosen, weights)
    return out


_SWITCH = Experts(
    _dense_tensors("wi", "wo"), _dense_source("wi", "wo"), _dense_functions, _switch_eager
)


def _switch_experts(
    self: Any,
    format: str | None,
    hidden_states: torch.Tensor,
    selected: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    if self.training:  # dropout between the two layers
        out: torch.Tensor = type(self).forward(self, hidden_states, selected, weights)
        return out
    # One-hot [T, 1, E]; all zero where the expert had no room left.
    chosen, ids = selected.max(dim=-1)
    ids = ids.masked_fill(chosen == 0, self.num_experts)
    return run(self, _SWITCH, format, hidden_states, ids, weights)


def _nllb_eager(
    experts: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    # Slots of weight 0 were emptied: any expert will do there.
    kept = 1 - experts.moe_token_dropout
    ids = ids.masked_fill(ids == experts.num_experts, 0)
    out: torch.Tensor = type(experts).forward(experts, hidden, ids, weights / kept)
    return out


_NLLB = Experts(
    _dense_tensors("fc1", "fc2"), _dense_source("fc1", "fc2"), _dense_functions, _nllb_eager
)


def _nllb_experts(
    self: Any,
    format: str | None,
    hidden_states: torch.Tensor,
    router_mask: torch.Tensor,
    probs: torch.Tensor,
) -> torch.Tensor:
    if self.training:
        out: torch.Tensor = type(self).forward(self, hidden_states, router_mask, probs)
        return out
    # As transformers has it: the entries of the mask [T, E] are read as expert ids.
    ids = router_mask.masked_fill(probs == 0, self.num_experts)
    return run(self, _NLLB, format, hidden_states, ids, probs * (1 - self.moe_token_dropout))


# --- JetMoE: its feed-forward half; queries and outputs of its attention stay as they are ---


def _jetmoe_source(moe: Any) -> TorchExperts:
    first, down = moe.input_linear.weight.detach(), moe.output_linear.weight.detach()

    return TorchExperts(
        count=first.shape[0],
        inter=first.shape[1] // 2,
        hidden=first.shape[2],
        format=_own_format(first, "input_linear"),
        gated=True,
        matrix=lambda part, expert: (first if part == "first" else down)[expert],
    )


def _jetmoe_eager(
    moe: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    order = ids.flatten().argsort(stable=True)
    tokens = order // ids.shape[1]
    sizes = torch.bincount(ids.flatten(), minlength=moe.input_linear.num_experts).tolist()
    first, second = moe.input_linear(hidden[tokens], sizes).chunk(2, dim=-1)
    out = moe.output_linear(moe.activation(first) * second, sizes)
    out = out * weights.flatten()[order, None]
    return torch.zeros_like(hidden).index_add(0, tokens, out)


_JETMOE = Experts(
    tensors=lambda moe: (moe.input_linear.weight, moe.output_linear.weight),
    source=_jetmoe_source,
    functions=lambda moe: Functions.gated(moe.activation),
    eager=_jetmoe_eager,
)


def _jetmoe_moe(self: Any, format: str | None, layer_input: torch.Tensor) -> torch.Tensor:
    hidden = layer_input.reshape(-1, layer_input.shape[-1])
    logits = self.router(hidden)[-1]
    best, ids = logits.topk(self.router.top_k, dim=1)
    weights = torch.softmax(best, dim=1).type_as(hidden)
    out = run(self, _JETMOE, format, hidden, ids, weights)
    bias: torch.Tensor = self.bias
    return out.view(layer_input.shape) + bias


# --- LongCat: the last experts give their input back ---


def _longcat_source(experts: Any) -> TorchExperts:
    first, down = experts.gate_up_proj.detach(), experts.down_proj.detach()
    return TorchExperts(
        count=experts.num_routed_experts,
        inter=experts.intermediate_size,
        hidden=experts.hidden_size,
        format=_own_format(first, "gate_up_proj"),
        gated=True,
        matrix=lambda part, expert: (first if part == "first" else down)[expert],
    )


_LONGCAT = Experts(
    tensors=lambda experts: (experts.gate_up_proj, experts.down_proj),
    source=_longcat_source,
    functions=lambda experts: Functions.gated(experts.act_fn),
    # Every empty slot has weight 0, so that the first identity expert adds nothing there.
    eager=lambda experts, *inputs: type(experts).forward(experts, *inputs),
)


def _longcat_experts(
    self: Any,
    format: str | None,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    if self.gate_up_proj is None:
        out: torch.Tensor = type(self).forward(self, hidden_states, ids, weights)
        return out
    given_back = ids >= self.num_routed_experts
    kept = weights.masked_fill(given_back, 0.0)
    out = run(
        self,
        _LONGCAT,
        format,
        hidden_states,
        ids.masked_fill(given_back, self.num_routed_experts),
        kept,
    )
    return out + hidden_states * (weights - kept).sum(dim=1, keepdim=True).to(out.dtype)


# --- Step 3.7: the interface's own layout and names, without the interface ---


def _step3p7_experts(
    self: Any,
    format: str | None,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    return run(self, INTERFACE, format, hidden_states, ids, weights)


# Class names, since a module of transformers need not be imported to be recognised.
_FORWARDS: dict[str, Forward] = {
    "Llama4TextMoe": _llama4_moe,
    "DbrxExperts": _dbrx_experts,
    "SwitchTransformersExperts": _switch_experts,
    "NllbMoeExperts": _nllb_experts,
    "JetMoeMoE": _jetmoe_moe,
    "LongcatFlashExperts": _longcat_experts,
    "Step3p7Experts": _step3p7_experts,
}


def replace(model: torch.nn.Module, format: str | None) -> int:
    """Gives the experts of ``model`` our forward pass; how many modules it was."""
    found = [module for module in model.modules() if _is_replaceable(module)]
    for module in found:
        # Functions of this file, so that a model can be pickled.
        module.forward = partial(_FORWARDS[type(module).__name__], module, format)
    return len(found)


def restore(model: torch.nn.Module) -> None:
    """Gives them their own forward pass back."""
    for module in model.modules():
        if _is_replaceable(module):
            module.__dict__.pop("forward", None)


def _is_replaceable(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ in _FORWARDS and kind.__module__.startswith("transformers.models.")
