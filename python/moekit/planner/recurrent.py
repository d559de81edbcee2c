"""Mixers whose memory does not grow with the context: linear attention, state spaces, convolution.

They keep a state of fixed size, so a layer of this kind adds nothing to the cache per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from .attention import HEADS, HIDDEN
from .fields import Fields, Flag
from .tensors import Block, matrix, vector

_RECURRENT = "recurrent"


def _convolution(channels: int, kernel: int, bias: bool = False) -> Block:
    """A causal depthwise convolution; its state is the last `kernel` inputs."""
    block = vector(_RECURRENT, "conv", channels * kernel)
    if bias:
        block += vector(_RECURRENT, "conv.bias", channels)
    return block + Block(state=channels * kernel)


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """Gated DeltaNet (arXiv 2412.06464) as Qwen3-Next has it."""

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        k_heads, v_heads = f.size("linear_num_key_heads", 16), f.size("linear_num_value_heads", 32)
        k_dim, v_dim = f.size("linear_key_head_dim", 128), f.size("linear_value_head_dim", 128)
        if v_heads % k_heads:
            raise f.error("linear_num_value_heads", f"it must be a multiple of {k_heads} key heads")
        keys, values = k_heads * k_dim, v_heads * v_dim
        return (
            # query, key, value, output gate; then beta and decay
            matrix(_RECURRENT, "in_qkvz", 2 * keys + 2 * values, hidden)
            + matrix(_RECURRENT, "in_ba", 2 * v_heads, hidden)
            + _convolution(2 * keys + values, f.size("linear_conv_kernel_dim", 4))
            + vector(_RECURRENT, "dt_bias", v_heads)
            + vector(_RECURRENT, "A_log", v_heads)
            + vector("norms", "delta_norm", v_dim)
            + matrix(_RECURRENT, "out", hidden, values)
            + Block(state=v_heads * k_dim * v_dim)
        )


@dataclass(frozen=True, slots=True)
class KimiDelta:
    """Kimi Delta Attention (Kimi Linear report): a decay for each channel."""

    low_rank: bool = True  # decay and gate through head_dim; else full projections (Ling 2.5)

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        if self.low_rank:
            nested = f.config.get("linear_attn_config")
            inner = f.section("linear_attn_config") if nested else f
            heads = inner.size(
                ("num_heads", "linear_num_heads") if nested else "linear_num_heads", 32
            )
            dim = inner.size(("head_dim", "linear_head_dim") if nested else "linear_head_dim", 128)
            kernel = inner.size(("short_conv_kernel_size", "linear_conv_kernel_dim"), 4)
        else:
            heads, dim = f.size(HEADS), f.size(("linear_head_dim", "head_dim"), 128)
            kernel = f.size("short_conv_kernel_size", 4)
        width = heads * dim
        block = Block()
        for name in ("q", "k", "v"):
            block += matrix(_RECURRENT, name, width, hidden)
        for name in ("decay", "gate"):
            if self.low_rank:
                block += matrix(_RECURRENT, name + "_a", dim, hidden)
                block += matrix(_RECURRENT, name + "_b", width, dim)
            else:
                block += matrix(_RECURRENT, name, width, hidden)
        return (
            block
            + _convolution(3 * width, kernel)
            + vector(_RECURRENT, "dt_bias", width)
            + vector(_RECURRENT, "A_log", heads)
            + matrix(_RECURRENT, "beta", heads, hidden)
            + vector("norms", "delta_norm", dim)
            + matrix(_RECURRENT, "out", hidden, width)
            + Block(state=heads * dim * dim)
        )


@dataclass(frozen=True, slots=True)
class Lightning:
    """Lightning attention (MiniMax-01, arXiv 2501.08313): exponential decay, gated output."""

    def build(self, f: Fields, kind: str) -> Block:
        hidden, heads = f.size(HIDDEN), f.size(HEADS)
        dim = f.size("head_dim", max(hidden // heads, 1))
        width = heads * dim
        return (
            matrix(_RECURRENT, "qkv", 3 * width, hidden)
            + matrix(_RECURRENT, "out", hidden, width)
            + matrix(_RECURRENT, "gate", width, hidden)
            + vector("norms", "lightning_norm", width)
            + Block(state=heads * dim * dim)
        )


@dataclass(frozen=True, slots=True)
class Mamba1:
    """Mamba (arXiv 2312.00752) with Jamba's three inner norms."""

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        inner = f.size("mamba_expand", 2) * hidden
        state = f.size("mamba_d_state", 16)
        auto = -(-hidden // 16)
        named = f.config.get("mamba_dt_rank") == "auto"
        rank = auto if named else f.size("mamba_dt_rank", auto)
        bias = f.flag(Flag("mamba_proj_bias"))
        block = matrix(_RECURRENT, "in", 2 * inner, hidden, bias)
        block += matrix(_RECURRENT, "x", rank + 2 * state, inner)
        block += matrix(_RECURRENT, "dt", inner, rank, True)
        block += matrix(_RECURRENT, "out", hidden, inner, bias)
        block += vector(_RECURRENT, "A_log", inner * state) + vector(_RECURRENT, "D", inner)
        for name, size in (("dt_norm", rank), ("b_norm", state), ("c_norm", state)):
            block += vector("norms", name, size)
        kernel = f.size("mamba_d_conv", 4)
        block += _convolution(inner, kernel, f.flag(Flag("mamba_conv_bias", True)))
        return block + Block(state=inner * state)


@dataclass(frozen=True, slots=True)
class Mamba2:
    """Mamba-2 (arXiv 2405.21060); `names` are a family's words for its sizes."""

    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    groups: tuple[str, ...] = ("mamba_n_groups",)
    state: str = "mamba_d_state"
    kernel: tuple[str, ...] = ("mamba_d_conv",)
    conv_bias: tuple[str, ...] = ("mamba_conv_bias",)
    proj_bias: str = "mamba_proj_bias"
    defaults: tuple[int, int, int, int, int] = (128, 64, 1, 256, 4)

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        d_heads, d_dim, d_groups, d_state, d_kernel = self.defaults
        heads = f.size(self.heads, d_heads)
        own = f.config.get(self.head_dim)
        if own == "auto" or (own is None and self.head_dim == "mamba_d_head"):  # Granite's default
            dim = f.size("mamba_expand", 2) * hidden // heads
        else:
            dim = f.size(self.head_dim, d_dim)
        groups, state = f.size(self.groups, d_groups), f.size(self.state, d_state)
        inner = heads * dim
        channels = inner + 2 * groups * state
        proj_bias = f.flag(Flag(self.proj_bias))
        named = f.find(self.conv_bias)[0]
        return (
            matrix(_RECURRENT, "in", inner + channels + heads, hidden, proj_bias)
            + matrix(_RECURRENT, "out", hidden, inner, proj_bias)
            + _convolution(channels, f.size(self.kernel, d_kernel), f.flag(Flag(named, True)))
            + vector(_RECURRENT, "dt_bias", heads)
            + vector(_RECURRENT, "A_log", heads)
            + vector(_RECURRENT, "D", heads)
            + vector("norms", "mamba_norm", inner)
            + Block(state=inner * state)
        )


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """LFM2's gated short convolution."""

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        bias = f.flag(Flag("conv_bias"))
        return (
            matrix(_RECURRENT, "in", 3 * hidden, hidden, bias)
            + matrix(_RECURRENT, "out", hidden, hidden, bias)
            + _convolution(hidden, f.size("conv_L_cache", 3), bias)
        )
