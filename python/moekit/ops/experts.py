"""The experts of a layer and the fused mixture-of-experts block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np

from moekit import _core
from moekit.ops.arrays import Float32, Int32, as_count, as_float32, check_type
from moekit.ops.assignment import Assignment
from moekit.ops.watched import Watched
from moekit.ops.weights import Formats, PackedWeight, pack

# (rows, their experts' ids in the bank, the bank) -> what these rows get.
Call: TypeAlias = "Callable[[slice, Int32, _core.ExpertBank], Float32]"


class Experts(Watched):
    """E feed-forward experts: ``down · (act(gate · x) * (up · x))``.

    Args:
        gate: [E, F, H] array or :class:`PackedWeight`; None for experts without a gate, which are
            ``down · act(up · x)``.
        up: [E, F, H].
        down: [E, H, F].
        format: what arrays are packed into; one name, or one for each expert.
        activation: ``silu``, ``gelu``, ``gelu_tanh``, ``relu``, ``relu2``, ``identity``, or
            ``swiglu_oai`` (gpt-oss: ``g · sigmoid(1.702 g) · (u + 1)``).
        limit: where positive, the gate is clamped to at most ``limit`` and up to ±``limit`` first.
        gate_bias, up_bias: float32 [E, F]. down_bias: float32 [E, H].

    A dense feed-forward layer, or a shared expert, is the same with E = 1 (or two-dimensional
    weights). Raises ValueError where shapes do not fit together.
    """

    #: Has a bank other numbers for the experts than the caller?
    renumbers: ClassVar[bool] = False

    def __init__(
        self,
        gate: Any,
        up: Any,
        down: Any,
        format: Formats = "bf16",
        activation: str = "silu",
        *,
        limit: float = 0.0,
        gate_bias: Any = None,
        up_bias: Any = None,
        down_bias: Any = None,
    ) -> None:
        self.gate = None if gate is None else _packed(gate, format)
        self.up = _packed(up, format)
        self.down = _packed(down, format)
        self.activation = activation
        self.limit = limit
        self.gate_bias = _bias(gate_bias, "gate_bias")
        self.up_bias = _bias(up_bias, "up_bias")
        self.down_bias = _bias(down_bias, "down_bias")
        self._check()
        self._banks: dict[str, _core.ExpertBank] = {}
        self.bank(activation)

    def _check(self) -> None:
        up, down = self.up.core, self.down.core
        if self.gate is not None:
            gate = self.gate.core
            if (gate.experts, gate.rows, gate.cols) != (up.experts, up.rows, up.cols):
                raise ValueError(
                    f"[experts] gate has shape {list(self.gate.shape)}; up {list(self.up.shape)}"
                )
            if self.gate.format != self.up.format:
                raise ValueError(
                    f"[experts] gate is {self.gate.format}, up {self.up.format}; one format is "
                    "required, they are read together"
                )
        if (down.experts, down.rows, down.cols) != (up.experts, up.cols, up.rows):
            raise ValueError(
                f"[experts] down has shape {list(self.down.shape)}; "
                f"{[up.experts, up.cols, up.rows]} is required for up {list(self.up.shape)}"
            )

    def rebind(self) -> None:
        """Take notice of weights that were exchanged; ValueError where they do not fit."""
        self._check()
        self._banks = {}
        self.bank(self.activation)

    def bank(self, activation: str) -> _core.ExpertBank:
        """What the core reads, for one activation function."""
        if activation not in self._banks:
            self._banks[activation] = _core.ExpertBank(
                None if self.gate is None else self.gate.core,
                self.up.core,
                self.down.core,
                self.gate_bias,
                self.up_bias,
                self.down_bias,
                activation,
                self.limit,
            )
        return self._banks[activation]

    def run(self, chosen: Int32, activation: str, call: Call) -> Float32:
        """`call` with the bank that has the experts `chosen` [T, K]."""
        return call(slice(None), chosen, self.bank(activation))

    @property
    def count(self) -> int:
        """E."""
        return self.up.core.experts

    @property
    def hidden(self) -> int:
        """H."""
        return self.up.core.cols

    @property
    def inter(self) -> int:
        """F."""
        return self.up.core.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        gate = 0 if self.gate is None else self.gate.nbytes
        return gate + self.up.nbytes + self.down.nbytes

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Experts(E={self.count}, F={self.inter}, H={self.hidden}, {self.up.format})"


def _packed(weight: Any, format: Formats) -> PackedWeight:
    return weight if isinstance(weight, PackedWeight) else pack(weight, format)


def _bias(bias: Any, name: str) -> Float32 | None:
    if bias is None:
        return None
    array = as_float32(bias, "experts", name, (1, 2))
    return array.reshape(1, -1) if array.ndim == 1 else array


def moe_ffn(
    x: Any,
    assignment: Assignment,
    experts: Experts,
    *,
    activation: str | None = None,
    shared: Experts | None = None,
    shared_scale: Any = None,
    compute: str = "auto",
    zero_experts: int = 0,
    tally: _core.ExpertTally | None = None,
    layer: int = 0,
) -> Float32:
    """The fused block, one call and one parallel region: float32 [T, H].

    ``out[t] = sum over slots of weight · expert(x[t])``, in slot order, plus
    ``shared_scale[t] · shared(x[t])``. Empty slots (-1) add nothing.

    Args:
        x: [T, H].
        assignment: which experts, with which weights ([T, K]), as :func:`route` gives it.
        experts: the routed experts.
        activation: None for the experts' own.
        shared: experts that every token goes to (their outputs are added).
        shared_scale: float32 [T]; None is 1.
        compute: ``"exact"``, ``"fast"`` or ``"auto"``, as in :func:`matmul`.
        zero_experts: how many ids after the experts' own give the token back as it is, times its
            weight (zero-computation experts: Jin et al. 2024, MoE++; LongCat-Flash).
        tally: what the assignment is counted in, as that of its row ``layer``.

    A token's bytes do not depend on the rest of the batch or on the number of threads. Raises
    ValueError where shapes do not fit or an id is not an expert's.
    """
    check_type(assignment, Assignment, "moe_ffn", "assignment")
    check_type(experts, Experts, "moe_ffn", "experts")
    if shared is not None:
        check_type(shared, Experts, "moe_ffn", "shared")
    rows = as_float32(x, "moe_ffn", "x", 2)
    scale = None if shared_scale is None else as_float32(shared_scale, "moe_ffn", "shared_scale", 1)
    chosen, kept = assignment.experts, None
    if as_count(zero_experts, "moe_ffn", "zero_experts"):
        chosen, kept = _without_zero_experts(assignment, experts.count, zero_experts)
    if tally is not None and (zero_experts or experts.renumbers):
        tally.count(layer, assignment.experts)
        tally = None
    scores, on_input = assignment.weights, assignment.on_input
    beside = None if shared is None else shared.bank(shared.activation)

    def run(part: slice, ids: Int32, bank: _core.ExpertBank) -> Float32:
        factor = None if scale is None else scale[part]
        return _core.moe_ffn(
            rows[part], ids, scores[part], on_input, bank, beside, factor, compute, tally, layer
        )

    out = experts.run(chosen, activation or experts.activation, run)
    if kept is not None:
        out += kept[:, None] * rows
    return out


def _without_zero_experts(
    assignment: Assignment, count: int, zero_experts: int
) -> tuple[Int32, Float32]:
    """The choice with zero experts as empty slots, and their weights' sum [T] in slot order."""
    ids = assignment.experts
    if int(ids.max(initial=-1)) >= count + zero_experts:
        token, slot = (int(i) for i in np.argwhere(ids >= count + zero_experts)[0])
        raise ValueError(
            f"[moe_ffn] token {token}, slot {slot} has expert {ids[token, slot]}; there are "
            f"{count} and {zero_experts} zero experts"
        )
    zero = ids >= count
    weights = np.where(zero, assignment.weights, np.float32(0))
    kept: Float32 = np.zeros(len(ids), np.float32)
    for slot in range(ids.shape[1]):
        kept += weights[:, slot]
    return np.where(zero, np.int32(-1), ids), kept
