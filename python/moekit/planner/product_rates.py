"""What each kind of product of a step reaches on this machine: bytes/s and FLOP/s by shape.

A small matrix is not a large one in little: its call, the conversion of its rows of activations and
the memory of its results weigh beside the multiplication, a depth that is no multiple of a block is
padded, and a model that fits a cache is read from it. So every shape is measured as the plain
product that it is, alone and over as many bytes as the model has; how a model is put together stays
with the prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .kernel_calls import Kind, Product
from .synthetic import Matrices, product_call

Clock = Callable[[], float]
_SUMMED_TOKENS = 128  # of the weighted sum's rate: it is a part of a call, its own call is none
_LOW = 0.02  # of the times of a call: free of interruptions, and of many no single lucky one


def low_time(samples: list[float]) -> float:
    """The second percentile: what the machine does when it does nothing else."""
    ordered = sorted(samples)
    return ordered[int(_LOW * (len(ordered) - 1))]


def timed(clock: Clock, run: Callable[[], Any]) -> float:
    start = clock()
    run()
    return clock() - start


@dataclass(frozen=True)
class Term:
    """A line of the prediction: `calls` a step of one kind, and what each of them takes."""

    names: tuple[str, ...]
    calls: int
    product: Product | None  # None: the weighted sum of the experts' rows
    nbytes: float
    flops: float
    seconds: float  # of one call

    @property
    def total(self) -> float:
        return self.calls * self.seconds

    def to_dict(self) -> dict[str, Any]:
        shape = [] if self.product is None else [self.product.rows, self.product.cols]
        return {
            "names": list(self.names),
            "calls": self.calls,
            "shape": shape,
            "format": None if self.product is None else self.product.format,
            "experts": 0 if self.product is None else self.product.experts,
            "top_k": 0 if self.product is None else self.product.top_k,
            "bytes": self.nbytes,
            "flops": self.flops,
            "seconds": self.seconds,
            "bytes_per_second": self.nbytes / self.seconds,
            "flops_per_second": self.flops / self.seconds,
        }


class ProductRates:
    """Times of the distinct products of a step, taken a pass at a time.

    `share` of the model's matrices are made for it: all, or enough to overflow any cache.
    """

    def __init__(
        self, kinds: list[Kind], share: float, resident: float, clock: Clock, make: Matrices
    ) -> None:
        self.kinds = kinds
        self._clock = clock
        self._matrices = make
        self._calls: dict[Product, list[Callable[[int], None]]] = {}
        self._combines = {
            kind.call.products[0]: _Combine(self._matrices, kind.call.products[0])
            for kind in kinds
            if kind.call.fused
        }
        self._times: dict[tuple[Product, int], list[float]] = {}
        self._combine_times: dict[tuple[Product, int], list[float]] = {}
        for kind in kinds:
            for product in kind.call.products:
                calls = self._calls.setdefault(product, [])
                part = min(1.0, share * kind.count) * resident
                for _ in range(max(1, round(kind.count * share))):
                    calls.append(product_call(self._matrices, product, part))

    def measure(self, tokens: int) -> None:
        """One pass over all matrices with `tokens` rows for each token's products."""
        for product, calls in self._calls.items():
            times = self._times.setdefault((product, tokens), [])
            times += [timed(self._clock, partial(call, tokens)) for call in calls]
        for product, combine in self._combines.items():
            times = self._combine_times.setdefault((product, tokens), [])
            times.append(timed(self._clock, partial(combine, _SUMMED_TOKENS)))

    def forget(self, tokens: int) -> None:
        """Drops what was measured with `tokens`."""
        for times in (self._times, self._combine_times):
            for key in [key for key in times if key[1] == tokens]:
                del times[key]

    def terms(self, tokens: int) -> list[Term]:
        """The prediction for a step of `tokens`, a line for each kind of product."""
        lines = []
        for kind in self.kinds:
            for i, product in enumerate(kind.call.products):
                names = kind.names
                if kind.call.fused:
                    names = names[:-1] if i == 0 else names[-1:]
                seconds = low_time(self._times[product, tokens])
                nbytes = _read_bytes(product, tokens)
                lines.append(
                    Term(names, kind.count, product, nbytes, product.flops(tokens), seconds)
                )
            if kind.call.fused:
                moved = kind.call.combined_bytes(tokens)
                rate = kind.call.combined_bytes(_SUMMED_TOKENS) / low_time(
                    self._combine_times[kind.call.products[0], tokens]
                )
                lines.append(Term(("weighted sum",), kind.count, None, moved, 0.0, moved / rate))
        return lines


def _read_bytes(product: Product, tokens: int) -> float:
    """Bytes of the matrices that `tokens` tokens wake."""
    from .roofline import distinct_experts

    if not product.experts:
        return product.nbytes
    one = product.nbytes / product.top_k
    return one * distinct_experts(product.experts, product.top_k, tokens)


class _Combine:
    """The weighted sum of the experts' rows, alone."""

    def __init__(self, make: Matrices, product: Product) -> None:
        self._make, self._product = make, product
        self._made: dict[int, Any] = {}

    def __call__(self, tokens: int) -> None:
        import numpy as np

        from moekit import ops

        product = self._product
        if tokens not in self._made:
            picked = self._make.choices(tokens, product.experts, product.top_k)
            weights = np.full(picked.shape, 1.0 / product.top_k, np.float32)
            assignment = ops.Assignment(picked, weights)
            self._made[tokens] = ops.plan(assignment, product.experts), assignment
        plan, assignment = self._made[tokens]
        ops.combine(self._make.input(tokens * product.top_k, product.cols), plan, assignment)
