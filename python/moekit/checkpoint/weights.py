"""A Hugging Face checkpoint under the names of its unquantised self.

Model families ask for `x.weight`; whether the file holds that tensor, float8 with scales, or the
three tensors of GPTQ is settled here. What a loader wants to keep packed it finds by `parts`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..errors import MissingTensorError
from . import hf_fp8, hf_quant
from .hf_blocks import LinearIntegers, mxfp4_blocks
from .hf_scheme import Scheme, read_scheme
from .pieces import ALL, Piece
from .source import Array, quoted
from .tensors import Checkpoint, TensorInfo

# The packed format of each float dtype of a file.
KEPT_DTYPES = {"F32": "f32", "BF16": "bf16", "F16": "f16", "F64": "f32"}
_FP4_BLOCK = (1, 32)
_SCALES = ("F32", "F16", "BF16")
# Scales of activations, for hardware that quantises them beforehand; exact arithmetic has no use
# for them.
_ACTIVATION_SCALES = (".activation_scale", ".input_scale")


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """A weight: `scheme` is plain, fp8, fp4, mxfp4, gptq or awq; `parts` are its stored tensors.

    The roles in `parts` are those of the arguments of the functions in `hf_quant`.
    """

    name: str
    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]


class Weights(Mapping[str, Array]):
    """Weights by the names of the unquantised model, whatever the file calls and stores them.

    `weights[name]` is the tensor as stored, or float32 where it is stored quantised. What is to
    stay packed is asked for as a `Piece`: `formats` says which packed formats hold it, and `blocks`
    gives its bytes for `ops.pack_blocks` where that loses nothing.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, WeightInfo]) -> None:
        self.checkpoint = checkpoint
        self._weights = weights
        # The matrix of which a piece was taken last: gate and up often lie in one.
        self._last: tuple[str, int | None, Array] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def info(self, name: str) -> WeightInfo:
        """Shape, scheme and stored parts; nothing is read."""
        try:
            return self._weights[name]
        except KeyError:
            found = self.checkpoint
            raise MissingTensorError(
                f"[{found.format}] {found.path}: has no tensor {quoted(str(name))}"
            ) from None

    def __getitem__(self, name: str) -> Array:
        return self._read(self.info(name), lambda part: self.checkpoint[part])

    def has_rows(self, name: str) -> bool:
        """Whether `read_rows` reads no more than the rows that it gives."""
        return self.info(name).scheme == "plain"

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """`weights[name][start:stop]`; of plain tensors and banks [E, ...] only that is read."""
        info = self.info(name)
        if info.scheme == "plain" or len(info.shape) == 3:
            return self._read(info, lambda part: self.checkpoint.read_rows(part, start, stop))
        if not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(
                f"[read_rows] rows {start}:{stop} of {quoted(name)}; it has {info.shape[0]}"
            )
        return self[name][start:stop]

    def take(self, piece: Piece) -> Array:
        """A piece [N, K] in the stored float dtype, or float32; C-contiguous."""
        if piece.whole:
            return np.ascontiguousarray(self._matrix(piece))
        if piece.is_row_range and self.info(piece.name).scheme == "plain":
            # DBRX keeps all experts in one matrix of gigabytes: only their own rows are read.
            rows = self.read_rows(piece.name, piece.rows.start, piece.rows.stop)
            return replace(piece, rows=ALL).taken_from(rows)
        kept = self._last
        if kept is None or kept[:2] != (piece.name, piece.expert):
            kept = self._last = None  # before the next one is read
            kept = self._last = (piece.name, piece.expert, self._matrix(piece))
        return piece.taken_from(kept[2])

    def _matrix(self, piece: Piece) -> Array:
        if piece.expert is None:
            return self[piece.name]
        matrix: Array = self.read_rows(piece.name, piece.expert, piece.expert + 1)[0]
        return matrix

    def formats(self, piece: Piece) -> tuple[str, ...]:
        """Packed formats for a piece, the one nearest to the file first; nothing is rounded in it
        where `blocks` gives bytes for it or it is a float type."""
        info = self.info(piece.name)
        stored = self.checkpoint.info(info.parts["weight"]).dtype
        return (KEPT_DTYPES.get(stored, "f32"),)

    def blocks(self, piece: Piece, format: str) -> Array | None:
        """The bytes of a piece for `ops.pack_blocks`, uint8 [N, ...]; None if there are none that
        mean the same in `format`."""
        return None

    def _read(self, info: WeightInfo, read: Callable[[str], Array]) -> Array:
        return read(info.parts["weight"])


