"""A model of a plan's shape with arbitrary weights: what `--verify` runs when there are none.

Only the matrices are made (norms, caches and softmaxes are left out of the run and of its
prediction alike), and as many layers as a budget of weights allows: every layer of a kind is alike,
so a few stand for all. Where one layer is beyond the budget, its experts share the memory of fewer:
each is still read, multiplied and chosen as one of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .kernel_calls import Call, Kind, Product, kinds_of
from .tensors import Block, Inventory, Layer

if TYPE_CHECKING:
    from .plan import ModelPlan

WEIGHT_BUDGET = 1_000_000_000  # 2 GB in bf16: far beyond any cache
_ROUTINGS = 16  # calls choose other experts in turn, or a cache would hold the few of one step


def shrink(plan: ModelPlan, budget: int = WEIGHT_BUDGET) -> ModelPlan:
    """The plan with its matrices only and no more layers than `budget` weights hold.

    At least one layer of each kind stays, whatever its size: see `resident_share`.
    """
    layers = [
        replace(layer, block=Block(tuple(w for w in layer.block.weights if w.is_matrix)))
        for layer in plan.inventory.layers
        if not layer.mtp
    ]
    total = sum(_weights(layer) * layer.count for layer in layers)
    scale = min(1.0, budget / max(total, 1))
    layers = [replace(layer, count=max(1, int(layer.count * scale))) for layer in layers]
    head = tuple(
        w for w in plan.inventory.outside.weights if w.is_matrix and w.total <= budget // 4
    )
    inventory = Inventory(
        plan.inventory.model_type, layers, Block(head), plan.inventory.hidden, tied=False
    )
    return replace(plan, inventory=inventory, context=0)


def _weights(layer: Layer) -> int:
    return sum(weight.total for weight in layer.block.weights)


def resident_share(plan: ModelPlan, budget: int) -> float:
    """The share of its experts that a shrunken plan has memory of its own for."""
    routed = plan.components["routed"]
    rest = plan.total_params - routed
    return min(1.0, max(0.0, budget - rest) / routed) if routed else 1.0


class Matrices:
    """Packs matrices of arbitrary values: each shape once, the others are copies of its bytes."""

    def __init__(self, seed: int = 0) -> None:
        import numpy as np

        self.rng = np.random.default_rng(seed)
        self._sample = self.rng.standard_normal(1 << 20, dtype=np.float32) * 0.02
        self._bytes: dict[tuple[str, int, int], Any] = {}
        self._inputs: dict[tuple[int, int], Any] = {}
        self.nbytes = 0

    def pack(self, format: str, rows: int, cols: int, experts: int = 0, resident: int = 0) -> Any:
        """A matrix, or a bank of `experts` on the memory of `resident` of them."""
        from moekit import ops

        made = min(experts, max(1, resident)) if experts else 1
        shape = (made, rows, cols) if experts else (rows, cols)
        packed = ops.PackedWeight.empty(format, shape)
        for i in range(made):
            self._fill(packed, i, (format, rows, cols))
        self.nbytes += packed.nbytes
        if made >= experts:
            return packed
        return ops.PackedWeight.gather([(packed, i % made) for i in range(experts)])

    def _fill(self, packed: Any, expert: int, key: tuple[str, int, int]) -> None:
        import numpy as np

        _, rows, cols = key
        if key in self._bytes:
            packed.fill_bytes(expert, self._bytes[key])
        else:
            packed.fill(expert, np.resize(self._sample, rows * cols).reshape(rows, cols))
            self._bytes[key] = packed.expert_bytes(expert)

    def input(self, rows: int, cols: int) -> Any:
        """Arbitrary activations [rows, cols]."""
        import numpy as np

        key = (rows, cols)
        if key not in self._inputs:
            self._inputs[key] = self.rng.standard_normal(key, dtype=np.float32)
        return self._inputs[key]

    def choices(self, tokens: int, experts: int, top_k: int) -> Any:
        """Uniform routing: each token's own K of E, which is what a plan assumes."""
        import numpy as np

        if top_k >= experts:
            return np.tile(np.arange(experts, dtype=np.int32), (tokens, 1))
        scores = self.rng.random((tokens, experts), dtype=np.float32)
        return np.argpartition(scores, top_k - 1, axis=1)[:, :top_k].astype(np.int32)

    def segments(self, tokens: int, experts: int, top_k: int) -> Any:
        """The offsets of `choices` in the order of experts."""
        import numpy as np

        chosen = self.choices(tokens, experts, top_k).ravel()
        return np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=experts))])


class SyntheticModel:
    """The matrices of a shrunken plan, packed, and the calls that use them."""

    def __init__(self, plan: ModelPlan, budget: int = WEIGHT_BUDGET, seed: int = 0) -> None:
        self.plan = plan
        self.kinds: list[Kind] = kinds_of(plan)
        self.share = resident_share(plan, budget)
        self.matrices = Matrices(seed)
        self.calls: list[tuple[Call, Callable[[int], None]]] = []
        for kind in self.kinds:
            for _ in range(kind.count):
                self.calls.append((kind.call, self._callable(kind.call)))
        self.nbytes = self.matrices.nbytes  # of the packed weights

    def step(self, tokens: int) -> None:
        """Passes `tokens` tokens through every matrix."""
        for _, run in self.calls:
            run(tokens)

    def _callable(self, call: Call) -> Callable[[int], None]:
        if call.fused:
            return self._block(call)
        return product_call(self.matrices, call.products[0], self.share)

    def _block(self, call: Call) -> Callable[[int], None]:
        import numpy as np

        from moekit import ops

        up, down = call.products
        make = self.matrices
        resident = max(1, round(call.experts * self.share))
        width = up.rows // (1 + call.gated)
        sizes = (up.format, width, up.cols, call.experts, resident)
        bank = ops.Experts(
            make.pack(*sizes) if call.gated else None,
            make.pack(*sizes),
            make.pack(down.format, down.rows, down.cols, call.experts, resident),
        )

        def route(tokens: int) -> Any:
            picked = make.choices(tokens, call.experts, up.top_k)
            return ops.Assignment(picked, np.full(picked.shape, 1.0 / up.top_k, np.float32))

        turns = Turns(route)

        def run(tokens: int) -> None:
            ops.moe_ffn(make.input(tokens, up.cols), turns.next(tokens), bank)

        return run


def product_call(make: Matrices, product: Product, share: float) -> Callable[[int], None]:
    """One product on matrices of its own, as a function of the tokens."""
    from moekit import ops

    if not product.experts:
        packed = make.pack(product.format, product.rows, product.cols)

        def dense(tokens: int) -> None:
            ops.matmul(make.input(tokens, product.cols), packed)

        return dense
    resident = max(1, round(product.experts * share))
    bank = make.pack(product.format, product.rows, product.cols, product.experts, resident)
    turns = Turns(lambda tokens: make.segments(tokens, product.experts, product.top_k))

    def grouped(tokens: int) -> None:
        x = make.input(tokens * product.top_k, product.cols)
        ops.grouped_matmul(x, bank, turns.next(tokens))

    return grouped


class Turns:
    """Routings made once for each number of tokens and handed out in turn."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._made: dict[int, list[Any]] = {}
        self._at = 0

    def next(self, tokens: int) -> Any:
        if tokens not in self._made:
            self._made[tokens] = [self._make(tokens) for _ in range(_ROUTINGS)]
        self._at += 1
        return self._made[tokens][self._at % _ROUTINGS]
