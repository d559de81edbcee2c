"""The tensors of a GGUF file under the names of a Hugging Face checkpoint."""

import re
from collections.abc import Callable, Container, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from .ggml_types import QUANTISED
from .gguf_architectures import Architecture
from .gguf_config import read_architecture
from .pieces import ALL, Piece, span_of
from .source import Array, quoted
from .tensors import Checkpoint, TensorInfo
from .weights import Range, WeightInfo, Weights

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")
# Tables that the configuration has taken in already.
_ROTARY = frozenset({"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"})

Order = npt.NDArray[np.int64]


def hf_name(row: Architecture, name: str, present: Container[str] = ()) -> str:
    """Hugging Face's name of a GGUF tensor; one that the architecture does not know keeps its own
    (in a block, behind the layer's prefix). `present` are the file's tensors."""
    match = _BLOCK.fullmatch(name)
    names: Mapping[str, str] = row.layer_names if match else row.frame
    for mark, others in row.beside.items():
        if match and f"blk.{match[1]}.{mark}.weight" in present:
            names = {**names, **others}
    inner = match[2] if match else name
    prefix = f"{row.prefix}{int(match[1])}." if match else ""
    if inner in names:
        return prefix + names[inner]
    stem, dot, kind = inner.rpartition(".")
    if dot and stem in names:
        return f"{prefix}{names[stem]}.{kind}"
    return prefix + inner


def gguf_names(row: Architecture, names: Iterable[str]) -> dict[str, str]:
    """GGUF's name of each of Hugging Face's, in GGUF's grouping; ValueError for one without."""
    frame = {value: key for key, value in row.frame.items()}
    layer = {value: key for key, value in row.layer_names.items()}
    every = dict.fromkeys(names)
    found = {}
    for name in every:
        inner, table, start = name, frame, ""
        if name.startswith(row.prefix):
            block, _, inner = name.removeprefix(row.prefix).partition(".")
            table, start = layer, f"blk.{block}."
            for mark, others in row.beside.items():
                if f"{row.prefix}{block}.{row.layer_names[mark]}.weight" in every:
                    table = {**layer, **{value: key for key, value in others.items()}}
        stem, _, kind = inner.rpartition(".")
        short = table.get(inner) or (f"{table[stem]}.{kind}" if stem in table else "")
        if not short:
            raise ValueError(f"[save] GGUF's {row.name} has no tensor for {name}")
        found[name] = start + short
    return found


def halves_from_pairs(rows: int, heads: int) -> Order:
    """Which stored row each row is: heads that keep a rotated pair side by side have it apart."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


class GgufWeights(Weights):
    """A GGUF file as the checkpoint that it came from; ggml's blocks stay as they are."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, object]) -> None:
        row = read_architecture(checkpoint)
        blocks = checkpoint.field(f"{row.name}.block_count", int)
        self._orders: dict[str, Order] = {}
        found: dict[str, WeightInfo] = {}
        for name in checkpoint:
            if name in _ROTARY:
                continue
            info = checkpoint.info(name)
            match = _BLOCK.fullmatch(name)
            if match and int(match[1]) >= blocks:
                raise checkpoint.error(info, f"lies beyond the {blocks} blocks of the file")
            full = hf_name(row, name, checkpoint)
            if full in found:
                raise checkpoint.error(info, f"gives {quoted(full)} a second time")
            inner = name.split(".", 2)[-1]
            shape = info.shape
            if inner in row.rows or inner.rpartition(".")[0] in row.rows:
                shape = (1, *shape)
            if inner.rpartition(".")[0] in row.middles and len(shape) == 2:
                shape = (shape[0], 1, shape[1])
            scheme = "ggml" if info.dtype in QUANTISED else "plain"
            found[full] = WeightInfo(full, scheme, shape, {"weight": name})
            if row.paired:
                self._pair(checkpoint, full, info, config)
        super().__init__(checkpoint, found)

    def _pair(
        self, checkpoint: Checkpoint, name: str, info: TensorInfo, config: Mapping[str, object]
    ) -> None:
        part = name.rpartition(".")[0].rpartition(".")[2]
        field = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(part)
        if field is None:
            return
        heads = config.get(field)
        if type(heads) is not int or heads < 1 or info.shape[0] % (2 * heads):
            text = (
                f"has {info.shape[0]} rows; pairs in each of {ascii(heads)[:40]} heads are required"
            )
            raise checkpoint.error(info, text)
        self._orders[name] = halves_from_pairs(info.shape[0], heads)

    def formats(self, piece: Piece) -> tuple[str, ...]:
        info = self.info(piece.name)
        if info.scheme == "plain":
            return super().formats(piece)
        if piece.transposed or piece.cols != ALL:
            return ("q8_0",)  # its blocks run along the other axis
        return self.checkpoint.info(info.parts["weight"]).dtype.lower(), "q8_0"

    def blocks(self, piece: Piece, format: str) -> Array | None:
        info = self.info(piece.name)
        stored = info.parts["weight"]
        if info.scheme == "plain" or format != self.checkpoint.info(stored).dtype.lower():
            return None
        if piece.transposed or piece.cols != ALL or len(info.shape) < 2:
            return None
        first, last, step = span_of(piece.rows, info.shape[-2])

        def read(start: int, stop: int) -> Array:
            if self.checkpoint.info(stored).shape != info.shape:
                return self.checkpoint.blocks(stored)[start:stop]
            return self.checkpoint.blocks(stored, start, stop, piece.expert)

        return np.ascontiguousarray(self._ordered(piece.name, first, last, read)[step])

    def _ordered(
        self, name: str, start: int, stop: int, read: Callable[[int, int], Array]
    ) -> Array:
        """Rows `start:stop` of a matrix whose stored rows `read` gives, in the model's order."""
        order = self._orders.get(name)
        if order is None or start == stop:
            return read(start, stop)
        wanted = order[start:stop]
        first = int(wanted.min())
        return read(first, int(wanted.max()) + 1)[wanted - first]

    def _rows(self, info: WeightInfo, expert: int | None, start: int, stop: int) -> Array:
        stored = info.parts["weight"]
        if self.checkpoint.info(stored).shape != info.shape:
            whole = self[info.name]
            rows: Array = (whole if expert is None else whole[expert])[start:stop]
            return rows
        return self._ordered(
            info.name,
            start,
            stop,
            lambda first, last: self.checkpoint.read_rows(stored, first, last, expert),
        )

    def _columns(self, info: WeightInfo, expert: int | None, rows: Range, cols: Range) -> Array:
        plain = self.checkpoint.info(info.parts["weight"]).shape == info.shape
        if info.scheme == "plain" and plain and info.name not in self._orders:
            return super()._columns(info, expert, rows, cols)
        return self._rows(info, expert, *rows)[:, cols[0] : cols[1]]

    def _read(self, info: WeightInfo, read: Callable[[str], Array]) -> Array:
        value = read(info.parts["weight"])
        if info.name in self._orders:
            return value[self._orders[info.name]]
        return value.reshape(info.shape) if value.ndim != len(info.shape) else value
