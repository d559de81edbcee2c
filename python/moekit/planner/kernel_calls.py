"""The kernel calls of a step: what `--verify` predicts one by one, and what it runs.

A call is a dense matrix by itself, the experts of a layer as one fused block, or, where the block
does not know a family's experts, a grouped product for each of their matrices. Calls of the same
shapes cost the same, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .formats import find_format

if TYPE_CHECKING:
    from .plan import ModelPlan
    from .tensors import Weight

# what `ops.moe_ffn` takes as one block
_FUSED = (["experts.gate", "experts.up", "experts.down"], ["experts.up", "experts.down"])
_LABELS = {"dense_ffn": "dense", "routed": "experts"}


@dataclass(frozen=True)
class Product:
    """Rows of activations times one matrix [rows, cols], or times `top_k` of `experts` of them."""

    format: str
    rows: int
    cols: int
    experts: int = 0  # 0: a dense matrix, which every token meets
    top_k: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices that one token reads."""
        return self.top_k * find_format(self.format).nbytes(self.rows, self.cols)

    def flops(self, tokens: int) -> float:
        return 2.0 * tokens * self.top_k * self.rows * self.cols


@dataclass(frozen=True)
class Call:
    """One call of a kernel: its products, in order."""

    products: tuple[Product, ...]
    fused: bool = False  # the expert block: gate and up as one product, then down, then combine
    gated: bool = False

    @property
    def experts(self) -> int:
        return self.products[0].experts

    @property
    def hidden(self) -> int:
        """Columns of the call's input."""
        return self.products[0].cols

    def combined_bytes(self, tokens: int) -> int:
        """Bytes that the weighted sum of the experts' rows moves: K rows read, one written."""
        return 4 * tokens * (self.products[0].top_k + 1) * self.hidden if self.fused else 0


@dataclass(frozen=True)
class Kind:
    """Calls that are alike: how many a step makes of them, and the names of their weights."""

    call: Call
    count: int
    names: tuple[str, ...]


def kinds_of(plan: ModelPlan) -> list[Kind]:
    """The distinct calls of a step of `plan`, in the order in which a token meets them."""
    counts: dict[Call, int] = {}
    names: dict[Call, dict[str, None]] = {}

    def add(call: Call, count: int, weights: Sequence[Weight]) -> None:
        counts[call] = counts.get(call, 0) + count
        for weight in weights:
            bare = weight.name.removeprefix("experts.")
            label = f"{_LABELS.get(weight.component, weight.component)} {bare}"
            if weight.name == weight.component:
                label = "tied head" if weight.component == "embedding" else bare
            names.setdefault(call, {})[label] = None

    layers = [(layer.block, layer.count, layer.top_k) for layer in plan.inventory.layers]
    for block, count, top_k in [*layers, (plan.inventory.outside, 1, 0)]:
        matrices = [weight for weight in block.weights if weight.is_matrix]
        for weight in matrices:
            if weight.active is None:
                add(Call((_product(plan, weight),)), count * weight.copies, [weight])
        routed = [weight for weight in matrices if weight.active is not None]
        if [weight.name for weight in routed] in _FUSED:
            gated = len(routed) == 3
            up = _product(plan, routed[-2], top_k, rows=(1 + gated) * routed[-2].shape[0])
            down = _product(plan, routed[-1], top_k)
            add(Call((up, down), fused=True, gated=gated), count, routed)
        else:
            for weight in routed:
                add(Call((_product(plan, weight, top_k),)), count, [weight])
    return [Kind(call, count, tuple(names[call])) for call, count in counts.items()]


def _product(plan: ModelPlan, weight: Weight, top_k: int = 1, rows: int | None = None) -> Product:
    routed = weight.active is not None
    return Product(
        plan.format_of(weight).name,
        weight.shape[0] if rows is None else rows,
        weight.shape[1],
        weight.copies if routed else 0,
        top_k if routed else 1,
    )
