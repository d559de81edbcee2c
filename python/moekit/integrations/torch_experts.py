"""Experts whose weights are torch tensors: watched, packed, and run on torch's activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from moekit import _core, ops
from moekit.ops.arrays import Float32, Int32

from .gates import Function, Gate, recognise_activation, recognise_gate

# The format that keeps the weights' own numbers.
OWN_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# Numbers of all the tensors that are watched together, and of one of them.
_SAMPLES = 64
_MOST_SAMPLES = 1024
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NotRunnable(RuntimeError):
    """Experts that the core cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class TorchExperts:
    """E experts as a torch module holds them.

    ``matrix(part, e)`` gives expert e's "first" [2F or F, H] or "down" [H, F], in any strides;
    ``first`` are gate and up together ([F, H] where there is no gate). ``format`` keeps the
    weights' own numbers, ``down_format`` where those of "down" differ.
    """

    count: int
    inter: int
    hidden: int
    format: str
    gated: bool
    matrix: Callable[[str, int], torch.Tensor]
    first_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    down_format: str | None = None
    # The same as the core's own bytes in that format, where they lose nothing.
    blocks: Callable[[str, int], npt.NDArray[np.uint8] | None] | None = None

    def fill(
        self, packed: ops.PackedWeight, part: str, expert: int, rows: slice = slice(None)
    ) -> None:
        """Packs some rows of an expert's part."""
        if self.blocks is not None and packed.expert_format(expert) == "fp8":
            found = self.blocks(part, expert)
            if found is not None:
                packed.fill_blocks(expert, found[rows])
                return
        packed.fill(expert, self.matrix(part, expert)[rows].contiguous())


@dataclass(frozen=True, slots=True)
class Functions:
    """What a module does between its products.

    ``gate`` maps [n, 2F] (or [n, F] without a gate) to [n, F], ``after`` what "down" gives.
    ``fixed`` says that ``gate`` has no parameters of its own, which may change.
    """

    gate: Function
    after: Function | None = None
    fixed: bool = True

    @classmethod
    def gated(cls, act_fn: Function) -> Functions:
        """``act_fn`` of the first half times the second one."""

        def gate(gate_up: torch.Tensor) -> torch.Tensor:
            first, second = gate_up.chunk(2, dim=-1)
            return act_fn(first) * second

        return cls(gate, fixed=is_fixed(act_fn))


def is_fixed(function: object) -> bool:
    """Whether ``function`` has no parameters."""
    return not isinstance(function, torch.nn.Module) or not any(True for _ in function.parameters())


