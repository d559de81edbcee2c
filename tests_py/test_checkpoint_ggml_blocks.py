"""Dequantising ggml blocks against the published reference, bit for bit, on random bytes."""

import gguf
import gguf.quants
import numpy as np
import pytest

from moekit.checkpoint.ggml_dequant import dequantize
from moekit.checkpoint.ggml_types import GGML, NOT_IN_FILES, QUANTISED

# The published package knows the sizes of Q1_0 but does not decode it.
PUBLISHED = [name for name in QUANTISED if name != "Q1_0"]


def random_blocks(name: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, QUANTISED[name].block_bytes), dtype=np.uint8)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all() and (a.view("u4") == b.view("u4"))[~nan].all())


def test_the_table_agrees_with_the_published_one():
    published = {t.value: t.name for t in gguf.GGMLQuantizationType}
    assert {number: row.name for number, row in GGML.items()} == {
        number: name for number, name in published.items() if number not in NOT_IN_FILES
    }
    for number, row in GGML.items():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert (row.block, row.block_bytes) == sizes


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (700, 2)])
def test_random_blocks_agree_to_the_last_bit(name, shape):
    rows, columns = shape
    blocks = random_blocks(name, rows * columns, seed=rows).reshape(rows, -1)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    found = dequantize(blocks, name.lower())
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert same_bits(found, np.ascontiguousarray(expected, np.float32))


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n in ("MXFP4", "NVFP4", "Q8_0")])
def test_every_scale(name):
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], QUANTISED[name].block_bytes, axis=1)
    blocks[:, 8:] = random_blocks(name, 256, seed=1)[:, 8:]
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert same_bits(dequantize(blocks, name), np.ascontiguousarray(expected, np.float32))


def test_q1_0_is_a_sign_for_each_bit_lowest_first():
    blocks = random_blocks("Q1_0", 9, seed=2)
    blocks[:, :2] = np.frombuffer(np.float16(1.5).tobytes(), np.uint8)
    found = dequantize(blocks, "q1_0")
    for row in range(9):
        for i in range(128):
            assert found[row, i] == (1.5 if blocks[row, 2 + i // 8] >> (i % 8) & 1 else -1.5)


def test_quantised_values_come_back_near():
    values = np.random.default_rng(3).normal(size=(4, 512)).astype(np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_allclose(dequantize(blocks, "q8_0"), values, atol=0.03)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="type 'q9_k'; one of Q4_0"):
        dequantize(np.zeros((1, 18), np.uint8), "q9_k")
    with pytest.raises(ValueError, match=r"uint8 \[2, 17\]; uint8 \[rows, n x 18\] is required"):
        dequantize(np.zeros((2, 17), np.uint8), "q4_0")
    with pytest.raises(ValueError, match="float32"):
        dequantize(np.zeros((2, 18), np.float32), "q4_0")
    with pytest.raises(ValueError, match="out is float32 of 64 elements; contiguous"):
        dequantize(np.zeros((2, 18), np.uint8), "q4_0", out=np.zeros((2, 64), np.float32)[:, ::2])
