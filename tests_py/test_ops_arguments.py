"""What callers give by mistake: an operation takes it as it is meant, or says what it requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
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


WRONG_THINGS: dict[str, Callable[[], Any]] = {
    r"\[matmul\] the weight is a ndarray; PackedWeight": lambda: ops.matmul(X, MATRIX),
    r"\[grouped_matmul\] packed is a ndarray": lambda: ops.grouped_matmul(X, BANK, [0, 1, 3]),
    r"\[gather\] a member is a ndarray": lambda: ops.PackedWeight.gather([(BANK, 0)]),
    r"\[moe_ffn\] assignment is a tuple": lambda: ops.moe_ffn(
        X,
        (CHOSEN.experts, CHOSEN.weights),
        EXPERTS,
    ),
    r"\[moe_ffn\] experts is a PackedWeight": lambda: ops.moe_ffn(X, CHOSEN, PACKED),
    r"\[moe_ffn\] shared is a ndarray": lambda: ops.moe_ffn(X, CHOSEN, EXPERTS, shared=BANK),
    r"\[plan\] assignment is a ndarray": lambda: ops.plan(CHOSEN.experts, 2),
    r"\[permute\] plan is a Assignment": lambda: ops.permute(X, CHOSEN),
    r"\[combine\] plan is a Assignment": lambda: ops.combine(X, CHOSEN, CHOSEN),
    r"\[combine\] assignment is a Plan": lambda: ops.combine(X, PLAN, PLAN),
    r"\[limit_capacity\] assignment is a Plan": lambda: ops.limit_capacity(PLAN, 2),
    r"\[rope\] angles is no pair": lambda: ops.rope(X, angles=()),
    r"\[assignment\] expert_count is nan; an integer": lambda: ops.Assignment(
        [[0]],
        [[1.0]],
        expert_count=float("nan"),
    ),
    r"\[moe_ffn\] zero_experts is 1.5; an integer": lambda: ops.moe_ffn(
        X,
        CHOSEN,
        EXPERTS,
        zero_experts=1.5,
    ),
    r"\[pack\] a size of the shape is inf; an integer": lambda: ops.PackedWeight.empty(
        "int4",
        (2, float("inf")),
    ),
    r"\[rope\] rotary_dim is inf; an integer": lambda: ops.rope(
        X, [0, 1, 2], rotary_dim=float("inf")
    ),
    r"\[sample\] seed is inf; integers": lambda: ops.sample(X, 1.0, seed=float("inf")),
    r"\[sample\] seed is 1.5; integers": lambda: ops.sample(X, 1.0, seed=1.5),
}


@pytest.mark.parametrize("text", WRONG_THINGS)
def test_another_thing_than_the_one_required(text: str) -> None:
    with pytest.raises(TypeError, match="^" + text):
        WRONG_THINGS[text]()


@pytest.mark.parametrize("expert", [-1, 2, 7, 1 << 31, 1 << 40])
def test_an_expert_that_a_weight_does_not_have(expert: int) -> None:
    for call in (
        PACKED.row_step,
        PACKED.expert_format,
        PACKED.expert_nbytes,
        PACKED.unpack_expert,
        lambda e: PACKED.fill_blocks(e, np.zeros((5, 68), np.uint8)),
    ):
        with pytest.raises(ValueError, match=rf"expert (is )?{expert}; (there are 2|at least 0)"):
            call(expert)


def test_bytes_of_impossible_matrices() -> None:
    for rows, cols in ((-1, 64), (0, 64), (3, 0), (1 << 62, 1 << 62)):
        with pytest.raises(ValueError, match=r"^\[pack\] "):
            ops.packed_bytes("q8_0", rows, cols)


def test_scales_of_quantised_rows_lie_in_any_order() -> None:
    rows = [RNG.integers(-127, 128, (9, 2, 8)).astype(np.int8) for _ in "kv"]
    scales = [RNG.random((9, 2), np.float32) for _ in "kv"]
    q = floats(3, 4, 8)
    k, v = (ops.QuantisedRows(*both) for both in zip(rows, scales, strict=True))
    k2, v2 = (
        ops.QuantisedRows(values, np.asfortranarray(factors))
        for values, factors in zip(rows, scales, strict=True)
    )
    assert np.array_equal(ops.attention(q, k, v), ops.attention(q, k2, v2))
    doubles = ops.QuantisedRows(rows[0], scales[0].astype(np.float64))
    assert np.array_equal(ops.attention(q, doubles, v), ops.attention(q, k, v))


def test_a_residual_of_another_shape_with_as_many_numbers() -> None:
    with pytest.raises(ValueError, match=r"residual has shape \[3, 2, 4\]; \[2, 3, 4\]"):
        ops.rms_norm(floats(2, 3, 4), residual=floats(3, 2, 4))


def test_a_gate_without_columns() -> None:
    with pytest.raises(ValueError, match=r"^\[gate\] gate has shape \[3, 0\]"):
        ops.gate(None, np.zeros((3, 0), np.float32))


@pytest.mark.parametrize("wrong", [-1, 16, 1 << 40])
def test_codes_that_four_bits_do_not_hold(wrong: int) -> None:
    codes, scales = np.full((4, 64), wrong, np.int64), np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="a code that is not 0 to 15"):
        ops.pack_zero_points(codes, scales, scales)
    with pytest.raises(TypeError, match="codes has dtype float32; uint8"):
        ops.pack_zero_points(codes.astype(np.float32) % 16 + 0.5, scales, scales)
    for zero in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="a zero that is no byte"):
            ops.pack_zero_points(codes % 16, scales, np.full((4, 2), zero, np.float32))


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, ml_dtypes.bfloat16])
def test_a_hessian_of_real_numbers(dtype: Any) -> None:
    if dtype is ml_dtypes.bfloat16:
        assert ops.gptq_factor(np.eye(4, dtype=dtype), range(4)) is not None
        return
    with pytest.raises(TypeError, match=r"^\[gptq\] hessian has dtype"):
        ops.gptq_factor(np.eye(4, dtype=dtype), range(4))


_ONES = [1.0] * 4
SCALINGS: dict[str, dict[str, Any]] = {
    "original_max_position_embeddings is 1; more than 1": {
        "rope_type": "longrope",
        "short_factor": _ONES,
        "original_max_position_embeddings": 1,
        "factor": 2.0,
    },
    "short_factor cannot be read|short_factor has dtype": {
        "rope_type": "longrope",
        "short_factor": ["x"] * 4,
        "original_max_position_embeddings": 32,
        "factor": 2.0,
    },
    "original_max_position_embeddings is inf": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": float("inf"),
    },
    "factor is 1000": {"rope_type": "linear", "factor": 10**400},
    "mscale is 'x'": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "mscale": "x",
        "mscale_all_dim": "x",
    },
    "theta is 1; another base": {
        "rope_type": "yarn",
        "rope_theta": 1.0,
        "factor": 2.0,
        "original_max_position_embeddings": 32,
    },
    "low_freq_factor and high_freq_factor are 2": {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 32,
    },
    "theta is inf": {"rope_type": "default", "rope_theta": float("inf")},
}


@pytest.mark.parametrize("text", SCALINGS)
def test_scalings_that_cannot_be(text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^\[rope\] .*({text})"):
        ops.rope_frequencies(8, scaling=SCALINGS[text])


def test_two_dimensions_have_no_dynamic_scaling() -> None:
    with pytest.raises(ValueError, match="2 dimensions rotate; at least 4"):
        ops.rope_frequencies(2, scaling={"rope_type": "dynamic", "factor": 2.0}, max_positions=8)
