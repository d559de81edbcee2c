"""Feed-forward blocks: dense, routed experts with their router, and shared experts."""

from __future__ import annotations

from dataclasses import dataclass

from .attention import HIDDEN
from .fields import MAX_WIDTH, Fields, Flag, Names
from .tensors import Block, Weight, matrix, vector

EXPERTS: Names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K: Names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


def feed_forward(
    component: str, width: int, hidden: int, *, gated: bool = True, bias: bool = False
) -> Block:
    """Up, down and (gated) gate projections of one feed-forward network."""
    block = matrix(component, "up", width, hidden, bias)
    block += matrix(component, "down", hidden, width, bias)
    return matrix(component, "gate", width, hidden, bias) + block if gated else block


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense feed-forward network of `width`."""

    width: Names = "intermediate_size"
    bias: bool | Flag = False
    gated: bool = True

    def build(self, f: Fields) -> Block:
        width, hidden = f.size(self.width), f.size(HIDDEN)
        return feed_forward("dense_ffn", width, hidden, gated=self.gated, bias=f.flag(self.bias))


@dataclass(frozen=True, slots=True)
class Shared:
    """Experts that every token passes through.

    `count` names a number of experts as wide as the routed ones (checkpoints fuse them into one
    network); `width` names the width of a single one. `gate` is a scalar gate [1, hidden].
    """

    count: Names = ""
    width: Names = ""
    default: int = 0
    gate: bool = False
    bias: bool | Flag = False
    gated: bool = True

    def build(self, f: Fields, hidden: int, expert_width: int) -> Block:
        if self.width:
            width = f.size(self.width, self.default or None, low=0)
        elif self.count:
            count = f.size(self.count, self.default, null=0, low=0, high=MAX_WIDTH)
            width = count * expert_width
        else:
            width = expert_width
        block = Block()
        if width:
            bias = f.flag(self.bias)
            block += feed_forward("shared", width, hidden, gated=self.gated, bias=bias)
        if self.gate:
            block += matrix("shared", "shared_gate", 1, hidden)
        return block


@dataclass(frozen=True, slots=True)
class Moe:
    """A router over E experts of `width`, of which a token passes through K."""

    experts: Names = EXPERTS
    width: Names = "moe_intermediate_size"
    top_k: Names = TOP_K
    shared: Shared | None = None
    gated: bool = True
    bias: bool = False  # every expert projection has a bias (gpt-oss)
    router_bias: bool | Flag = False
    select_bias: str = ""  # "parameter" or "buffer": one value an expert, for selection only
    hash_table: bool = False  # DeepSeek-V4: first layers look experts up by token id
    zero_experts: Names = ""  # identity experts: rows of the router without weights
    latent: Names = ""  # experts work in a space of this size (Nemotron-H)
    latent_bias: bool | Flag = False
    post_norm: bool = False  # a norm over the block's output (A.X-K1)
    optional: bool = False  # 0 experts: the shared network is all there is (Granite 4 dense)
    default_k: int | None = None

    def sizes(self, f: Fields) -> tuple[int, int]:
        """Experts and experts per token; K never exceeds E (zero experts count as choices)."""
        experts = f.experts(self.experts, low=0 if self.optional else 1)
        if not experts:
            return 0, 0
        zero = f.size(self.zero_experts, 0, null=0, low=0) if self.zero_experts else 0
        return experts, min(f.top_k(self.top_k, experts + zero, self.default_k), experts)

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        experts, k = self.sizes(f)
        width = f.size(self.width)
        if not experts:
            return self.shared.build(f, hidden, width) if self.shared else Block()
        zero = f.size(self.zero_experts, 0, null=0, low=0) if self.zero_experts else 0
        inner = hidden
        block = matrix("router", "router", experts + zero, hidden, f.flag(self.router_bias))
        if self.select_bias == "parameter":
            block += vector("router", "select_bias", experts)
        elif self.select_bias == "buffer":
            rows = f.size("vocab_size") * k if kind == "hash_moe" else experts + zero
            block += Block(buffers=rows)
        if self.latent and f.has(self.latent):
            inner = f.size(self.latent)
            bias = f.flag(self.latent_bias)
            block += matrix("shared", "latent_in", inner, hidden, bias)
            block += matrix("shared", "latent_out", hidden, inner, bias)
        block += _experts(experts, k, width, inner, gated=self.gated, bias=self.bias)
        if self.shared is not None:
            block += self.shared.build(f, hidden, width)
        if self.post_norm:
            block += vector("norms", "post_mlp_norm", hidden)
        return block


def _experts(experts: int, k: int, width: int, hidden: int, *, gated: bool, bias: bool) -> Block:
    names = (("gate", width), ("up", width)) if gated else (("up", width),)
    weights = []
    for name, rows in (*names, ("down", hidden)):
        cols = width if name == "down" else hidden
        weights.append(Weight("routed", f"experts.{name}", (rows, cols), experts, k))
        if bias:
            weights.append(Weight("routed", f"experts.{name}.bias", (rows,), experts, k))
    return Block(tuple(weights))
