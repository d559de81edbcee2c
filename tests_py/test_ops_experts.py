"""Packing and the block against NumPy in float64 and gguf's reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moekit import ops
from moekit.checkpoint.ggml_dequant import dequantize
from moekit.checkpoint.ggml_types import QUANTISED
from moekit.ops.assignment import Assignment

FORMATS = ops.format_names()
GGUF = [name for name in FORMATS if name.upper() in QUANTISED]
# Those that are rounded from floats as ggml does it.
ROUNDED_AS_GGML = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
# What a normal weight loses in the formats that are not near 4 bits.
NMSE = {"f32": 0, "f16": 1e-6, "bf16": 1e-5, "int8": 3e-4, "q8_0": 2e-4, "q2_k": 0.1}
NMSE |= {name: 0.05 for name in FORMATS if name.startswith(("int3", "q3_k", "iq3"))}
NMSE |= {name: 0.25 for name in FORMATS if name.startswith(("int2", "iq2", "iq1", "tq"))}
NMSE |= {"q1_0": 0.45}


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(((got - want) ** 2).sum() / (want**2).sum())


def block(x, experts, weights, gate, up, down):
    """The definition in float64, silu."""
    out = np.zeros((x.shape[0], down.shape[1]))
    for t in range(x.shape[0]):
        for e, w in zip(experts[t], weights[t], strict=True):
            if e >= 0:
                g, u = gate[e] @ x[t], up[e] @ x[t]
                out[t] += w * (down[e] @ (g / (1 + np.exp(-g)) * u))
    return out


def random_layer(rng, experts, inter, hidden):
    gate, up = rng.standard_normal((2, experts, inter, hidden), dtype=np.float32) / np.sqrt(hidden)
    down = rng.standard_normal((experts, hidden, inter), dtype=np.float32) / np.sqrt(inter)
    return gate, up, down


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("tokens", "hidden", "inter"), [(1, 64, 32), (5, 72, 40), (19, 300, 129), (70, 160, 96)]
)
def test_block_agrees_with_float64(format, tokens, hidden, inter):
    rng = np.random.default_rng(tokens)
    experts = ops.Experts(*random_layer(rng, 5, inter, hidden), format=format)
    x = rng.standard_normal((tokens, hidden), dtype=np.float32)
    ids = np.stack([rng.permutation(5)[:3] for _ in range(tokens)]).astype(np.int32)
    weights = rng.random((tokens, 3), dtype=np.float32)
    dequantised = [p.unpack().astype(np.float64) for p in (experts.gate, experts.up, experts.down)]
    want = block(x.astype(np.float64), ids, weights, *dequantised)
    exact = ops.moe_ffn(x, Assignment(ids, weights), experts, compute="exact")
    assert nmse(exact, want) <= 1e-12
    fast = ops.moe_ffn(x, Assignment(ids, weights), experts, compute="fast")
    bounds = {"f32": 1e-12, "f16": 1e-12, "bf16": 2e-5, "fp8": 2e-5}
    assert nmse(fast, want) <= bounds.get(format, 5e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_has_the_same_bytes_in_any_batch(format):
    rng = np.random.default_rng(3)
    experts = ops.Experts(*random_layer(rng, 4, 136, 264), format=format)
    shared = ops.Experts(*(w[0] for w in random_layer(rng, 1, 48, 264)), format=format)
    x = rng.standard_normal((33, 264), dtype=np.float32)
    ids = np.stack([rng.permutation(4)[:2] for _ in range(33)]).astype(np.int32)
    weights = rng.random((33, 2), dtype=np.float32)
    for compute in ("exact", "fast"):
        whole = ops.moe_ffn(x, Assignment(ids, weights), experts, shared=shared, compute=compute)
        for cut in (1, 2, 5, 16):
            parts = [
                ops.moe_ffn(
                    x[i : i + cut],
                    Assignment(ids[i : i + cut], weights[i : i + cut]),
                    experts,
                    shared=shared,
                    compute=compute,
                )
                for i in range(0, 33, cut)
            ]
            assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_may_go_to_one_expert_twice(format):
    rng = np.random.default_rng(8)
    experts = ops.Experts(*random_layer(rng, 4, 136, 264), format=format)
    x = rng.standard_normal((3, 264), dtype=np.float32)
    ids = np.full((3, 3), 2, np.int32)
    ids[:, 1] = 0
    weights = rng.random((3, 3), dtype=np.float32)
    for compute in ("exact", "fast"):
        whole = ops.moe_ffn(x, Assignment(ids, weights), experts, compute=compute)
        for t in range(3):
            row = slice(t, t + 1)
            alone = ops.moe_ffn(
                x[row], Assignment(ids[row], weights[row]), experts, compute=compute
            )
            assert alone.tobytes() == whole[row].tobytes()


def test_every_expert_may_have_its_own_format():
    rng = np.random.default_rng(4)
    formats = [
        "f32",
        "int4",
        "q4_k",
        "bf16",
        "mxfp4",
        "q6_k",
        "int3",
        "q2_k",
        "int4_zp_g32",
        "int2",
    ]
    layer = random_layer(rng, len(formats), 64, 96)
    mixed = ops.Experts(*layer, format=formats)
    x = rng.standard_normal((9, 96), dtype=np.float32)
    for e, format in enumerate(formats):
        ids = np.full((9, 1), e, np.int32)
        ones = np.ones((9, 1), np.float32)
        alone = ops.Experts(*(w[e : e + 1] for w in layer), format=format)
        got = ops.moe_ffn(x, Assignment(ids, ones), mixed)
        want = ops.moe_ffn(x, Assignment(np.zeros_like(ids), ones), alone)
        assert got.tobytes() == want.tobytes()
    assert mixed.up.format == formats


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 257), (3, 40, 72)])
def test_pack_keeps_shape_and_values(format, shape):
    weight = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    packed = ops.pack(weight, format)
    assert packed.shape == shape
    assert packed.format == format
    back = packed.unpack()
    assert back.shape == shape
    assert back.dtype == np.float32
    assert nmse(back, weight) <= NMSE.get(format, 3e-2)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64, np.float32])
def test_pack_takes_any_float(dtype):
    weight = np.random.default_rng(1).standard_normal((5, 24)).astype(dtype)
    exact = {ml_dtypes.bfloat16: "bf16", np.float16: "f16"}.get(dtype, "f32")
    want = weight.astype(np.float32)
    np.testing.assert_array_equal(ops.pack(weight, exact).unpack(), want)
    np.testing.assert_array_equal(ops.pack(weight[:, ::2], exact).unpack(), want[:, ::2])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all() and (a.view("u4") == b.view("u4"))[~nan].all())


@pytest.mark.parametrize("format", GGUF)
@pytest.mark.parametrize("seed", [1, 2])
def test_file_blocks_are_kept_to_the_bit(format, seed):
    """Any bytes: infinite, NaN and subnormal scales are among them."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[format.upper()]
    size, size_in_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (3 * 21, 10 * size_in_bytes), dtype=np.uint8)
    blocks[:2] = 0
    blocks[2:4] = 255
    with np.errstate(all="ignore"):
        # The published package knows of Q1_0 its size only.
        known = format != "q1_0"
        want = gguf.quants.dequantize(blocks, kind) if known else dequantize(blocks, format)
    assert same_bits(ops.pack_blocks(blocks, format, (63, 10 * size)).unpack(), want)
    bank = ops.pack_blocks(blocks, format, (3, 21, 10 * size))
    assert same_bits(bank.unpack(), want.reshape(3, 21, 10 * size))


