"""Balance losses: closed forms, transformers' own function, and the controller."""

import math

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import moekit as mk


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


@pytest.mark.parametrize(("experts", "k"), [(4, 1), (8, 2), (60, 4)])
def test_a_uniform_router_costs_1_and_k(experts, k):
    uniform = np.zeros((50, experts), np.float32)
    assert mk.balance.switch_loss(uniform, k) == pytest.approx(1, rel=1e-12)
    assert mk.balance.hf_loss(uniform, k) == pytest.approx(k, rel=1e-12)
    # Every token sure of itself, and all experts equally often.
    sure = np.float32(100) * np.eye(experts, dtype=np.float32)[np.arange(3 * experts) % experts]
    assert mk.balance.switch_loss(sure, 1) == pytest.approx(1, rel=1e-6)


def test_a_collapsed_router_costs_the_number_of_experts():
    collapsed = np.zeros((20, 16), np.float32)
    collapsed[:, 3] = 200
    assert mk.balance.switch_loss(collapsed, 1) == pytest.approx(16)
    assert mk.balance.importance_loss(collapsed, 1) == pytest.approx(15)
    assert mk.balance.load_loss(collapsed, 1) == pytest.approx(15)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hf_loss_is_transformers(k):
    layers = [normal(24, 10, seed=i) for i in range(3)]
    tensors = tuple(torch.from_numpy(layer) for layer in layers)
    expected = load_balancing_loss_func(tensors, 10, k)
    assert mk.balance.hf_loss(layers, k) == pytest.approx(float(expected), rel=1e-6)
    assert mk.balance.hf_loss(tensors, k) == pytest.approx(float(expected), rel=1e-6)
    assert mk.balance.hf_loss(np.stack(layers), k) == mk.balance.hf_loss(layers, k)
    one = load_balancing_loss_func(tensors[:1], 10, k)
    assert mk.balance.hf_loss(layers[0], k) == pytest.approx(float(one), rel=1e-6)
    mask = (np.arange(24) % 5 != 0).reshape(4, 6)
    masked = load_balancing_loss_func(tensors, 10, k, torch.from_numpy(mask))
    assert mk.balance.hf_loss(layers, k, mask) == pytest.approx(float(masked), rel=1e-6)
    assert mk.balance.switch_loss(layers, k, mask) == pytest.approx(float(masked) / k, rel=1e-6)


def test_z_loss():
    assert mk.balance.z_loss(np.zeros((5, 8), np.float32)) == pytest.approx(math.log(8) ** 2)
    logits = normal(30, 12)
    expected = torch.from_numpy(logits).double().logsumexp(-1).square()
    assert mk.balance.z_loss(logits) == pytest.approx(float(expected.mean()))
    mask = np.arange(30) < 7
    assert mk.balance.z_loss(logits, mask) == pytest.approx(float(expected[:7].mean()))
    assert mk.balance.z_loss(np.full((2, 4), 1e4, np.float32)) == pytest.approx(
        (1e4 + math.log(4)) ** 2
    )


def test_importance_is_the_sum_of_the_gates():
    logits = normal(40, 6)
    values, ids = torch.from_numpy(logits).double().topk(2)
    gates = torch.zeros(40, 6, dtype=torch.float64).scatter(1, ids, values.softmax(-1)).sum(0)
    expected = float(gates.var(unbiased=False) / gates.mean() ** 2)
    assert mk.balance.importance_loss(logits, 2) == pytest.approx(expected, rel=1e-5)


def test_smooth_load_is_the_chance_to_be_chosen():
    """Against a simulation: each expert's noise is drawn anew, the others' stays."""
    rng = np.random.default_rng(3)
    logits, scale = normal(3, 5, seed=4), np.float32(1.5)
    noise = (scale * rng.normal(size=(3, 5))).astype(np.float32)
    k, draws = 2, 200_000
    load = np.zeros(5)
    for token in range(3):
        for expert in range(5):
            others = np.delete(logits[token] + noise[token], expert)
            kth = np.sort(others)[-k]
            load[expert] += (logits[token, expert] + scale * rng.normal(size=draws) > kth).mean()
    mine = mk.balance.load_loss(logits, k, noise=noise, noise_scale=scale)
    assert mine == pytest.approx(load.var() / load.mean() ** 2, rel=0.02)


def test_losses_name_mistakes():
    logits = normal(6, 4)
    for call, text in [
        (lambda: mk.balance.switch_loss(logits, 5), "k is 5"),
        (lambda: mk.balance.switch_loss(logits, 1, np.ones(7)), r"\[switch_loss\] attention_mask"),
        (lambda: mk.balance.hf_loss(logits, 1, np.zeros(6)), r"\[hf_loss\] there are no tokens"),
        (lambda: mk.balance.z_loss(logits[:0]), "no tokens"),
        (lambda: mk.balance.hf_loss([logits, logits[:3]], 1), "one shape is required"),
        (lambda: mk.balance.load_loss(logits, 2, noise=logits), "noise_scale"),
        (lambda: mk.balance.load_loss(logits, 4, noise=logits, noise_scale=1.0), "k is 4"),
        (lambda: mk.balance.load_loss(logits, 2, noise=logits, noise_scale=0.0), "not positive"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


class TestBiasController:
    def test_moves_by_the_sign_of_the_error(self):
        controller = mk.balance.BiasController(4, gamma=0.25)
        assert controller.bias.tolist() == [0, 0, 0, 0]
        moved = controller.update([10, 2, 6, 6])
        assert moved.tolist() == [-0.25, 0.25, 0, 0]
        assert controller.update([0, 8, 8, 8]).tolist() == [0, 0, -0.25, -0.25]
        assert controller.steps == 2
        assert controller.bias.dtype == np.float32

    def test_balances_a_skewed_stream(self):
        rng = np.random.default_rng(0)
        skew = np.linspace(0, 3, 16)
        controller = mk.balance.BiasController(16, gamma=0.01)
        violations = []
        for _ in range(300):
            logits = (rng.normal(size=(256, 16)) + skew).astype(np.float32)
            a = mk.ops.route(logits, 2, score="sigmoid", select_bias=controller.bias)
            violations.append(mk.analysis.load(a).max_violation)
            controller.update(a)
        assert violations[0] > 3
        assert np.mean(violations[-50:]) < 0.6

    def test_the_bias_is_its_own(self):
        start = np.float32([1, 2])
        controller = mk.balance.BiasController(2, bias=start)
        controller.bias[0] = 7
        controller.update([3, 1])
        assert start.tolist() == [1, 2]
        np.testing.assert_allclose(controller.bias, [0.999, 2.001])

    def test_names_mistakes(self):
        controller = mk.balance.BiasController(3)
        for call, text in [
            (lambda: mk.balance.BiasController(0), "E is 0"),
            (lambda: mk.balance.BiasController(3, gamma=-1.0), "gamma -1.0"),
            (lambda: mk.balance.BiasController(3, bias=[1.0]), "bias has 1 entries"),
            (lambda: controller.update([1, 2]), "load has 2 entries"),
            (lambda: controller.update(mk.Assignment([[3]], [[1.0]])), "has expert 3"),
        ]:
            with pytest.raises(ValueError, match=text):
                call()
