"""What happens to whole rows: embedding, norms, rotary position embedding."""

from __future__ import annotations

from typing import Any, Literal, overload

from moekit import _core
from moekit.ops.arrays import Float32, as_count, as_float32, as_integers, check_ndim, to_numpy
from moekit.ops.rope_scaling import Scaling, rope_frequencies


def embed(table: Any, ids: Any) -> Float32:
    """Rows of an embedding table: float32 [..., H] for ids [...].

    Args:
        table: [V, H] in float32, bfloat16 or float16; read in place.
        ids: integers.

    Raises ValueError naming the position of an id outside of the table.
    """
    rows = to_numpy(table, "embed", "table")
    check_ndim(rows, 2, "embed", "table")
    which = as_integers(ids, "embed", "ids")
    return _core.embed(rows, which.reshape(-1)).reshape(*which.shape, rows.shape[1])


def _vector(x: Any, op: str, name: str) -> Float32 | None:
    return None if x is None else as_float32(x, op, name, 1)


def _rows(x: Any, op: str, name: str) -> Float32:
    array = as_float32(x, op, name)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"[{op}] {name} has shape {list(array.shape)}; [..., H] is required")
    return array


@overload
def rms_norm(
    x: Any, weight: Any = None, eps: float = 1e-6, *, offset: float = 0.0, residual: None = None
) -> Float32: ...
@overload
def rms_norm(
    x: Any, weight: Any = None, eps: float = 1e-6, *, offset: float = 0.0, residual: Any
) -> tuple[Float32, Float32]: ...
def rms_norm(
    x: Any, weight: Any = None, eps: float = 1e-6, *, offset: float = 0.0, residual: Any = None
) -> Float32 | tuple[Float32, Float32]:
    """x / sqrt(mean(x²) + eps) · (weight + offset), over the last dimension, in float32.

    Zhang & Sennrich 2019. A row's bytes depend on that row alone.

    Args:
        x: [..., H].
        weight: [H]; None is 1.
        eps: as the checkpoint says.
        offset: 1.0 for checkpoints that store the weight minus one (Qwen3-Next, Gemma).
        residual: [..., H], added to x first; the result is then the pair (normed, x + residual).
    """
    op = "rms_norm"
    rows = _rows(x, op, "x")
    w = _vector(weight, op, "weight")
    other = None if residual is None else _rows(residual, op, "residual")
    if rows.ndim == 2 and (other is None or other.ndim == 2):  # dozens of times for each token
        result: Float32 | tuple[Float32, Float32] = _core.rms_norm(rows, w, eps, offset, other)
        return result
    if other is not None and other.shape != rows.shape:
        raise ValueError(
            f"[{op}] residual has shape {list(other.shape)}; {list(rows.shape)} is required"
        )
    flat = rows.reshape(-1, rows.shape[-1])
    if other is None:
        alone: Float32 = _core.rms_norm(flat, w, eps, offset, None)
        return alone.reshape(rows.shape)
    other = other.reshape(-1, rows.shape[-1])
    normed, total = _core.rms_norm(flat, w, eps, offset, other)
    return normed.reshape(rows.shape), total.reshape(rows.shape)


def layer_norm(
    x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *, offset: float = 0.0
) -> Float32:
    """(x - mean) / sqrt(variance + eps) · (weight + offset) + bias, over the last dimension.

    Ba et al. 2016; float32. x [..., H]; weight and bias [H] or None.
    """
    op = "layer_norm"
    rows = _rows(x, op, "x")
    flat = rows.reshape(-1, rows.shape[-1])
    w, b = _vector(weight, op, "weight"), _vector(bias, op, "bias")
    normed: Float32 = _core.layer_norm(flat, w, b, eps, offset, None)
    return normed.reshape(rows.shape)


def rope_angles(
    positions: Any, frequencies: Any, attention_factor: float = 1.0
) -> tuple[Float32, Float32]:
    """cos and sin, float32 [T, n], of position · frequency, times attention_factor.

    Every layer and head of a forward pass shares them: make them once and give them to
    :func:`rope` as ``angles``.

    Args:
        positions: int [T].
        frequencies: float32 [n], radians per position.
    """
    return _core.rope_angles(
        as_integers(positions, "rope", "positions", ndim=1),
        as_float32(frequencies, "rope", "frequencies", 1),
        attention_factor,
    )


def rope(
    x: Any,
    positions: Any = None,
    *,
    theta: float = 10000.0,
    scaling: Scaling | None = None,
    frequencies: Any = None,
    attention_factor: float | None = None,
    angles: tuple[Any, Any] | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    placement: Literal["first", "last"] = "first",
    max_positions: int | None = None,
) -> Float32:
    """Rotary position embedding (Su et al. 2021): float32, of x's shape.

    Dimensions rotate in pairs: i with i + rotary_dim / 2, or, interleaved, 2i with 2i + 1 (GPT-J,
    DeepSeek, Llama 4), which then stay where they are.

    Args:
        x: [T, heads, D] or [T, D].
        positions: int [T]; not needed with ``angles``.
        theta, scaling, max_positions: as :func:`rope_frequencies` takes them.
        frequencies: float32 [rotary_dim / 2] instead of theta and scaling.
        attention_factor: multiplies cos and sin (yarn, longrope); by default scaling's, else 1.
        angles: (cos, sin) from :func:`rope_angles` instead of all of these.
        rotary_dim: how many dimensions rotate; all by default.
        placement: whether the first or the last ones rotate (DeepSeek-V4: the last).

    Raises ValueError where the sizes do not fit.
    """
    array = as_float32(x, "rope", "x", (2, 3))
    heads = array if array.ndim == 3 else array[:, None, :]
    size = heads.shape[-1] if rotary_dim is None else as_count(rotary_dim, "rope", "rotary_dim")
    if angles is None:
        if positions is None:
            raise ValueError("[rope] neither positions nor angles were given; one is required")
        factor = 1.0
        if frequencies is None:
            frequencies, factor = rope_frequencies(
                size, theta, scaling, max_positions=max_positions
            )
            # A scaling dict may itself ask for a part of the head.
            size = size if rotary_dim is not None else 2 * len(frequencies)
        factor = factor if attention_factor is None else attention_factor
        cos, sin = rope_angles(positions, frequencies, factor)
    else:
        if not isinstance(angles, tuple | list) or len(angles) != 2:
            raise TypeError("[rope] angles is no pair; (cos, sin) is required")
        cos = as_float32(angles[0], "rope", "angles[0]", 2)
        sin = as_float32(angles[1], "rope", "angles[1]", 2)
        size = 2 * cos.shape[1] if rotary_dim is None else size
    if size != 2 * cos.shape[1]:
        raise ValueError(
            f"[rope] there are {cos.shape[1]} frequencies; {size / 2:g} are required to rotate "
            f"{size} dimensions"
        )
    if placement not in ("first", "last"):
        raise ValueError(f"[rope] placement is {placement!r}; first or last is required")
    first = 0 if placement == "first" else heads.shape[-1] - size
    rotated = _core.rope(heads, cos, sin, first, interleaved)
    return rotated if array.ndim == 3 else rotated.reshape(array.shape)