class HfWeights(Weights):
    """The weights of a Hugging Face checkpoint: plain, FP8, FP4, MXFP4, GPTQ or AWQ."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, object]) -> None:
        self._unpacked: tuple[str, LinearIntegers] | None = None
        self._scheme = read_scheme(checkpoint, config.get("quantization_config"))
        super().__init__(checkpoint, _find_weights(checkpoint, self._scheme))

    def has_rows(self, name: str) -> bool:
        info = self.info(name)
        return super().has_rows(name) or (info.scheme == "fp8" and len(info.shape) == 2)

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        info = self.info(name)
        if info.scheme != "fp8" or len(info.shape) != 2 or not 0 <= start < stop <= info.shape[0]:
            return super().read_rows(name, start, stop)
        high, wide = self._fp8_block(info)
        first = start // high * high
        codes = self.checkpoint.read_rows(info.parts["weight"], first, stop)
        scales = hf_quant.scale_values(self.checkpoint[info.parts["scale_inv"]])
        with self._naming(info):
            grid = hf_quant.scale_grid(scales, info.shape, self._scheme.fp8_block)[0]
            rows = grid[first // high : -(-stop // high)]
            return hf_quant.dequantize_fp8(codes, rows, (high, wide))[start - first :]

    def formats(self, piece: Piece) -> tuple[str, ...]:
        info = self.info(piece.name)
        if info.scheme == "plain":
            return super().formats(piece)
        if info.scheme == "fp8":
            return self._fp8_formats(info, piece)
        if info.scheme in ("mxfp4", "fp4"):
            return ("mxfp4",) if self._has_exponents(info) else ("q8_0",)
        if piece.transposed or piece.cols != ALL:
            return ("q8_0",)  # its groups run along the other axis
        return self._integers(info).formats()

    def blocks(self, piece: Piece, format: str) -> Array | None:
        info = self.info(piece.name)
        if info.scheme == "fp8" and format == "fp8":
            return self._fp8(info, piece)
        if info.scheme in ("mxfp4", "fp4") and format == "mxfp4" and self._has_exponents(info):
            return self._mxfp4(info, piece)
        if info.scheme in ("gptq", "awq") and not piece.transposed and piece.cols == ALL:
            found = self._integers(info).blocks(format)
            return None if found is None else np.ascontiguousarray(found[piece.rows])
        return None

    def _fp8_block(self, info: WeightInfo) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        scales = self.checkpoint.info(info.parts["scale_inv"])
        one = prod(scales.shape) == 1
        return (info.shape[-2], info.shape[-1]) if one else self._scheme.fp8_block

    def _fp8_formats(self, info: WeightInfo, piece: Piece) -> tuple[str, ...]:
        if not self.checkpoint.info(info.parts["weight"]).dtype.startswith("F8_E4M3"):
            return ("q8_0",)
        shape, block = info.shape[-2:], self._fp8_block(info)
        if hf_fp8.holds_runs(shape, block, piece):
            return "fp8", "f32"
        # A part that is cut across scales, such as the keys of latent attention whose heads are no
        # multiple of 128, is small; scales of another grid are everywhere.
        return ("f32",) if hf_fp8.holds_runs(shape, block, Piece(piece.name)) else ("q8_0",)

    def _fp8(self, info: WeightInfo, piece: Piece) -> Array | None:
        if self._fp8_formats(info, piece)[0] != "fp8":
            return None
        stored, (high, _) = info.parts["weight"], self._fp8_block(info)
        scales = hf_quant.scale_values(self.checkpoint[info.parts["scale_inv"]])
        with self._naming(info):
            scales = hf_quant.scale_grid(scales, info.shape, self._scheme.fp8_block)
        if piece.expert is not None:
            codes = self.checkpoint.read_rows(stored, piece.expert, piece.expert + 1)[0]
            scales = scales[piece.expert if len(scales) > 1 else 0]
        elif piece.is_row_range:
            # A head of a projection: the others need not be read.
            first, last = piece.rows.start // high * high, piece.rows.stop
            codes = self.checkpoint.read_rows(stored, first, last)
            scales = scales[0, first // high : -(-last // high)]
            piece = replace(piece, rows=slice(piece.rows.start - first, last - first))
        else:
            codes, scales = self.checkpoint[stored], scales[0]
        return hf_fp8.piece_blocks(codes.view(np.uint8), scales, self._fp8_block(info), piece)

    def _has_exponents(self, info: WeightInfo) -> bool:
        part = self.checkpoint.info(info.parts["scales" if info.scheme == "mxfp4" else "scale_inv"])
        return part.dtype in ("U8", "F8_E8M0")

    def _mxfp4(self, info: WeightInfo, piece: Piece) -> Array | None:
        # The blocks run along the inputs: only whole outputs can be taken out. The plain tensor
        # of `_blocks` is the transpose of what is stored.
        turned = info.scheme == "mxfp4"
        outputs, inputs = (piece.cols, piece.rows) if turned else (piece.rows, piece.cols)
        if piece.transposed != turned or inputs != ALL:
            return None
        first = piece.expert

        def read(part: str) -> Array:
            if first is None:
                return self.checkpoint[part]
            matrix: Array = self.checkpoint.read_rows(part, first, first + 1)[0]
            return matrix

        parts = {role: read(stored) for role, stored in info.parts.items()}
        if turned:
            return mxfp4_blocks(parts["blocks"][outputs], parts["scales"][outputs])
        packed = parts["packed"].view(np.uint8)
        packed = packed.reshape(packed.shape[0], -1, 16)
        if parts["scale_inv"].shape != packed.shape[:2]:
            return None
        return mxfp4_blocks(packed[outputs], parts["scale_inv"].view(np.uint8)[outputs])

    def _integers(self, info: WeightInfo) -> LinearIntegers:
        # Asked for once for the format and once for each part of the matrix.
        if self._unpacked is None or self._unpacked[0] != info.name:
            self._unpacked = None
            parts = {role: self.checkpoint[name] for role, name in info.parts.items()}
            with self._naming(info):
                found = LinearIntegers.read(info.scheme, parts, self._scheme)
            self._unpacked = (info.name, found)
        return self._unpacked[1]

    def _read(self, info: WeightInfo, read: Callable[[str], Array]) -> Array:
        if info.scheme == "plain":
            return read(info.parts["weight"])
        parts = {role: read(name) for role, name in info.parts.items()}
        scheme = self._scheme
        with self._naming(info):
            if info.scheme == "fp8":
                return hf_quant.dequantize_fp8(**parts, block=scheme.fp8_block)
            if info.scheme == "fp4":
                return hf_quant.dequantize_fp4(**parts, block=_FP4_BLOCK)
            if info.scheme == "mxfp4":
                # The plain checkpoint has [E, in, out]; the blocks run along `in`.
                return hf_quant.dequantize_mxfp4(**parts).swapaxes(-1, -2)
            if info.scheme == "awq":
                return hf_quant.dequantize_awq(**parts, group_size=scheme.group_size)
            return hf_quant.dequantize_gptq(
                **parts,
                bits=scheme.bits,
                group_size=scheme.group_size,
                zero_offset=scheme.zero_offset,
            )

    @contextmanager
    def _naming(self, info: WeightInfo) -> Iterator[None]:
        """Turn a ValueError about shapes into a FileError that names the tensor."""
        try:
            yield
        except ValueError as problem:
            first = self.checkpoint.info(next(iter(info.parts.values())))
            raise self.checkpoint.error(first, f"cannot be dequantised: {problem}") from problem


def _find_weights(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, WeightInfo]:
    weights: dict[str, WeightInfo] = {}
    for name in checkpoint:
        info = checkpoint.info(name)
        found = _weight_of(checkpoint, scheme, info)
        if found is None:
            continue
        if found.name in weights:
            raise checkpoint.error(info, f"gives {quoted(found.name)} a second time")
        weights[found.name] = found
    return weights


def _weight_of(checkpoint: Checkpoint, scheme: Scheme, info: TensorInfo) -> WeightInfo | None:
    """The weight whose main part this tensor is, or None for the lesser parts of another."""
    name, shape = info.name, info.shape
    if name.endswith(".qweight"):
        return _packed_linear(checkpoint, scheme, info)
    if name.endswith("_blocks") and name[:-7] + "_scales" in checkpoint:
        if len(shape) < 3 or shape[-1] != 16 or info.dtype != "U8":
            text = f"is {info.dtype} {list(shape)}; U8 [..., N, K / 32, 16] is required"
            raise checkpoint.error(info, text)
        parts = {"blocks": name, "scales": name[:-7] + "_scales"}
        return WeightInfo(name[:-7], "mxfp4", (*shape[:-3], shape[-2] * 32, shape[-3]), parts)
    scale = _scale_of(checkpoint, info)
    if scale is not None:
        _require_part(checkpoint, scale, (*_SCALES, "U8", "F8_E8M0"))
        if info.dtype.startswith("F8_"):
            return WeightInfo(name, "fp8", shape, {"weight": name, "scale_inv": scale})
        if info.dtype not in ("I8", "U8") or len(shape) < 2:
            text = f"is {info.dtype} {list(shape)} with scales; float8 or packed float4 is required"
            raise checkpoint.error(info, text)
        wide = (*shape[:-1], 2 * shape[-1])
        return WeightInfo(name, "fp4", wide, {"packed": name, "scale_inv": scale})
    if _is_lesser_part(checkpoint, name):
        return None
    if info.dtype.startswith("F8_E4M3") or info.dtype.startswith("F8_E5M2"):
        raise checkpoint.error(info, f"is {info.dtype} without {quoted(name + '_scale_inv')}")
    return WeightInfo(name, "plain", shape, {"weight": name})


def _scale_of(checkpoint: Checkpoint, info: TensorInfo) -> str | None:
    """The scales of a float8 or float4 weight: `x.weight_scale_inv`, in DeepSeek-V4 `x.scale`."""
    if info.name + "_scale_inv" in checkpoint:
        return info.name + "_scale_inv"
    base, _, role = info.name.rpartition(".")
    is_packed = info.dtype.startswith("F8_") or info.dtype in ("I8", "U8")
    published = base + ".scale"
    return published if role == "weight" and is_packed and published in checkpoint else None


def _is_lesser_part(checkpoint: Checkpoint, name: str) -> bool:
    if name.endswith(".scale"):
        weight = name.removesuffix("scale") + "weight"
        return weight in checkpoint and _scale_of(checkpoint, checkpoint.info(weight)) == name
    if name.endswith("_scale_inv"):
        return name.removesuffix("_scale_inv") in checkpoint
    if name.endswith("_scales"):
        return name.removesuffix("_scales") + "_blocks" in checkpoint
    base, _, role = name.rpartition(".")
    if role in ("qzeros", "scales", "g_idx"):
        return base + ".qweight" in checkpoint
    return name.endswith(_ACTIVATION_SCALES) and base + ".weight_scale_inv" in checkpoint


def _require_part(
    checkpoint: Checkpoint, name: str, dtypes: Collection[str], dimensions: int | None = None
) -> None:
    """FileError unless a part of a quantised weight has one of these dtypes."""
    info = checkpoint.info(name)
    if info.dtype in dtypes and dimensions in (None, len(info.shape)):
        return
    shape = "" if dimensions is None else f" [{', '.join(['..'] * dimensions)}]"
    wanted = " or ".join(sorted(dtypes))
    raise checkpoint.error(info, f"is {info.dtype} {list(info.shape)}; {wanted}{shape} is required")


def _packed_linear(checkpoint: Checkpoint, scheme: Scheme, info: TensorInfo) -> WeightInfo:
    if scheme.method not in ("gptq", "awq"):
        text = "is packed; a quantization_config with quant_method gptq or awq is required"
        raise checkpoint.error(info, text)
    base = info.name.removesuffix("qweight")
    parts = {role: base + role for role in ("qweight", "qzeros", "scales")}
    for part in parts.values():
        if part not in checkpoint:
            raise checkpoint.error(info, f"comes without {quoted(part)}")
    for role in ("qweight", "qzeros"):
        _require_part(checkpoint, parts[role], ("I32",), 2)
    _require_part(checkpoint, parts["scales"], _SCALES, 2)
    rows, columns = info.shape
    order = base + "g_idx"
    if scheme.method == "awq":
        if order in checkpoint:
            raise checkpoint.error(info, f"comes with {quoted(order)}; AWQ has no order")
        _require_groups(checkpoint, scheme, parts["scales"], rows)
        return WeightInfo(base + "weight", "awq", (columns * 8, rows), parts)
    if order in checkpoint:
        parts["g_idx"] = order
        _require_part(checkpoint, order, ("I32", "I64"), 1)
    elif scheme.has_order:
        raise checkpoint.error(info, f"comes without {quoted(order)}, which desc_act requires")
    if rows * 32 % scheme.bits:
        raise checkpoint.error(info, f"has {rows} rows; a multiple of {scheme.bits} is required")
    shape = (columns, rows * 32 // scheme.bits)
    _require_groups(checkpoint, scheme, parts["scales"], shape[1])
    return WeightInfo(base + "weight", "gptq", shape, parts)


def _require_groups(checkpoint: Checkpoint, scheme: Scheme, name: str, inputs: int) -> None:
    """FileError unless there is a row of scales for each group of `inputs`."""
    info = checkpoint.info(name)
    groups = 1 if scheme.group_size == -1 else -(-inputs // scheme.group_size)
    if info.shape[0] != groups:
        text = (
            f"has {info.shape[0]} groups; {groups} are required for {inputs} inputs and "
            f"group_size {scheme.group_size}"
        )
        raise checkpoint.error(info, text)
