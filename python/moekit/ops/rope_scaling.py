"""Rotary frequencies and their scalings, as Hugging Face configurations name them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moekit.ops.arrays import Float32, as_count, as_float32

_LARGEST = float(np.finfo(np.float32).max)  # what angles are computed in

#: ``config.rope_scaling`` or ``config.rope_parameters``: ``rope_type`` (or ``type``), its numbers.
Scaling = Mapping[str, Any]


def rope_frequencies(
    head_dim: int,
    theta: float = 10000.0,
    scaling: Scaling | None = None,
    *,
    max_positions: int | None = None,
    sequence_length: int | None = None,
) -> tuple[Float32, float]:
    """Radians per position of each pair, float32 [n], and the factor of cos and sin.

    Args:
        head_dim: D, or the number of dimensions that rotate.
        theta: the base; ``rope_theta`` in ``scaling`` wins over it.
        scaling: None, or a mapping with ``rope_type`` ``default``, ``linear`` (Chen et al. 2023),
            ``dynamic`` (NTK), ``yarn`` (Peng et al. 2023, section 3.2), ``longrope`` (Ding et al.
            2024), ``llama3`` (Llama 3.1) or ``proportional`` (Gemma 4), and the numbers that this
            type takes, under transformers' names. ``partial_rotary_factor`` in it rotates that
            part of head_dim.
        max_positions: ``max_position_embeddings``, for ``dynamic`` and where ``factor`` is absent.
        sequence_length: how long the text is, for ``dynamic`` and ``longrope``, whose frequencies
            depend on it; by default short enough to be as trained.

    Raises ValueError naming the type that is not known or the number that is missing or wrong.
    """
    given = dict(scaling or {})
    name = str(given.get("rope_type") or given.get("type") or "default")
    if name == "mrope":  # three equal positions for text: the plain rotation
        name = "default"
    if name not in _TYPES:
        raise ValueError(f"[rope] rope_type is {name!r}; one of {', '.join(_TYPES)} is required")
    base = float(given.get("rope_theta") or theta)
    part = float(given.get("partial_rotary_factor") or 1.0)
    head_dim = as_count(head_dim, "rope", "head_dim")
    fine = 0 < base < math.inf and 0 < part <= 1
    dim = int(head_dim * part) if fine and name != "proportional" else head_dim
    if not (fine and dim >= 2 and dim % 2 == 0):
        raise ValueError(
            f"[rope] theta is {base:g}, and {dim} of {head_dim} dimensions rotate; a positive "
            "theta and an even number are required"
        )
    arguments = _Arguments(name, given, max_positions, sequence_length)
    return _TYPES[name](dim, base, arguments)


class _Arguments:
    """The numbers of one scaling, checked as they are taken."""

    def __init__(
        self, name: str, given: dict[str, Any], max_positions: int | None, length: int | None
    ) -> None:
        self.name, self.given = name, given
        self.max_positions, self.length = max_positions, length

    def number(self, key: str, default: float | None = None) -> float:
        value = self.given.get(key)
        if value is None:
            if default is None:
                raise ValueError(f"[rope] {self.name} scaling lacks {key}")
            return default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value <= _LARGEST):
            raise ValueError(f"[rope] {key} is {value!r}; a positive number is required")
        return float(value)

    def original(self) -> float:
        return self.number("original_max_position_embeddings", self.max_positions)

    def factor(self) -> float:
        """``factor``, or how many times longer than the original context the model's is."""
        if self.given.get("factor") is None and self.max_positions is not None:
            return self.max_positions / self.original()
        return self.number("factor")

    def per_pair(self, key: str, pairs: int) -> Float32:
        values = as_float32(self.given.get(key, ()), "rope", key)
        if values.shape != (pairs,):
            raise ValueError(
                f"[rope] {key} has {values.size} entries; {pairs} (one for each pair) are required"
            )
        return values


def _powers(dim: int, base: float) -> Float32:
    """base^(2i / dim), rounded as the models round it: the exponent in float32, then the power."""
    exponents = np.arange(0, dim, 2, dtype=np.int64).astype(np.float32) / np.float32(dim)
    return np.power(np.float64(base), exponents.astype(np.float64)).astype(np.float32)


