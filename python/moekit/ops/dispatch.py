"""The order in which experts see their tokens, the way there and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.arrays import Array, Float32, Int32, Int64, as_float32, check_type, to_numpy
from moekit.ops.assignment import Assignment


@dataclass(frozen=True, slots=True)
class Plan:
    """The order in which experts see their tokens.

    Attributes:
        offsets: int64 [E + 1]; expert e owns the sorted rows ``offsets[e]:offsets[e + 1]``.
        rows: int32 [n], the token of each sorted row.
        slots: int32 [n], its slot in the assignment.
    """

    offsets: Int64
    rows: Int32
    slots: Int32

    @property
    def counts(self) -> Int64:
        """int64 [E]: rows of each expert."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.rows)


def plan(assignment: Assignment, E: int) -> Plan:
    """Sorts an assignment's slots by expert; those of one expert keep the order (token, slot).

    Empty slots are left out. Raises ValueError naming the token and slot of an id that is none of
    the E experts.
    """
    check_type(assignment, Assignment, "plan", "assignment")
    return Plan(*_core.plan(assignment.experts, E))


def permute(x: Any, plan: Plan) -> Array:
    """The rows of x [T, …] in expert order: [n, …], of x's dtype.

    Raises ValueError if the plan names a token that x does not have.
    """
    check_type(plan, Plan, "permute", "plan")
    array = to_numpy(x, "permute", "x")
    if array.ndim == 0:
        raise ValueError("[permute] x has no dimensions; [T, ...] is required")
    shape = (len(plan.rows), *array.shape[1:])
    row_bytes = int(np.prod(array.shape[1:], dtype=np.int64)) * array.itemsize
    rows = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(len(array), row_bytes)
    gathered: Array = _core.permute(rows, plan.rows).view(array.dtype).reshape(shape)
    return gathered


def combine(y: Any, plan: Plan, assignment: Assignment) -> Float32:
    """The experts' outputs back at their tokens: float32 [T, H].

    ``out[t] = Σ_s weights[t, s] · y[i]`` where sorted row i is token t's slot s, added in the
    order of slots; 0 for a token without experts. Where the weights scale the experts' inputs
    (``assignment.on_input``) the outputs are added as they are.

    Args:
        y: [n, H], in the plan's order.

    Raises ValueError if y, plan and assignment do not belong together.
    """
    check_type(plan, Plan, "combine", "plan")
    check_type(assignment, Assignment, "combine", "assignment")
    rows = as_float32(y, "combine", "y", 2)
    weights = assignment.weights
    if assignment.on_input:
        weights = np.ones_like(weights)
    return _core.combine(rows, plan.rows, plan.slots, weights)
