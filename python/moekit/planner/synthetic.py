"""A model of a plan's shape with arbitrary weights: what `--verify` runs when there are none.

Only the matrices are made (norms, caches and softmaxes are left out of the run and of its
prediction alike), and as many layers as a budget of weights allows: every layer of a kind is alike,
so a few stand for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .tensors import Block, Inventory, Layer, Weight

if TYPE_CHECKING:
    from .plan import ModelPlan

WEIGHT_BUDGET = 1_000_000_000  # 2 GB in bf16: far beyond any cache
# what `ops.moe_ffn` takes as one block; other experts run as grouped products
_FUSED = (["experts.gate", "experts.up", "experts.down"], ["experts.up", "experts.down"])
_ROUTINGS = 16  # steps choose other experts in turn, or a cache would hold the few of one step


def shrink(plan: ModelPlan, budget: int = WEIGHT_BUDGET) -> ModelPlan:
    """The plan with its matrices only and no more layers than `budget` weights hold.

    Raises RuntimeError when even one layer of each kind is too large to be made.
    """
    layers = [
        replace(layer, block=Block(tuple(w for w in layer.block.weights if w.is_matrix)))
        for layer in plan.inventory.layers
        if not layer.mtp
    ]
    total = sum(_weights(layer) * layer.count for layer in layers)
    scale = min(1.0, budget / max(total, 1))
    layers = [replace(layer, count=max(1, int(layer.count * scale))) for layer in layers]
    needed = sum(_weights(layer) * layer.count for layer in layers)
    if needed > 4 * budget:
        raise RuntimeError(
            f"[verify] one layer of each kind of {plan.name or plan.inventory.model_type} has "
            f"{needed:,} weights; at most {4 * budget:,} are made for a measurement"
        )
    head = tuple(
        w for w in plan.inventory.outside.weights if w.is_matrix and w.total <= budget // 4
    )
    inventory = Inventory(
        plan.inventory.model_type, layers, Block(head), plan.inventory.hidden, tied=False
    )
    return replace(plan, inventory=inventory, context=0)


def _weights(layer: Layer) -> int:
    return sum(weight.total for weight in layer.block.weights)


class SyntheticModel:
    """The matrices of a shrunken plan, packed, and the calls that use them."""

    def __init__(self, plan: ModelPlan, seed: int = 0) -> None:
        import numpy as np

        self._rng = np.random.default_rng(seed)
        self._sample = self._rng.standard_normal(1 << 22, dtype=np.float32) * 0.02
        self.plan = plan
        self.hidden = plan.inventory.hidden
        self._inputs: dict[tuple[int, int], Any] = {}
        self._calls: list[Callable[[int], None]] = []
        for layer in plan.inventory.layers:
            for _ in range(layer.count):
                self._add(layer.block, layer.experts, layer.top_k)
        self._add(plan.inventory.outside, 0, 0)

    def step(self, tokens: int) -> list[Callable[[], None]]:
        """The kernel calls that pass `tokens` tokens through every matrix, layer by layer."""
        return [partial(call, tokens) for call in self._calls]

    def _add(self, block: Block, experts: int, top_k: int) -> None:
        routed = [w for w in block.weights if w.active is not None]
        for weight in block.weights:
            if weight.active is None:
                self._calls.append(self._dense(weight))
        names = [w.name for w in routed]
        if names in (
            ["experts.gate", "experts.up", "experts.down"],
            ["experts.up", "experts.down"],
        ):
            self._calls.append(self._block(routed, experts, top_k))
        else:
            self._calls += [self._grouped(w, experts, top_k) for w in routed]

    def _pack(self, weight: Weight, copies: int) -> Any:
        import numpy as np

        from moekit import ops

        rows, cols = weight.shape
        name = self.plan.format_of(weight).name
        shape = (copies, rows, cols) if copies > 1 or weight.active is not None else (rows, cols)
        packed = ops.PackedWeight.empty(name, shape)
        # one block of random values everywhere: packing and products take the time they take
        matrix = np.resize(self._sample, rows * cols).reshape(rows, cols)
        for expert in range(copies):
            packed.fill(expert, matrix)
        return packed

    def _input(self, tokens: int, cols: int) -> Any:
        import numpy as np

        key = (tokens, cols)
        if key not in self._inputs:
            self._inputs[key] = self._rng.standard_normal(key, dtype=np.float32)
        return self._inputs[key]

    def _choices(self, tokens: int, experts: int, top_k: int) -> Any:
        """Uniform routing: each token's own K of E, which is what a plan assumes."""
        import numpy as np

        scores = self._rng.random((tokens, experts), dtype=np.float32)
        return np.argpartition(scores, top_k - 1, axis=1)[:, :top_k].astype(np.int32)

    def _dense(self, weight: Weight) -> Callable[[int], None]:
        from moekit import ops

        packed, cols = self._pack(weight, 1), weight.shape[1]

        def call(tokens: int) -> None:
            ops.matmul(self._input(tokens, cols), packed)

        return call

    def _block(self, routed: list[Weight], experts: int, top_k: int) -> Callable[[int], None]:
        import numpy as np

        ops: Any = import_module("moekit.ops")
        packed = [self._pack(weight, experts) for weight in routed]
        gate, up, down = packed if len(packed) == 3 else (None, *packed)
        bank = ops.Experts(gate, up, down)
        cols = routed[0].shape[1]

        def route(tokens: int) -> Any:
            picked = self._choices(tokens, experts, top_k)
            return ops.Assignment(picked, np.full(picked.shape, 1.0 / top_k, np.float32))

        turns = _Turns(route)

        def call(tokens: int) -> None:
            ops.moe_ffn(self._input(tokens, cols), turns.next(tokens), bank)

        return call

    def _grouped(self, weight: Weight, experts: int, top_k: int) -> Callable[[int], None]:
        import numpy as np

        from moekit import ops

        packed, cols = self._pack(weight, experts), weight.shape[1]

        def segments(tokens: int) -> Any:
            chosen = self._choices(tokens, experts, top_k).ravel()
            return np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=experts))])

        turns = _Turns(segments)

        def call(tokens: int) -> None:
            ops.grouped_matmul(self._input(tokens * top_k, cols), packed, turns.next(tokens))

        return call


class _Turns:
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
