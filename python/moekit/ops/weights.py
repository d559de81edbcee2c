"""Packed weights and the products with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moekit import _core
from moekit.ops.arrays import (
    Array,
    Float32,
    as_count,
    as_float32,
    as_integers,
    check_ndim,
    check_type,
    to_numpy,
)

Formats = str | Sequence[str]

_MOST = 1 << 48  # values of a matrix: more, and its bytes pass what the core counts with


def format_names() -> list[str]:
    """Every weight format of this build."""
    return list(_core.format_names())


def gptq_format_names() -> list[str]:
    """The formats that can be rounded one value at a time, as GPTQ needs."""
    return list(_core.gptq_format_names())


def packed_bytes(format: str, rows: int, cols: int) -> int:
    """Bytes of one packed matrix [rows, cols], padding included."""
    rows, cols = as_count(rows, "pack", "rows", 1), as_count(cols, "pack", "cols", 1)
    if rows * cols > _MOST:
        raise ValueError(f"[pack] {rows} rows of {cols}; at most 2^48 values are possible")
    return _core.packed_bytes(format, rows, cols)


def gptq_factor(hessian: Any, order: Any, damp: float = 0.01) -> Float32 | None:
    """U with (H + damp · mean(diag H) · I)⁻¹ = Uᵀ U, rows and columns in ``order``: float32 [K, K].

    ``hessian`` float64 [K, K] is the sum of x xᵀ over inputs (Frantar et al., arXiv 2210.17323,
    section 3). None where the matrix is not positive definite: more damping is needed then.
    """
    given = to_numpy(hessian, "gptq", "hessian")
    if given.dtype.kind in "bc":
        raise TypeError(f"[gptq] hessian has dtype {given.dtype}; float64 is required")
    array = np.ascontiguousarray(given, np.float64)
    columns = as_integers(order, "gptq", "order", np.int32, 1)
    check_ndim(array, 2, "gptq", "hessian")
    found: Float32 | None = _core.gptq_factor(array, columns, damp)
    return found


class PackedWeight:
    """E matrices [N, K] (or one) in the order that the kernels read them.

    Sixteen output rows lie side by side (a panel), so that one vector holds the same column of
    sixteen outputs; formats with scales keep them beside the values. Made by :func:`pack`, or empty
    by :meth:`empty` and filled one expert at a time while a file is read.
    """

    def __init__(self, core: _core.PackedWeight, shape: tuple[int, ...]) -> None:
        self.core = core
        self.shape = shape
        #: How often it was filled: whoever keeps what was computed with it compares this.
        self.version = 0

    @classmethod
    def empty(cls, format: Formats, shape: Sequence[int]) -> PackedWeight:
        """Memory for a weight of ``shape`` [E, N, K] or [N, K]; every expert has to be filled.

        Raises ValueError for an unknown format or a shape that is not positive, MemoryError.
        """
        sizes = tuple(as_count(n, "pack", "a size of the shape") for n in shape)
        if len(sizes) not in (2, 3):
            raise ValueError(f"[pack] shape {list(sizes)}; [E, N, K] or [N, K] is required")
        experts = sizes[0] if len(sizes) == 3 else 1
        formats = [format] if isinstance(format, str) else list(format)
        return cls(_core.PackedWeight(formats, experts, sizes[-2], sizes[-1]), sizes)

    def fill(self, expert: int, weight: Any, first: int | None = None) -> None:
        """Packs ``weight`` [N, K] as expert ``expert`` (0 for a single matrix).

        With ``first``, ``weight`` is the rows from there on: a matrix can be packed while it is
        read. Such a run begins at a multiple of :meth:`row_step` and has a multiple of it in rows,
        or reaches the end; ValueError otherwise.
        """
        array = to_numpy(weight, "pack", "weight")
        check_ndim(array, 2, "pack", "weight")
        self.version += 1
        self.core.fill(expert, _packable(array), first)

    def fill_blocks(self, expert: int, blocks: Any, first: int | None = None) -> None:
        """Packs the bytes of a GGUF tensor, uint8 [N, bytes], as expert ``expert``; lossless.

        With ``first``, ``blocks`` is a run of rows as in :meth:`fill`.
        """
        array = to_numpy(blocks, "pack_blocks", "blocks")
        self.version += 1
        self.core.fill_blocks(expert, np.ascontiguousarray(array), first)

    def row_step(self, expert: int) -> int:
        """The rows of a run that is packed on its own come in multiples of this."""
        return self.core.row_step(expert)

    @classmethod
    def gather(cls, members: Sequence[tuple[PackedWeight, int]]) -> PackedWeight:
        """Experts of other weights, given as (weight, expert), as one bank [E, N, K].

        Nothing is copied: the bank reads the memory of the others and keeps it alive, the same
        expert may stand in several places, and each keeps its format. Such a bank cannot be filled.
        Raises ValueError where shapes differ or an expert does not exist.
        """
        for weight, _ in members:
            check_type(weight, PackedWeight, "gather", "a member")
        core = _core.PackedWeight.gather([w.core for w, _ in members], [e for _, e in members])
        return cls(core, (core.experts, core.rows, core.cols))

    def fill_gptq(
        self, expert: int, weight: Any, factor: Float32, order: Any, *, refit: bool = False
    ) -> None:
        """Packs ``weight`` [N, K] by GPTQ, with what :func:`gptq_factor` made of ``order`` [K].

        ``refit`` finds the scales of a block again when its first column is reached, which needs
        the natural order. Raises ValueError for a format that is not in :func:`gptq_format_names`.
        """
        array = as_float32(weight, "gptq", "weight", 2)
        columns = as_integers(order, "gptq", "order", np.int32, 1)
        self.version += 1
        self.core.fill_gptq(expert, array, factor, columns, refit)

    def fill_bytes(self, expert: int, data: Any, begin: int | None = None) -> None:
        """Takes over the panels that :meth:`expert_bytes` gave, for the same format and shape.

        With ``begin``, ``data`` is a part of them that begins at this byte.
        """
        array = to_numpy(data, "pack", "bytes")
        self.version += 1
        self.core.fill_bytes(expert, np.ascontiguousarray(array), begin)

    def expert_bytes(self, expert: int) -> Array:
        """A copy of one expert's panels, uint8; the same bytes on every machine."""
        return self.core.copy_bytes(expert)

    def expert_format(self, expert: int) -> str:
        """The format of one expert."""
        # A list takes places from its end, and one format stands for all.
        if as_count(expert, "pack", "expert") >= self.core.experts:
            raise ValueError(f"[pack] expert {expert}; there are {self.core.experts}")
        formats = self.core.formats
        return formats[0] if len(formats) == 1 else formats[expert]

    def expert_nbytes(self, expert: int) -> int:
        """Bytes of one expert's panels."""
        core = self.core
        return packed_bytes(self.expert_format(expert), core.rows, core.cols)

    @property
    def format(self) -> str | list[str]:
        """The format's name, or a list of one for each expert."""
        formats = self.core.formats
        return formats[0] if len(formats) == 1 else formats

    @property
    def nbytes(self) -> int:
        """Bytes in memory, scales and padding included."""
        return self.core.nbytes

    def unpack(self) -> Float32:
        """The values that the packed bytes mean: float32 in the original shape."""
        matrices = [self.core.unpack(e) for e in range(self.core.experts)]
        return np.stack(matrices) if len(self.shape) == 3 else matrices[0]

    def unpack_expert(self, expert: int) -> Float32:
        """Float32 [N, K] of one expert."""
        return self.core.unpack(expert)

    def __repr__(self) -> str:
        formats = self.format if isinstance(self.format, str) else "mixed"
        return f"PackedWeight({list(self.shape)}, {formats}, {self.nbytes / 2**20:.1f} MiB)"


