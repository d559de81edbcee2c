"""Measures of load: closed forms."""

import math

import numpy as np
import pytest

import moekit as mk


def record(experts, num_experts):
    table = np.asarray(experts, np.int32)
    return mk.Record(table, np.ones(table.shape), num_experts=num_experts)


def test_16_of_256_experts_used_evenly():
    counts = np.zeros(256, int)
    counts[::16] = 5
    measured = mk.analysis.load(counts)
    assert measured.dead == 240
    assert measured.effective_experts == pytest.approx(16)
    assert measured.max_violation == pytest.approx(15)
    assert measured.max_over_mean == pytest.approx(16)
    assert measured.entropy == pytest.approx(math.log(16))
    assert measured.cv == pytest.approx(math.sqrt(15))
    assert measured.gini == pytest.approx(1 - 16 / 256)


def test_even_and_collapsed():
    dead, effective, cv, violation, entropy, gini = mk.analysis.load([7, 7, 7, 7])
    assert (dead, effective) == (0, pytest.approx(4))
    assert (cv, violation, gini) == pytest.approx((0, 0, 0))
    assert entropy == pytest.approx(math.log(4))
    one = mk.analysis.load([0, 0, 9, 0])
    assert one.effective_experts == 1
    assert one.max_violation == 3
    assert one.entropy == 0
    assert one.gini == pytest.approx(0.75)


def test_gini_is_the_mean_difference():
    n = np.random.default_rng(0).integers(0, 50, 30)
    expected = np.abs(n[:, None] - n).mean() / (2 * n.mean())
    assert mk.analysis.load(n).gini == pytest.approx(expected)


def test_a_record_has_measures_per_layer():
    r = record([[[0, 1], [2, -1]], [[1, 0], [2, -1]]], [4, 3])
    measured = mk.analysis.load(r)
    np.testing.assert_array_equal(measured.dead, [2, 2])
    np.testing.assert_allclose(measured.effective_experts, [2, 1])
    # Layers may differ in E: the second has three experts.
    np.testing.assert_allclose(measured.max_violation, [1, 2])
    a = mk.Assignment([[0, 1], [0, -1]], np.ones((2, 2)), expert_count=5)
    assert mk.analysis.load(a).dead == 3


def test_nothing_routed():
    measured = mk.analysis.load(np.zeros((2, 5), int))
    np.testing.assert_array_equal(measured.dead, [5, 5])
    assert np.isnan(measured.effective_experts).all()
    for wrong in ([-1, 2], np.zeros((2, 2, 2)), [np.nan, 1.0], []):
        with pytest.raises(ValueError, match=r"\[load\]"):
            mk.analysis.load(wrong)


def test_oscillation_is_the_part_that_moves():
    assert mk.analysis.oscillation([[1, 1], [10, 10], [3, 3]]) == 0
    assert mk.analysis.oscillation([[4, 0], [0, 4], [4, 0]]) == 1
    steps = [[[4, 0], [2, 2]], [[3, 1], [2, 2]]]
    np.testing.assert_allclose(mk.analysis.oscillation(steps), [0.25, 0])
    assert np.isnan(mk.analysis.oscillation([[1, 1]]))
    assert mk.analysis.oscillation([[1, 3], [0, 0], [1, 1]]).size == 1
    with pytest.raises(ValueError, match="oscillation"):
        mk.analysis.oscillation([1, 2])


def test_coactivation():
    a = mk.Assignment([[0, 1], [0, 2], [0, -1]], np.ones((3, 2)), expert_count=4)
    together = mk.analysis.coactivation(a)
    np.testing.assert_allclose(together[0], [1, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(together[1], [1, 1, 0, 0])
    assert np.isnan(together[3]).all()
    r = record([[[0, 1]], [[0, 2]], [[0, -1]]], [4])
    np.testing.assert_array_equal(mk.analysis.coactivation(r)[0], together)


def test_margins():
    logits = np.float32([[1, 5, 3, 2], [2, 2, 2, 2]])
    np.testing.assert_array_equal(mk.analysis.margins(logits, 1), [2, 0])
    np.testing.assert_array_equal(mk.analysis.margins(logits[:, None], 2), [[1], [0]])
    for k in (0, 4):
        with pytest.raises(ValueError, match="margins"):
            mk.analysis.margins(logits, k)
