"""Lightning attention (arXiv 2405.17381) and the layer around it (MiniMax-01, arXiv 2501.08313)."""

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .block import Mixer
from .linear import Linear
from .moe import MLP, MoE
from .norm import Norm
from .short_conv import columns, through_time
from .types import Floats, Weights


class LightningAttention:
    """Linear attention that fades by a fixed factor a token: S = decay · S + k vᵀ; y = Sᵀq.

    `qkv` [heads * 3 D, H] gives each head's q, k and v, which go through SiLU; `decay` [heads].
    `norm` [heads * D] is the weight of an RMS norm of all heads together, followed by the sigmoid
    of `gate` [heads * D, H]; `out` is [H, heads * D].
    """

    __slots__ = ("decay", "eps", "gate", "heads", "norm", "out", "qkv")

    def __init__(
        self,
        qkv: Linear,
        gate: Linear,
        out: Linear,
        *,
        decay: npt.ArrayLike,
        norm: npt.ArrayLike,
        eps: float = 1e-6,
    ) -> None:
        self.decay: Floats = np.ascontiguousarray(decay, np.float32)
        self.norm: Floats = np.ascontiguousarray(norm, np.float32)
        self.heads = len(self.decay)
        if qkv.rows != 3 * out.cols or gate.rows != out.cols or out.cols % self.heads:
            raise ValueError(
                f"[LightningAttention] qkv has {qkv.rows} rows, gate {gate.rows}, out {out.cols} "
                f"columns, for {self.heads} heads; three times, once and a multiple are required"
            )
        self.qkv, self.gate, self.out, self.eps = qkv, gate, out, eps

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """No rows: a token leaves a state."""
        return ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, ()), 0
        joint = ops.gate(None, self.qkv(x), "silu").reshape(len(x), self.heads, -1)
        width = joint.shape[2] // 3
        q, k, v = columns(joint, width, width)

        def step(rows: slice, state: tuple[Floats | None, ...]) -> tuple[Floats, tuple[Floats]]:
            y, after = ops.linear_attention(q[rows], k[rows], v[rows], self.decay, state=state[0])
            return y, (after,)

        y = through_time(batch, layer, 1, step).reshape(len(x), -1)
        return self.out(
            ops.gated_rms_norm(y, self.gate(x), self.norm, self.eps, activation="sigmoid")
        )

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("qkv", "gate", "out"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
        yield "decay", "attention", self.decay
        yield "norm", "norm", self.norm


class NormedStreamBlock:
    """x = alpha · norm(x) + beta · part(norm(x)), twice: the stream itself is normed (MiniMax-01).

    `attention_factors` and `ffn_factors` are (alpha, beta) of the two halves.
    """

    __slots__ = (
        "attention",
        "attention_factors",
        "attention_norm",
        "ffn",
        "ffn_factors",
        "ffn_norm",
    )

    def __init__(
        self,
        attention_norm: Norm,
        attention: Mixer,
        ffn_norm: Norm,
        ffn: MoE | MLP,
        *,
        attention_factors: tuple[float, float] = (1.0, 1.0),
        ffn_factors: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.ffn_norm, self.ffn = ffn_norm, ffn
        self.attention_factors, self.ffn_factors = attention_factors, ffn_factors

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`."""
        return self.attention.cache_rows

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token of the feed-forward half."""
        return self.ffn.row_work

    @property
    def moe(self) -> MoE | None:
        """The mixture of experts, or None where the feed-forward layer is dense."""
        return self.ffn if isinstance(self.ffn, MoE) else None

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        x = self.attention_norm(x)
        alpha, beta = (np.float32(factor) for factor in self.attention_factors)
        x = alpha * x + beta * self.attention(x, batch, layer)
        x = self.ffn_norm(x)
        alpha, beta = (np.float32(factor) for factor in self.ffn_factors)
        y: Floats = alpha * x + beta * self.ffn(x, batch, layer)
        return y

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("attention_norm", "attention", "ffn_norm", "ffn"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
