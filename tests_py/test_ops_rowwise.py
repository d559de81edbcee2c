"""Norms, rotary embedding, embedding rows against torch and transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moekit import ops


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 72, 256, 2048])
def test_rms_norm_is_transformers(size: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm

    x, weight = normal(3, 5, size, scale=4.0), normal(size, seed=1)
    for module, offset in [(MixtralRMSNorm(size, 1e-5), 0.0), (Qwen3NextRMSNorm(size, 1e-5), 1.0)]:
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            expected = module(torch.from_numpy(x)).numpy()
        mine = ops.rms_norm(x, weight, 1e-5, offset=offset)
        assert mine.dtype == np.float32
        assert mine.shape == x.shape
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-6)


def test_rms_norm_adds_a_residual_first() -> None:
    x, residual, weight = normal(4, 48), normal(4, 48, seed=1), normal(48, seed=2)
    normed, total = ops.rms_norm(x, weight, residual=residual)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(normed, ops.rms_norm(total, weight))
    assert ops.rms_norm(x[0]).shape == (48,)
    with pytest.raises(ValueError, match=r"weight has shape \[47\]; \[48\]"):
        ops.rms_norm(x, weight[:47])
    with pytest.raises(ValueError, match="residual has shape"):
        ops.rms_norm(x, weight, residual=residual[:3])


@pytest.mark.parametrize("size", [3, 72, 1000])
def test_layer_norm_is_torchs(size: int) -> None:
    x, weight, bias = normal(6, size, scale=3.0), normal(size, seed=1), normal(size, seed=2)
    for w, b in [(weight, bias), (weight, None), (None, None)]:
        expected = torch.nn.functional.layer_norm(
            torch.from_numpy(x),
            (size,),
            None if w is None else torch.from_numpy(w),
            None if b is None else torch.from_numpy(b),
            1e-5,
        )
        np.testing.assert_allclose(ops.layer_norm(x, w, b), expected, rtol=2e-6, atol=2e-6)


def test_embed_gathers_any_float_table() -> None:
    table = torch.from_numpy(normal(20, 33))
    ids = np.array([[3, 0], [19, 3]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        expected = table.to(dtype)[torch.from_numpy(ids)].float().numpy()
        np.testing.assert_array_equal(ops.embed(table.to(dtype), ids), expected)
    with pytest.raises(ValueError, match="the id at position 1 is 20; 0 to 19"):
        ops.embed(table, [0, 20])
    with pytest.raises(TypeError, match="integers are required"):
        ops.embed(table, [0.5])


YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": YARN,
    "yarn_gpt_oss": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    "yarn_deepseek": {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn_attention": {**YARN, "attention_factor": 1.25},
    "yarn_no_factor": {**YARN, "factor": None},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 4096,
        "short_factor": "pairs",
        "long_factor": "pairs",
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
}


@pytest.mark.parametrize("head_dim", [8, 64, 72, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", list(SCALINGS))
def test_frequencies_are_transformers(name: str, theta: float, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = dict(SCALINGS[name])
    for key, value in scaling.items():
        if value == "pairs":
            scaling[key] = np.linspace(1, 5 + len(key), head_dim // 2).tolist()
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=16384,
        rope_parameters={"rope_theta": theta, **scaling, "factor": scaling.get("factor") or 1.0},
    )
    if "factor" in scaling or name == "longrope":
        config.rope_parameters["factor"] = scaling.get("factor")  # None: from the lengths
    for length in (None, 1000, 50000):
        expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=length)
        mine, attention = ops.rope_frequencies(
            head_dim, theta, scaling, max_positions=16384, sequence_length=length
        )
        assert mine.dtype == np.float32
        # One unit in the last place: two implementations of a power.
        np.testing.assert_allclose(
            mine, expected.numpy(), rtol=1.3e-7 * (4 if "llama3" in name else 2)
        )
        assert attention == pytest.approx(factor, rel=1e-12)


def test_plain_frequencies_and_their_mistakes() -> None:
    mine, factor = ops.rope_frequencies(64, 10000.0)
    exponents = torch.arange(0, 64, 2, dtype=torch.int64).float() / 64
    np.testing.assert_allclose(mine, (1.0 / 10000.0**exponents).numpy(), rtol=1.2e-7)
    assert factor == 1.0
    assert len(ops.rope_frequencies(64, scaling={"partial_rotary_factor": 0.5})[0]) == 16
    assert ops.rope_frequencies(64, scaling={"type": "default", "rope_theta": 100.0})[0][16] == (
        pytest.approx(0.1)
    )
    for scaling, text in [
        ({"rope_type": "spiral"}, "rope_type is 'spiral'; one of default, linear"),
        ({"rope_type": "linear"}, "linear scaling lacks factor"),
        ({"rope_type": "linear", "factor": -1}, "factor is -1; a positive number"),
        ({"rope_type": "linear", "factor": "8"}, "factor is '8'"),
        ({"rope_type": "yarn", "factor": 2.0}, "lacks original_max_position_embeddings"),
        ({**SCALINGS["longrope"], "short_factor": [1.0], "factor": 2.0}, "short_factor has 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            ops.rope_frequencies(64, scaling=scaling)
    with pytest.raises(ValueError, match="an even number"):
        ops.rope_frequencies(63)
    with pytest.raises(ValueError, match="2 dimensions rotate; at least 4"):
        ops.rope_frequencies(2, scaling={"rope_type": "dynamic", "factor": 2.0}, max_positions=64)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_rope_is_transformers_rotation(interleaved: bool, factor: float) -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    tokens, heads, size = 40, 3, 24
    x = normal(tokens, heads, size)
    positions = np.random.default_rng(3).integers(0, 100_000, tokens)
    frequencies, _ = ops.rope_frequencies(size)
    angle = torch.from_numpy(positions).float()[:, None] * torch.from_numpy(frequencies)
    both = torch.cat([angle, angle], -1)[None]
    cos, sin = both.cos() * factor, both.sin() * factor
    q = torch.from_numpy(x).transpose(0, 1)[None]
    rotate = v3.apply_rotary_pos_emb_interleave if interleaved else v3.apply_rotary_pos_emb
    expected = rotate(q, q, cos, sin)[0][0].transpose(0, 1).numpy()
    if interleaved:  # transformers leaves the even ones in front, moekit every pair in its place
        expected = expected.reshape(tokens, heads, 2, size // 2).swapaxes(2, 3).reshape(x.shape)
    mine = ops.rope(
        x, positions, frequencies=frequencies, attention_factor=factor, interleaved=interleaved
    )
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)
    shared = ops.rope_angles(positions, frequencies, factor)
    np.testing.assert_array_equal(ops.rope(x, angles=shared, interleaved=interleaved), mine)
    np.testing.assert_array_equal(
        ops.rope(x[:, 0], angles=shared, interleaved=interleaved), mine[:, 0]
    )


@pytest.mark.parametrize("placement", ["first", "last"])
def test_rope_turns_a_part_of_the_head(placement: str) -> None:
    x, positions = normal(9, 2, 20), np.arange(9) * 17
    mine = ops.rope(x, positions, rotary_dim=8, placement=placement)
    turned = slice(0, 8) if placement == "first" else slice(12, 20)
    kept = slice(8, 20) if placement == "first" else slice(0, 12)
    np.testing.assert_array_equal(mine[..., kept], x[..., kept])
    part = np.ascontiguousarray(x[..., turned])
    np.testing.assert_array_equal(mine[..., turned], ops.rope(part, positions))
    same = ops.rope(x, positions, scaling={"partial_rotary_factor": 0.4}, placement=placement)
    np.testing.assert_array_equal(mine, same)


def test_rope_mistakes_are_named() -> None:
    x = normal(3, 2, 8)
    with pytest.raises(ValueError, match="neither positions nor angles"):
        ops.rope(x)
    with pytest.raises(ValueError, match="3 frequencies"):
        ops.rope(x, [0, 1, 2], frequencies=[1, 1, 1])
    with pytest.raises(ValueError, match="10 rotated dimensions from 0 on; a head has 8"):
        ops.rope(x, [0, 1, 2], rotary_dim=10)
    with pytest.raises(ValueError, match="3 tokens are required"):
        ops.rope(x, [0, 1])
