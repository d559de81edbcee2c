"""One layer of a decoder."""

from typing import Protocol

import numpy as np

from ..ops.watched import Watched
from .batch import Batch
from .kv_cache import KVCache
from .moe import MLP, MoE
from .norm import Norm
from .token_steps import TokenSteps
from .types import Floats, Weights


class Mixer(Protocol):
    """What mixes tokens: attention of any kind. `cache_rows` are the shapes a token leaves."""

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats: ...
    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]: ...
    def weights(self) -> Weights: ...


class Layer(Protocol):
    """What a model asks of its blocks, however they join attention and feed-forward layer."""

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats: ...
    @property
    def moe(self) -> MoE | None: ...
    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def row_work(self) -> int: ...
    def weights(self) -> Weights: ...


class Block(Watched):
    """x += attention(norm(x)); x += ffn(norm(x)): the residual layer.

    Where its norms stand is a choice of the family: before each half (`attention_norm`,
    `ffn_norm`), behind it (`attention_post_norm`, `ffn_post_norm`: FlexOlmo), or on both sides
    (Gemma, AFMoE). `parallel`: both halves see attention_norm(x), and there is no ffn_norm
    (Cohere). What a half gives is added times `residual` (Granite).

    `x` is float32 [T, H]; the result is a new array. `layer` is the model's number of the block.
    """

    __slots__ = (
        "_steps",
        "attention",
        "attention_norm",
        "attention_post_norm",
        "ffn",
        "ffn_norm",
        "ffn_post_norm",
        "parallel",
        "residual",
    )

    def __init__(
        self,
        attention_norm: Norm | None,
        attention: Mixer,
        ffn_norm: Norm | None,
        ffn: MoE | MLP,
        *,
        attention_post_norm: Norm | None = None,
        ffn_post_norm: Norm | None = None,
        parallel: bool = False,
        residual: float = 1.0,
    ) -> None:
        if parallel and ffn_norm is not None:
            raise ValueError("[Block] ffn_norm was given; a parallel block has one norm")
        self.attention_norm = attention_norm
        self.attention = attention
        self.attention_post_norm = attention_post_norm
        self.ffn_norm = ffn_norm
        self.ffn = ffn
        self.ffn_post_norm = ffn_post_norm
        self.parallel = parallel
        self.residual = residual
        self._steps = TokenSteps()

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
        if self.parallel:
            normed = x if self.attention_norm is None else self.attention_norm(x)
            mixed = self._added(self.attention(normed, batch, layer), self.attention_post_norm)
            x = x + mixed
            x += self._added(self.ffn(normed, batch, layer), self.ffn_post_norm)
            return x
        if batch is not None and len(x) == len(batch.sequences) == 1:
            return self._step(x, batch, layer)
        return self._fed(x, self._mixed(x, batch, layer), batch, layer)

    def _step(self, x: Floats, batch: Batch, layer: int) -> Floats:
        """The same for one token: each half in one call of the core where it can."""
        steps = self._steps.of(self)
        if steps.attention is not None and type(batch.sequences[0]) is KVCache:
            mixed = self._added(steps.attention(x, batch, layer), self.attention_post_norm)
        else:
            mixed = self._mixed(x, batch, layer)
        if steps.experts is not None and batch.routing is None:
            return steps.experts(x, mixed, batch, layer)
        return self._fed(x, mixed, batch, layer)

    def _mixed(self, x: Floats, batch: Batch | None, layer: int) -> Floats:
        """What the attention half adds."""
        normed = x if self.attention_norm is None else self.attention_norm(x)
        return self._added(self.attention(normed, batch, layer), self.attention_post_norm)

    def _fed(self, x: Floats, mixed: Floats, batch: Batch | None, layer: int) -> Floats:
        """x + mixed, and the feed-forward half behind it."""
        if self.ffn_norm is None:
            normed = x = x + mixed
        else:
            normed, x = self.ffn_norm.of_sum(x, mixed)
        x += self._added(self.ffn(normed, batch, layer), self.ffn_post_norm)  # made anew above
        return x

    def _added(self, part: Floats, norm: Norm | None) -> Floats:
        """What a half adds to the residual stream."""
        if norm is not None:
            part = norm(part)
        return part if self.residual == 1.0 else part * np.float32(self.residual)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in (
            "attention_norm",
            "attention",
            "attention_post_norm",
            "ffn_norm",
            "ffn",
            "ffn_post_norm",
        ):
            module = getattr(self, part)
            if module is not None:
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
