"""LongCat-Flash's layer: two of attention and feed-forward, and experts on a shortcut around both.

LongCat-Flash (arXiv 2509.01322), section 2.2. The mixture sees what the first feed-forward layer
sees and is added at the layer's end, so that its work may overlap with all that lies between.
"""

from collections.abc import Sequence

from .batch import Batch
from .mla import MLA
from .moe import MLP, MoE
from .norm import Norm
from .types import Floats, Weights


class ShortcutBlock:
    """Two halves, each `attention_norms`, `attentions`, `ffn_norms`, `mlps`; `moe` beside them.

    Both attentions keep their rows in the layer's place of the cache: the second one's
    `first_stream` is behind the first one's rows.
    """

    __slots__ = ("attention_norms", "attentions", "ffn_norms", "mlps", "moe")

    def __init__(
        self,
        attention_norms: Sequence[Norm],
        attentions: Sequence[MLA],
        ffn_norms: Sequence[Norm],
        mlps: Sequence[MLP],
        moe: MoE,
    ) -> None:
        for name, parts in (
            ("attention_norms", attention_norms),
            ("attentions", attentions),
            ("ffn_norms", ffn_norms),
            ("mlps", mlps),
        ):
            if len(parts) != 2:
                raise ValueError(f"[ShortcutBlock] {len(parts)} {name}; 2 are required")
        self.attention_norms, self.attentions = attention_norms, attentions
        self.ffn_norms, self.mlps = ffn_norms, mlps
        self.moe = moe

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in the cache: both attentions' rows."""
        return self.attentions[0].cache_rows + self.attentions[1].cache_rows

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token."""
        return self.moe.row_work

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, self.cache_rows), 0
        mixed = self.attentions[0](self.attention_norms[0](x), batch, layer)
        normed, x = self.ffn_norms[0].of_sum(x, mixed)
        beside = self.moe(normed, batch, layer)
        normed, x = self.attention_norms[1].of_sum(x, self.mlps[0](normed, batch, layer))
        mixed = self.attentions[1](normed, batch, layer)
        normed, x = self.ffn_norms[1].of_sum(x, mixed)
        x += self.mlps[1](normed, batch, layer)
        x += beside
        return x

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for group in ("attention_norms", "attentions", "ffn_norms", "mlps"):
            for n, part in enumerate(getattr(self, group)):
                for name, kind, weight in part.weights():
                    yield f"{group}.{n}.{name}", kind, weight
        for name, kind, weight in self.moe.weights():
            yield f"moe.{name}", kind, weight