def _packable(array: Array) -> Array:
    if array.dtype.name not in ("float32", "bfloat16", "float16"):
        if array.dtype.kind != "f" and not array.dtype.name.startswith("float"):
            raise TypeError(f"[pack] weight has dtype {array.dtype}; a float dtype is required")
        array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def pack(weight: Any, format: Formats = "bf16") -> PackedWeight:
    """Packs ``weight`` [E, N, K] or [N, K] into ``format``.

    ``format`` is one name, or a sequence of E names that gives each expert its own. Values are
    rounded to nearest, ties to even; integer formats are symmetric with a scale of max|w| / 127 for
    each row (``int8``), or one of least squared error for each group; ``iq2_xs`` and its like take
    the nearest points of their grids. Raises ValueError for an unknown format, an empty weight, and
    NaN or Inf where the format has no such numbers (f32, bf16 and f16 have both, fp8 has NaN), or
    numbers beyond what it reaches (65504 in f16, 2688 in nvfp4, codes times 65504 with scales of 16
    bits); TypeError for a dtype that is not a float.
    """
    array = to_numpy(weight, "pack", "weight")
    check_ndim(array, (2, 3), "pack", "weight")
    packed = PackedWeight.empty(format, array.shape)
    if array.ndim == 2:
        packed.fill(0, array)
    else:
        for expert in range(array.shape[0]):
            packed.fill(expert, array[expert])
    return packed


