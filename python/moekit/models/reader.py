"""A checkpoint's tensors as the parts of a model, which a family asks for by name and shape."""

from collections.abc import Sequence
from typing import Any

from .. import ops
from ..checkpoint import Piece
from ..nn import MLP, Experts, LayerNorm, Linear, RMSNorm, Router
from ..ops import PackedWeight
from ..ops.paged_experts import PagedExperts, PagedWeight
from .expert_layouts import PARTS, Layout, expert_biases, expert_pieces, fused_pieces
from .tensor_reader import Array, Placed, TensorReader


class Reader(TensorReader):
    """Hands out parts of a model."""

    def linear(
        self, name: str, rows: int, cols: int, kind: str = "attention", bias: bool = False
    ) -> Linear:
        """`name.weight` [rows, cols], and `name.bias` [rows] where there is one."""
        formats = {"attention": self.formats.attention, "head": self.formats.head}
        weight = self.packed(f"{name}.weight", rows, cols, formats.get(kind, self.formats.dense))
        values = self.tensor(f"{name}.bias", rows) if bias else None
        return Linear(weight, values, kind=kind)

    def split_linear(
        self, name: str, sizes: Sequence[int], cols: int, bias: bool = False
    ) -> list[Linear]:
        """Attention matrices of `sizes` rows each, which are one tensor `name.weight`."""
        tensor, total = f"{name}.weight", sum(sizes)
        values = self.tensor(f"{name}.bias", total) if bias else None
        parts, end = [], 0
        for size in sizes:
            rows = slice(end, end + size)
            end += size
            piece = self.piece(tensor, (total, cols), rows=rows)
            weight = PackedWeight.empty(
                self.formats.attention or self.stored_format(tensor), (size, cols)
            )
            self.fill(weight, 0, piece)
            parts.append(Linear(weight, None if values is None else values[rows], kind="attention"))
        return parts

    def norm(self, name: str, size: int, eps: float, offset: float = 0.0) -> RMSNorm:
        """`name.weight` [size]; `offset` 1 where it is stored minus one."""
        return RMSNorm(self.tensor(f"{name}.weight", size), eps, offset=offset)

    def layer_norm(self, name: str, size: int, eps: float, bias: bool = True) -> LayerNorm:
        """`name.weight` and, with `bias`, `name.bias`, both [size]."""
        values = self.tensor(f"{name}.bias", size) if bias else None
        return LayerNorm(self.tensor(f"{name}.weight", size), values, eps)

    def pack_table(self, table: Array) -> PackedWeight:
        """A tied head: the table of embeddings once more, in the kernels' order."""
        kept = {"float32": "f32", "float16": "f16"}.get(table.dtype.name, "bf16")
        return ops.pack(table, format=self.formats.head or kept)

    def router(
        self, name: str, count: int, hidden: int, k: int, *, bias: bool = False, **rule: Any
    ) -> Router:
        """`name.weight` [E, H] with `ops.route`'s keywords; `bias`: `name.bias` [E] as well."""
        weight = self.packed(f"{name}.weight", count, hidden, self.formats.router)
        values = self.tensor(f"{name}.bias", count) if bias else None
        return Router(weight, k, bias=values, **rule)

    def experts(
        self,
        name: str,
        count: int,
        inner: int,
        hidden: int,
        parts: Sequence[str | None] = PARTS,
        *,
        layout: Layout = Layout(),  # noqa: B008 - frozen
        **options: Any,
    ) -> Experts:
        """The experts of a layer, packed one by one into banks that were allocated before.

        Either `name.N.{gate,up,down}.weight` for each expert, under the names in `parts` (the
        first None for experts without a gate), or the fused banks that `layout` describes.
        `options` are those of `Experts`.
        """
        options.setdefault("activation", self.activation)
        full = self._prefix + name
        # All pieces before any memory: a wrong count or size must not ask for terabytes.
        pieces = expert_pieces(self, name, count, inner, hidden, parts, layout)
        biases: dict[str, Any] = {}
        if layout.bias:
            biases = dict(expert_biases(self, name, count, inner, hidden, layout))
        wide, tall = (count, inner, hidden), (count, hidden, inner)
        shapes = {"gate": wide, "up": wide, "down": tall}
        # Gate and up are read together and share a format.
        formats = {"down": self._bank_format(pieces["down"])}
        formats["gate"] = formats["up"] = self._bank_format(pieces.get("gate", []) + pieces["up"])
        if self._pages is not None:
            paged = {
                role: self._paged(pieces[role], formats[role], shapes[role], full, role)
                for role in pieces
            }
            return PagedExperts(self._pages, paged, **biases, **options)
        banks = {role: PackedWeight.empty(formats[role], shapes[role]) for role in pieces}
        for expert in range(count):
            for role, bank in banks.items():
                self.fill(bank, expert, pieces[role][expert], full, role)
        return Experts(banks.get("gate"), banks["up"], banks["down"], **biases, **options)

    def _paged(
        self,
        pieces: Sequence[Piece],
        format: str,
        shape: tuple[int, int, int],
        bank: str,
        role: str,
    ) -> PagedWeight:
        """A bank whose matrices are packed when they are asked for."""

        def read(expert: int) -> PackedWeight:
            weight = PackedWeight.empty(format, (1, *shape[1:]))
            self._pack(weight, 0, pieces[expert])
            return weight

        paged = PagedWeight(format, shape, read)
        self.placed += [
            Placed(piece, paged, expert, bank, role) for expert, piece in enumerate(pieces)
        ]
        return paged

    def _bank_format(self, pieces: Sequence[Piece]) -> str:
        """One format for all experts: the first that every stored one can be kept in."""
        if self.formats.experts is not None:
            return self.formats.experts
        known = ops.format_names()
        offers = self._offers(pieces)
        for format in offers[0]:
            if format in known and all(format in offer for offer in offers):
                return format
        return "bf16"

    def gated_mlp(
        self,
        name: str,
        inner: int,
        hidden: int,
        kind: str = "dense",
        parts: Sequence[str | None] = PARTS,
        *,
        layout: Layout | None = None,
        bias: bool = False,
        **options: Any,
    ) -> Experts:
        """`name.{gate,up,down}.weight`, under the names in `parts`, as an `Experts` of one.

        `layout`: gate and up are one matrix. `bias`: each part has one. `options` are those of
        `Experts`.
        """
        options.setdefault("activation", self.activation)
        shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        if layout is not None and f"{name}.{layout.both}" in self:
            fused = fused_pieces(self, name, None, inner, hidden, layout)
            pieces = {role: found[0] for role, found in fused.items()}
        else:
            names = dict(zip(shapes, parts, strict=True))
            pieces = {
                role: self.piece(f"{name}.{part}.weight", shapes[role])
                for role, part in names.items()
                if part is not None
            }
            if bias:
                for role in pieces:
                    values = self.tensor(f"{name}.{names[role]}.bias", shapes[role][0])
                    options[f"{role}_bias"] = values[None]
        format = self.formats.experts if kind == "shared" else self.formats.dense
        # Gate and up are read together and share a format.
        formats = {role: format or self._kept_format(piece) for role, piece in pieces.items()}
        if formats.get("gate", formats["up"]) != formats["up"]:
            formats["gate"] = formats["up"] = "q8_0"
        banks: dict[str, PackedWeight] = {}
        for role, piece in pieces.items():
            banks[role] = PackedWeight.empty(formats[role], (1, *shapes[role]))
            self.fill(banks[role], 0, piece, self._prefix + name, role)
        return Experts(banks.get("gate"), banks["up"], banks["down"], **options)

    def mlp(self, name: str, inner: int, hidden: int, **options: Any) -> MLP:
        """A dense feed-forward layer; options as in `gated_mlp`."""
        return MLP(self.gated_mlp(name, inner, hidden, **options))
