"""One layer of a decoder."""

from typing import Protocol

from .batch import Batch
from .moe import MLP, MoE
from .norm import RMSNorm
from .types import Floats, Weights


class Mixer(Protocol):
    """What mixes tokens: attention of any kind. `cache_rows` are the shapes a token leaves."""

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats: ...
    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]: ...
    def weights(self) -> Weights: ...


class Block:
    """x += attention(norm(x)); x += ffn(norm(x)): the pre-norm residual layer.

    `x` is float32 [T, H]; the result is a new array. `layer` is the model's number of the block.
    """

    __slots__ = ("attention", "attention_norm", "ffn", "ffn_norm")

    def __init__(
        self, attention_norm: RMSNorm, attention: Mixer, ffn_norm: RMSNorm, ffn: MoE | MLP
    ) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.ffn_norm = ffn_norm
        self.ffn = ffn

    @property
    def moe(self) -> MoE | None:
        """The mixture of experts, or None where the feed-forward layer is dense."""
        return self.ffn if isinstance(self.ffn, MoE) else None

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        mixed = self.attention(self.attention_norm(x), batch, layer)
        normed, x = self.ffn_norm.of_sum(x, mixed)
        x += self.ffn(normed, batch, layer)
        return x

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("attention_norm", "attention", "ffn_norm", "ffn"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
