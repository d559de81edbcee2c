"""Whatever a caller has, as the NumPy arrays that the core reads.

Accepted everywhere: NumPy arrays (``ml_dtypes`` bfloat16 and float8 included), CPU torch tensors
and anything else that offers DLPack, the buffer protocol or nested sequences. Nothing is copied
where dtype and layout already fit.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_FLOAT32, _INT32, _INT64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)
# In the machine's byte order: the others are equal to none of these.
_PLAIN = frozenset(
    np.dtype(kind)
    for kind in (
        *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
        *(np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64),
    )
)
_TORCH_AS_BYTES = {
    "torch.bfloat16": ("int16", ml_dtypes.bfloat16),
    "torch.float8_e4m3fn": ("int8", ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": ("int8", ml_dtypes.float8_e5m2),
}


def to_numpy(x: Any, op: str, name: str) -> Array:
    """``x`` as a NumPy array, without a copy where it has memory of its own.

    Raises TypeError for what is no array of numbers, or lies on another device than the CPU.
    """
    if type(x) is np.ndarray and x.dtype in _PLAIN:
        return x
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor) and x.device.type != "cpu":
        raise TypeError(f"[{op}] {name} is on device {x.device}; cpu is required")
    try:
        if torch is not None and isinstance(x, torch.Tensor):
            array = _of_tensor(torch, x.detach())
        elif hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray):
            array = np.from_dlpack(x)
        else:
            array = np.asarray(x)
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise TypeError(f"[{op}] {name} cannot be read as an array: {error}") from None
    if array.dtype.hasobject or (array.dtype.kind in "SUmMV" and not _is_ml_dtype(array)):
        raise TypeError(f"[{op}] {name} has dtype {array.dtype}; numbers are required")
    # The core takes a dtype by its kind and size, and would read the bytes the wrong way round.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _of_tensor(torch: Any, x: Any) -> Array:
    alias = _TORCH_AS_BYTES.get(str(x.dtype))
    if alias is None:
        return np.asarray(x.numpy())
    as_int, dtype = alias
    return np.asarray(x.view(getattr(torch, as_int)).numpy().view(dtype))


def check_type(value: Any, kind: type, op: str, name: str) -> None:
    """Raises TypeError unless ``value`` is a ``kind``: an array is no :class:`PackedWeight`."""
    if not isinstance(value, kind):
        raise TypeError(f"[{op}] {name} is a {type(value).__name__}; {kind.__name__} is required")


def as_count(value: Any, op: str, name: str, least: int = 0) -> int:
    """``value`` as an int of at least ``least``; fractions are no numbers of things."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"[{op}] {name} is {value!r:.80}; an integer is required") from None
    if count < least:
        raise ValueError(f"[{op}] {name} is {count}; at least {least} is required")
    return count


class QuantisedRows:
    """Rows [S, Hk, D] (or [S, D]) as int8 with a factor for each, ``values * scales[..., None]``.

    What a cache in int8 gives: :func:`attention` and :func:`mla_attention` read them in place, and
    everything else as the float32 array that they stand for.
    """

    __slots__ = ("scales", "values")

    def __init__(self, values: npt.NDArray[np.int8], scales: Float32) -> None:
        self.values = values
        self.scales = scales

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and their scales."""
        return self.values.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return QuantisedRows(self.values[index], self.scales[index])
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("[QuantisedRows] rows in 8 bits have no array that could be shared")
        values = self.values.astype(np.float32) * self.scales[..., None]
        return values if dtype is None else values.astype(dtype)


def _is_ml_dtype(array: Array) -> bool:
    return array.dtype.name.startswith(("bfloat16", "float8", "float4"))


def check_ndim(array: Array, ndim: int | tuple[int, ...], op: str, name: str) -> None:
    """Raises ValueError unless ``array`` has that many dimensions."""
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in wanted:
        text = " or ".join(str(n) for n in wanted)
        raise ValueError(
            f"[{op}] {name} has shape {list(array.shape)}; {text} dimension(s) are required"
        )


def as_float32(x: Any, op: str, name: str, ndim: int | tuple[int, ...] | None = None) -> Float32:
    """``x`` as C-contiguous float32: the activations' form. Other float dtypes are converted."""
    # What one operation gives and the next one takes, dozens of times for each token.
    if type(x) is np.ndarray and x.dtype is _FLOAT32 and x.flags.c_contiguous:
        if ndim is not None and x.ndim != ndim:
            check_ndim(x, ndim, op, name)
        return x
    array = to_numpy(x, op, name)
    if ndim is not None:
        check_ndim(array, ndim, op, name)
    if array.dtype == np.float32 and array.flags.c_contiguous:
        return array
    if array.dtype.kind not in "fiu" and not _is_ml_dtype(array):
        raise TypeError(f"[{op}] {name} has dtype {array.dtype}; a float dtype is required")
    return np.ascontiguousarray(array, dtype=np.float32)


def as_integers(
    x: Any,
    op: str,
    name: str,
    dtype: type[np.signedinteger[Any]] = np.int64,
    ndim: int | tuple[int, ...] | None = None,
) -> Array:
    """``x`` as C-contiguous integers of ``dtype``; floats and what does not fit are refused."""
    # A token's ids and positions, which need none of what follows.
    if type(x) is np.ndarray and dtype is np.int64 and (ndim is None or x.ndim == ndim):
        if x.dtype is _INT32:
            return x.astype(_INT64, order="C")
        if x.dtype is _INT64 and x.flags.c_contiguous:
            return x
    array = to_numpy(x, op, name)
    if array.size == 0:
        array = array.astype(dtype)
    if ndim is not None:
        check_ndim(array, ndim, op, name)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iu":
        raise TypeError(f"[{op}] {name} has dtype {array.dtype}; integers are required")
    if not np.can_cast(array.dtype, dtype):
        limits = np.iinfo(dtype)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise ValueError(f"[{op}] {name} has values beyond {np.dtype(dtype)}")
    return np.ascontiguousarray(array, dtype=dtype)
