"""The weights of a Hugging Face checkpoint under the names of its unquantised self.

Model families ask for `x.weight`; whether the file holds that tensor, float8 with scales, or the
three tensors of GPTQ is settled here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import numpy as np

from ..errors import FileError
from . import hf_fp8, hf_quant
from .hf_blocks import LinearIntegers, mxfp4_blocks
from .hf_names import find_weights
from .hf_scheme import read_scheme
from .hf_spellings import in_published_names
from .pieces import ALL, Piece, span_of
from .source import Array
from .tensors import Checkpoint
from .weights import Range, WeightInfo, Weights

_FP4_BLOCK = (1, 32)


class HfWeights(Weights):
    """The weights of a Hugging Face checkpoint: plain, FP8, FP4, MXFP4, GPTQ or AWQ."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, object]) -> None:
        self._scheme = read_scheme(checkpoint, config.get("quantization_config"))
        # The layer of integers that was looked at last: asked for once for the format and once for
        # each part of the matrix.
        self._layer: tuple[str, LinearIntegers] | None = None
        found = find_weights(checkpoint, self._scheme)
        super().__init__(
            checkpoint, in_published_names(checkpoint, found, config.get("model_type"))
        )

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
            return self._fp8_blocks(info, piece)
        if info.scheme in ("mxfp4", "fp4") and format == "mxfp4" and self._has_exponents(info):
            return self._mxfp4_blocks(info, piece)
        if info.scheme in ("gptq", "awq") and not piece.transposed and piece.cols == ALL:
            first, last, step = span_of(piece.rows, info.shape[-2])
            with self._naming(info):
                found = self._integers(info).blocks(format, first, last)
            return None if found is None else np.ascontiguousarray(found[step])
        return None

    # -- values ----------------------------------------------------------------------------

    def _read(self, info: WeightInfo, read: Callable[[str], Array]) -> Array:
        if info.scheme == "plain":
            return read(info.parts["weight"])
        scheme = self._scheme
        with self._naming(info):
            parts = {role: read(name) for role, name in info.parts.items()}
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

    def _rows(self, info: WeightInfo, expert: int | None, start: int, stop: int) -> Array:
        if info.scheme == "fp8":
            return self._fp8_values(info, expert, (start, stop), (0, info.shape[-1]))
        if info.scheme in ("gptq", "awq"):
            with self._naming(info):
                return self._integers(info).values(start, stop)
        if info.scheme == "mxfp4":  # stored the other way round
            return self._columns(info, expert, (start, stop), (0, info.shape[-1]))
        return super()._rows(info, expert, start, stop)

    def _columns(self, info: WeightInfo, expert: int | None, rows: Range, cols: Range) -> Array:
        if info.scheme == "plain":
            return super()._columns(info, expert, rows, cols)
        if info.scheme == "fp8":
            return self._fp8_values(info, expert, rows, cols)
        if info.scheme == "mxfp4":
            with self._naming(info):
                parts = self._stored_rows(info, expert, cols)
                return hf_quant.dequantize_mxfp4(**parts)[:, rows[0] : rows[1]].T
        return self._rows(info, expert, *rows)[:, cols[0] : cols[1]]

    def _stored_rows(self, info: WeightInfo, expert: int | None, rows: Range) -> dict[str, Array]:
        """The same rows of each stored part."""
        return {
            role: self.checkpoint.read_rows(part, *rows, expert)
            for role, part in info.parts.items()
        }

    # -- FP8 -------------------------------------------------------------------------------

    def _fp8_block(self, info: WeightInfo) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        scales = self.checkpoint.info(info.parts["scale_inv"])
        one = prod(scales.shape) == 1
        return (info.shape[-2], info.shape[-1]) if one else self._scheme.fp8_block

    def _fp8_part(
        self, info: WeightInfo, expert: int | None, rows: Range, cols: Range
    ) -> tuple[Array, Array, tuple[int, int]]:
        """Codes and scales of whole blocks around some rows and columns, and where these begin."""
        stored, scales = info.parts["weight"], info.parts["scale_inv"]
        found = self.checkpoint.info(scales).shape
        one = prod(found) == 1
        high, wide = (1, 1) if one else self._scheme.fp8_block
        top, left = rows[0] // high * high, cols[0] // wide * wide
        with self._naming(info):
            if one:
                factors = self.checkpoint[scales].reshape(1, 1)
            else:
                hf_quant.check_grid(found, info.shape, self._scheme.fp8_block)
                factors = self.checkpoint.read_rows(scales, 0, found[-2], expert)
        grid = hf_quant.scale_values(factors)
        if cols == (0, info.shape[-1]):
            codes = self.checkpoint.read_rows(stored, top, rows[1], expert)
        else:
            codes = self._stored_columns(stored, expert, (top, rows[1]), (left, cols[1]))
        if not one:
            grid = grid[top // high : -(-rows[1] // high), left // wide : -(-cols[1] // wide)]
        return codes, grid, (rows[0] - top, cols[0] - left)

    def _fp8_values(self, info: WeightInfo, expert: int | None, rows: Range, cols: Range) -> Array:
        codes, grid, (top, left) = self._fp8_part(info, expert, rows, cols)
        with self._naming(info):
            return hf_quant.dequantize_fp8(codes, grid, self._scheme.fp8_block)[top:, left:]

    def _fp8_formats(self, info: WeightInfo, piece: Piece) -> tuple[str, ...]:
        if not self.checkpoint.info(info.parts["weight"]).dtype.startswith("F8_E4M3"):
            return ("q8_0",)
        shape, block = info.shape[-2:], self._fp8_block(info)
        if hf_fp8.holds_runs(shape, block, piece):
            return "fp8", "f32"
        # A part that is cut across scales, such as the keys of latent attention whose heads are no
        # multiple of 128, is small; scales of another grid are everywhere.
        return ("f32",) if hf_fp8.holds_runs(shape, block, Piece(piece.name)) else ("q8_0",)

    def _fp8_blocks(self, info: WeightInfo, piece: Piece) -> Array | None:
        if self._fp8_formats(info, piece)[0] != "fp8":
            return None
        top, bottom, row_step = span_of(piece.rows, info.shape[-2])
        left, right, col_step = span_of(piece.cols, info.shape[-1])
        codes, grid, (row, col) = self._fp8_part(info, piece.expert, (top, bottom), (left, right))
        part = replace(
            piece,
            rows=slice(row, None, row_step.step),
            cols=slice(col, None, col_step.step),
        )
        return hf_fp8.piece_blocks(codes.view(np.uint8), grid, self._fp8_block(info), part)

    # -- blocks of 32 ----------------------------------------------------------------------

    def _has_exponents(self, info: WeightInfo) -> bool:
        part = self.checkpoint.info(info.parts["scales" if info.scheme == "mxfp4" else "scale_inv"])
        return part.dtype in ("U8", "F8_E8M0")

    def _mxfp4_blocks(self, info: WeightInfo, piece: Piece) -> Array | None:
        # The blocks run along the inputs: only whole outputs can be taken out. The plain tensor
        # of `_blocks` is the transpose of what is stored.
        turned = info.scheme == "mxfp4"
        outputs, inputs = (piece.cols, piece.rows) if turned else (piece.rows, piece.cols)
        if piece.transposed != turned or inputs != ALL:
            return None
        first, last, step = span_of(outputs, info.shape[-1 if turned else -2])
        with self._naming(info):
            parts = self._stored_rows(info, piece.expert, (first, last))
            if turned:
                return mxfp4_blocks(parts["blocks"][step], parts["scales"][step])
            packed = parts["packed"].view(np.uint8)
            packed = packed.reshape(packed.shape[0], -1, 16)
            if parts["scale_inv"].shape != packed.shape[:2]:
                return None
            return mxfp4_blocks(packed[step], parts["scale_inv"].view(np.uint8)[step])

    # -- integers --------------------------------------------------------------------------

    def _integers(self, info: WeightInfo) -> LinearIntegers:
        layer = self._layer
        if layer is None or layer[0] != info.name:
            parts = {role: name for role, name in info.parts.items() if role != "qweight"}
            small = {role: self.checkpoint[name] for role, name in parts.items()}
            words = info.parts["qweight"]
            height = self.checkpoint.info(words).shape[0]

            def read(first: int, last: int) -> Array:
                return self._stored_columns(words, None, (0, height), (first, last))

            with self._naming(info):
                found = LinearIntegers(info.scheme, info.shape, small, self._scheme, read)
            layer = self._layer = (info.name, found)
        return layer[1]

    @contextmanager
    def _naming(self, info: WeightInfo) -> Iterator[None]:
        """Turn a ValueError about shapes into a FileError that names the tensor."""
        try:
            yield
        except FileError:
            raise
        except ValueError as problem:
            first = self.checkpoint.info(next(iter(info.parts.values())))
            raise self.checkpoint.error(first, f"cannot be dequantised: {problem}") from problem
