from __future__ import annotations

import mmap

import ml_dtypes
import numpy as np
import pytest

from moekit.nn.kv_cache import KVCache

GQA = ((2, 3), (2, 5))


def rows(rng: np.random.Generator, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        rng.standard_normal((tokens, 2, 3), dtype=np.float32),
        rng.standard_normal((tokens, 2, 5), dtype=np.float32),
    )


@pytest.mark.parametrize("pieces", [[1] * 200, [7, 1, 130, 1, 64], [300], [0, 2, 0]])
def test_holds_what_was_appended(pieces: list[int]) -> None:
    rng = np.random.default_rng(0)
    cache = KVCache([GQA, ((4,),)])
    k, v = rows(rng, sum(pieces))
    latent = rng.standard_normal((sum(pieces), 4), dtype=np.float32)
    start = 0
    for piece in pieces:
        part = slice(start, start + piece)
        keys, values = cache.append(0, k[part], v[part])
        (latents,) = cache.append(1, latent[part])
        start += piece
        assert np.array_equal(keys, k[:start])
        assert np.array_equal(values, v[:start])
        assert np.array_equal(latents, latent[:start])
        assert cache.length == len(cache) == start
    assert np.array_equal(cache.view(0)[1], v)


def test_heads_lie_apart_and_rows_on_cache_lines() -> None:
    cache = KVCache([((2, 16), (2, 16))])
    k = np.ones((3, 2, 16), np.float32)
    keys, _ = cache.append(0, k, k)
    assert keys.strides[0] == 64  # one head's rows follow one another
    assert keys.ctypes.data % 64 == 0


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages to ask for")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_large_rows_begin_on_huge_pages(dtype: str) -> None:
    cache = KVCache([((2, 512),)], dtype)
    x = np.random.default_rng(7).standard_normal((3001, 2, 512), dtype=np.float32)
    (kept,) = cache.append(0, x)
    values = kept if isinstance(kept, np.ndarray) else kept.values
    assert values.ctypes.data % (2 << 20) == 0
    # Rows fill the last huge page: the next ones come without a move.
    page = 2 << 20
    rows_held = -(-x.size * cache.dtype.itemsize // page) * page // (1024 * cache.dtype.itemsize)
    more = np.zeros((rows_held - len(x), 2, 512), np.float32)
    (kept,) = cache.append(0, more)
    again = kept if isinstance(kept, np.ndarray) else kept.values
    assert again.ctypes.data == values.ctypes.data
    twin = cache.fork()
    twin.append(0, x[:1])
    cache.reserve(9000)
    for owner in (cache, twin):
        (seen,) = owner.view(0)
        assert np.allclose(np.asarray(seen)[:3001], x, rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", ml_dtypes.bfloat16, np.float16])
def test_rounds_to_its_dtype(dtype: object) -> None:
    rng = np.random.default_rng(1)
    cache = KVCache([GQA], dtype)  # type: ignore[arg-type]
    k, v = rows(rng, 9)
    keys, values = cache.append(0, k, v)
    assert keys.dtype == values.dtype == cache.dtype
    assert cache.dtype.itemsize == 2
    assert np.array_equal(keys, k.astype(cache.dtype))


def test_growth_is_amortised() -> None:
    cache = KVCache([GQA])
    rng = np.random.default_rng(2)
    buffers = set()
    for _ in range(2000):
        keys, _ = cache.append(0, *rows(rng, 1))
        buffers.add(keys.ctypes.data)
    assert len(buffers) < 20
    assert cache.nbytes < 2 * 2000 * 2 * (3 + 5) * 4


def test_reserve_keeps_rows_and_place() -> None:
    rng = np.random.default_rng(3)
    cache = KVCache([GQA])
    k, v = rows(rng, 500)
    cache.append(0, k[:10], v[:10])
    cache.reserve(500)
    first = cache.view(0)[0].ctypes.data
    keys, _ = cache.append(0, k[10:], v[10:])
    assert keys.ctypes.data == first
    assert np.array_equal(keys, k)


def test_truncate_and_go_on() -> None:
    rng = np.random.default_rng(4)
    cache = KVCache([GQA])
    k, v = rows(rng, 30)
    cache.append(0, k[:20], v[:20])
    cache.truncate(5)
    assert cache.length == 5
    keys, _ = cache.append(0, k[20:], v[20:])
    assert np.array_equal(keys, np.concatenate([k[:5], k[20:]]))


def test_truncate_heals_an_interrupted_pass() -> None:
    rng = np.random.default_rng(5)
    cache = KVCache([GQA, GQA])
    k, v = rows(rng, 8)
    for layer in (0, 1):
        cache.append(layer, k[:4], v[:4])
    cache.append(0, k[4:], v[4:])  # and layer 1 never got there
    assert cache.length == 4
    cache.truncate(cache.length)
    assert len(cache.view(0)[0]) == len(cache.view(1)[0]) == 4


@pytest.mark.parametrize("cut", [0, 3, 10])
@pytest.mark.parametrize("first", ["original", "fork"])
def test_forks_do_not_disturb_each_other(cut: int, first: str) -> None:
    rng = np.random.default_rng(6)
    cache = KVCache([GQA])
    k, v = rows(rng, 10)
    a, b = rows(rng, 4), rows(rng, 4)
    cache.append(0, k, v)
    fork = cache.fork()
    grandchild = fork.fork()
    assert fork.length == 10
    fork.truncate(cut)
    writes = [(cache, a), (fork, b)]
    for target, more in writes if first == "original" else reversed(writes):
        target.append(0, *more)
        target.append(0, *more)
    assert np.array_equal(cache.view(0)[0], np.concatenate([k, a[0], a[0]]))
    assert np.array_equal(fork.view(0)[0], np.concatenate([k[:cut], b[0], b[0]]))
    assert np.array_equal(grandchild.view(0)[0], k)


def test_original_moves_out_before_it_overwrites_shared_rows() -> None:
    rng = np.random.default_rng(7)
    cache = KVCache([GQA])
    k, v = rows(rng, 10)
    cache.append(0, k, v)
    fork = cache.fork()
    cache.truncate(2)
    cache.append(0, k[5:], v[5:])
    assert np.array_equal(fork.view(0)[0], k)
    assert np.array_equal(cache.view(0)[0], np.concatenate([k[:2], k[5:]]))


def test_recurrent_state_only_goes_forward() -> None:
    rng = np.random.default_rng(8)
    cache = KVCache([GQA, ()])
    assert cache.recall(1, 2) == (None, None)
    cache.append(0, *rows(rng, 3))
    cache.remember(1, 3, np.zeros(4))
    fork = cache.fork()
    fork.remember(1, 2, np.ones(4))
    assert cache.state[1].length == 3
    assert cache.recall(1, 1)[0].sum() == 0
    assert fork.state[1].length == 5
    assert fork.length == 3  # what every layer has seen
    with pytest.raises(ValueError, match="after 5 tokens"):
        fork.truncate(3)
    assert cache.nbytes > KVCache([GQA, ()]).nbytes + 16
    with pytest.raises(ValueError, match="recurrent"):
        cache.truncate(2)
    cache.truncate(3)
    cache.truncate(0)
    assert cache.state == {}
    assert cache.length == 0


def test_states_alone_have_a_length() -> None:
    cache = KVCache([(), ()])
    for tokens in (4, 1):
        cache.remember(0, tokens, np.zeros(1))
        cache.remember(1, tokens, np.zeros(1))
    assert cache.length == 5


def test_says_what_is_wrong() -> None:
    rng = np.random.default_rng(9)
    cache = KVCache([GQA])
    k, v = rows(rng, 3)
    with pytest.raises(ValueError, match=r"\[KVCache.append\] 1 arrays were given for layer 0"):
        cache.append(0, k)
    with pytest.raises(ValueError, match=r"shape \[2, 2, 5\] was given .* \[3, 2, 5\] is required"):
        cache.append(0, k, v[:2])
    with pytest.raises(ValueError, match=r"shape \[3, 2, 5\]"):
        cache.append(0, v, v)
    with pytest.raises(ValueError, match="layer is 1; 0 to 0"):
        cache.append(1, k, v)
    with pytest.raises(ValueError, match="length is 4; 0 to 0"):
        cache.truncate(4)
    with pytest.raises(TypeError, match="dtype is int16"):
        KVCache([GQA], "int16")
    assert bool(cache)


def test_eight_bits_keep_a_scale_for_each_row() -> None:
    rng = np.random.default_rng(11)
    cache = KVCache([GQA, ((4,),)], "int8")
    k, v = rows(rng, 90)
    k *= np.float32(10.0) ** rng.integers(-6, 6, (90, 2, 1)).astype(np.float32)
    latent = rng.standard_normal((90, 4), dtype=np.float32)
    for part in (slice(0, 1), slice(1, 70), slice(70, 70), slice(70, 90)):
        keys, values = cache.append(0, k[part], v[part])
        (latents,) = cache.append(1, latent[part])
    for kept, given in ((keys, k), (values, v), (latents, latent)):
        assert kept.values.dtype == np.int8
        assert kept.scales.shape == given.shape[:-1]
        assert len(kept) == 90
        error = np.abs(np.asarray(kept) - given).max(-1)
        assert (error <= np.abs(given).max(-1) / 253).all()
    fork = cache.fork()
    fork.append(0, k[:1], v[:1])
    cache.append(0, v[:1, :, :3], v[:1])
    assert np.array_equal(np.asarray(fork.view(0)[0])[:90], np.asarray(keys))
    assert cache.nbytes > 0
    one_by_one = KVCache([GQA], "int8")
    for i in range(90):
        again, _ = one_by_one.append(0, k[i : i + 1], v[i : i + 1])
    assert np.array_equal(again.values, keys.values)
    assert np.array_equal(again.scales, keys.scales)


def test_a_row_that_is_not_finite_stays_visible() -> None:
    cache = KVCache([GQA], "int8")
    k, v = rows(np.random.default_rng(12), 4)
    k[2, 1, 0], v[1, 0, 3] = np.inf, np.nan
    keys, values = (np.asarray(part) for part in cache.append(0, k, v))
    assert np.isnan(keys[2, 1]).all() and np.isnan(keys).sum() == 3
    assert np.isnan(values[1, 0]).all() and np.isnan(values).sum() == 5
