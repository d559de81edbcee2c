"""The parts of a model used alone, as in a notebook cell, against plain NumPy."""

from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit import nn, ops

rng = np.random.default_rng(0)
T, H, F, E, K = 7, 72, 40, 5, 2


def normal(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def ffn(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return {"gate": normal(E, F, H), "up": normal(E, F, H), "down": normal(E, H, F)}


def test_a_mixture_is_the_weighted_sum_of_its_experts(weights: dict[str, np.ndarray]) -> None:
    x, router = normal(T, H) * 8, normal(E, H)
    shared = {name: normal(*w.shape[1:]) for name, w in weights.items()}
    moe = nn.MoE(
        nn.Router(router, K, score="softmax", normalize=True),
        nn.Experts(**weights, format="f32"),
        nn.Experts(**{n: w[None] for n, w in shared.items()}, format="f32"),
    )
    logits = x @ router.T
    expected = ffn(x, **shared).astype(np.float64)
    for t in range(T):
        best = np.argsort(-logits[t], kind="stable")[:K]
        p = np.exp(logits[t, best] - logits[t, best].max())
        for expert, weight in zip(best, p / p.sum(), strict=True):
            parts = {name: w[expert] for name, w in weights.items()}
            expected[t] += weight * ffn(x[t], **parts)
    np.testing.assert_allclose(moe(x), expected, atol=2e-5)
    assert moe.assign(x).experts.shape == (T, K)


def test_a_router_may_be_any_function(weights: dict[str, np.ndarray]) -> None:
    def first(x: np.ndarray, logits: Any) -> mk.Assignment:
        assert logits is None
        return mk.Assignment(np.zeros((len(x), 1), np.int32), np.ones((len(x), 1), np.float32))

    x = normal(T, H)
    moe = nn.MoE(first, nn.Experts(**weights, format="f32"))
    expected = ffn(x, **{name: w[0] for name, w in weights.items()})
    np.testing.assert_allclose(moe(x), expected, atol=1e-5)


def test_a_dense_layer_is_a_mixture_of_one(weights: dict[str, np.ndarray]) -> None:
    one = {name: w[:1] for name, w in weights.items()}
    mlp = nn.MLP(nn.Experts(**one, format="f32"))
    for rows in (1, 3, 1, T):
        x = normal(rows, H)
        np.testing.assert_allclose(mlp(x), ffn(x, **{n: w[0] for n, w in one.items()}), atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_is_softmax_over_the_past(window: int | None) -> None:
    heads, kv_heads, d = 4, 2, 6
    q, k, v = normal(heads * d, H), normal(kv_heads * d, H), normal(kv_heads * d, H)
    o = normal(H, heads * d)
    part = nn.Attention(
        *(nn.Linear(w) for w in (q, k, v, o)), heads=heads, kv_heads=kv_heads, window=window
    )
    x = normal(T, H) * 8
    qs = (x @ q.T).reshape(T, heads, d)
    ks, vs = ((x @ w.T).reshape(T, kv_heads, d) for w in (k, v))
    out = np.zeros((T, heads, d))
    for t in range(T):
        past = slice(max(0, t + 1 - (window or T)), t + 1)
        for h in range(heads):
            z = ks[past, h // 2] @ qs[t, h] * d**-0.5
            p = np.exp(z - z.max())
            out[t, h] = (p / p.sum()) @ vs[past, h // 2]
    np.testing.assert_allclose(part(x), out.reshape(T, -1) @ o.T, atol=1e-5)


def mla_of(parts: dict[str, np.ndarray], heads: int, nope: int, rope: int) -> nn.MLA:
    return nn.MLA(
        nn.Linear(parts["q"]),
        nn.Linear(parts["kv_a"]),
        nn.RMSNorm(parts["norm"]),
        ops.pack(np.ascontiguousarray(parts["key"].transpose(0, 2, 1)), "f32"),
        ops.pack(parts["value"], "f32"),
        nn.Linear(parts["o"]),
        frequencies=ops.rope_frequencies(rope)[0],
    )


def test_absorbed_latent_attention_is_the_expanded_one() -> None:
    heads, nope, rope, value, latent = 3, 10, 4, 8, 12
    parts = {
        "q": normal(heads * (nope + rope), H),
        "kv_a": normal(latent + rope, H),
        "norm": 1 + normal(latent),
        "key": normal(heads, nope, latent),
        "value": normal(heads, value, latent),
        "o": normal(H, heads * value),
    }
    x = normal(T, H) * 8
    mla = mla_of(parts, heads, nope, rope)
    frequencies = 10000.0 ** -(np.arange(0, rope, 2) / rope)
    angle = np.exp(1j * np.arange(T)[:, None] * frequencies)

    def rotated(z: np.ndarray) -> np.ndarray:
        pairs = (z[..., 0::2] + 1j * z[..., 1::2]) * angle.reshape(T, *[1] * (z.ndim - 2), -1)
        return np.stack([pairs.real, pairs.imag], -1).reshape(z.shape)

    q = (x @ parts["q"].T).reshape(T, heads, nope + rope)
    kv = (x @ parts["kv_a"].T).astype(np.float64)
    c = kv[:, :latent]
    c = c / np.sqrt((c**2).mean(-1, keepdims=True) + 1e-6) * parts["norm"]
    q_rope, k_rope = rotated(q[..., nope:]), rotated(kv[:, latent:])
    out = np.zeros((T, heads, value))
    for h in range(heads):
        keys, values = c @ parts["key"][h].T, c @ parts["value"][h].T
        scores = (q[:, h, :nope] @ keys.T + q_rope[:, h] @ k_rope.T) * (nope + rope) ** -0.5
        for t in range(T):
            p = np.exp(scores[t, : t + 1] - scores[t, : t + 1].max())
            out[t, h] = (p / p.sum()) @ values[: t + 1]
    np.testing.assert_allclose(mla(x), out.reshape(T, -1) @ parts["o"].T, atol=2e-5)


def small_model(**options: Any) -> nn.Model:
    """Two layers put together by hand."""

    def block(dense: bool) -> nn.Block:
        attention = nn.Attention(
            *(nn.Linear(normal(H, H)) for _ in range(4)),
            heads=3,
            kv_heads=3,
            frequencies=ops.rope_frequencies(24)[0],
        )
        count = 1 if dense else E
        experts = nn.Experts(normal(count, F, H), normal(count, F, H), normal(count, H, F))
        ffn = nn.MLP(experts) if dense else nn.MoE(nn.Router(normal(E, H), K), experts)
        return nn.Block(nn.RMSNorm(np.ones(H)), attention, nn.RMSNorm(np.ones(H)), ffn)

    return nn.Model(
        normal(50, H),
        [block(True), block(False)],
        nn.RMSNorm(np.ones(H)),
        nn.Linear(normal(50, H), kind="head"),
        **options,
    )


def test_a_model_of_parts_runs_records_and_generates() -> None:
    model = small_model(end_ids=[49])
    assert model.moe_layers == [1]
    with model.record() as record:
        logits = model([1, 2, 3])
    assert logits.shape == (3, 50)
    assert record.layers.tolist() == [1]
    assert len(model.generate([1, 2, 3], max_new_tokens=4)) <= 4
    sizes = model.memory()
    assert sizes["embedding"] == 50 * H * 4
    assert set(sizes) == {
        *("embedding", "head", "norm", "linear", "router", "experts", "dense feed-forward")
    }


def test_a_function_in_a_layer_is_recorded_and_steered_by_its_gates_logits() -> None:
    model = small_model()
    moe = model.layers[1].moe
    assert moe is not None
    moe.router = lambda x, logits: ops.route(logits, 1)
    with model.record(logits=True) as record:
        model.forward([1, 2])
    assert record.experts.shape == (2, 1, 1)
    assert record.logits is not None and np.isfinite(record.logits).all()
    chosen = int(record.experts[0, 0, 0])
    with model.record() as record, model.intervene(mask={(1, chosen)}):
        model.forward([1, 2])
    assert not (record.experts == chosen).any()


def test_a_layer_without_any_router_of_ours_is_recorded_but_not_steered() -> None:
    model = small_model()
    moe = model.layers[1].moe
    assert moe is not None
    model.layers[1].ffn = nn.MoE(
        lambda x, _: mk.Assignment(np.zeros((len(x), 1), np.int32), np.ones((len(x), 1))),
        moe.experts,
    )
    with model.record() as record:
        model.forward([1, 2])
    assert record.experts.shape == (2, 1, 1)
    steered = model.intervene(mask={(1, 0)})
    with pytest.raises(ValueError, match="layer 1; layers with experts are"), steered:
        pass


BAD: list[tuple[Any, str]] = [
    (lambda: nn.Linear(normal(2, 3, 4)), "weight has shape"),
    (lambda: nn.Linear(normal(3, 4), bias=np.zeros(4)), "bias has shape"),
    (lambda: nn.RMSNorm(normal(2, 3)), "weight has shape"),
    (lambda: nn.Router(normal(E, H), E + 1), "k is 6; 1 to 5"),
    (
        lambda: nn.MoE(
            nn.Router(normal(4, H), 2),
            nn.Experts(normal(E, F, H), normal(E, F, H), normal(E, H, F)),
        ),
        "among 4 experts; there are 5",
    ),
    (
        lambda: nn.MLP(nn.Experts(normal(E, F, H), normal(E, F, H), normal(E, H, F))),
        "5 experts; one",
    ),
    (
        lambda: nn.Attention(*(nn.Linear(normal(H, H)) for _ in range(4)), heads=3, kv_heads=2),
        "3 heads share 2",
    ),
    (
        lambda: nn.Attention(*(nn.Linear(normal(H, H)) for _ in range(4)), heads=6, kv_heads=3),
        "do not fit",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[b[1] for b in BAD])
def test_parts_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
