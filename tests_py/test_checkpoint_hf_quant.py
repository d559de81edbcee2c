"""Quantised Hugging Face weights against naive loops and transformers' own conversions."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import moekit.checkpoint as checkpoint
from moekit.checkpoint import FileError, MissingTensorError, hf_quant, open_weights

FP8_CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def finite_float8(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(scale=50, size=shape).astype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (1, 1), (130, 127), (3, 300), (257, 40)])
@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_fp8_blocks_with_cut_edges(shape, block):
    rng = np.random.default_rng(0)
    weight = finite_float8(rng, shape)
    grid = [-(-size // step) for size, step in zip(shape, block, strict=True)]
    scale = rng.uniform(1e-3, 1, grid).astype(np.float32)
    expected = np.empty(shape, np.float32)
    for i in range(shape[0]):
        for j in range(shape[1]):
            expected[i, j] = np.float32(weight[i, j]) * scale[i // block[0], j // block[1]]
    np.testing.assert_array_equal(hf_quant.dequantize_fp8(weight, scale, block), expected)


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "e8m0", "uint8"])
def test_fp8_banks_as_transformers_converts_them(scale_dtype):
    rng = np.random.default_rng(1)
    weight = finite_float8(rng, (3, 256, 384))
    codes = rng.integers(110, 130, (3, 2, 3)).astype(np.uint8)
    powers = np.exp2(codes - 127.0).astype(np.float32)
    scale, theirs = {
        "float32": (powers * np.float32(1.25), powers * np.float32(1.25)),
        "bfloat16": (powers.astype(ml_dtypes.bfloat16), powers),
        "e8m0": (codes.view(ml_dtypes.float8_e8m0fnu), codes),
        "uint8": (codes, codes),
    }[scale_dtype]
    expected = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(weight.view(np.uint8)).view(torch.float8_e4m3fn),
        torch.from_numpy(theirs),
        output_dtype=torch.float32,
    )
    np.testing.assert_array_equal(hf_quant.dequantize_fp8(weight, scale), expected.numpy())


def test_fp8_every_code_and_one_scale_for_all():
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        weight = codes.view(dtype)
        found = hf_quant.dequantize_fp8(weight, np.float32([0.5]))
        np.testing.assert_array_equal(found, weight.astype(np.float32) * np.float32(0.5))


def test_packed_fp4_as_transformers_converts_it():
    rng = np.random.default_rng(2)
    packed = rng.integers(-128, 128, (64, 48)).astype(np.int8)
    scale = rng.integers(100, 140, (64, 3)).astype(np.uint8)
    expected = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(packed), torch.from_numpy(scale), output_dtype=torch.float32
    )
    np.testing.assert_array_equal(hf_quant.dequantize_fp4(packed, scale), expected.numpy())


def test_mxfp4_as_transformers_converts_it():
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (3, 10, 2, 16), dtype=np.uint8)
    scales = rng.integers(90, 160, (3, 10, 2), dtype=np.uint8)
    found = hf_quant.dequantize_mxfp4(blocks, scales)
    theirs = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    assert found.shape == (3, 10, 64)
    np.testing.assert_array_equal(found.swapaxes(1, 2), theirs.numpy())


def test_mxfp4_extreme_scales():
    blocks = np.full((4, 1, 16), 0x71, np.uint8)  # 0.5 and 6
    found = hf_quant.dequantize_mxfp4(blocks, np.array([[0], [127], [254], [255]], np.uint8))
    np.testing.assert_array_equal(found[0, :2], np.float32([2.0**-128, 6 * 2.0**-127]))
    np.testing.assert_array_equal(found[1, :2], [0.5, 6])
    np.testing.assert_array_equal(found[2, :2], [2.0**126, np.inf])
    assert np.isnan(found[3]).all()


def pack_stream(values: np.ndarray, bits: int) -> np.ndarray:
    """int32 [n * bits / 32, N] of integers [n, N]: each column one stream of bits, low first."""
    words = []
    for column in values.T:
        stream = sum(int(value) << (bits * i) for i, value in enumerate(column))
        words.append(np.frombuffer(stream.to_bytes(len(column) * bits // 8, "little"), np.int32))
    return np.stack(words, axis=1)


def gptq_layer(bits: int, rows: int, columns: int, groups: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 1 << bits, (rows, columns))
    zeros = rng.integers(0, 1 << bits, (groups, columns))
    return {
        "q": q,
        "zeros": zeros,
        "qweight": pack_stream(q, bits),
        "qzeros": np.ascontiguousarray(pack_stream(zeros.T, bits).T),
        "scales": rng.uniform(0.01, 0.1, (groups, columns)).astype(np.float16),
    }


def naive_gptq(layer: dict[str, np.ndarray], groups: np.ndarray, offset: int) -> np.ndarray:
    rows, columns = layer["q"].shape
    out = np.empty((columns, rows), np.float32)
    for k in range(rows):
        for n in range(columns):
            level = int(layer["q"][k, n]) - (int(layer["zeros"][groups[k], n]) + offset)
            out[n, k] = np.float32(layer["scales"][groups[k], n]) * np.float32(level)
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(bits, offset, act_order):
    layer = gptq_layer(bits, rows=160, columns=64, groups=5, seed=bits)
    groups = np.arange(160, dtype=np.int32) // 32
    if act_order:
        groups = np.random.default_rng(4).permutation(groups)
    found = hf_quant.dequantize_gptq(
        layer["qweight"],
        layer["qzeros"],
        layer["scales"],
        groups if act_order else None,
        bits=bits,
        group_size=32,
        zero_offset=offset,
    )
    np.testing.assert_array_equal(found, naive_gptq(layer, groups, offset))


def test_three_bit_fields_lie_where_autogptq_packs_them():
    """Its packing: 10 whole fields, one over the border, 10, one over the border, 10."""
    values = np.random.default_rng(5).integers(0, 8, 32)
    words = [0, 0, 0]
    for j in range(10):
        words[0] |= int(values[j]) << (3 * j)
        words[1] |= int(values[11 + j]) << (3 * j + 1)
        words[2] |= int(values[22 + j]) << (3 * j + 2)
    words[0] |= int(values[10]) << 30 & 0xFFFFFFFF
    words[1] |= int(values[10]) >> 2 & 1
    words[1] |= int(values[21]) << 31 & 0xFFFFFFFF
    words[2] |= int(values[21]) >> 1 & 3
    packed = np.array(words, np.uint32).view(np.int32)[:, None]
    np.testing.assert_array_equal(hf_quant.unpack_rows(packed, 3)[:, 0], values)


def pack_awq(values: np.ndarray) -> np.ndarray:
    out = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for row in range(len(values)):
        for column in range(values.shape[1]):
            place = (0, 4, 1, 5, 2, 6, 3, 7)[column % 8]
            out[row, column // 8] |= np.uint32(int(values[row, column]) << (4 * place))
    return out.view(np.int32)


def awq_layer(rows: int, columns: int, groups: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 16, (rows, columns))
    zeros = rng.integers(0, 16, (groups, columns))
    return {
        "q": q,
        "zeros": zeros,
        "qweight": pack_awq(q),
        "qzeros": pack_awq(zeros),
        "scales": rng.uniform(0.01, 0.1, (groups, columns)).astype(np.float16),
    }


@pytest.mark.parametrize("groups", [1, 3])
def test_awq(groups):
    layer = awq_layer(rows=192, columns=40, groups=groups, seed=6)
    size = 192 // groups
    found = hf_quant.dequantize_awq(
        layer["qweight"], layer["qzeros"], layer["scales"], group_size=size if groups > 1 else -1
    )
    np.testing.assert_array_equal(found, naive_gptq(layer, np.arange(192) // size, 0))


F8 = np.zeros((130, 128), ml_dtypes.float8_e4m3fn)
I32 = np.zeros((4, 8), np.int32)
MISTAKES = {
    "fp8 dtype": (lambda: hf_quant.dequantize_fp8(F8.view(np.uint8), F8), "weight is uint8"),
    "fp8 grid": (
        lambda: hf_quant.dequantize_fp8(F8, np.ones((1, 2), np.float32)),
        r"scales \[1, 2\] for weight \[130, 128\]; blocks of 128 x 128 require \[2, 1\]",
    ),
    "fp8 vector": (lambda: hf_quant.dequantize_fp8(F8[0], np.ones(2, np.float32)), r"scales \[2\]"),
    "mxfp4 blocks": (lambda: hf_quant.dequantize_mxfp4(I32, I32), r"blocks are int32 \[4, 8\]"),
    "mxfp4 scales": (
        lambda: hf_quant.dequantize_mxfp4(
            np.zeros((3, 2, 16), np.uint8), np.zeros((3, 1), np.uint8)
        ),
        r"scales are uint8 \[3, 1\]; uint8 \[3, 2\]",
    ),
    "gptq bits": (lambda: hf_quant.dequantize_gptq(I32, I32, I32, bits=5), "5 bits"),
    "gptq words": (lambda: hf_quant.dequantize_gptq(F8, I32, I32), "int32"),
    "gptq scales": (
        lambda: hf_quant.dequantize_gptq(I32, I32, np.ones((4, 9))),
        r"scales \[4, 9\]",
    ),
    "gptq zeros": (lambda: hf_quant.dequantize_gptq(I32, I32, np.ones((4, 8))), r"zeros \[4, 64\]"),
    "gptq g_idx": (
        lambda: hf_quant.dequantize_gptq(I32, I32[:, :1], np.ones((4, 8)), np.full(32, 4)),
        "groups 4 to 4; there are 4",
    ),
    "gptq g_idx below 0": (
        lambda: hf_quant.dequantize_gptq(I32, I32[:, :1], np.ones((4, 8)), np.full(32, -1)),
        "groups -1 to -1",
    ),
    "gptq g_idx shape": (
        lambda: hf_quant.dequantize_gptq(I32, I32[:, :1], np.ones((4, 8)), np.zeros(3, int)),
        r"g_idx is int64 \[3\]; int32 \[32\]",
    ),
    "awq words": (lambda: hf_quant.dequantize_awq(F8, I32, I32), "int32 .rows, N / 8."),
    "awq groups": (
        lambda: hf_quant.dequantize_awq(I32, I32[:1], np.ones((1, 64)), group_size=2),
        "groups 0 to 1; there are 1",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_shapes_that_disagree(case):
    call, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        call()


def save(path, tensors: dict[str, np.ndarray]) -> None:
    """Safetensors by hand: the published NumPy writer has no float8."""
    header, offset = {}, 0
    names = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "uint8": "U8", "int8": "I8"}
    names |= {"int32": "I32", "float16": "F16"}
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(x.tobytes() for x in tensors.values())
    )


def opened(tmp_path, tensors, config):
    path = tmp_path / "x.safetensors"
    save(path, tensors)
    return open_weights(checkpoint.open(path), config)


def test_weights_of_an_fp8_checkpoint(tmp_path):
    rng = np.random.default_rng(7)
    tensors = {
        "norm.weight": np.ones(5, np.float32),
        "a.weight": finite_float8(rng, (130, 40)),
        "a.weight_scale_inv": rng.uniform(size=(2, 1)).astype(np.float32),
        "a.activation_scale": np.ones(1, np.float32),
        "bank": finite_float8(rng, (3, 4, 200)),
        "bank_scale_inv": rng.uniform(size=(3, 1, 2)).astype(np.float32),
        "packed.weight": rng.integers(-99, 99, (4, 32)).astype(np.int8),
        "packed.weight_scale_inv": rng.integers(120, 130, (4, 2)).astype(np.uint8),
    }
    weights = opened(tmp_path, tensors, FP8_CONFIG)
    assert set(weights) == {"norm.weight", "a.weight", "bank", "packed.weight"}
    assert weights.info("norm.weight").scheme == "plain"
    assert weights.info("packed.weight").shape == (4, 64)
    for name in weights:
        assert weights[name].shape == weights.info(name).shape
    expected = hf_quant.dequantize_fp8(tensors["a.weight"], tensors["a.weight_scale_inv"])
    np.testing.assert_array_equal(weights["a.weight"], expected)
    np.testing.assert_array_equal(weights.read_rows("a.weight", 3, 9), expected[3:9])
    np.testing.assert_array_equal(weights.read_rows("bank", 1, 2), weights["bank"][1:2])
    with pytest.raises(MissingTensorError, match="has no tensor 'b'"):
        weights["b"]
    with pytest.raises(ValueError, match="rows 0:131"):
        weights.read_rows("a.weight", 0, 131)


def test_weights_of_an_mxfp4_checkpoint_have_the_plain_layout(tmp_path):
    rng = np.random.default_rng(8)
    blocks = rng.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = rng.integers(120, 130, (2, 6, 3), dtype=np.uint8)
    tensors = {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales}
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    weights = opened(tmp_path, tensors, config)
    assert list(weights) == ["e.gate_up_proj"]
    info = weights.info("e.gate_up_proj")
    assert (info.scheme, info.shape) == ("mxfp4", (2, 96, 6))
    expected = hf_quant.dequantize_mxfp4(blocks, scales).swapaxes(1, 2)
    np.testing.assert_array_equal(weights["e.gate_up_proj"], expected)
    np.testing.assert_array_equal(weights.read_rows("e.gate_up_proj", 1, 2), expected[1:])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_weights_of_a_gptq_checkpoint(tmp_path, act_order, version):
    layer = gptq_layer(4, rows=64, columns=16, groups=2, seed=9)
    tensors = {f"a.{key}": layer[key] for key in ("qweight", "qzeros", "scales")}
    groups = np.arange(64, dtype=np.int32) // 32
    if act_order:
        groups = tensors["a.g_idx"] = groups[::-1].copy()
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": version}
    weights = opened(tmp_path, tensors, {"quantization_config": settings})
    assert list(weights) == ["a.weight"]
    assert weights.info("a.weight").shape == (16, 64)
    offset = 1 if version == "gptq" else 0
    np.testing.assert_array_equal(weights["a.weight"], naive_gptq(layer, groups, offset))


def test_weights_of_an_awq_checkpoint(tmp_path):
    layer = awq_layer(rows=64, columns=16, groups=2, seed=10)
    tensors = {f"a.{key}": layer[key] for key in ("qweight", "qzeros", "scales")}
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    weights = opened(tmp_path, tensors, {"quantization_config": settings})
    assert weights.info("a.weight").shape == (16, 64)
    np.testing.assert_array_equal(weights["a.weight"], naive_gptq(layer, np.arange(64) // 32, 0))


def test_plain_checkpoints_pass_through(tmp_path):
    safetensors.numpy.save_file({"a": np.arange(6.0).reshape(2, 3)}, tmp_path / "x.safetensors")
    with checkpoint.open(tmp_path / "x.safetensors") as ckpt:
        weights = open_weights(ckpt, {})
        np.testing.assert_array_equal(weights["a"], np.arange(6.0).reshape(2, 3))
        np.testing.assert_array_equal(weights.read_rows("a", 1, 2), [[3, 4, 5]])


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
LAYER = {"a.qweight": np.zeros((4, 8), np.int32), "a.scales": np.ones((1, 8), np.float16)}
WHOLE = LAYER | {"a.qzeros": np.zeros((1, 1), np.int32)}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
AWQ_LAYER = WHOLE | {"a.qweight": np.zeros((32, 1), np.int32)}
REFUSED = {
    "unknown method": ({}, {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'"),
    "no method": ({}, {}, "quant_method is ''"),
    "method number": ({}, {"quant_method": 3}, "quant_method is 3"),
    "bits 5": ({}, GPTQ | {"bits": 5}, "bits is 5; 2, 3, 4 or 8"),
    "bits text": ({}, GPTQ | {"bits": "4"}, "bits is '4'"),
    "bits true": ({}, GPTQ | {"bits": True}, "bits is True"),
    "group size 0": ({}, GPTQ | {"group_size": 0}, "group_size is 0"),
    "marlin": ({}, GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    "dynamic": ({}, GPTQ | {"dynamic": {"x": {}}}, "dynamic is"),
    "awq gemv": ({}, {"quant_method": "awq", "version": "GEMV"}, "version is 'gemv'"),
    "awq 8 bits": ({}, {"quant_method": "awq", "bits": 8}, "bits is 8; 4 is required"),
    "block of 0": ({}, {"quant_method": "fp8", "weight_block_size": [0, 1]}, "weight_block_size"),
    "block text": ({}, {"quant_method": "fp8", "weight_block_size": "x"}, "weight_block_size"),
    "packed without config": (WHOLE, None, "tensor 'a.qweight' is packed; a quantization_config"),
    "no zeros": (LAYER, GPTQ, "tensor 'a.qweight' comes without 'a.qzeros'"),
    "wrong dtype": (WHOLE | {"a.qweight": np.zeros((4, 8), np.uint8)}, GPTQ, r"U8 \[4, 8\]; I32"),
    "zeros of 4 bits": (WHOLE, GPTQ | {"bits": 8, "group_size": 16}, r"\[1, 8\], zeros \[1, 4\]"),
    "rows of 3 bits": (WHOLE, GPTQ | {"bits": 3}, "has 4 rows; a multiple of 3"),
    "float8 without scales": ({"a": F8}, {"quant_method": "fp8"}, "F8_E4M3 without 'a_scale_inv'"),
    "scales of nothing packed": (
        {"a": np.ones(3, np.float32), "a_scale_inv": np.ones(1, np.float32)},
        {"quant_method": "fp8"},
        "with scales; float8 or packed float4",
    ),
    "blocks of floats": (
        {"a_blocks": np.ones((1, 1, 16), np.float32), "a_scales": np.ones((1, 1), np.uint8)},
        {"quant_method": "mxfp4"},
        "is F32",
    ),
    "twice": (WHOLE | {"a.weight": np.ones(1, np.float32)}, GPTQ, "gives 'a.weight' a second"),
    "fp8 grid": (
        {"a": F8, "a_scale_inv": np.ones((3, 1), np.float32)},
        {"quant_method": "fp8"},
        r"tensor 'a' .*scales \[3, 1\] for weight \[130, 128\]",
    ),
    "more groups": (WHOLE, GPTQ | {"group_size": 16}, "'a.scales' has 1 groups; 2 are required"),
    "one group for all": (
        AWQ_LAYER | {"a.scales": np.ones((2, 8), np.float16)},
        AWQ | {"group_size": -1},
        "has 2 groups; 1 are required for 32 inputs and group_size -1",
    ),
    "scales of integers": (
        WHOLE | {"a.scales": np.ones((1, 8), np.int32)},
        GPTQ,
        "'a.scales' is I32",
    ),
    "zeros of floats": (
        WHOLE | {"a.qzeros": np.ones((1, 1), np.float32)},
        GPTQ,
        "'a.qzeros' is F3",
    ),
    "groups of floats": (WHOLE | {"a.g_idx": np.zeros(32, np.float32)}, GPTQ, "'a.g_idx' is F32"),
    "order without groups": (WHOLE, GPTQ | {"desc_act": True}, "comes without 'a.g_idx'"),
    "order text": (WHOLE, GPTQ | {"desc_act": "no"}, "desc_act is 'no'; true or false"),
    "awq with an order": (
        AWQ_LAYER | {"a.g_idx": np.zeros(32, np.int32)},
        AWQ,
        "comes with 'a.g_idx'",
    ),
    "awq without zeros": ({}, AWQ | {"zero_point": False}, "zero_point is False; true"),
    "awq 8 bits of old": ({}, {"quant_method": "awq", "w_bit": 8}, "w_bit is 8; 4 is required"),
    "awq old group size": ({}, {"quant_method": "awq", "q_group_size": 0}, "q_group_size is 0"),
    "fp8 scales of integers": (
        {"a": F8, "a_scale_inv": np.ones((2, 1), np.int32)},
        {"quant_method": "fp8"},
        "'a_scale_inv' is I32",
    ),
    "no object": ({}, [1], "quantization_config is no object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schemes_that_are_refused(tmp_path, case):
    tensors, settings, message = REFUSED[case]

    def read_all() -> None:
        weights = opened(tmp_path, tensors, {"quantization_config": settings})
        for name in weights:
            weights[name]

    with pytest.raises(FileError, match=message) as caught:
        read_all()
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (127, 129), (130, 300), (256, 300), (7, 7)])
def test_rows_of_a_float8_matrix_are_read_alone(tmp_path, start, stop):
    rng = np.random.default_rng(12)
    codes = rng.integers(0, 120, (300, 200), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    scales = rng.random((3, 2), np.float32)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    weights = opened(tmp_path, {"a": codes, "a_scale_inv": scales}, config)
    before = weights.checkpoint.sources[0].bytes_read
    found = weights.read_rows("a", start, stop)
    assert stop - start == 0 or weights.checkpoint.sources[0].bytes_read - before < 200 * 300
    np.testing.assert_array_equal(found, weights["a"][start:stop])
