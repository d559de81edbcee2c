"""What callers give by mistake: an operation takes it as it is meant, or says what it requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from moekit import ops

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """Values that float16 and bfloat16 hold."""
    return (RNG.integers(-8, 9, size=shape) / 8).astype(np.float32)


def big_endian(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder(">"))


MATRIX, BANK, X = floats(5, 64), floats(2, 5, 64), floats(3, 64)
Q, K, V = floats(3, 4, 9), floats(5, 2, 9), floats(5, 2, 7)
ROWS, LATENT = floats(6, 8), floats(3, 2, 5)
CHOSEN = ops.Assignment([[0, 1], [1, 0], [1, -1]], floats(3, 2), expert_count=2)
PLAN = ops.plan(CHOSEN, 2)
EXPERTS = ops.Experts(floats(2, 5, 64), floats(2, 5, 64), floats(2, 64, 5), "f32")
PACKED = ops.pack(BANK, ["int4", "q8_0"])

READ_IN_PLACE: dict[str, tuple[np.ndarray, Callable[[Any], Any]]] = {
    "pack f32": (MATRIX, lambda w: ops.pack(w, "f32").unpack()),
    "pack int4": (MATRIX, lambda w: ops.pack(w, "int4").unpack()),
    "pack a bank": (BANK, lambda w: ops.pack(w, "q4_0").unpack()),
    "attention k": (K, lambda k: ops.attention(Q, k, V)),
    "attention v": (V, lambda v: ops.attention(Q, K, v)),
    "mla_attention": (
        ROWS,
        lambda c: ops.mla_attention(LATENT, floats(3, 2, 3) * 0, c, scale=0.5),
    ),
    "embed": (MATRIX, lambda t: ops.embed(t, [4, 0, 2])),
    "select_keys": (ROWS[:, :5], lambda k: ops.select_keys(LATENT, X[:, :2], k, 2)),
    "sparse_attention": (
        ROWS,
        lambda r: ops.sparse_attention(LATENT, r[:, :5], [[0, 1], [2, 5], [4, -1]], scale=0.5),
    ),
}


@pytest.mark.parametrize("name", READ_IN_PLACE)
def test_numbers_in_the_other_byte_order(name: str) -> None:
    array, call = READ_IN_PLACE[name]
    assert np.array_equal(call(big_endian(array)), call(array))


@pytest.mark.parametrize("name", ["pack f32", "embed"])
def test_half_numbers_in_the_other_byte_order(name: str) -> None:
    array, call = READ_IN_PLACE[name]
    assert np.array_equal(call(big_endian(array.astype(np.float16))), call(array))


@pytest.mark.parametrize(
    "array",
    [
        torch.zeros(3, 4).to_sparse(),
        torch.zeros(3, 4, dtype=torch.complex64).conj(),
        np.zeros((3, 4), "V4"),
        np.zeros((3, 4), object),
        np.zeros((3, 4), "M8[s]"),
    ],
    ids=["sparse", "conjugate", "void", "object", "date"],
)
def test_arrays_of_something_else(array: Any) -> None:
    with pytest.raises(TypeError, match=r"^\[rms_norm\] x "):
        ops.rms_norm(array)
    with pytest.raises(TypeError, match=r"^\[permute\] x "):
        ops.permute(array, PLAN)