def _inverse(x: Float32) -> Float32:
    return (np.float32(1.0) / x).astype(np.float32)


def _default(dim: int, base: float, _: _Arguments) -> tuple[Float32, float]:
    return _inverse(_powers(dim, base)), 1.0


def _linear(dim: int, base: float, given: _Arguments) -> tuple[Float32, float]:
    return _inverse(_powers(dim, base)) / np.float32(given.number("factor")), 1.0


def _proportional(dim: int, base: float, given: _Arguments) -> tuple[Float32, float]:
    frequencies = _inverse(_powers(dim, base)) / np.float32(given.number("factor", 1.0))
    rotated = int(float(given.given.get("partial_rotary_factor") or 1.0) * dim // 2)
    frequencies[rotated:] = 0.0  # the rest stands still
    return frequencies, 1.0


def _dynamic(dim: int, base: float, given: _Arguments) -> tuple[Float32, float]:
    if dim < 4:
        raise ValueError(
            f"[rope] {dim} dimensions rotate; at least 4 are required for dynamic scaling"
        )
    trained = given.number("max_position_embeddings", given.max_positions)
    length = max(given.length or 0, trained)
    factor = given.number("factor")
    stretched = base * ((factor * length / trained) - (factor - 1)) ** (dim / (dim - 2))
    return _inverse(_powers(dim, stretched)), 1.0


def _yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn(dim: int, base: float, given: _Arguments) -> tuple[Float32, float]:
    factor = given.factor()
    original = given.original()

    if base == 1.0:
        raise ValueError("[rope] theta is 1; another base is required for yarn")

    def dimension_of(rotations: float) -> float:
        """Where a pair turns so many times within the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_of(given.number("beta_fast", 32.0))
    high = dimension_of(given.number("beta_slow", 1.0))
    if given.given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    pairs = np.arange(dim // 2, dtype=np.float32)
    ramp = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    powers = _powers(dim, base)
    kept = np.float32(1) - ramp
    stretched = _inverse(np.float32(factor) * powers)
    frequencies = stretched * (np.float32(1) - kept) + _inverse(powers) * kept
    # 0, or none, asks for no such factor.
    mscale, all_dim = (
        given.number(key) if given.given.get(key) else 0.0 for key in ("mscale", "mscale_all_dim")
    )
    if given.given.get("attention_factor") is not None:
        attention = given.number("attention_factor")
    elif mscale and all_dim:
        attention = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, all_dim)
    else:
        attention = _yarn_mscale(factor)
    return frequencies.astype(np.float32), attention


def _longrope(dim: int, base: float, given: _Arguments) -> tuple[Float32, float]:
    original = given.original()
    if not original > 1:
        raise ValueError(
            f"[rope] original_max_position_embeddings is {original:g}; "
            "more than 1 position is required for longrope"
        )
    factor = given.factor()
    is_long = given.length is not None and given.length > original
    factors = given.per_pair("long_factor" if is_long else "short_factor", dim // 2)
    if given.given.get("attention_factor") is not None:
        attention = given.number("attention_factor")
    else:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return _inverse(factors * _powers(dim, base)), attention


def _llama3(dim: int, base: float, given: _Arguments) -> tuple[Float32, float]:
    factor = np.float32(given.number("factor"))
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    original = given.original()
    if low == high:
        raise ValueError(
            f"[rope] low_freq_factor and high_freq_factor are {low:g}; two are required"
        )
    frequencies = _inverse(_powers(dim, base))
    wavelengths = np.float32(2 * math.pi) / frequencies
    scaled = np.where(wavelengths > np.float32(original / low), frequencies / factor, frequencies)
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    smoothed = (np.float32(1) - smooth) * scaled / factor + smooth * scaled
    between = (wavelengths >= np.float32(original / high)) & (
        wavelengths <= np.float32(original / low)
    )
    return np.where(between, smoothed, scaled).astype(np.float32), 1.0


_TYPES: dict[str, Callable[[int, float, _Arguments], tuple[Float32, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
