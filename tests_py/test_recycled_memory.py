"""Memory of large results that are gone serves the next ones."""

from __future__ import annotations

import gc

import numpy as np

from moekit import ops


def test_results_that_are_held_share_no_memory() -> None:
    x = np.ones((600, 700), np.float32)  # 1.7 MB
    weight = np.ones(700, np.float32)
    held = [ops.rms_norm(x * np.float32(n), weight * np.float32(n), 1e-6) for n in range(1, 9)]
    for n, result in enumerate(held, 1):
        np.testing.assert_allclose(result, n, rtol=1e-5)
    for n, one in enumerate(held):
        assert not any(np.shares_memory(one, other) for other in held[n + 1 :])


def test_a_view_keeps_its_memory() -> None:
    x, weight = np.ones((600, 700), np.float32), np.ones(700, np.float32)
    part = ops.rms_norm(x, weight, 1e-6)[300:302, 7:9]
    gc.collect()
    for n in range(4):
        ops.rms_norm(x, weight * np.float32(n + 5), 1e-6)
    np.testing.assert_allclose(part, 1, rtol=1e-5)


def test_memory_is_used_again_for_another_shape_and_operation() -> None:
    x = np.ones((600, 700), np.float32)
    first = ops.rms_norm(x, np.ones(700, np.float32), 1e-6)
    address = first.__array_interface__["data"][0]
    del first
    second = ops.matmul(
        np.eye(690, dtype=np.float32), ops.pack(np.ones((600, 690), np.float32), "f32")
    )
    assert second.shape == (690, 600)
    assert second.__array_interface__["data"][0] == address
    np.testing.assert_array_equal(second, 1)
