"""What families choose among, each against plain NumPy: attention, norms, blocks, mixtures."""

from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit import nn, ops

rng = np.random.default_rng(7)
T, H, HEADS, KV, D, V = 11, 36, 4, 2, 6, 10


def normal(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


Q, K, W, OUT = normal(HEADS * D, H), normal(KV * D, H), normal(KV * V, H), normal(H, HEADS * V)
X = normal(T, H) * 12
FREQUENCIES = np.array([0.7, 0.2], np.float32)


def rms(x: np.ndarray, weight: Any = 1.0) -> np.ndarray:
    return x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * weight


def rotated(x: np.ndarray) -> np.ndarray:
    """The first four dimensions in halves."""
    out = x.astype(np.float64).copy()
    for i, frequency in enumerate(FREQUENCIES):
        c, s = (f(np.arange(T) * float(frequency))[:, None] for f in (np.cos, np.sin))
        out[..., i], out[..., i + 2] = (
            x[..., i] * c - x[..., i + 2] * s,
            x[..., i + 2] * c + x[..., i] * s,
        )
    return out


def expected(
    prepare: Any, score: Any = lambda z, h, t: z, seen: Any = lambda t, j: True, sinks: Any = None
) -> np.ndarray:
    """Attention of q, k, v that `prepare` makes of the projections; [T, heads * V]."""
    q, k, v = prepare(
        (X @ Q.T).reshape(T, HEADS, D), (X @ K.T).reshape(T, KV, D), (X @ W.T).reshape(T, KV, V)
    )
    out = np.zeros((T, HEADS, V))
    for t in range(T):
        for h in range(HEADS):
            keys = [j for j in range(t + 1) if seen(t, j)]
            z = score(k[keys, h // 2] @ q[t, h] * D**-0.5, h, t)
            p = np.exp(z)
            rest = 0.0 if sinks is None else np.exp(sinks[h])
            out[t, h] = p @ v[keys, h // 2] / (p.sum() + rest)
    return out


def attention(**options: Any) -> nn.Attention:
    return nn.Attention(
        *(nn.Linear(w) for w in (Q, K, W, OUT)), heads=HEADS, kv_heads=KV, **options
    )


def check(part: nn.Attention, out: np.ndarray) -> None:
    np.testing.assert_allclose(part(X), out.reshape(T, -1) @ OUT.T, atol=2e-5)


def test_values_may_have_a_width_of_their_own_and_a_scale() -> None:
    check(attention(value_scale=0.7), expected(lambda q, k, v: (q, k, 0.7 * v)))
    assert attention().cache_rows == ((KV, D), (KV, V))


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("head", False),
        ("head", True),
        ("whole", False),
        ("weightless", False),
        ("weightless", True),
    ],
)
def test_queries_and_keys_are_normalised_where_a_family_does(kind: str, after: bool) -> None:
    a, b = 1 + normal(HEADS * D), 1 + normal(KV * D)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if kind == "whole":
            return rms(x.reshape(T, -1), weight).reshape(x.shape)
        return rms(x, 1.0 if kind == "weightless" else weight[:D])

    def prepare(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Any:
        if after:
            return norm(rotated(q), a), norm(rotated(k), b), v
        return rotated(norm(q, a)), rotated(norm(k, b)), v

    weights = {"head": (a[:D], b[:D]), "whole": (a, b), "weightless": (None, None)}[kind]
    part = attention(
        q_norm=nn.RMSNorm(weights[0]),
        k_norm=nn.RMSNorm(weights[1]),
        norm_after_rope=after,
        frequencies=FREQUENCIES,
    )
    check(part, expected(prepare))


def test_projections_are_clamped_before_the_rotation() -> None:
    def prepare(*parts: np.ndarray) -> Any:
        q, k, v = (np.clip(x, -0.5, 0.5) for x in parts)
        return rotated(q), rotated(k), v

    check(attention(clip=0.5, frequencies=FREQUENCIES), expected(prepare))


def test_sinks_caps_chunks_and_windows() -> None:
    sinks = normal(HEADS) * 3
    plain = {"prepare": lambda *parts: parts}
    check(attention(sinks=sinks), expected(**plain, sinks=sinks))
    check(attention(softcap=1.5), expected(**plain, score=lambda z, h, t: 1.5 * np.tanh(z / 1.5)))
    check(attention(chunk=4), expected(**plain, seen=lambda t, j: t // 4 == j // 4))
    check(attention(window=3), expected(**plain, seen=lambda t, j: j > t - 3))
    check(attention(scale=0.1), expected(**plain, score=lambda z, h, t: z * 0.1 * D**0.5))


@pytest.mark.parametrize("offset", [0, 1])
def test_queries_grow_with_their_position(offset: int) -> None:
    part = attention(temperature=nn.QueryTemperature(0.8, 3, offset))
    factor = 1 + 0.8 * np.log1p((np.arange(T) + offset) // 3)
    check(part, expected(lambda q, k, v: (q * factor[:, None, None], k, v)))


@pytest.mark.parametrize("rows", [HEADS, HEADS * V])
@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
def test_the_output_is_gated(activation: str, rows: int) -> None:
    gate = normal(rows, H)
    z = (X @ gate.T).reshape(T, HEADS, -1).astype(np.float64)
    values = 1 / (1 + np.exp(-z)) if activation == "sigmoid" else np.log1p(np.exp(z))
    part = attention(gate=nn.Linear(gate), gate_activation=activation)
    check(part, expected(lambda *parts: parts) * values)
    assert "gate.weight" in {name for name, _, _ in part.weights()}


def test_gates_do_not_overflow() -> None:
    x = np.array([-1e4, -90, 0, 90, 1e4], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(nn.gates.sigmoid(x), [0, 0, 0.5, 1, 1], atol=1e-12)
        np.testing.assert_allclose(
            nn.gates.softplus(x), [0, 0, np.log(2), 90, 1e4], rtol=1e-6, atol=1e-30
        )


def test_norms_and_their_sums() -> None:
    weight, bias, y = normal(H), normal(H), normal(T, H)
    centred = X - X.mean(-1, keepdims=True)
    layer = centred / np.sqrt(X.var(-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(nn.LayerNorm(weight, bias, 1e-3)(X), layer + bias, atol=1e-5)
    np.testing.assert_allclose(nn.LayerNorm(weight, eps=1e-3)(X), layer, atol=1e-5)
    np.testing.assert_allclose(nn.RMSNorm(weight, offset=1.0)(X), rms(X, 1 + weight), atol=1e-5)
    for norm in (nn.LayerNorm(weight, bias), nn.RMSNorm(weight), nn.RMSNorm(None)):
        normed, total = norm.of_sum(X, y)
        assert total.tobytes() == (X + y).tobytes()
        np.testing.assert_allclose(normed, norm(X + y), atol=1e-6)


def mlp() -> nn.MLP:
    return nn.MLP(nn.Experts(normal(1, 8, H), normal(1, 8, H), normal(1, H, 8), format="f32"))


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("post", [False, True])
def test_norms_stand_where_a_block_says(pre: bool, post: bool) -> None:
    norms = [nn.RMSNorm(1 + normal(H)) for _ in range(4)]
    a, b, c, d = norms
    part, ffn = attention(), mlp()
    block = nn.Block(
        a if pre else None,
        part,
        c if pre else None,
        ffn,
        attention_post_norm=b if post else None,
        ffn_post_norm=d if post else None,
        residual=0.3,
    )

    def same(x: np.ndarray) -> np.ndarray:
        return x

    before, behind = (a, c) if pre else (same, same), (b, d) if post else (same, same)
    x = X + 0.3 * behind[0](part(before[0](X)))
    x = x + 0.3 * behind[1](ffn(before[1](x)))
    kept = X.tobytes()
    np.testing.assert_allclose(block(X), x, atol=1e-5)
    assert X.tobytes() == kept


def test_the_halves_of_a_parallel_block_see_the_same() -> None:
    norm, part, ffn = nn.LayerNorm(1 + normal(H)), attention(), mlp()
    block = nn.Block(norm, part, None, ffn, parallel=True)
    np.testing.assert_allclose(block(X), X + part(norm(X)) + ffn(norm(X)), atol=1e-5)
    with pytest.raises(ValueError, match="ffn_norm was given"):
        nn.Block(norm, part, norm, ffn, parallel=True)


def test_a_shared_expert_may_be_gated_or_averaged_in() -> None:
    experts = nn.Experts(normal(3, 8, H), normal(3, 8, H), normal(3, H, 8), format="f32")
    shared = nn.Experts(normal(1, 8, H), normal(1, 8, H), normal(1, H, 8), format="f32")
    router = nn.Router(normal(3, H), 2)
    gate = normal(1, H)
    routed, beside = nn.MoE(router, experts)(X), nn.MLP(shared)(X)
    gated = nn.MoE(router, experts, shared, shared_gate=nn.Linear(gate))
    share = 1 / (1 + np.exp(-(X @ gate.T)))
    np.testing.assert_allclose(gated(X), routed + share * beside, atol=1e-5)
    averaged = nn.MoE(router, experts, shared, average=True)
    np.testing.assert_allclose(averaged(X), (routed + beside) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="one row, and a shared expert"):
        nn.MoE(router, experts, shared_gate=nn.Linear(gate))


def test_router_logits_may_be_softcapped() -> None:
    weight = normal(5, H)
    router = nn.Router(weight, 2, softcap=0.4, score="sigmoid")
    np.testing.assert_allclose(router.logits(X), 0.4 * np.tanh(X @ weight.T / 0.4), atol=1e-6)
    assert router(X).weights.max() <= 1 / (1 + np.exp(-0.4)) + 1e-6


def test_a_model_scales_its_embedding_and_its_logits() -> None:
    table, head = normal(9, H), normal(9, H)
    options: dict[str, Any] = {"embedding_scale": 3.0, "logit_scale": 0.5, "logit_softcap": 2.0}
    model = nn.Model(table, [], nn.RMSNorm(np.ones(H)), nn.Linear(head), **options)
    ids = [1, 5, 8]
    logits = rms(table[ids] * 3.0) @ head.T * 0.5
    np.testing.assert_allclose(model(ids), 2 * np.tanh(logits / 2), atol=1e-5)


BAD: list[tuple[Any, str]] = [
    (lambda: attention(sinks=np.zeros(3)), "sinks have shape"),
    (lambda: attention(gate=nn.Linear(normal(3, H))), "gate has 3 rows"),
    (lambda: attention(gate_activation="tanh"), "gate_activation is 'tanh'"),
    (
        lambda: nn.Attention(*(nn.Linear(normal(12, H)) for _ in range(4)), heads=2, kv_heads=1),
        "do not fit",
    ),
    (lambda: nn.LayerNorm(normal(2, 3)), "weight has shape"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[b[1] for b in BAD])
def test_choices_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_choice_keeps_a_tokens_bytes() -> None:
    part = attention(
        frequencies=FREQUENCIES,
        q_norm=nn.RMSNorm(None),
        temperature=nn.QueryTemperature(0.8, 3),
        clip=0.9,
        gate=nn.Linear(normal(HEADS * V, H)),
        gate_activation="softplus",
        softcap=3.0,
    )
    whole = part(X)
    cache = nn.KVCache([part.cache_rows])
    rows = [part(X[t : t + 1], nn.Batch([1], [cache]), 0) for t in range(T)]
    assert np.concatenate(rows).tobytes() == whole.tobytes()


def test_recorded_logits_are_the_ones_that_were_routed_by() -> None:
    weight = normal(5, H)
    router = nn.Router(weight, 2, softcap=0.4, score="sigmoid")
    again = ops.route(router.logits(X), 2, score="sigmoid")
    assert isinstance(again, mk.Assignment)
    np.testing.assert_array_equal(router(X).experts, again.experts)
