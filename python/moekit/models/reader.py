"""A checkpoint's tensors as the parts of a model: one tensor at a time, read, packed, dropped.

A family asks for each weight by name and shape. What it asks for must be there in that shape, and
what is there must be asked for: a tensor too many is as much a sign of a wrong reading as one too
few.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import ops
from ..checkpoint import Weights
from ..errors import FileError
from ..nn import MLP, Experts, Linear, RMSNorm, Router
from ..ops import PackedWeight

Array = npt.NDArray[Any]

# Tensors that hold nothing a model would need: tables derived from the configuration.
_DERIVED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias)$")
# What `format=None` makes of stored dtypes and of quantisation schemes.
_KEPT_DTYPES = {"F32": "f32", "BF16": "bf16", "F16": "f16", "F64": "f32"}
# Dtypes of the embedding table; one that is stored quantised becomes bfloat16.
_TABLE_DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16}
_KEPT_SCHEMES = {"fp8": "fp8", "fp4": "int4", "mxfp4": "mxfp4", "gptq": "int4", "awq": "int4"}


@dataclass(frozen=True, slots=True)
class Formats:
    """The packed format of each class of weights; None keeps what the file holds.

    `embedding` is a dtype instead: rows of a table are looked up, not multiplied.
    """

    experts: str | None = None
    attention: str | None = None
    dense: str | None = None
    head: str | None = None
    embedding: str | None = None
    router: str = "f32"

    @classmethod
    def of(cls, format: str | None, router_format: str = "f32") -> "Formats":
        """One format for all large weights.

        Below 8 bits the head takes int8: it is read once a token, and its errors go straight into
        the logits. The table of embeddings has 16 bits wherever weights have 16 or fewer.
        """
        if format is None:
            return cls(router=router_format)
        bits = _bits_of(format)
        head = format if bits >= 8 else "int8"
        table = {"f32": "f32", "f16": "f16"}.get(format, "bf16")
        return cls(format, format, format, head, table, router_format)


def _bits_of(format: str) -> int:
    found = re.search(r"\d+", format)
    return int(found.group()) if found else 8


class Reader:
    """Hands out parts of a model from `weights` under `prefix`, and remembers what was used."""

    def __init__(
        self,
        weights: Weights,
        formats: Formats,
        progress: Callable[[int], None] | None = None,
        prefix: str = "",
        used: set[str] | None = None,
    ) -> None:
        self._weights = weights
        self.formats = formats
        self._progress = progress
        self._prefix = prefix
        self._used: set[str] = set() if used is None else used

    def under(self, prefix: str) -> "Reader":
        """A reader whose names all begin with `prefix` and a dot."""
        full = f"{self._prefix}{prefix}."
        return Reader(self._weights, self.formats, self._progress, full, self._used)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._weights

    def first_of(self, *names: str) -> str:
        """The first of several spellings that the file has, else the first one."""
        return next((name for name in names if name in self), names[0])

    def has_any(self, prefix: str) -> bool:
        """True if some tensor's name begins with `prefix`."""
        return any(name.startswith(self._prefix + prefix) for name in self._weights)

    def ignore(self, name: str) -> None:
        """Accept a tensor that is not needed."""
        self._used.add(self._prefix + name)

    # -- tensors ---------------------------------------------------------------------------

    def _claim(self, name: str, shape: Sequence[int]) -> str:
        """The full name of a tensor that must exist in this shape; counted as used."""
        full = self._prefix + name
        info = self._weights.info(full)
        if info.shape != tuple(shape):
            raise FileError(
                f"[load] {self._path}: tensor {full} has shape {list(info.shape)}; "
                f"{list(shape)} is required by config.json"
            )
        first = self._weights.checkpoint.info(next(iter(info.parts.values())))
        if info.scheme == "plain" and first.dtype not in _KEPT_DTYPES:
            raise FileError(
                f"[load] {self._path}: tensor {full} has dtype {first.dtype}; "
                f"one of {', '.join(_KEPT_DTYPES)} is required"
            )
        self._used.add(full)
        return full

    @property
    def _path(self) -> str:
        return self._weights.checkpoint.path

    def _done(self, nbytes: int) -> None:
        if self._progress is not None:
            self._progress(nbytes)

    def tensor(self, name: str, *shape: int) -> Array:
        """A small tensor in float32, such as the weight of a norm."""
        value = self._weights[self._claim(name, shape)]
        self._done(value.nbytes)
        return np.asarray(value, np.float32)

    def _stored_format(self, name: str) -> str:
        info = self._weights.info(self._prefix + name)
        if info.scheme != "plain":
            return _KEPT_SCHEMES[info.scheme]
        part = self._weights.checkpoint.info(info.parts["weight"])
        # Anything else is refused where the tensor is claimed.
        return _KEPT_DTYPES.get(part.dtype, "f32")

    def packed(self, name: str, rows: int, cols: int, format: str | None) -> PackedWeight:
        """A matrix [rows, cols], packed; `format` None keeps the stored one."""
        full = self._claim(name, (rows, cols))
        value = self._weights[full]
        packed = ops.pack(value, format=format or self._stored_format(name))
        self._done(value.nbytes)
        return packed

    def matrix(self, name: str, rows: int, cols: int) -> tuple[Array, str]:
        """An attention matrix [rows, cols] as stored, and the format to pack its pieces in."""
        value = self._weights[self._claim(name, (rows, cols))]
        self._done(value.nbytes)
        return value, self.formats.attention or self._stored_format(name)

    # -- parts -----------------------------------------------------------------------------

    def linear(
        self, name: str, rows: int, cols: int, kind: str = "attention", bias: bool = False
    ) -> Linear:
        """`name.weight` [rows, cols], and `name.bias` [rows] where there is one."""
        formats = {"attention": self.formats.attention, "head": self.formats.head}
        weight = self.packed(f"{name}.weight", rows, cols, formats.get(kind, self.formats.dense))
        values = self.tensor(f"{name}.bias", rows) if bias else None
        return Linear(weight, values, kind=kind)

    def norm(self, name: str, size: int, eps: float) -> RMSNorm:
        """`name.weight` [size]."""
        return RMSNorm(self.tensor(f"{name}.weight", size), eps)

    def embedding(self, name: str, vocab: int, hidden: int) -> Array:
        """The table `name.weight` [V, H] in a 16- or 32-bit float dtype."""
        full = f"{name}.weight"
        value = self._weights[self._claim(full, (vocab, hidden))]
        self._done(value.nbytes)
        format = self.formats.embedding or self._stored_format(full)
        dtype = _TABLE_DTYPES.get(format, ml_dtypes.bfloat16)
        table: Array = value.astype(dtype, copy=False)
        return table

    def pack_table(self, table: Array) -> PackedWeight:
        """A tied head: the table of embeddings once more, in the kernels' order."""
        kept = {"float32": "f32", "float16": "f16"}.get(table.dtype.name, "bf16")
        return ops.pack(table, format=self.formats.head or kept)

    def router(self, name: str, count: int, hidden: int, k: int, **rule: Any) -> Router:
        """`name.weight` [E, H] with `ops.route`'s keywords."""
        weight = self.packed(f"{name}.weight", count, hidden, self.formats.router)
        return Router(weight, k, **rule)

    def experts(
        self,
        name: str,
        count: int,
        inner: int,
        hidden: int,
        parts: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> Experts:
        """The experts of a layer, packed one by one into banks that were allocated before.

        Either `name.N.{gate,up,down}.weight` for each expert, under the names in `parts`, or the
        fused `name.gate_up_proj` [E, 2F, H] and `name.down_proj` [E, H, F] of transformers 5.
        """
        if f"{name}.gate_up_proj" in self:
            return self._fused_experts(name, count, inner, hidden)
        shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
        # All of them before any memory: a wrong count or size must not ask for terabytes.
        tensors = [
            [
                self._claim(f"{name}.{expert}.{part}.weight", shape)
                for part, shape in zip(parts, shapes, strict=True)
            ]
            for expert in range(count)
        ]
        format = self.formats.experts or self._stored_format(f"{name}.0.{parts[0]}.weight")
        banks = _Banks.empty(format, count, inner, hidden)
        for expert, names in enumerate(tensors):
            for bank, tensor in zip(banks.all, names, strict=True):
                value = self._weights[tensor]
                bank.fill(expert, value)
                self._done(value.nbytes)
        return banks.experts()

    def _fused_experts(self, name: str, count: int, inner: int, hidden: int) -> Experts:
        both = self._claim(f"{name}.gate_up_proj", (count, 2 * inner, hidden))
        down = self._claim(f"{name}.down_proj", (count, hidden, inner))
        format = self.formats.experts or self._stored_format(f"{name}.gate_up_proj")
        banks = _Banks.empty(format, count, inner, hidden)
        for expert in range(count):
            value = self._weights.read_rows(both, expert, expert + 1)[0]
            banks.gate.fill(expert, value[:inner])
            banks.up.fill(expert, value[inner:])
            self._done(value.nbytes)
            value = self._weights.read_rows(down, expert, expert + 1)[0]
            banks.down.fill(expert, value)
            self._done(value.nbytes)
        return banks.experts()

    def gated_mlp(self, name: str, inner: int, hidden: int, kind: str = "dense") -> Experts:
        """`name.{gate,up,down}_proj.weight` as an `Experts` of one."""
        format = self.formats.experts if kind == "shared" else self.formats.dense
        shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        banks: dict[str, PackedWeight] = {}
        for part, shape in shapes.items():
            tensor = f"{name}.{part}_proj.weight"
            value = self._weights[self._claim(tensor, shape)]
            banks[part] = PackedWeight.empty(format or self._stored_format(tensor), (1, *shape))
            banks[part].fill(0, value)
            self._done(value.nbytes)
        return Experts(banks["gate"], banks["up"], banks["down"])

    def mlp(self, name: str, inner: int, hidden: int) -> MLP:
        """A dense feed-forward layer: `name.{gate,up,down}_proj.weight`."""
        return MLP(self.gated_mlp(name, inner, hidden))

    # -- the end ---------------------------------------------------------------------------

    def require_all_used(self, ignored: Callable[[str], bool]) -> None:
        """FileError naming tensors that no part asked for, derived tables and `ignored` apart."""
        extra = [
            name
            for name in self._weights
            if name not in self._used and not _DERIVED.search(name) and not ignored(name)
        ]
        if extra:
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            raise FileError(
                f"[load] {self._path}: unexpected tensors {', '.join(sorted(extra)[:3])}{more}; "
                "the architecture has no place for them"
            )


@dataclass(frozen=True, slots=True)
class _Banks:
    gate: PackedWeight
    up: PackedWeight
    down: PackedWeight

    @classmethod
    def empty(cls, format: str, count: int, inner: int, hidden: int) -> "_Banks":
        return cls(
            PackedWeight.empty(format, (count, inner, hidden)),
            PackedWeight.empty(format, (count, inner, hidden)),
            PackedWeight.empty(format, (count, hidden, inner)),
        )

    @property
    def all(self) -> tuple[PackedWeight, PackedWeight, PackedWeight]:
        return self.gate, self.up, self.down

    def experts(self) -> Experts:
        return Experts(self.gate, self.up, self.down)
