"""Recurrent mixers alone, as in a notebook cell, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moekit import nn, ops

Array = np.ndarray[Any, Any]
rng = np.random.default_rng(0)
T, H = 9, 24


def normal(*shape: int) -> Array:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x.astype(np.float64))


def conv(x: Array, weight: Array) -> Array:
    taps = weight.shape[1]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    return np.stack([(padded[t : t + taps].T * weight).sum(1) for t in range(len(x))])


def rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize("per_key", [False, True])
def test_delta_net(per_key: bool) -> None:
    sizes = nn.DeltaSizes(key_heads=2, heads=4, key_dim=6, value_dim=5)
    count = 4 * 6 if per_key else 4
    x = normal(T, H) * 5
    qkv, z, b, a = normal(44, H), normal(20, H), normal(4, H), normal(count, H)
    weight, norm, out = normal(44, 3), 1 + normal(5), normal(H, 20)
    rate, bias = np.exp(normal(count)), normal(count)
    mixer = nn.DeltaNet(
        nn.SeparateInputs(
            [nn.Linear(qkv[:12]), nn.Linear(qkv[12:])], [nn.Linear(z)], nn.Linear(b), [nn.Linear(a)]
        ),
        nn.ShortConvolution(weight),
        nn.Linear(out),
        sizes,
        rate=rate,
        bias=bias,
        norm=norm,
        eps=1e-5,
    )
    mixed = silu(conv(x @ qkv.T, weight))
    q, k, v = (p.reshape(T, -1, n) for p, n in zip(np.split(mixed, [12, 24], 1), (6, 6, 5)))  # noqa: B905
    unit = [p / np.sqrt((p**2).sum(-1, keepdims=True) + 1e-6) for p in (q, k)]
    decay = np.exp(-rate * softplus(x @ a.T + bias)).reshape(T, 4, -1)
    beta, state, y = sigmoid(x @ b.T), np.zeros((4, 6, 5)), np.zeros((T, 4, 5))
    for t in range(T):
        for h in range(4):
            key = unit[1][t, h // 2]
            state[h] *= decay[t, h][:, None]
            state[h] += np.outer(key, beta[t, h] * (v[t, h] - state[h].T @ key))
            y[t, h] = state[h].T @ unit[0][t, h // 2] * 6**-0.5
    gated = rms(y, 1e-5) * norm * silu(x @ z.T).reshape(T, 4, 5)
    np.testing.assert_allclose(mixer(x), gated.reshape(T, -1) @ out.T, atol=2e-5)
    names = [name for name, _, _ in mixer.weights()]
    assert len(names) == len(set(names)) == 10


def test_grouped_inputs_are_separate_ones_in_another_order() -> None:
    sizes = nn.DeltaSizes(key_heads=2, heads=6, key_dim=3, value_dim=4)
    x = normal(T, H)
    q, k, v, z = normal(2, 3, H), normal(2, 3, H), normal(2, 12, H), normal(2, 12, H)
    beta, decay = normal(2, 3, H), normal(2, 3, H)
    joined = np.concatenate([q, k, v, z], axis=1).reshape(-1, H)
    both = np.concatenate([beta, decay], axis=1).reshape(-1, H)
    grouped = nn.GroupedInputs(nn.Linear(joined), nn.Linear(both), sizes)
    flat = [nn.Linear(part.reshape(-1, H)) for part in (q, k, v, z, beta, decay)]
    separate = nn.SeparateInputs(flat[:3], [flat[3]], flat[4], [flat[5]])
    for one, other in zip(grouped(x), separate(x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_gated_convolution() -> None:
    x, into, out, weight = normal(T, H), normal(3 * H, H), normal(H, H), normal(H, 3)
    mixer = nn.GatedConvolution(
        nn.Linear(into), nn.ShortConvolution(weight, activation="identity"), nn.Linear(out)
    )
    before, after, values = np.split(x.astype(np.float64) @ into.T, 3, axis=1)
    np.testing.assert_allclose(mixer(x), (after * conv(before * values, weight)) @ out.T, atol=1e-5)


def test_mamba_2() -> None:
    heads, width, groups, states = 4, 3, 2, 5
    inner, joint = heads * width, heads * width + 2 * groups * states
    x, into, out = normal(T, H) * 4, normal(inner + joint + heads, H), normal(H, inner)
    weight, norm, skip = normal(joint, 4), 1 + normal(inner), normal(heads)
    rate, bias = np.exp(normal(heads)), normal(heads)
    mixer = nn.Mamba2(
        nn.Linear(into),
        nn.ShortConvolution(weight),
        nn.Linear(out),
        groups=groups,
        states=states,
        rate=rate,
        skip=skip,
        step_bias=bias,
        norm=norm,
        step_limits=(0.4, 2.0),
    )
    gate, joined, time = np.split(x @ into.T, [inner, inner + joint], axis=1)
    mixed = silu(conv(joined, weight))
    values, b, c = np.split(mixed, [inner, inner + groups * states], axis=1)
    values, b, c = (
        part.reshape(T, -1, n) for part, n in ((values, width), (b, states), (c, states))
    )
    step = np.clip(softplus(time + bias), 0.4, 2.0)
    state, y = np.zeros((heads, states, width)), np.zeros((T, heads, width))
    for t in range(T):
        for h in range(heads):
            state[h] *= np.exp(-rate[h] * step[t, h])
            state[h] += np.outer(b[t, h // 2], step[t, h] * values[t, h])
            y[t, h] = state[h].T @ c[t, h // 2] + skip[h] * values[t, h]
    y = (y.reshape(T, inner) * silu(gate)).reshape(T, groups, -1)
    expected = (rms(y, 1e-5).reshape(T, inner) * norm) @ out.T
    np.testing.assert_allclose(mixer(x), expected, atol=2e-5)


def test_mamba() -> None:
    channels, states, rank = 10, 4, 3
    x, into, out = normal(T, H) * 4, normal(2 * channels, H), normal(H, channels)
    weight, select = normal(channels, 4), normal(rank + 2 * states, channels)
    step, bias, skip = normal(channels, rank), normal(channels), normal(channels)
    rate = np.exp(normal(states, channels))
    mixer = nn.Mamba(
        nn.Linear(into),
        nn.ShortConvolution(weight),
        nn.Linear(select),
        nn.Linear(step),
        nn.Linear(out),
        step_bias=bias,
        rate=rate,
        skip=skip,
    )
    values, gate = np.split(x.astype(np.float64) @ into.T, 2, axis=1)
    u = silu(conv(values, weight))
    time, b, c = np.split(u @ select.T, [rank, rank + states], axis=1)
    dt = softplus(time @ step.T + bias)
    state, y = np.zeros((states, channels)), np.zeros((T, channels))
    for t in range(T):
        state = np.exp(-rate * dt[t]) * state + b[t][:, None] * dt[t] * u[t]
        y[t] = (state * c[t][:, None]).sum(0) + skip * u[t]
    np.testing.assert_allclose(mixer(x), (y * silu(gate)) @ out.T, atol=2e-5)


def test_lightning_attention() -> None:
    heads, width = 3, 4
    x, qkv, gate = normal(T, H) * 4, normal(36, H), normal(12, H)
    out, norm, decay = normal(H, 12), 1 + normal(12), np.float32([0.9, 0.5, 0.99])
    mixer = nn.LightningAttention(
        nn.Linear(qkv), nn.Linear(gate), nn.Linear(out), decay=decay, norm=norm
    )
    q, k, v = np.split(silu(x @ qkv.T).reshape(T, heads, 3 * width), 3, axis=2)
    state, y = np.zeros((heads, width, width)), np.zeros((T, heads, width))
    for t in range(T):
        for h in range(heads):
            state[h] = decay[h] * state[h] + np.outer(k[t, h], v[t, h])
            y[t, h] = state[h].T @ q[t, h]
    expected = rms(y.reshape(T, -1), 1e-6) * norm * sigmoid(x @ gate.T)
    np.testing.assert_allclose(mixer(x), expected @ out.T, atol=2e-5)


def test_a_model_of_states_alone_knows_its_place() -> None:
    """Without any keys and values, the states say how many tokens there were."""
    weights = [(normal(3 * H, H), normal(H, 3), normal(H, H)) for _ in range(3)]
    blocks = [
        nn.SingleBlock(
            nn.RMSNorm(np.ones(H)),
            nn.GatedConvolution(
                nn.Linear(into), nn.ShortConvolution(taps, activation="identity"), nn.Linear(out)
            ),
        )
        for into, taps, out in weights
    ]
    model = nn.Model(normal(31, H), blocks, nn.RMSNorm(np.ones(H)), nn.Linear(normal(31, H)))
    ids = [5, 7, 7, 1, 30, 2]
    whole = model.forward(ids)
    cache = model.new_cache()
    parts = [model.forward(ids[a:b], cache=cache) for a, b in ((0, 3), (3, 4), (4, 6))]
    assert cache.lengths == [6]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert model.generate(ids, max_new_tokens=3) == model.generate(ids, max_new_tokens=3)
    assert model.moe_layers == []


def test_latent_and_parallel_mixtures() -> None:
    experts, k, inner, latent = 5, 2, 7, 10
    x, router = normal(T, H) * 4, normal(experts, H)
    up, down = normal(experts, inner, latent), normal(experts, latent, inner)
    into, out = normal(latent, H), normal(H, latent)
    moe = nn.LatentMoE(
        nn.Router(router, k, score="sigmoid"),
        nn.Experts(None, up, down, format="f32", activation="relu2"),
        None,
        nn.Linear(into),
        nn.Linear(out),
    )
    chosen = moe.assign(x)
    expected = np.zeros((T, latent))
    for t in range(T):
        for e, w in zip(chosen.experts[t], chosen.weights[t], strict=True):
            hidden = np.maximum(up[e].astype(np.float64) @ (into @ x[t]), 0) ** 2
            expected[t] += w * (down[e] @ hidden)
    np.testing.assert_allclose(moe(x), expected @ out.T, atol=2e-5)

    scale, numbers = normal(H), 1 + normal(experts)
    normed = nn.NormedRouter(
        router,
        k,
        norm=nn.RMSNorm(scale),
        expert_scale=numbers,
        score="softmax",
        normalize=True,
    )
    plain = ops.route((rms(x, 1e-6) * scale) @ router.T, k, score="softmax", normalize=True)
    np.testing.assert_array_equal(normed(x).experts, plain.experts)
    np.testing.assert_allclose(normed(x).weights, plain.weights * numbers[plain.experts], rtol=2e-5)
    weighed = normed.weigh(normed.logits(x), normed(x).experts)
    np.testing.assert_allclose(weighed.weights, normed(x).weights, rtol=1e-6)


def test_parts_say_what_does_not_fit() -> None:
    linear, conv3 = nn.Linear(normal(6, H)), nn.ShortConvolution(normal(4, 3))
    with pytest.raises(ValueError, match=r"\[GatedConvolution\] into gives 6"):
        nn.GatedConvolution(linear, conv3, nn.Linear(normal(H, 4)))
    with pytest.raises(ValueError, match=r"\[ShortConvolution\] weight has shape \[4, 1, 3\]"):
        nn.ShortConvolution(normal(4, 1, 3))
    sizes = nn.DeltaSizes(2, 3, 4, 4)
    inputs = nn.SeparateInputs([linear], [linear], linear, [linear])
    with pytest.raises(ValueError, match="3 heads share 2 key heads"):
        nn.DeltaNet(inputs, conv3, linear, sizes, rate=[1], bias=[1], norm=[1])
    with pytest.raises(ValueError, match=r"rate has shape \[1\]"):
        nn.DeltaNet(inputs, conv3, linear, nn.DeltaSizes(1, 2, 4, 4), rate=[1], bias=[1], norm=[1])
    with pytest.raises(ValueError, match="4 channels; 12 are required"):
        nn.DeltaNet(inputs, conv3, linear, nn.DeltaSizes(1, 1, 4, 4), rate=[1], bias=[1], norm=[1])
    with pytest.raises(ValueError, match=r"\[Mamba2\] 3 heads, 2 groups"):
        nn.Mamba2(
            linear,
            conv3,
            nn.Linear(normal(H, 6)),
            groups=2,
            states=2,
            rate=[1, 1, 1],
            skip=[1, 1, 1],
            step_bias=[1, 1, 1],
            norm=np.ones(6),
        )
    with pytest.raises(ValueError, match=r"\[LightningAttention\] qkv has 6 rows"):
        nn.LightningAttention(
            linear, linear, nn.Linear(normal(H, 6)), decay=[1, 1, 1], norm=np.ones(6)
        )