@pytest.mark.parametrize("format", GGUF)
@pytest.mark.parametrize("compute", ["exact", "fast"])
def test_products_with_file_blocks(format, compute):
    """Every code and every step of the inner scales takes part, as random bytes have them."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[format.upper()]
    size, size_in_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, (49, 6 * size_in_bytes), dtype=np.uint8)
    packed = ops.pack_blocks(blocks, format, (49, 6 * size))
    weight = packed.unpack().astype(np.float64)
    rows = np.abs(weight).max(axis=1) < 1e6  # leaves out the rows whose scales are not numbers
    rows &= np.isfinite(weight).all(axis=1)
    if not rows.any():
        pytest.skip("no row of finite weights")
    x = rng.standard_normal((9, 6 * size), dtype=np.float32)
    got = ops.matmul(x, packed, compute=compute)[:, rows].astype(np.float64)
    want = x.astype(np.float64) @ weight[rows].T
    scale = np.sqrt((weight[rows] ** 2).sum(axis=1))
    assert nmse(got / scale, want / scale) <= (1e-12 if compute == "exact" else 5e-4)


@pytest.mark.parametrize("format", ROUNDED_AS_GGML)
def test_floats_are_rounded_as_ggml_rounds_them(format):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[format.upper()]
    weight = np.random.default_rng(2).standard_normal((63, 160), dtype=np.float32)
    want = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    np.testing.assert_array_equal(ops.pack(weight, format).unpack(), want)


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (200, 300), (3, 130, 257)])
def test_fp8_keeps_what_is_stored(shape):
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    blocks = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scales = rng.random(blocks, dtype=np.float32) * 1e-3
    spread = scales.repeat(128, axis=-2).repeat(128, axis=-1)[..., : shape[-2], : shape[-1]]
    want = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread
    for stored in (codes, codes.view(ml_dtypes.float8_e4m3fn)):
        assert same_bits(ops.pack_fp8(stored, scales).unpack(), np.ascontiguousarray(want))
    with pytest.raises(ValueError, match="is required"):
        ops.pack_fp8(codes, np.zeros((*blocks[:-1], blocks[-1] + 1), np.float32))


def test_fp8_rounds_blocks_of_128_by_128():
    weight = np.random.default_rng(7).standard_normal((200, 300), dtype=np.float32)
    weight[150, 290] = 30.0
    want = np.zeros_like(weight)
    for i in range(0, 200, 128):
        for j in range(0, 300, 128):
            part = weight[i : i + 128, j : j + 128]
            scale = np.float32(np.abs(part).max() / np.float32(448))
            stored = (part / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            want[i : i + 128, j : j + 128] = stored * scale
    np.testing.assert_array_equal(ops.pack(weight, "fp8").unpack(), want)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_zero_points_keep_what_is_stored(group):
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 16, (37, 256), dtype=np.uint8)
    scales = rng.random((37, 256 // group)).astype(np.float16)
    zeros = rng.integers(0, 17, scales.shape)
    want = (codes - zeros.repeat(group, 1)).astype(np.float32)
    want *= scales.astype(np.float32).repeat(group, 1)
    packed = ops.pack_zero_points(codes, scales, zeros)
    np.testing.assert_array_equal(packed.unpack(), want)
    with pytest.raises(ValueError, match="float16"):
        ops.pack_zero_points(codes, scales.astype(np.float32) * 1.0001, zeros)


def test_torch_tensors_share_memory_and_agree():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.randn(12, 20, dtype=torch.bfloat16)
    x = torch.randn(4, 20)
    packed = ops.pack(weight, "bf16")
    np.testing.assert_array_equal(packed.unpack(), weight.float().numpy())
    got = ops.matmul(x, packed, compute="exact")
    np.testing.assert_allclose(got, (x @ weight.float().T).numpy(), rtol=1e-5, atol=1e-5)


def test_matmul_of_several_matrices_gives_the_bytes_of_each():
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 3, 264), dtype=np.float32)
    formats, rows = ("q8_0", "bf16", "f16", "f32", "q8_0"), (40, 17, 300, 1, 16)
    packed = [
        ops.pack(rng.standard_normal((n, 264), dtype=np.float32), format)
        for n, format in zip(rows, formats, strict=True)
    ]
    biases = [None, rng.standard_normal(17, dtype=np.float32), None, None, np.ones(16)]
    for compute in ("auto", "fast", "exact"):
        together = ops.matmul_each(x, packed, biases, compute=compute)
        for out, weight, bias in zip(together, packed, biases, strict=True):
            alone = ops.matmul(x, weight, bias, compute=compute)
            assert out.shape == (2, 3, weight.shape[0])
            assert out.tobytes() == alone.tobytes()
    with pytest.raises(ValueError, match="264"):
        ops.matmul_each(x, [packed[0], ops.pack(np.ones((4, 8), np.float32), "f32")], [None, None])
    with pytest.raises(ValueError, match="1 biases; 2 are required"):
        ops.matmul_each(x, packed[:2], [None])
    assert ops.matmul_each(x, [], []) == []


def test_matmul_shapes_and_bias():
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((7, 30), dtype=np.float32), np.arange(7, dtype=np.float32)
    packed = ops.pack(weight, "f32")
    x = rng.standard_normal((2, 3, 30), dtype=np.float32)
    np.testing.assert_allclose(ops.matmul(x, packed, bias), x @ weight.T + bias, atol=1e-5)
    assert ops.matmul(x[0, 0], packed).shape == (7,)
    assert ops.matmul(x[:0], packed).shape == (0, 3, 7)


def test_an_empty_batch_and_a_plan_of_empty_slots():
    rng = np.random.default_rng(0)
    experts = ops.Experts(*random_layer(rng, 3, 16, 24), format="f32")
    none = Assignment(np.zeros((0, 2), np.int32), np.zeros((0, 2), np.float32))
    assert ops.moe_ffn(np.zeros((0, 24), np.float32), none, experts).shape == (0, 24)
    empty = Assignment(np.full((4, 2), -1, np.int32), np.zeros((4, 2), np.float32))
    assert not ops.moe_ffn(rng.standard_normal((4, 24)), empty, experts).any()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ops.pack(np.zeros((2, 3), np.float32), "int5"), ValueError, "int5"),
        (lambda: ops.pack(np.zeros((2, 3), np.int32), "f32"), TypeError, "int32"),
        (lambda: ops.pack(np.zeros(3, np.float32), "f32"), ValueError, "dimension"),
        (lambda: ops.pack(np.zeros((0, 3), np.float32), "f32"), ValueError, "positive"),
        (lambda: ops.pack(np.zeros((2, 3, 4)), ["f32", "f32", "f32"]), ValueError, "3 formats"),
        (lambda: ops.pack(np.array([["a"]]), "f32"), TypeError, "dtype"),
        (
            lambda: ops.matmul(np.zeros((2, 5)), ops.pack(np.zeros((3, 4)), "f32")),
            ValueError,
            "5 columns",
        ),
        (
            lambda: ops.grouped_matmul(
                np.zeros((2, 4)), ops.pack(np.zeros((2, 3, 4)), "f32"), [0, 2, 1]
            ),
            ValueError,
            "offsets",
        ),
        (
            lambda: ops.pack_blocks(np.zeros((2, 33), np.uint8), "q8_0", (2, 32)),
            ValueError,
            "34",
        ),
        (lambda: ops.pack_blocks(np.zeros((2, 34)), "q8_0", (2, 32)), TypeError, "uint8"),
        (
            lambda: ops.Experts(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.zeros((2, 3, 4))),
            ValueError,
            "down",
        ),
        (
            lambda: ops.Experts(None, np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), activation="swish"),
            ValueError,
            "swish",
        ),
    ],
)
def test_mistakes_are_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_an_id_that_is_no_expert_is_named():
    rng = np.random.default_rng(0)
    experts = ops.Experts(*random_layer(rng, 3, 16, 24), format="f32")
    bad = Assignment(np.array([[0, 3]], np.int32), np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="3"):
        ops.moe_ffn(np.zeros((1, 24)), bad, experts)


def test_auto_keeps_float_activations_for_small_bfloat16_matrices():
    rng = np.random.default_rng(0)
    for rows, cols, like in (
        (256, 1024, "exact"),
        (2048, 512, "exact"),
        (272, 1024, "fast"),
        (2064, 512, "fast"),
    ):
        x = rng.standard_normal((3, cols), dtype=np.float32)
        packed = ops.pack(rng.standard_normal((rows, cols), dtype=np.float32), "bf16")
        got = {c: ops.matmul(x, packed, compute=c).tobytes() for c in ("auto", "exact", "fast")}
        assert got["auto"] == got[like]
        assert got["exact"] != got["fast"]


def test_show_config_names_the_machine(capsys):
    ops.show_config()
    text = capsys.readouterr().out
    for fact in ("isa", "threads", "compiler", ops.config()["isa"]):
        assert str(fact) in text