class Watched:
    """Recognises a tensor whose memory or numbers have changed since it was packed.

    Beside address and version: the storage itself, since an address is used again after a tensor
    was freed, and some of the numbers, one in each expert's matrices, since neither
    ``p.data.add_()`` nor a tensor that was made in inference mode counts versions.
    """

    __slots__ = ("_pointer", "_print", "_storage", "_version")

    def __init__(self, tensor: torch.Tensor, among: int = 1) -> None:
        """``among`` tensors are watched together; more of them are sampled less."""
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._pointer = tensor.data_ptr()
        self._version = -1 if tensor.is_inference() else tensor._version
        pieces = max(1, _SAMPLES // among)
        if tensor.ndim == 3 and 0 < len(tensor) <= _MOST_SAMPLES:  # as many in each expert
            pieces = len(tensor) * -(-pieces // len(tensor))
        bits = tensor.detach().view(_BITS[tensor.element_size()])
        self._print = _core.Fingerprint(to_dlpack(bits), pieces)

    def same(self, tensor: torch.Tensor) -> bool:
        """Whether this is the tensor it was, with the numbers it had."""
        return (
            tensor.data_ptr() == self._pointer
            and (-1 if tensor.is_inference() else tensor._version) == self._version
            and tensor.untyped_storage()._cdata == self._storage.cdata
            # Last: the memory is this tensor's, and so it can be read.
            and self._print.same()
        )


def check_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """``tensor``, if its memory can be read; NotRunnable otherwise."""
    if type(tensor.data) is not torch.Tensor:
        kind = type(tensor.data).__name__
        raise NotRunnable(f"[moekit] {name} is a {kind}; a plain tensor is required")
    if tensor.device.type != "cpu":
        raise NotRunnable(f"[moekit] {name} is on device {tensor.device}; cpu is required")
    return tensor


class Fused:
    """Experts whose gate the core has: the whole block is one call."""

    def __init__(self, source: TorchExperts, gate: Gate, first: str, down: str) -> None:
        gate_rows, up_rows = self.halves = _halves(source, gate.interleaved)
        shape = (source.count, source.inter, source.hidden)
        packed_gate = ops.PackedWeight.empty(first, shape) if source.gated else None
        packed_up = ops.PackedWeight.empty(first, shape)
        packed_down = ops.PackedWeight.empty(down, (source.count, source.hidden, source.inter))
        for expert in range(source.count):
            if packed_gate is not None:
                source.fill(packed_gate, "first", expert, gate_rows)
            source.fill(packed_up, "first", expert, up_rows)
            source.fill(packed_down, "down", expert)
        bias = source.first_bias
        self.experts = ops.Experts(
            packed_gate,
            packed_up,
            packed_down,
            activation=gate.activation,
            limit=gate.limit,
            gate_bias=None if bias is None or not source.gated else bias[:, gate_rows],
            up_bias=None if bias is None else bias[:, up_rows],
            down_bias=source.down_bias,
        )
        self._bank = self.experts.bank(gate.activation)

    @property
    def count(self) -> int:
        """E."""
        return self.experts.count

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.experts.nbytes

    def __call__(
        self, x: Float32, assignment: ops.Assignment, functions: Callable[[], Functions]
    ) -> Float32:
        return ops.moe_ffn(x, assignment, self.experts)

    def on_tensors(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, on_input: bool
    ) -> torch.Tensor:
        """The same from and to torch's memory, in one call: [..., H] like ``x``.

        Slots [T, K] as ``assignment_of`` takes them.
        """
        # Each call of torch costs several times what it does in a loop of its own: the experts'
        # weights have driven its code out of the caches since the last layer.
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        _core.moe_ffn_plain(
            to_dlpack(_plain(x)),
            to_dlpack(ids.contiguous() if ids.dtype is torch.int64 else _integers(ids)),
            to_dlpack(_plain(weights)),
            on_input,
            self._bank,
            to_dlpack(out),
            torch.get_num_threads(),
        )
        return out


def _integers(ids: torch.Tensor) -> torch.Tensor:
    """Expert ids as contiguous int64; TypeError for what is no integer."""
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"[moekit] expert ids are {ids.dtype}; integers are required")
    return ids.long().contiguous()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers as memory holds them: contiguous, no sign kept aside."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


class Staged:
    """Experts with a gate (or a norm behind them) of their own: the core multiplies, and the
    module's own function runs between."""

    def __init__(self, source: TorchExperts, first: str, down: str) -> None:
        rows = source.inter * (2 if source.gated else 1)
        self.count = source.count
        self.first = ops.PackedWeight.empty(first, (source.count, rows, source.hidden))
        self.down = ops.PackedWeight.empty(down, (source.count, source.hidden, source.inter))
        for expert in range(source.count):
            source.fill(self.first, "first", expert)
            source.fill(self.down, "down", expert)
        self.first_bias = _numbers(source.first_bias)
        self.down_bias = _numbers(source.down_bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.first.nbytes + self.down.nbytes

    def __call__(
        self, x: Float32, assignment: ops.Assignment, functions: Callable[[], Functions]
    ) -> Float32:
        # Asked for at every call: kept here, they would keep their module alive.
        own = functions()
        plan = ops.plan(assignment, self.count)
        rows = ops.permute(x, plan)
        if assignment.on_input:
            rows = rows * assignment.weights[plan.rows, plan.slots, None]
        rows = self._product(rows, self.first, self.first_bias, plan)
        rows = self._torch(own.gate, rows)
        rows = self._product(rows, self.down, self.down_bias, plan)
        if own.after is not None:
            rows = self._torch(own.after, rows)
        return ops.combine(rows, plan, assignment)

    @staticmethod
    def _product(
        rows: Float32, weight: ops.PackedWeight, bias: Float32 | None, plan: ops.Plan
    ) -> Float32:
        out = ops.grouped_matmul(rows, weight, plan.offsets)
        if bias is not None:
            out += np.repeat(bias, np.diff(plan.offsets), axis=0)
        return out

    @staticmethod
    def _torch(function: Function, rows: Float32) -> Float32:
        with torch.no_grad():
            out: Float32 = function(torch.from_numpy(rows)).float().numpy()
        return out


Runner = Fused | Staged


def pack(source: TorchExperts, functions: Functions, format: str | None) -> Runner:
    """Packs the experts into ``format``; None keeps the weights' own numbers."""
    first = format or source.format
    down = format or source.down_format or first
    with torch.no_grad():
        gate = None
        if functions.after is None and functions.fixed:
            gate = _recognise(source, functions.gate)
        if gate is None:
            return Staged(source, first, down)
        return Fused(source, gate, first, down)


def _recognise(source: TorchExperts, function: Function) -> Gate | None:
    if source.gated:
        return recognise_gate(function, source.inter)
    activation = recognise_activation(function, source.inter)
    return None if activation is None else Gate(activation)


def _halves(source: TorchExperts, interleaved: bool) -> tuple[slice, slice]:
    if not source.gated:
        return slice(0), slice(None)
    if interleaved:
        return slice(0, None, 2), slice(1, None, 2)
    return slice(source.inter), slice(source.inter, None)


def _numbers(bias: torch.Tensor | None) -> Float32 | None:
    return None if bias is None else bias.detach().float().numpy()


def assignment_of(
    ids: torch.Tensor, weights: torch.Tensor, count: int, on_input: bool = False
) -> ops.Assignment:
    """Slots [T, K]; an id that equals ``count`` is an empty one. ValueError for other ids,
    TypeError for what is no integer."""
    given = _integers(ids.detach()).numpy()
    experts: Int32 = given.astype(np.int32)
    if given.size:
        low, high = int(given.min()), int(given.max())
        if low < 0 or high > count:
            wrong = low if low < 0 else high
            raise ValueError(f"[moekit] an expert id is {wrong}; 0 to {count} is required")
        if high == count:
            experts[experts == count] = -1
    return ops.Assignment(
        experts, weights.detach().float().numpy(), expert_count=count, on_input=on_input
    )
