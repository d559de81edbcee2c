"""What a router gives: which experts every token goes to, with which weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moekit import _core
from moekit.ops.arrays import Array, Float32, Int32, Int64, as_count, as_float32, as_integers

_NONE_DROPPED = np.int64(0)  # made once: a layer makes an assignment at every token


class Assignment:
    """Which experts each token goes to, and with which weights.

    Args:
        experts: int32 [T, K]; -1 is an empty slot.
        weights: float32 [T, K]; 0 in an empty slot.
        expert_count: E, for :attr:`counts`; without it the largest id that occurs, plus one.
        on_input: the weights scale the experts' inputs (Llama 4) instead of their outputs.

    Raises ValueError where the shapes differ or an id is below -1 or not below E.
    """

    __slots__ = ("dropped", "expert_count", "experts", "on_input", "origin", "weights")

    experts: Int32
    weights: Float32
    #: E.
    expert_count: int
    #: How many slots lost their expert to a limited capacity.
    dropped: np.int64
    on_input: bool

    def __init__(
        self,
        experts: Any,
        weights: Any,
        *,
        expert_count: int | None = None,
        on_input: bool = False,
    ) -> None:
        self.experts = as_integers(experts, "assignment", "experts", np.int32, 2)
        self.weights = as_float32(weights, "assignment", "weights", 2)
        if self.experts.shape != self.weights.shape:
            raise ValueError(
                f"[assignment] experts has shape {list(self.experts.shape)}; "
                f"weights {list(self.weights.shape)}"
            )
        highest = int(self.experts.max(initial=-1))
        if expert_count is None:
            self.expert_count = highest + 1
        else:
            self.expert_count = as_count(expert_count, "assignment", "expert_count")
        if int(self.experts.min(initial=-1)) < -1 or highest >= self.expert_count:
            bad = (self.experts < -1) | (self.experts >= self.expert_count)
            token, slot = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"[assignment] token {token}, slot {slot} has expert "
                f"{self.experts[token, slot]}; -1 (empty) or 0 to {self.expert_count - 1} "
                "is required"
            )
        self.on_input = on_input
        self.dropped = _NONE_DROPPED
        self.origin: Origin | None = None

    @classmethod
    def trusted(cls, experts: Int32, weights: Float32, expert_count: int, rule: Any) -> Assignment:
        """What the core has just made: nothing to check."""
        self = cls.__new__(cls)
        self.experts, self.weights, self.expert_count = experts, weights, expert_count
        self.on_input = rule.weighs_input
        self.dropped = _NONE_DROPPED
        self.origin = None
        return self

    @property
    def counts(self) -> Int64:
        """int64 [E]: how many slots each expert has."""
        ids = self.experts.ravel()
        return np.bincount(ids[ids >= 0], minlength=self.expert_count).astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.experts)

    def __repr__(self) -> str:
        tokens, k = self.experts.shape
        return f"Assignment({tokens} tokens x {k} of {self.expert_count} experts)"


class Origin(NamedTuple):
    """What an assignment was made from, so that a capacity limit can look for the next best."""

    logits: Float32
    rule: _core.RouterRule
    select_bias: Float32 | None
    noise: Float32 | None
    mask: Array | None
