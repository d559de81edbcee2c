"""Linear attention by the gated delta rule: Gated DeltaNet and Kimi Delta Attention.

Yang et al., arXiv 2412.06464; Kimi Linear, arXiv 2510.26692. A head carries a matrix S that maps
keys to values. Every token lets it fade, and overwrites what it has under the token's key:

    S = decay · S;  S += k (beta · (v - Sᵀk))ᵀ;  y = Sᵀq
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .. import ops
from ..ops.recurrence import GateActivation
from .batch import Batch
from .linear import Linear
from .short_conv import ShortConvolution, columns, through_time
from .types import Floats, Weights


@dataclass(frozen=True, slots=True)
class DeltaSizes:
    """Key heads G of K dimensions, and heads of V dimensions, of which heads / G share a key.

    Heads that share a key follow one another, or with `tiled` stand G heads apart (llama.cpp's
    files of Qwen3.5).
    """

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    tiled: bool = False

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Where each head stands, those that share a key one after another."""
        heads = np.arange(self.heads, dtype=np.int64)
        return heads.reshape(-1, self.key_heads).T.reshape(-1) if self.tiled else heads

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.heads * self.value_dim


class DeltaInputs(Protocol):
    """What a layer's input becomes: (q, k and v of all heads side by side [T, 2 G K + heads V],
    gates [T, heads V], beta before its sigmoid [T, heads], decay before its activation [T, n])."""

    def __call__(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]: ...
    def weights(self) -> Weights: ...


