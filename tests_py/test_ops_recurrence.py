"""Recurrent operations against loops in double, and against the code of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from moekit import _core, ops

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def uniform(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.05, 1.0, shape).astype(np.float32)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x.astype(np.float64)))


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x.astype(np.float64))


def same_however_cut(run: Callable[[slice, Any], tuple[Array, Array]], tokens: int) -> None:
    """All at once, one by one, in pieces, and with other thread counts: the same bytes."""
    whole, last = run(slice(0, tokens), None)
    before = _core.num_threads()
    try:
        for cuts, threads in (([1] * tokens, 1), ([2, tokens - 3, 1], 3)):
            _core.set_num_threads(threads)
            state, parts, start = None, [], 0
            for length in cuts:
                kept = None if state is None else state.copy()
                part, after = run(slice(start, start + length), state)
                if state is not None:
                    np.testing.assert_array_equal(state, kept)  # never written into
                state, start = after, start + length
                parts.append(part)
            assert np.concatenate(parts).tobytes() == whole.tobytes()
            assert state is not None
            assert state.tobytes() == last.tobytes()
    finally:
        _core.set_num_threads(before)


@pytest.mark.parametrize(("taps", "channels"), [(4, 1), (3, 37), (1, 16), (4, 130), (64, 5)])
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_causal_conv_is_torchs_conv1d(taps: int, channels: int, activation: Any) -> None:
    x, weight = normal(9, channels), normal(channels, 1, taps, seed=1)
    bias = normal(channels, seed=2)
    for b in (None, bias):
        padded = torch.from_numpy(x.T.copy())[None].double()
        expected = torch.nn.functional.conv1d(
            padded,
            torch.from_numpy(weight).double(),
            None if b is None else torch.from_numpy(b).double(),
            padding=taps - 1,
            groups=channels,
        )[0, :, :9].numpy()
        expected = silu(expected) if activation == "silu" else expected
        turned = np.ascontiguousarray(weight[:, 0].T)
        y, state = ops.causal_conv(x, turned, b, activation=activation)
        np.testing.assert_allclose(y, expected.T, atol=4e-6 * taps**0.5)
        history = np.concatenate([np.zeros((taps, channels), np.float32), x])
        np.testing.assert_array_equal(state, history[len(history) - taps + 1 :])

    def run(part: slice, before: Any) -> tuple[Array, Array]:
        return ops.causal_conv(x[part], turned, bias, before, activation=activation)

    same_however_cut(run, 9)


def test_causal_conv_names_what_does_not_fit() -> None:
    x, weight = normal(3, 8), normal(4, 8)
    with pytest.raises(ValueError, match=r"weight has shape \[4, 7\]; \[4, 8\]"):
        ops.causal_conv(x, weight[:, :7])
    with pytest.raises(ValueError, match=r"state has shape \[4, 8\]; \[3, 8\]"):
        ops.causal_conv(x, weight, None, normal(4, 8))
    with pytest.raises(ValueError, match="65 taps"):
        ops.causal_conv(x, normal(65, 8))
    with pytest.raises(ValueError, match="0 taps"):
        ops.causal_conv(x, normal(0, 8))
    with pytest.raises(ValueError, match="activation is tanh"):
        ops.causal_conv(x, weight, activation="tanh")  # type: ignore[arg-type]
    y, state = ops.causal_conv(x[:0], weight, None, normal(3, 8))
    assert y.shape == (0, 8)
    np.testing.assert_array_equal(state, normal(3, 8))


@pytest.mark.parametrize("size", [1, 15, 33, 200])
def test_gates_and_gated_norms(size: int) -> None:
    x, by, weight = normal(5, size, scale=3.0), normal(5, size, seed=1), normal(size, seed=2)
    sigmoid = 1 / (1 + np.exp(-by.astype(np.float64)))
    np.testing.assert_allclose(ops.gate(x, by), x * sigmoid, rtol=2e-6)
    np.testing.assert_allclose(ops.gate(None, by), sigmoid, rtol=2e-6)
    np.testing.assert_allclose(ops.gate(x, by, "silu"), x * silu(by), rtol=2e-6)
    np.testing.assert_array_equal(ops.gate(x, by, "identity"), x * by)
    exact = torch.from_numpy(by).double()
    for name, theirs in (
        ("gelu", torch.nn.functional.gelu(exact)),
        ("gelu_tanh", torch.nn.functional.gelu(exact, approximate="tanh")),
        ("relu", torch.relu(exact)),
        ("relu2", torch.relu(exact) ** 2),
    ):
        wanted = theirs.numpy()
        np.testing.assert_allclose(ops.gate(None, by, name), wanted, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(ops.gate(x, by, name), x * wanted, rtol=2e-5, atol=4e-6)

    def rms(values: Array) -> Array:
        wide = values.astype(np.float64)
        return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)

    after = ops.gated_rms_norm(x, by, weight, 1e-5)
    np.testing.assert_allclose(after, rms(x) * weight * silu(by), rtol=4e-6, atol=1e-6)
    kimi = ops.gated_rms_norm(x, by, weight, 1e-5, activation="sigmoid")
    np.testing.assert_allclose(kimi, rms(x) * weight * sigmoid, rtol=4e-6, atol=1e-6)
    before = ops.gated_rms_norm(x, by, weight, 1e-5, gate_first=True)
    np.testing.assert_allclose(before, rms(x * silu(by)) * weight, rtol=4e-6, atol=1e-6)
    unit = ops.unit_length(x, 0.5)
    length = np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(unit, 0.5 * x / length, rtol=2e-6)


def test_gated_norm_in_groups() -> None:
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHRMSNormGated

    x, by, weight = normal(2, 3, 60), normal(2, 3, 60, seed=1), normal(60, seed=2)
    module = NemotronHRMSNormGated(60, 12, 1e-5)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight))
        expected = module(torch.from_numpy(x), torch.from_numpy(by)).numpy()
    mine = ops.gated_rms_norm(x, by, weight, 1e-5, gate_first=True, groups=5)
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="7 groups; a divisor of the 60 columns"):
        ops.gated_rms_norm(x, by, weight, groups=7)
    with pytest.raises(ValueError, match="the same"):
        ops.gated_rms_norm(x, by[:1], weight)


def test_decay_factors() -> None:
    x, rate, bias = normal(4, 3, 35, scale=8.0), uniform(35) * 4, normal(35, seed=1)
    decay, step = ops.decay_factors(x, rate, bias)
    wanted = softplus(x + bias)
    np.testing.assert_allclose(step, wanted, rtol=1e-6)
    np.testing.assert_array_equal(ops.time_step(x, bias), step)
    # A relative error of 1e-7 in an exponent of 80 is one of 1e-5 in the power.
    np.testing.assert_allclose(decay, np.exp(-rate * wanted), rtol=2e-5, atol=1e-37)
    _, clamped = ops.decay_factors(x, rate, bias, limits=(0.1, 5.0))
    np.testing.assert_allclose(clamped, np.clip(wanted, 0.1, 5.0), rtol=1e-6)
    bounded, _ = ops.decay_factors(x, rate, bias, lower_bound=-5.0)
    inner = 1 / (1 + np.exp(-(rate * (x + bias)).astype(np.float64)))
    np.testing.assert_allclose(bounded, np.exp(-5.0 * inner), rtol=4e-6)
    huge = ops.decay_factors(np.float32([[1e9, -1e9]]), np.float32([3.0, 3.0]))[0]
    assert huge.tolist() == [[0.0, 1.0]]
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="below 0 is required"):
            ops.decay_factors(x, rate, lower_bound=wrong)
    with pytest.raises(ValueError, match="limits"):
        ops.decay_factors(x, rate, limits=(2.0, 1.0))


SIZES = [
    (7, 1, 1, 1, 1),
    (9, 1, 3, 5, 33),
    (8, 2, 4, 20, 70),
    (5, 3, 3, 65, 32),
    (6, 1, 2, 128, 128),
]


@pytest.mark.parametrize(("tokens", "key_heads", "heads", "keys", "values"), SIZES)
@pytest.mark.parametrize("per_key", [False, True])
def test_gated_delta_rule_is_its_definition(
    tokens: int, key_heads: int, heads: int, keys: int, values: int, per_key: bool
) -> None:
    q = ops.unit_length(normal(tokens, key_heads, keys), keys**-0.5)
    k = ops.unit_length(normal(tokens, key_heads, keys, seed=1))
    v, beta = normal(tokens, heads, values, seed=2), uniform(tokens, heads, seed=3)
    decay = uniform(*((tokens, heads, keys) if per_key else (tokens, heads)), seed=4)
    first = normal(heads, keys, values, seed=5)
    state = first.astype(np.float64)
    expected = np.zeros(v.shape)
    for t, h in itertools.product(range(tokens), range(heads)):
        shared = h // (heads // key_heads)
        state[h] *= decay[t, h][:, None] if per_key else decay[t, h]
        recalled = state[h].T @ k[t, shared]
        state[h] += np.outer(k[t, shared], beta[t, h] * (v[t, h] - recalled))
        expected[t, h] = state[h].T @ q[t, shared]
    y, after = ops.gated_delta_rule(q, k, v, decay, beta, first)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    np.testing.assert_allclose(after, state, atol=5e-6)

    def run(part: slice, before: Any) -> tuple[Array, Array]:
        return ops.gated_delta_rule(q[part], k[part], v[part], decay[part], beta[part], before)

    same_however_cut(run, tokens)


def test_gated_delta_rule_is_that_of_transformers() -> None:
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    tokens, key_heads, heads, keys, values = 70, 2, 4, 24, 40
    q, k = normal(1, tokens, key_heads, keys), normal(1, tokens, key_heads, keys, seed=1)
    v, g = normal(1, tokens, heads, values, seed=2), -uniform(1, tokens, heads, seed=3)
    beta = uniform(1, tokens, heads, seed=4)

    def ours(query: Array, key: Array, value: Array, logs: Array) -> Array:
        return ops.gated_delta_rule(
            ops.unit_length(query[0], keys**-0.5),
            ops.unit_length(key[0]),
            value[0],
            np.exp(logs[0]),
            beta[0],
        )[0]

    tensors = [torch.from_numpy(a) for a in (q, k, v, g, beta)]
    theirs, _ = qwen.torch_chunk_gated_delta_rule(*tensors, use_qk_l2norm_in_kernel=True)
    np.testing.assert_allclose(ours(q, k, v, g), theirs[0].numpy(), atol=2e-6)

    wide_q, wide_k = np.repeat(q, 2, axis=2), np.repeat(k, 2, axis=2)
    square, logs = normal(1, tokens, heads, keys, seed=5), -uniform(1, tokens, heads, keys, seed=6)
    tensors = [torch.from_numpy(a) for a in (wide_q, wide_k, square, logs, beta)]
    theirs, _ = kimi.chunk_kimi_delta_attention(
        *tensors, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=True
    )
    np.testing.assert_allclose(ours(q, k, square, logs), theirs[0].numpy(), atol=2e-6)


@pytest.mark.parametrize(("tokens", "key_heads", "heads", "keys", "values"), SIZES)
def test_linear_attention_is_its_definition(
    tokens: int, key_heads: int, heads: int, keys: int, values: int
) -> None:
    q, k = normal(tokens, key_heads, keys), normal(tokens, key_heads, keys, seed=1)
    v, scale = normal(tokens, heads, values, seed=2), uniform(tokens, heads, seed=3)
    skip, first = normal(heads, seed=4), normal(heads, keys, values, seed=5)
    for decay in (uniform(tokens, heads), uniform(heads), uniform(tokens, heads, keys)):
        state = first.astype(np.float64)
        expected = np.zeros(v.shape)
        for t, h in itertools.product(range(tokens), range(heads)):
            shared = h // (heads // key_heads)
            factor = decay[h] if decay.ndim == 1 else decay[t, h]
            state[h] *= factor[:, None] if decay.ndim == 3 else factor
            state[h] += np.outer(k[t, shared], scale[t, h] * v[t, h])
            expected[t, h] = state[h].T @ q[t, shared] + skip[h] * v[t, h]
        y, after = ops.linear_attention(q, k, v, decay, scale, skip, first)
        bound = 1e-6 * (1 + np.abs(expected).max() + keys)
        np.testing.assert_allclose(y, expected, atol=bound)
        np.testing.assert_allclose(after, state, atol=bound)

        def run(part: slice, before: Any, factors: Array = decay) -> tuple[Array, Array]:
            given = factors if factors.ndim == 1 else factors[part]
            return ops.linear_attention(q[part], k[part], v[part], given, scale[part], skip, before)

        same_however_cut(run, tokens)


def test_linear_attention_is_mamba_2_of_transformers() -> None:
    from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

    tokens, groups, heads, states, size = 37, 2, 6, 19, 21
    x, dt = normal(1, tokens, heads, size), normal(1, tokens, heads, seed=1)
    b, c = normal(1, tokens, groups, states, seed=2), normal(1, tokens, groups, states, seed=3)
    rate, skip, bias = uniform(heads) * 3, normal(heads, seed=4), normal(heads, seed=5)
    tensors = [torch.from_numpy(a) for a in (x, dt, -rate, b, c)]
    theirs = mamba2_chunk_scan(
        *tensors,
        chunk_size=8,
        D=torch.from_numpy(skip),
        dt_bias=torch.from_numpy(bias),
        dt_softplus=True,
        dt_limit=(0.3, 2.0),
    )
    decay, step = ops.decay_factors(dt[0], rate, bias, limits=(0.3, 2.0))
    ours, _ = ops.linear_attention(c[0], b[0], x[0], decay, step, skip)
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(("channels", "states"), [(1, 1), (33, 16), (70, 5), (128, 16)])
def test_selective_scan_is_its_definition(channels: int, states: int) -> None:
    tokens = 11
    x, step = normal(tokens, channels), uniform(tokens, channels)
    rate, skip = uniform(states, channels, seed=1) * 4, normal(channels, seed=2)
    b, c = normal(tokens, states, seed=3), normal(tokens, states, seed=4)
    first = normal(states, channels, seed=5)
    state = first.astype(np.float64)
    expected = np.zeros((tokens, channels))
    for t in range(tokens):
        state = np.exp(-rate.astype(np.float64) * step[t]) * state + b[t][:, None] * step[t] * x[t]
        expected[t] = (state * c[t][:, None]).sum(0) + skip * x[t]
    y, after = ops.selective_scan(x, step, rate, b, c, skip, first)
    np.testing.assert_allclose(y, expected, atol=3e-6 * states**0.5)
    np.testing.assert_allclose(after, state, atol=3e-6)

    def run(part: slice, before: Any) -> tuple[Array, Array]:
        return ops.selective_scan(x[part], step[part], rate, b[part], c[part], skip, before)

    same_however_cut(run, tokens)


def test_states_name_what_does_not_fit() -> None:
    q, v = normal(3, 2, 4), normal(3, 4, 5)
    decay, beta = uniform(3, 4), uniform(3, 4)
    with pytest.raises(ValueError, match=r"\[gated_delta_rule\] value has 4 heads, query 3"):
        ops.gated_delta_rule(normal(3, 3, 4), normal(3, 3, 4), v, decay, beta)
    with pytest.raises(ValueError, match=r"key has shape \[3, 2, 3\]; \[3, 2, 4\]"):
        ops.gated_delta_rule(q, normal(3, 2, 3), v, decay, beta)
    with pytest.raises(ValueError, match=r"state has shape \[4, 5, 4\]; \[4, 4, 5\]"):
        ops.gated_delta_rule(q, q, v, decay, beta, normal(4, 5, 4))
    with pytest.raises(ValueError, match=r"\[linear_attention\] decay has shape \[3\]; \[4\]"):
        ops.linear_attention(q, q, v, uniform(3))
    with pytest.raises(ValueError, match=r"\[selective_scan\] step has shape \[2, 6\]; \[3, 6\]"):
        ops.selective_scan(normal(3, 6), uniform(2, 6), uniform(2, 6), normal(3, 2), normal(3, 2))
    y, state = ops.gated_delta_rule(q[:0], q[:0], v[:0], decay[:0], beta[:0])
    assert y.shape == (0, 4, 5)
    assert not state.any()