def pack_blocks(blocks: Any, format: Formats, shape: Sequence[int]) -> PackedWeight:
    """Packs the bytes of a GGUF tensor as the file has them, without a loss.

    Args:
        blocks: uint8 [rows, bytes]; for a bank of E experts the rows of all, expert after expert.
        format: a GGUF format's name (``q8_0``, ``q4_0``, ``mxfp4``, …).
        shape: [N, K] or [E, N, K]; K is a multiple of the format's block.

    Raises ValueError where format, shape and bytes do not fit, TypeError unless uint8.
    """
    array = to_numpy(blocks, "pack_blocks", "blocks")
    check_ndim(array, 2, "pack_blocks", "blocks")
    if array.dtype != np.uint8:
        raise TypeError(f"[pack_blocks] blocks has dtype {array.dtype}; uint8 is required")
    packed = PackedWeight.empty(format, shape)
    experts, rows = packed.core.experts, packed.core.rows
    if array.shape[0] != experts * rows:
        raise ValueError(
            f"[pack_blocks] blocks have {array.shape[0]} rows; {experts * rows} are required"
        )
    for expert in range(experts):
        packed.fill_blocks(expert, array[expert * rows : (expert + 1) * rows])
    return packed


def pack_fp8(weight: Any, scales: Any) -> PackedWeight:
    """Keeps a stored FP8 weight as it is: ``unpack()`` is float32(weight) * scale, to the bit.

    Args:
        weight: E4M3 numbers [N, K] or [E, N, K], float8_e4m3fn or their bytes as uint8.
        scales: float32 [ceil(N / 128), ceil(K / 128)], or [E, ...] (``weight_scale_inv`` of a
            checkpoint): one for 128 x 128 weights, fewer at the edges.

    Raises ValueError where the shapes do not fit, TypeError for another dtype.
    """
    codes = to_numpy(weight, "pack_fp8", "weight")
    if codes.dtype.name not in ("uint8", "float8_e4m3fn"):
        raise TypeError(f"[pack_fp8] weight has dtype {codes.dtype}; float8_e4m3fn is required")
    check_ndim(codes, (2, 3), "pack_fp8", "weight")
    factors = as_float32(scales, "pack_fp8", "scales", codes.ndim)
    rows, cols = codes.shape[-2:]
    wanted = (*codes.shape[:-2], -(-rows // 128), -(-cols // 128))
    if factors.shape != wanted:
        raise ValueError(
            f"[pack_fp8] scales {list(factors.shape)} of weight {list(codes.shape)}; "
            f"{list(wanted)} is required"
        )
    packed = PackedWeight.empty("fp8", codes.shape)
    experts = packed.core.experts
    codes = codes.view(np.uint8).reshape(experts, rows, cols)
    factors = factors.reshape(experts, *wanted[-2:])
    for expert in range(experts):
        packed.fill_blocks(expert, fp8_blocks(codes[expert], factors[expert]))
    return packed


def fp8_blocks(codes: Array, scales: Float32) -> Array:
    """What ``pack_blocks`` takes as ``fp8``: for 128 columns of a row a scale and 128 codes.

    ``codes`` uint8 [N, K], ``scales`` float32 [ceil(N / 128), ceil(K / 128)]; uint8 [N, ... * 132].
    """
    rows, cols = codes.shape
    blocks = scales.shape[1]
    out = np.zeros((rows, blocks, 132), np.uint8)
    factors = np.repeat(np.ascontiguousarray(scales, np.float32), 128, axis=0)[:rows]
    out[:, :, :4] = factors.view(np.uint8).reshape(rows, blocks, 4)
    padded = np.zeros((rows, blocks * 128), np.uint8)
    padded[:, :cols] = codes
    out[:, :, 4:] = padded.reshape(rows, blocks, 128)
    return out.reshape(rows, -1)


def pack_zero_points(codes: Any, scales: Any, zeros: Any) -> PackedWeight:
    """Keeps 4-bit integers of a GPTQ or AWQ layer: ``unpack()`` is scale * (code - zero).

    Args:
        codes: uint8 [N, K] of 0 to 15.
        scales: [N, groups], values that float16 holds.
        zeros: [N, groups], integers of 0 to 255. A group has 32, 64 or 128 columns (K / groups).

    Raises ValueError where shapes or values do not fit.
    """
    values = to_numpy(codes, "pack_zero_points", "codes")
    check_ndim(values, 2, "pack_zero_points", "codes")
    if values.dtype.kind not in "iu":
        raise TypeError(f"[pack_zero_points] codes has dtype {values.dtype}; uint8 is required")
    rows, cols = values.shape
    steps = as_float32(scales, "pack_zero_points", "scales", 2)
    points = as_float32(zeros, "pack_zero_points", "zeros", 2)
    groups = steps.shape[1]
    group = cols // max(groups, 1)
    if steps.shape != points.shape or len(steps) != rows or group * groups != cols:
        raise ValueError(
            f"[pack_zero_points] codes {list(values.shape)}, scales {list(steps.shape)}, zeros "
            f"{list(points.shape)}; [N, K], [N, K / group] twice are required"
        )
    names = {32: "int4_zp_g32", 64: "int4_zp_g64", 128: "int4_zp"}
    if group not in names:
        raise ValueError(f"[pack_zero_points] groups of {group}; 32, 64 or 128 is required")
    with np.errstate(over="ignore", invalid="ignore"):
        halves = steps.astype("<f2")
        whole = points.astype(np.uint8)
    beyond = (values < 0) | (values > 15)
    if (halves != steps).any() or (whole != points).any() or beyond.any():
        raise ValueError(
            "[pack_zero_points] a code that is not 0 to 15, a scale that is no float16 or a zero "
            "that is no byte; the values of a 4-bit checkpoint are required"
        )
    out = np.empty((rows, groups, 3 + group // 2), np.uint8)
    out[:, :, :2] = halves.view(np.uint8).reshape(rows, groups, 2)
    out[:, :, 2] = whole
    pairs = values.astype(np.uint8).reshape(rows, groups, group // 2, 2)
    out[:, :, 3:] = pairs[..., 0] | pairs[..., 1] << 4
    return pack_blocks(out.reshape(rows, -1), names[group], (rows, cols))


def matmul(x: Any, packed: PackedWeight, bias: Any = None, *, compute: str = "auto") -> Float32:
    """``x`` [..., K] times one packed matrix [N, K]: float32 [..., N] = x · Wᵀ (+ ``bias`` [N]).

    ``compute``: ``"exact"`` (float activations and sums), ``"fast"`` (the format's own dot product:
    int8 or bfloat16 activations where it has one, for float16 with AMX sums of three bfloat16
    numbers, which lose nothing) or ``"auto"`` (fast, but float products for float16, bfloat16 and
    fp8 matrices of at most 2^18 values, with at most 512 columns 2^20). Raises ValueError where
    shapes do not fit.
    """
    return matmul_each(x, [packed], [bias], compute=compute)[0]


def matmul_each(
    x: Any, packed: Sequence[PackedWeight], biases: Sequence[Any], *, compute: str = "auto"
) -> list[Float32]:
    """:func:`matmul` of the same ``x`` with each of several matrices, in one parallel region.

    ``biases``: one for each, or None. The bytes are those of separate calls.
    """
    array = as_float32(x, "matmul", "x")
    if array.ndim == 0:
        raise ValueError("[matmul] x is a scalar; [..., K] is required")
    for one in packed:
        check_type(one, PackedWeight, "matmul", "the weight")
    cores = [one.core for one in packed]
    added = [None if bias is None else as_float32(bias, "matmul", "bias") for bias in biases]
    if array.ndim == 2:  # dozens of times for each token
        return _core.matmul_each(array, cores, added, compute)
    outs = _core.matmul_each(array.reshape(-1, array.shape[-1]), cores, added, compute)
    return [out.reshape(*array.shape[:-1], out.shape[-1]) for out in outs]


def grouped_matmul(x: Any, packed: PackedWeight, offsets: Any, *, compute: str = "auto") -> Float32:
    """Segments by experts: rows ``offsets[e]:offsets[e+1]`` of ``x`` [n, K] times expert e's Wᵀ.

    ``packed`` is [E, N, K], ``offsets`` int [E+1] ascending from 0 to n; float32 [n, N]. Raises
    ValueError where they do not fit.
    """
    check_type(packed, PackedWeight, "grouped_matmul", "packed")
    rows = as_float32(x, "grouped_matmul", "x", 2)
    starts = as_integers(offsets, "grouped_matmul", "offsets", np.int64, 1)
    return _core.grouped_matmul(rows, packed.core, starts, compute)
