"""What a layer is made of, as far as counting goes: weights, caches and attention spans.

A model is a handful of distinct layers, each with a repeat count, so counting a model of any depth
takes the same time and no weight is ever allocated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

# Order of the token's way; a plan lists its components in this order.
COMPONENTS = (
    "embedding",
    "attention",
    "recurrent",
    "router",
    "routed",
    "shared",
    "dense_ffn",
    "norms",
    "residual",
    "head",
)


@dataclass(frozen=True, slots=True)
class Weight:
    """`copies` tensors of one shape, of which a token uses `active`.

    A matrix [rows, cols] costs 2 * rows * cols FLOPs a token; a vector (norm, bias, sink) costs
    nothing worth counting and is never quantised; a lookup [rows, cols] reads one row a token.
    """

    component: str
    name: str
    shape: tuple[int, ...]
    copies: int = 1
    active: int | None = None
    lookup: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) > 1 and not self.lookup

    @property
    def active_copies(self) -> int:
        return self.copies if self.active is None else self.active

    @property
    def total(self) -> int:
        return self.size * self.copies

    @property
    def used(self) -> int:
        return self.size * self.active_copies


@dataclass(frozen=True, slots=True)
class Cache:
    """Elements kept for each cached token (one for every `rate` tokens) of one layer.

    `window` bounds the tokens kept (sliding window, or the chunk of chunked attention). A `ring`
    is a window kept beside a cache of the whole context: a constant, not a cost per token.
    """

    elements: int
    rate: int = 1
    window: int | None = None
    ring: bool = False
    index: bool = False  # keys of a sparse-attention indexer, apart from keys and values
    top: int | None = None  # entries that a token reads of those kept (sparse attention)

    def entries(self, context: int) -> int:
        kept = context if self.window is None else min(context, self.window)
        return kept // self.rate

    def total(self, context: int) -> int:
        return self.elements * self.entries(context)

    def read(self, context: int) -> int:
        """Elements read to attend from one token."""
        entries = self.entries(context)
        return self.elements * (entries if self.top is None else min(entries, self.top))


@dataclass(frozen=True, slots=True)
class Attend:
    """Work of one query token: `heads` * 2 * (`qk` + `v`) FLOPs for each cached entry it sees."""

    heads: int
    qk: int
    v: int
    rate: int = 1
    window: int | None = None
    top: int | None = None  # entries that a sparse indexer lets through
    expanded: int | None = None  # qk + v of prefill, where MLA attends with expanded heads

    def flops(self, context: int, *, prefill: bool = False) -> int:
        width = self.expanded if prefill and self.expanded else self.qk + self.v
        seen = context if self.window is None else min(context, self.window)
        seen //= self.rate
        if self.top is not None:
            seen = min(seen, self.top)
        return 2 * self.heads * width * seen


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a layer; blocks add up to layers."""

    weights: tuple[Weight, ...] = ()
    caches: tuple[Cache, ...] = ()
    attends: tuple[Attend, ...] = ()
    state: int = 0  # elements of recurrent state, whatever the context
    buffers: int = 0  # values a checkpoint holds that are no parameters (selection biases)

    def __add__(self, other: Block) -> Block:
        return Block(
            self.weights + other.weights,
            self.caches + other.caches,
            self.attends + other.attends,
            self.state + other.state,
            self.buffers + other.buffers,
        )

    def times(self, count: int) -> Block:
        """The block `count` times over (LongCat's two attentions in a layer)."""
        total = Block()
        for _ in range(count):
            total = total + self
        return total


@dataclass(frozen=True, slots=True)
class Layer:
    """A distinct layer and how often the model has it."""

    name: str
    block: Block
    count: int = 1
    experts: int = 0
    top_k: int = 0
    mtp: bool = False


@dataclass(slots=True)
class Inventory:
    """Everything counted: the layers plus what stands outside them."""

    model_type: str
    layers: list[Layer]
    outside: Block
    hidden: int
    tied: bool
    notes: list[str] = field(default_factory=list)

    def blocks(self, *, mtp: bool = False) -> Iterable[tuple[Block, int]]:
        """Blocks with their repeat count; the multi-token prediction layers only when asked."""
        if not mtp:
            yield self.outside, 1
        for layer in self.layers:
            if layer.mtp == mtp:
                yield layer.block, layer.count


def matrix(component: str, name: str, rows: int, cols: int, bias: bool = False) -> Block:
    """A projection of `cols` inputs to `rows` outputs."""
    weights = [Weight(component, name, (rows, cols))]
    if bias:
        weights.append(Weight(component, name + ".bias", (rows,)))
    return Block(tuple(weights))


def vector(component: str, name: str, size: int) -> Block:
    return Block((Weight(component, name, (size,)),))
