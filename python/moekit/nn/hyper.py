"""Several residual streams instead of one: manifold-constrained hyper-connections.

Xie et al. 2026; DeepSeek-V4 (2026), section 2.2. Each half of a block reads a weighted sum of the n
streams, and what it gives is written to all of them, while they are mixed by a matrix that Sinkhorn
and Knopp's normalisation keeps doubly stochastic. The weights come from the streams themselves.
Between blocks the streams of a token lie side by side, float32 [T, n * H].
"""

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .block import Mixer
from .gates import sigmoid
from .linear import Linear
from .moe import MLP, MoE
from .norm import Norm
from .types import Floats, Weights


class HyperConnection:
    """How one half of a block reads and writes the streams.

    `mixes` [(2 + n) n, n * H] reads the normalised streams (no weight, `norm_eps`); `base` [(2 + n)
    n] and `scales` [3] belong to its three parts; see `ops.hyper_connection`.
    """

    __slots__ = ("base", "eps", "iterations", "mixes", "norm_eps", "scales", "streams")

    def __init__(
        self,
        mixes: Linear,
        base: npt.ArrayLike,
        scales: npt.ArrayLike,
        streams: int,
        *,
        iterations: int = 20,
        eps: float = 1e-6,
        norm_eps: float = 1e-6,
    ) -> None:
        if mixes.rows != (2 + streams) * streams or mixes.cols % streams:
            raise ValueError(
                f"[HyperConnection] mixes is [{mixes.rows}, {mixes.cols}]; "
                f"[{(2 + streams) * streams}, {streams} * H] is required"
            )
        self.mixes = mixes
        self.base: Floats = np.ascontiguousarray(base, np.float32)
        self.scales: Floats = np.ascontiguousarray(scales, np.float32)
        self.streams, self.iterations = streams, iterations
        self.eps, self.norm_eps = eps, norm_eps

    def read(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """(what the half sees [T, H], how it is written [T, n], how streams mix [T, n, n])."""
        mixes = self.mixes(ops.rms_norm(x, None, self.norm_eps))
        read, write, mix = ops.hyper_connection(
            mixes, self.base, self.scales, self.streams, iterations=self.iterations, eps=self.eps
        )
        streams = x.reshape(len(x), self.streams, -1)
        return ops.mix_streams(streams, read[:, :, None])[:, 0], write, mix

    def write(self, x: Floats, added: Floats, write: Floats, mix: Floats) -> Floats:
        """The streams after a half has given `added` [T, H]."""
        streams = x.reshape(len(x), self.streams, -1)
        return ops.mix_streams(streams, mix, added, write).reshape(len(x), -1)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for name, kind, weight in self.mixes.weights():
            yield f"mixes.{name}", kind, weight
        yield "base", "norm", self.base
        yield "scales", "norm", self.scales


class HyperBlock:
    """A block over n streams: both halves have a norm before them and a connection around them."""

    __slots__ = (
        "attention",
        "attention_norm",
        "attention_streams",
        "ffn",
        "ffn_norm",
        "ffn_streams",
    )

    def __init__(
        self,
        attention_streams: HyperConnection,
        attention_norm: Norm,
        attention: Mixer,
        ffn_streams: HyperConnection,
        ffn_norm: Norm,
        ffn: MoE | MLP,
    ) -> None:
        self.attention_streams, self.ffn_streams = attention_streams, ffn_streams
        self.attention_norm, self.attention = attention_norm, attention
        self.ffn_norm, self.ffn = ffn_norm, ffn

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
        width, hidden = self.attention_streams.mixes.cols, x.shape[1]
        if hidden != width:  # the first block: every stream begins with the embedding
            x = np.tile(x, (1, width // hidden))
        seen, write, mix = self.attention_streams.read(x)
        mixed = self.attention(self.attention_norm(seen), batch, layer)
        x = self.attention_streams.write(x, mixed, write, mix)
        seen, write, mix = self.ffn_streams.read(x)
        return self.ffn_streams.write(x, self.ffn(self.ffn_norm(seen), batch, layer), write, mix)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in self.__slots__:
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class HyperHead:
    """The last norm of a model with n streams: reads them into one and normalises it.

    `mixes` [n, n * H], `base` [n], `scale` [1]: a stream's weight is a sigmoid, plus `eps`.
    """

    __slots__ = ("base", "eps", "mixes", "norm", "norm_eps", "scale")

    def __init__(
        self,
        mixes: Linear,
        base: npt.ArrayLike,
        scale: npt.ArrayLike,
        norm: Norm,
        *,
        eps: float = 1e-6,
        norm_eps: float = 1e-6,
    ) -> None:
        self.mixes, self.norm = mixes, norm
        self.base: Floats = np.ascontiguousarray(base, np.float32)
        self.scale: Floats = np.ascontiguousarray(scale, np.float32)
        self.eps, self.norm_eps = eps, norm_eps

    @property
    def size(self) -> int | None:
        """n * H."""
        return self.mixes.cols

    def __call__(self, x: Floats) -> Floats:
        mixes = self.mixes(ops.rms_norm(x, None, self.norm_eps)) * self.scale + self.base
        read = sigmoid(mixes) + np.float32(self.eps)
        streams = x.reshape(len(x), self.mixes.rows, -1)
        return self.norm(ops.mix_streams(streams, read[:, :, None])[:, 0])

    def of_sum(self, x: Floats, added: Floats) -> tuple[Floats, Floats]:
        """(norm of x + added, x + added)."""
        total = x + added
        return self(total), total

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("mixes", "norm"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
        yield "base", "norm", self.base
        yield "scale", "norm", self.scale
