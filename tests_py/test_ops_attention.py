from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from moekit import _core
from moekit.nn.kv_cache import KVCache
from moekit.ops import QuantisedRows
from moekit.ops.attention import attention, mla_attention

# tokens, query heads, kv heads, key width, value width, keys
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (7, 6, 2, 24, 24, 7),
    (1, 8, 8, 40, 40, 130),
    (33, 4, 1, 72, 16, 97),
    (5, 3, 3, 17, 31, 700),
]


@pytest.fixture(params=_core.runnable_isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def problem(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, heads, kv_heads, key_dim, value_dim, keys = shape
    return (
        normal(1, tokens, heads, key_dim),
        normal(2, keys, kv_heads, key_dim),
        normal(3, keys, kv_heads, value_dim),
    )


def mask_of(tokens: int, keys: int, window: int | None, chunk: int | None) -> torch.Tensor:
    position = keys - tokens + torch.arange(tokens)[:, None]
    key = torch.arange(keys)[None]
    mask = key <= position
    if window:
        mask &= key > position - window
    if chunk:
        mask &= key // chunk == position // chunk
    return mask


def in_torch(q: Any, k: Any, v: Any, mask: torch.Tensor | None, scale: float | None) -> np.ndarray:
    heads_first = [torch.from_numpy(np.asarray(x, np.float64)).transpose(0, 1) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return out.transpose(0, 1).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options", [{}, {"window": 5}, {"chunk": 6}, {"causal": False}, {"scale": 0.3}], ids=str
)
def test_is_torchs_attention(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    q, k, v = problem(shape)
    mask = mask_of(len(q), len(k), options.get("window"), options.get("chunk"))
    if options.get("causal") is False:
        mask = torch.ones_like(mask)
    got = attention(q, k, v, **options)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, in_torch(q, k, v, mask, options.get("scale")), atol=3e-6)


def test_is_gpt_oss_eager_attention() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    q, k, v = problem((9, 6, 2, 16, 16, 30))
    sinks = normal(4, 6) * 2
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    module.sinks = torch.from_numpy(sinks)
    mask = torch.zeros(9, 30).masked_fill(~mask_of(9, 30, 12, None), -torch.inf)
    tensors = [torch.from_numpy(x).transpose(0, 1)[None] for x in (q, k, v)]
    want, _ = eager_attention_forward(module, *tensors, mask[None, None], scaling=0.25)
    got = attention(q, k, v, scale=0.25, window=12, sinks=sinks)
    np.testing.assert_allclose(got, want[0].numpy(), atol=2e-6)


def test_bias_of_t5_and_broadcasting() -> None:
    q, k, v = problem((6, 4, 4, 8, 8, 11))
    bias = normal(5, 4, 6, 11)
    for given in (bias, bias[:1], bias[:, :1], bias[0]):
        full = torch.from_numpy(np.broadcast_to(given, (4, 6, 11)).astype(np.float64))
        want = in_torch(q, k, v, full, 1.0)
        np.testing.assert_allclose(
            attention(q, k, v, scale=1.0, causal=False, bias=given), want, atol=3e-6
        )


def test_softcap_and_key_mask() -> None:
    q, k, v = problem((3, 2, 1, 8, 8, 20))
    key_mask = np.arange(20) % 3 != 0
    scores = np.einsum("thd,sd->hts", q.astype(np.float64), k[:, 0]) * 2.0
    scores = 5.0 * np.tanh(scores / 5.0)
    scores[:, :, ~key_mask] = -np.inf
    weights = torch.softmax(torch.from_numpy(scores), -1).numpy()
    want = np.einsum("hts,sd->thd", weights, v[:, 0])
    got = attention(q, k, v, scale=2.0, causal=False, softcap=5.0, key_mask=key_mask)
    np.testing.assert_allclose(got, want, atol=3e-6)


def _expect_same(narrow: np.ndarray, wide: np.ndarray, isa: str, in_8_bits: bool = False) -> None:
    """Narrow caches are multiplied as their float32 values; tiles keep 16 bits of the queries, for
    bytes those of a row's largest number."""
    if isa == "avx512amx":
        np.testing.assert_allclose(narrow, wide, atol=2e-4 if in_8_bits else 3e-5)
    elif in_8_bits:
        np.testing.assert_allclose(narrow, wide, atol=3e-6)
    else:
        assert narrow.tobytes() == wide.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_caches_are_their_float32_values(dtype: Any, isa: str) -> None:
    q, k, v = problem((4, 6, 2, 40, 24, 100))
    narrow = attention(q, k.astype(dtype), v.astype(dtype))
    wide = attention(q, k.astype(dtype).astype(np.float32), v.astype(dtype).astype(np.float32))
    _expect_same(narrow, wide, isa)


# Tiles of one and two times sixteen rows, parts of them, widths that fill no step, latent heads.
@pytest.mark.parametrize(
    "shape",
    [
        (1, 4, 1, 64, 64, 300),
        (1, 17, 1, 72, 40, 130),
        (3, 33, 3, 17, 31, 65),
        (37, 10, 2, 128, 96, 90),
        (2, 16, 1, 576, 512, 140),
        (33, 2, 2, 48, 80, 540),
        (9, 3, 3, 160, 16, 109),
        (3, 14, 2, 96, 290, 200),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("window", [None, 37])
def test_every_cache_is_the_definition(
    shape: tuple[int, ...], dtype: str, window: int | None
) -> None:
    q, k, v = problem(shape)
    cache = KVCache([(k.shape[1:], v.shape[1:])], dtype)
    keys, values = cache.append(0, k, v)
    mask = mask_of(len(q), len(k), window, None)
    want = in_torch(q, np.asarray(keys), np.asarray(values), mask, None)
    got = attention(q, keys, values, window=window)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # Tiles round queries and weights by 2^-17 each, for bytes of a row's largest number.
    assert error < {"float32": 3.3e-6, "int8": 6e-5}.get(dtype, 1e-5)
    lengths = range(len(k) - len(q) + 1, len(k) + 1)
    one = [
        attention(q[i : i + 1], keys[:end], values[:end], window=window)
        for i, end in enumerate(lengths)
    ]
    assert np.concatenate(one).tobytes() == got.tobytes()


def test_reads_views_in_place_and_torch_tensors(isa: str) -> None:
    q, k, v = problem((4, 4, 2, 24, 24, 50))
    want = attention(q, k, v).tobytes()
    heads_first = np.ascontiguousarray(k.transpose(1, 0, 2)).transpose(1, 0, 2)
    both = np.concatenate([k, v], axis=2)
    assert attention(q, heads_first, v).tobytes() == want
    assert attention(q, both[:, :, :24], both[:, :, 24:]).tobytes() == want
    assert attention(q[::-1][::-1], k, np.asfortranarray(v)).tobytes() == want
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    assert attention(*tensors).tobytes() == want
    halves = [tensors[0], tensors[1].bfloat16(), tensors[2].bfloat16()]
    wide = [tensors[0], halves[1].float(), halves[2].float()]
    _expect_same(attention(*halves), attention(*wide), isa)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("window", [None, 40])
def test_prompt_in_pieces_gives_the_same_bytes(dtype: str, window: int | None) -> None:
    q, k, v = problem((150, 4, 2, 24, 24, 150))
    outputs = []
    for piece in (150, 64, 7, 1):
        cache = KVCache([((2, 24), (2, 24))], dtype)
        rows = []
        for start in range(0, 150, piece):
            part = slice(start, start + piece)
            keys, values = cache.append(0, k[part], v[part])
            rows.append(attention(q[part], keys, values, window=window))
        outputs.append(np.concatenate(rows).tobytes())
    assert len(set(outputs)) == 1


# A step of decoding takes a segment of all heads before the next: beside one head by itself.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 700}, {"chunk": 1100}, {"window": 3}, {"causal": False, "softcap": 3.0}],
    ids=str,
)
@pytest.mark.parametrize("tokens", [1, 3])
def test_heads_in_turn_are_each_by_itself(dtype: str, options: dict[str, Any], tokens: int) -> None:
    q, k, v = problem((tokens, 10, 5, 40, 24, 2100))
    cache = KVCache([(k.shape[1:], v.shape[1:])], dtype)
    keys, values = cache.append(0, k, v)
    bias, sinks = normal(4, 10, tokens, 2100), normal(5, 10)
    got = attention(q, keys, values, bias=bias, sinks=sinks, **options)
    for h in range(5):
        heads = slice(2 * h, 2 * h + 2)
        one = KVCache([((1, 40), (1, 24))], dtype)
        k_one, v_one = one.append(0, k[:, h : h + 1], v[:, h : h + 1])
        alone = attention(
            q[:, heads], k_one, v_one, bias=bias[heads], sinks=sinks[heads], **options
        )
        assert alone.tobytes() == got[:, heads].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mla_is_the_unabsorbed_form(dtype: str) -> None:
    tokens, keys, heads, nope, rope, latent, value = 5, 90, 4, 12, 8, 40, 16
    q_nope, q_rope = normal(1, tokens, heads, nope), normal(2, tokens, heads, rope)
    w_uk, w_uv = normal(3, heads, nope, latent), normal(4, heads, value, latent)
    cache = KVCache([((latent + rope,),)], dtype)
    (rows,) = cache.append(0, normal(5, keys, latent + rope))
    exact = rows.astype(np.float64)
    k_nope = np.einsum("sl,hnl->shn", exact[:, :latent], w_uk)
    k_rope = np.broadcast_to(exact[:, None, latent:], (keys, heads, rope))
    v = np.einsum("sl,hvl->shv", exact[:, :latent], w_uv)
    scale = (nope + rope) ** -0.5 * 0.2
    want = in_torch(
        np.concatenate([q_nope, q_rope], -1),
        np.concatenate([k_nope, k_rope], -1),
        v,
        mask_of(tokens, keys, None, None),
        scale,
    )
    q_latent = np.einsum("thn,hnl->thl", q_nope, w_uk)
    out = mla_attention(q_latent, q_rope, rows, scale=scale)
    assert out.shape == (tokens, heads, latent)
    np.testing.assert_allclose(np.einsum("thl,hvl->thv", out, w_uv), want, rtol=1e-4, atol=1e-4)
    one = [
        mla_attention(q_latent[i : i + 1], q_rope[i : i + 1], rows[: 86 + i], scale=scale)
        for i in range(tokens)
    ]
    assert np.concatenate(one).tobytes() == out.tobytes()


def test_unseen_nan_touches_nothing() -> None:
    q, k, v = problem((6, 4, 2, 8, 8, 30))
    clean = attention(q, k, v)
    k[27], v[27] = np.nan, np.inf
    hurt = attention(q, k, v)
    assert hurt[:3].tobytes() == clean[:3].tobytes()
    assert np.isnan(hurt[3:]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("heads", [1, 4, 7, 20])
def test_damaged_values_touch_only_who_sees_them(dtype: str, heads: int) -> None:
    q, k, v = problem((40, heads, 1, 32, 160, 100))
    clean = attention(q, *_kept(k, v, dtype))
    v[80, 0, 3], v[90, 0, 150], v[95, 0, 64] = np.inf, np.nan, -np.inf
    keys, values = _kept(k, v, dtype)
    hurt = attention(q, keys, values)
    assert hurt[:20].tobytes() == clean[:20].tobytes()
    assert np.isposinf(hurt[20:, :, 3]).all() and np.isnan(hurt[30:, :, 150]).all()
    assert np.isneginf(hurt[35:, :, 64]).all()
    np.testing.assert_allclose(hurt[:, :, 100], clean[:, :, 100], atol=3e-5)
    one = [attention(q[i : i + 1], keys[: 61 + i], values[: 61 + i]) for i in range(40)]
    assert np.concatenate(one).tobytes() == hurt.tobytes()


def _kept(k: np.ndarray, v: np.ndarray, dtype: str) -> tuple[Any, ...]:
    return KVCache([(k.shape[1:], v.shape[1:])], dtype).append(0, k, v)


def test_empty_and_beyond() -> None:
    q, k, v = problem((3, 4, 2, 8, 8, 10))
    assert attention(q[:0], k, v).shape == (0, 4, 8)
    assert (attention(q, k[:0], v[:0], causal=False) == 0).all()
    # The queries' own keys may lie anywhere in a longer cache.
    early = attention(q, k, v, first_position=2)
    assert early.tobytes() == attention(q, k[:5], v[:5]).tobytes()
    # A query beyond the last key sees them all.
    late = attention(q, k, v, first_position=100)
    assert late.tobytes() == attention(q, k, v, causal=False).tobytes()


def test_says_what_is_wrong() -> None:
    q, k, v = problem((3, 4, 2, 8, 8, 10))
    value_errors: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        (r"\[attention\] q has 3 heads and k has 2", (q[:, :3], k, v), {}),
        (r"q has 7 columns per head; k has 8", (q[:, :, :7], k, v), {}),
        (r"v has 9 tokens of 2 heads; k has 10 of 2", (q, k, v[:9]), {}),
        (r"v has 10 tokens of 1 heads", (q, k, v[:, :1]), {}),
        (r"q has 3 tokens and k 2", (q, k[:2], v[:2]), {}),
        (r"q has shape \[3, 8\]; 3 dimension", (q[:, 0], k, v), {}),
        (r"k has shape \[10, 8\]; 3 dimension", (q, k[:, 0], v), {}),
        (r"first query stands at position -1", (q, k, v), {"first_position": -1}),
        (r"window is 0; at least 1", (q, k, v), {"window": 0}),
        (r"chunk is -3; at least 1", (q, k, v), {"chunk": -3}),
        (r"without causal", (q, k, v), {"window": 3, "causal": False}),
        (r"softcap is 0", (q, k, v), {"softcap": 0.0}),
        (r"sinks has shape \[3\]; \[4\] is required", (q, k, v), {"sinks": np.zeros(3)}),
        (r"bias has shape \[3, 9\]", (q, k, v), {"bias": np.zeros((3, 9))}),
        (r"bias has shape \[2, 3, 10\]", (q, k, v), {"bias": np.zeros((2, 3, 10))}),
        (r"key_mask has shape \[9\]", (q, k, v), {"key_mask": np.ones(9, bool)}),
    ]
    for match, args, options in value_errors:
        with pytest.raises(ValueError, match=match):
            attention(*args, **options)
    type_errors: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        (r"k has dtype float64; float32, bfloat16 or float16", (q, k.astype(float), v), {}),
        (r"v has dtype int8", (q, k, v.astype(np.int8)), {}),
        (r"q has dtype complex64", (q.astype(np.complex64), k, v), {}),
        (r"bias has dtype bool", (q, k, v), {"bias": np.ones((3, 10), bool)}),
        (r"key_mask has dtype float32", (q, k, v), {"key_mask": np.ones(10, np.float32)}),
    ]
    for match, args, options in type_errors:
        with pytest.raises(TypeError, match=match):
            attention(*args, **options)
    with pytest.raises(ValueError, match="different dtypes"):
        attention(q, k, v.astype(np.float16))
    with pytest.raises(ValueError, match=r"\[mla_attention\] cache has 9 columns; .* have 10"):
        mla_attention(q[:, :, :4], q[:, :, :6], np.zeros((10, 9), np.float32), scale=1.0)
    with pytest.raises(ValueError, match="two parts"):
        mla_attention(q[:, :, :4], q[:2, :, :4], np.zeros((10, 8), np.float32), scale=1.0)


def _in_8_bits(x: np.ndarray) -> QuantisedRows:
    scales = np.abs(x).max(-1) / np.float32(127)
    codes = np.rint(x / np.maximum(scales, 1e-30)[..., None]).astype(np.int8)
    heads_first = np.ascontiguousarray(scales.T)
    return QuantisedRows(codes, heads_first.T)


@pytest.mark.parametrize(
    "shape", [(1, 4, 2, 700, 32, 32), (65, 6, 2, 130, 24, 40), (5, 3, 3, 5, 7, 9)]
)
@pytest.mark.parametrize("window", [None, 3])
def test_rows_in_8_bits_are_read_as_what_they_mean(
    shape: tuple[int, ...], window: int | None, isa: str
):
    t, heads, kv_heads, s, dim, value_dim = shape
    rng = np.random.default_rng(3)
    q = rng.standard_normal((t, heads, dim), np.float32)
    k = _in_8_bits(rng.standard_normal((s, kv_heads, dim), np.float32))
    v = _in_8_bits(rng.standard_normal((s, kv_heads, value_dim), np.float32))
    out = attention(q, k, v, window=window)
    expected = attention(q, np.asarray(k), np.asarray(v), window=window)
    _expect_same(out, expected, isa, in_8_bits=True)
    pieces = [
        attention(q[i : i + 1], k[: s - t + i + 1], v[: s - t + i + 1], window=window)
        for i in range(t)
    ]
    assert np.concatenate(pieces).tobytes() == out.tobytes()


def test_a_damaged_row_in_8_bits_touches_who_sees_it_alone():
    rng = np.random.default_rng(4)
    q = rng.standard_normal((8, 2, 16), np.float32)
    k = _in_8_bits(rng.standard_normal((8, 2, 16), np.float32))
    v = _in_8_bits(rng.standard_normal((8, 2, 16), np.float32))
    clean = attention(q, k, v)
    v.scales[5, 1] = np.nan
    out = attention(q, k, v)
    assert out[:5].tobytes() == clean[:5].tobytes()
    assert out[:, 0].tobytes() == clean[:, 0].tobytes()
    assert np.isnan(out[5:, 1]).all()


def test_a_latent_cache_in_8_bits(isa: str):
    rng = np.random.default_rng(5)
    latent, rope = (rng.standard_normal((9, 5, width), np.float32) for width in (40, 8))
    cache = _in_8_bits(rng.standard_normal((70, 1, 48), np.float32))
    rows = QuantisedRows(cache.values[:, 0], np.ascontiguousarray(cache.scales[:, 0]))
    out = mla_attention(latent, rope, rows, scale=0.1)
    expected = mla_attention(latent, rope, np.asarray(rows), scale=0.1)
    _expect_same(out, expected, isa, in_8_bits=True)