class SeparateInputs:
    """A matrix for each input, or several: those of `qkv` stand side by side, those of `gate` and
    `decay` act one after another (a low-rank product)."""

    __slots__ = ("beta", "decay", "gate", "qkv")

    def __init__(
        self, qkv: Sequence[Linear], gate: Sequence[Linear], beta: Linear, decay: Sequence[Linear]
    ) -> None:
        self.qkv, self.gate, self.beta, self.decay = list(qkv), list(gate), beta, list(decay)

    def __call__(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        parts = [linear(x) for linear in self.qkv]
        gate = decay = x
        for linear in self.gate:
            gate = linear(gate)
        for linear in self.decay:
            decay = linear(decay)
        joint = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return joint, gate, self.beta(x), decay

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("qkv", "gate", "decay"):
            for number, linear in enumerate(getattr(self, part)):
                for name, kind, weight in linear.weights():
                    yield f"{part}.{number}.{name}", kind, weight
        for name, kind, weight in self.beta.weights():
            yield f"beta.{name}", kind, weight


class GroupedInputs:
    """Qwen3-Next's two matrices, each key head's outputs together: `qkvz` gives (q, k, v, gate) and
    `ba` (beta, decay) of the heads that share the key head."""

    __slots__ = ("ba", "qkvz", "sizes")

    def __init__(self, qkvz: Linear, ba: Linear, sizes: DeltaSizes) -> None:
        self.qkvz, self.ba, self.sizes = qkvz, ba, sizes

    def __call__(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        rows, groups, width = len(x), self.sizes.key_heads, self.sizes.key_dim
        wide = self.qkvz(x).reshape(rows, groups, -1)
        shared = self.sizes.values // groups
        q, k, v, gate = (p.reshape(rows, -1) for p in columns(wide, width, width, shared))
        both = self.ba(x).reshape(rows, groups, -1)
        beta, decay = (p.reshape(rows, -1) for p in columns(both, self.sizes.heads // groups))
        return np.concatenate([q, k, v], axis=1), gate, beta, decay

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("qkvz", "ba"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class DeltaNet:
    """The mixer: inputs, a short convolution over q, k and v, the delta rule, a gated norm, `out`.

    `rate` [n] and `bias` [n] make the decay e^(-rate · softplus(a + bias)), where n is heads (one
    decay a head) or heads · K (one a key channel); with `lower_bound` b it is
    e^(b · sigmoid(rate · (a + bias))). `norm` [V] is the weight of an RMS norm of every head,
    followed by the gate with its activation. q and k are brought to unit length.
    """

    __slots__ = (
        "_order",
        "activation",
        "bias",
        "conv",
        "eps",
        "inputs",
        "lower_bound",
        "norm",
        "out",
        "rate",
        "sizes",
    )

    def __init__(
        self,
        inputs: DeltaInputs,
        conv: ShortConvolution,
        out: Linear,
        sizes: DeltaSizes,
        *,
        rate: npt.ArrayLike,
        bias: npt.ArrayLike,
        norm: npt.ArrayLike,
        eps: float = 1e-6,
        activation: GateActivation = "silu",
        lower_bound: float | None = None,
    ) -> None:
        if sizes.heads % sizes.key_heads:
            raise ValueError(
                f"[DeltaNet] {sizes.heads} heads share {sizes.key_heads} key heads; "
                "a multiple is required"
            )
        self.rate: Floats = np.ascontiguousarray(rate, np.float32)
        self.bias: Floats = np.ascontiguousarray(bias, np.float32)
        self.norm: Floats = np.ascontiguousarray(norm, np.float32)
        counts = sizes.heads, sizes.heads * sizes.key_dim
        if self.rate.shape != self.bias.shape or self.rate.shape not in [(n,) for n in counts]:
            raise ValueError(
                f"[DeltaNet] rate has shape {list(self.rate.shape)}, bias "
                f"{list(self.bias.shape)}; both [{counts[0]}] or both [{counts[1]}] are required"
            )
        if conv.channels != 2 * sizes.keys + sizes.values:
            raise ValueError(
                f"[DeltaNet] the convolution has {conv.channels} channels; "
                f"{2 * sizes.keys + sizes.values} are required"
            )
        self.inputs, self.conv, self.out, self.sizes = inputs, conv, out, sizes
        self._order = sizes.order
        self.eps, self.activation, self.lower_bound = eps, activation, lower_bound

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """No rows: a token leaves a state."""
        return ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, ()), 0
        sizes, tokens = self.sizes, len(x)
        joint, gate, beta, decay = self.inputs(x)
        beta = ops.gate(None, beta, "sigmoid")
        decay, _ = ops.decay_factors(decay, self.rate, self.bias, lower_bound=self.lower_bound)
        decay = decay.reshape((tokens, sizes.heads, -1) if self._per_key else (tokens, sizes.heads))
        if sizes.tiled:
            decay, beta = decay[:, self._order], beta[:, self._order]

        def step(
            rows: slice, state: tuple[Floats | None, ...]
        ) -> tuple[Floats, tuple[Floats, ...]]:
            mixed, inputs = self.conv(joint[rows], state[0])
            q, k, v = columns(mixed, sizes.keys, sizes.keys)
            by_key = (len(mixed), sizes.key_heads, sizes.key_dim)
            v = v.reshape(len(mixed), sizes.heads, sizes.value_dim)
            if sizes.tiled:
                v = v[:, self._order]
            y, after = ops.gated_delta_rule(
                ops.unit_length(q.reshape(by_key), sizes.key_dim**-0.5),
                ops.unit_length(k.reshape(by_key)),
                v,
                decay[rows],
                beta[rows],
                state[1],
            )
            return y, (inputs, after)

        y = through_time(batch, layer, 2, step)
        if sizes.tiled:
            y = y[:, np.argsort(self._order)]
        gates = gate.reshape(y.shape)
        y = ops.gated_rms_norm(y, gates, self.norm, self.eps, activation=self.activation)
        return self.out(y.reshape(tokens, sizes.values))

    @property
    def _per_key(self) -> bool:
        return len(self.rate) != self.sizes.heads

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("inputs", "conv", "out"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
        yield "rate", "attention", self.rate
        yield "bias", "attention", self.bias
        yield "norm", "norm", self.norm
