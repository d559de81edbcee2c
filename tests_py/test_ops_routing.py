"""Routing against transformers' own router classes, and its invariants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moekit import ops

SCORES = ["softmax", "softmax_topk", "sigmoid", "sqrtsoftplus", "input_sigmoid", "sparsemixer"]


def logits_of(tokens: int, experts: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (tokens, experts)).astype(np.float32)


def config(experts: int, k: int, **more: Any) -> SimpleNamespace:
    """A router's part of a configuration. The gate will be the identity: hidden = logits."""
    return SimpleNamespace(
        hidden_size=experts,
        num_experts=experts,
        num_local_experts=experts,
        num_experts_per_tok=k,
        **more,
    )


@torch.no_grad()
def run_router(router: Any, logits: np.ndarray, *args: Any) -> tuple[np.ndarray, np.ndarray]:
    """ids and weights of a transformers router for these logits."""
    router.weight.copy_(torch.eye(logits.shape[1]))
    out = router.eval()(torch.from_numpy(logits), *args)
    return out[2].numpy(), out[1].numpy()


def assert_same(assignment: ops.Assignment, ids: np.ndarray, weights: np.ndarray) -> None:
    """The same experts with the same weights; transformers does not sort them."""
    mine, theirs = np.argsort(assignment.experts, axis=1), np.argsort(ids, axis=1)
    np.testing.assert_array_equal(
        np.take_along_axis(assignment.experts, mine, 1), np.take_along_axis(ids, theirs, 1)
    )
    np.testing.assert_allclose(
        np.take_along_axis(assignment.weights, mine, 1),
        np.take_along_axis(weights, theirs, 1),
        rtol=1e-6,
        atol=1e-12,
    )
    if assignment.experts.shape[1] > 1 and not assignment.on_input:
        assert assignment.weights.dtype == np.float32


SIZES = [(8, 2), (5, 3), (64, 6), (160, 6), (256, 8)]


@pytest.mark.parametrize(("experts", "k"), SIZES)
class TestAgainstTransformers:
    def test_mixtral(self, experts: int, k: int) -> None:
        from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

        logits = logits_of(50, experts)
        oracle = run_router(MixtralTopKRouter(config(experts, k)), logits)
        assert_same(ops.route(logits, k, normalize=True), *oracle)
        assert_same(ops.route(logits, k, score="softmax_topk"), *oracle)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_qwen3_moe(self, experts: int, k: int, normalize: bool) -> None:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

        logits = logits_of(50, experts, 1)
        router = Qwen3MoeTopKRouter(config(experts, k, norm_topk_prob=normalize))
        assert_same(ops.route(logits, k, normalize=normalize), *run_router(router, logits))

    @pytest.mark.parametrize("normalize", [False, True])
    def test_deepseek_v3(self, experts: int, k: int, normalize: bool) -> None:
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

        for groups, kept in [(1, 1), (4, 2), (8, 4)]:
            if experts % groups or experts // groups < 2:
                continue
            router = DeepseekV3TopkRouter(
                config(
                    experts,
                    k,
                    n_group=groups,
                    topk_group=kept,
                    routed_scaling_factor=2.5,
                    norm_topk_prob=normalize,
                )
            )
            # Biases far below zero: a kept negative score still beats an expert that is out.
            for shift in (0.0, -2.0):
                bias = (logits_of(1, experts, 2, 0.2)[0] + shift).astype(np.float32)
                router.e_score_correction_bias.copy_(torch.from_numpy(bias))
                logits = logits_of(50, experts, 3)
                mine = ops.route(
                    logits,
                    k,
                    score="sigmoid",
                    select_bias=bias,
                    groups=groups,
                    top_groups=kept,
                    normalize=normalize,
                    scale=2.5,
                )
                assert_same(mine, *run_router(router, logits))

    def test_deepseek_v2(self, experts: int, k: int) -> None:
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

        logits = logits_of(50, experts, 4)
        for method, groups, kept in [("greedy", 1, 1), ("group_limited_greedy", 8, 3)]:
            if experts % groups or experts // groups * kept < k:
                continue
            router = DeepseekV2TopkRouter(
                config(
                    experts,
                    k,
                    topk_method=method,
                    n_group=groups,
                    topk_group=kept,
                    routed_scaling_factor=16.0,
                )
            )
            rule = {"groups": groups, "top_groups": kept, "group_score": "max", "scale": 16.0}
            oracle = run_router(router, logits)
            assert_same(ops.route(logits, k, **rule), *oracle)
            assert_same(ops.route(logits, k, **rule, group_fill="0"), *oracle)

    def test_mistral4(self, experts: int, k: int) -> None:
        from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

        if experts % 4 or experts < 8:
            pytest.skip("four groups of at least two")
        router = Mistral4TopkRouter(
            config(
                experts,
                k,
                n_group=4,
                topk_group=2,
                routed_scaling_factor=1.5,
                norm_topk_prob=True,
            )
        )
        logits = logits_of(50, experts, 5)
        mine = ops.route(
            logits, k, groups=4, top_groups=2, group_fill="0", normalize=True, scale=1.5
        )
        assert_same(mine, *run_router(router, logits))

    def test_gpt_oss(self, experts: int, k: int) -> None:
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

        logits = logits_of(50, experts, 6)
        mine = ops.route(logits, k, score="softmax_topk")
        assert_same(mine, *run_router(GptOssTopKRouter(config(experts, k)), logits))

    def test_ernie(self, experts: int, k: int) -> None:
        from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter

        router = Ernie4_5_MoeTopKRouter(config(experts, k, moe_norm_min=1e-12))
        bias = logits_of(1, experts, 7, 0.05)
        with torch.no_grad():
            router.moe_statics.e_score_correction_bias.copy_(torch.from_numpy(bias))
        logits = logits_of(50, experts, 8)
        mine = ops.route(logits, k, select_bias=bias[0], normalize=True)
        assert_same(mine, *run_router(router, logits))

    def test_deepseek_v4(self, experts: int, k: int) -> None:
        from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

        settings_ = config(
            experts, k, scoring_func="sqrtsoftplus", routed_scaling_factor=1.5, vocab_size=40
        )
        bias = logits_of(1, experts, 9, 0.1)[0]
        logits = logits_of(40, experts, 10, 20.0)
        rule = {"score": "sqrtsoftplus", "normalize": True, "scale": 1.5}
        router = v4.DeepseekV4TopKRouter(settings_)
        router.e_score_correction_bias.copy_(torch.from_numpy(bias))
        assert_same(ops.route(logits, k, select_bias=bias, **rule), *run_router(router, logits))
        # The first layers take the ids from a table by token id and the weights from the gate.
        table = np.stack([np.random.default_rng(t).permutation(experts)[:k] for t in range(40)])
        hashed = v4.DeepseekV4HashRouter(settings_)
        hashed.tid2eid.copy_(torch.from_numpy(table))
        tokens = np.arange(40)[::-1].copy()
        oracle = run_router(hashed, logits, torch.from_numpy(tokens))
        assert_same(ops.weigh(logits, table[tokens], **rule), *oracle)

    def test_llama4(self, experts: int, k: int) -> None:
        from transformers.models.llama4.modeling_llama4 import Llama4Router

        router = Llama4Router(config(experts, k))
        logits = logits_of(50, experts, 11)
        with torch.no_grad():
            router.weight.copy_(torch.eye(experts))
            dense, _ = router(torch.from_numpy(logits))
        mine = ops.route(logits, k, score="input_sigmoid")
        assert mine.on_input
        scattered = np.zeros_like(logits)
        np.put_along_axis(scattered, mine.experts.astype(np.int64), mine.weights, axis=1)
        np.testing.assert_allclose(scattered, dense.numpy(), rtol=1e-6)

    @pytest.mark.parametrize("jitter", [0.0, 0.01, 0.3])
    def test_phimoe(self, experts: int, k: int, jitter: float) -> None:
        from transformers.models.phimoe.modeling_phimoe import sparsemixer

        logits = logits_of(200, experts, 12)
        weights, ids = sparsemixer(torch.from_numpy(logits), jitter_eps=jitter, training=False)
        mine = ops.route(logits, 2, score="sparsemixer", jitter_eps=jitter)
        assert_same(mine, ids.numpy(), weights.numpy())
        np.testing.assert_array_equal(mine.experts, ids.numpy())  # here in order


def test_switch_capacity_is_transformers() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersTop1Router,
    )

    logits = logits_of(40, 8, 13)
    router = SwitchTransformersTop1Router(
        config(
            8,
            1,
            expert_capacity=4,
            router_bias=False,
            router_jitter_noise=0.0,
            router_ignore_padding_tokens=False,
            router_dtype="float32",
        )
    )
    with torch.no_grad():
        router.classifier.weight.copy_(torch.eye(8))
        dispatch, probabilities, _ = router.eval()(torch.from_numpy(logits)[None])
    mine = ops.limit_capacity(ops.route(logits, 1), 8, capacity=4)
    kept = mine.experts[:, 0] >= 0
    np.testing.assert_array_equal(dispatch[0].sum(-1).numpy() == 1, kept)
    np.testing.assert_array_equal(dispatch[0].argmax(-1).numpy()[kept], mine.experts[kept, 0])
    np.testing.assert_allclose(probabilities[0, :, 0][kept], mine.weights[kept, 0], rtol=1e-6)
    assert mine.dropped == (~kept).sum() > 0
    assert mine.counts.max() <= 4


def test_noisy_top_k_is_the_2017_formula() -> None:
    """H(x) = x·Wg + normal · softplus(x·Wnoise); softmax over the k largest of H."""
    clean, raw = logits_of(30, 16, 14), logits_of(30, 16, 15)
    noise = np.random.default_rng(16).normal(size=clean.shape) * np.logaddexp(0, raw)
    mine = ops.route(clean, 3, score="softmax_topk", noise=noise.astype(np.float32))
    noisy = torch.from_numpy(clean) + torch.from_numpy(noise.astype(np.float32))
    values, ids = noisy.topk(3)
    assert_same(mine, ids.numpy(), values.softmax(-1).numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_takes_any_float_and_torch_tensors(dtype: str) -> None:
    tensor = torch.from_numpy(logits_of(6, 20, 17)).to(getattr(torch, dtype))
    same = tensor.float().numpy()
    mine, wide = ops.route(tensor, 4), ops.route(same, 4)
    np.testing.assert_array_equal(mine.experts, wide.experts)
    np.testing.assert_array_equal(mine.weights, wide.weights)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_ids_are_distinct_and_in_range_whatever_the_logits(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 40))
    tokens = data.draw(st.integers(0, 4))
    anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
    logits = data.draw(hnp.arrays(np.float32, (tokens, experts), elements=anything))
    k = data.draw(st.integers(1, experts))
    mask = data.draw(st.none() | hnp.arrays(np.bool_, (tokens, experts)))
    score = data.draw(st.sampled_from(SCORES))
    a = ops.route(logits, k, score=score, mask=mask)
    forbidden = np.zeros_like(logits, bool) if mask is None else mask
    for token in range(tokens):
        ids = a.experts[token]
        chosen = ids[ids >= 0]
        assert len(set(chosen)) == len(chosen) == min(k, int((~forbidden[token]).sum()))
        assert chosen.size == 0 or chosen.max() < experts
        assert not forbidden[token][chosen].any()
        assert (ids[len(chosen) :] == -1).all()
        assert (a.weights[token][ids < 0] == 0).all()
        if np.isnan(logits[token][~forbidden[token]]).any():
            assert np.isnan(a.weights[token][ids >= 0]).all()
        alone = ops.route(
            logits[token : token + 1],
            k,
            score=score,
            mask=None if mask is None else mask[token : token + 1],
        )
        np.testing.assert_array_equal(alone.experts[0], ids)
        np.testing.assert_array_equal(alone.weights[0], a.weights[token])


def test_ties_go_to_the_lower_id() -> None:
    a = ops.route(np.zeros((2, 40), np.float32), 5)
    assert a.experts.tolist() == [[0, 1, 2, 3, 4]] * 2
    a = ops.route(np.float32([[1, 3, 3, 2, 3]]), 4)
    assert a.experts.tolist() == [[1, 2, 4, 3]]


@pytest.mark.parametrize("score", ["softmax", "softmax_topk", "sigmoid", "sparsemixer"])
def test_a_mask_has_the_bytes_of_a_router_without_the_experts(score: str) -> None:
    rng = np.random.default_rng(7)
    for experts, k in ((2, 1), (7, 2), (16, 4), (33, 33), (100, 8), (257, 5), (1024, 9)):
        logits = rng.normal(0, rng.choice([0.1, 2, 20]), (9, experts)).astype(np.float32)
        logits[4] = np.round(logits[4])
        mask = rng.random((9, experts)) < rng.choice([0.1, 0.5, 0.9])
        rule: dict[str, Any] = {"score": score, "normalize": score == "sigmoid"}
        masked = ops.route(logits, k, mask=mask, **rule)
        for t in range(9):
            left = np.flatnonzero(~mask[t])
            if not len(left):
                assert (masked.experts[t] == -1).all()
                continue
            alone = ops.route(logits[t : t + 1, left], min(k, len(left)), **rule)
            found = len(alone.experts[0])
            assert masked.experts[t, :found].tolist() == left[alone.experts[0]].tolist()
            assert masked.weights[t, :found].tobytes() == alone.weights[0].tobytes()
            assert (masked.experts[t, found:] == -1).all()


def test_expert_choice_takes_each_experts_best_tokens() -> None:
    logits = logits_of(30, 6, 18)
    a = ops.route_expert_choice(logits, 7)
    p = torch.from_numpy(logits).softmax(-1)
    expected = np.zeros((30, 6), bool)
    for expert in range(6):
        expected[p[:, expert].topk(7).indices, expert] = True
    chosen = np.zeros((30, 6), bool)
    for token, ids in enumerate(a.experts):
        chosen[token, ids[ids >= 0]] = True
        np.testing.assert_allclose(a.weights[token, ids >= 0], p[token, ids[ids >= 0]], rtol=1e-6)
        assert (np.diff(a.weights[token]) <= 0).all()
    np.testing.assert_array_equal(chosen, expected)
    assert a.counts.tolist() == [7] * 6
    assert a.experts.shape[1] == expected.sum(1).max()
    assert ops.route_expert_choice(logits, 99).counts.tolist() == [30] * 6
    assert ops.route_expert_choice(logits, 0).experts.tolist() == [[-1]] * 30
    with pytest.raises(ValueError, match="capacity is -1"):
        ops.route_expert_choice(logits, -1)


def test_threshold_gives_each_token_a_k_of_its_own() -> None:
    p = np.float32([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]])
    logits = np.log(p)

    def ids(**criterion: Any) -> list[list[int]]:
        a = ops.route_threshold(logits, **criterion)
        assert (a.weights[a.experts < 0] == 0).all()
        return [row[row >= 0].tolist() for row in a.experts]

    assert ids(min_p=0.25) == [[0, 1, 2], [0, 1, 2, 3], [0]]
    assert ids(top_p=0.79) == [[0, 1], [0, 1, 2, 3], [0]]
    assert ids(top_p=0.45) == [[0], [0, 1], [0]]
    assert ids(threshold=0.28) == [[0, 1], [], [0]]
    assert ids(min_p=0.0, k_max=2) == [[0, 1], [0, 1], [0, 1]]
    assert ids(top_p=0.0) == [[], [], []]
    sums = ops.route_threshold(logits, top_p=0.79, normalize=True).weights.sum(1)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    hurt = ops.route_threshold(np.float32([[1, np.nan, 2]]), min_p=0.5)
    assert np.isnan(hurt.weights).any()
    for wrong in ({}, {"min_p": 0.1, "top_p": 0.5}, {"top_p": 1.5}, {"min_p": -0.1}):
        with pytest.raises(ValueError, match="route_threshold"):
            ops.route_threshold(logits, **wrong)


class TestCapacity:
    def test_first_choices_are_placed_first(self) -> None:
        experts = [[0, 1], [1, 0], [0, 1]]
        a = ops.Assignment(experts, np.ones((3, 2)), expert_count=2)
        limited = ops.limit_capacity(a, 2, capacity=2)
        # Expert 0: tokens 0 and 2 by first choice. Expert 1: token 1, then token 0's second.
        assert limited.experts.tolist() == [[0, 1], [1, -1], [0, -1]]
        assert limited.weights.tolist() == [[1, 1], [1, 0], [1, 0]]
        assert limited.dropped == 2
        assert limited.counts.tolist() == [2, 2]
        assert a.experts.tolist() == experts

    @pytest.mark.parametrize(
        ("factor", "capacity"), [(1.0, 3), (1.25, 4), (2.0, 6), (0.0, 0), (1.1, 4)]
    )
    def test_capacity_is_rounded_up(self, factor: float, capacity: int) -> None:
        a = ops.Assignment(np.zeros((6, 2)).astype(int), np.ones((6, 2)), expert_count=4)
        assert ops.limit_capacity(a, 4, factor).counts[0] == capacity

    def test_a_factor_that_is_no_binary_fraction(self) -> None:
        a = ops.Assignment(np.zeros((100, 1), int), np.ones((100, 1)), expert_count=10)
        assert ops.limit_capacity(a, 10, 1.1).counts[0] == 11

    def test_next_best_keeps_every_token_while_there_is_room(self) -> None:
        logits = logits_of(60, 8, 19)
        a = ops.route(logits, 2, score="sigmoid", normalize=True)
        limited = ops.limit_capacity(a, 8, 1.2, "next_best")
        assert limited.dropped == 0
        assert limited.counts.sum() == 120
        assert limited.counts.max() <= 18
        moved = (limited.experts != a.experts).any(1)
        assert moved.any()
        for ids in limited.experts:
            assert len(set(ids)) == 2
        anew = ops.weigh(logits, limited.experts, score="sigmoid", normalize=True)
        np.testing.assert_array_equal(limited.weights, anew.weights)
        np.testing.assert_array_equal(limited.weights[~moved], a.weights[~moved])

    def test_next_best_takes_the_best_that_has_room(self) -> None:
        scores = np.float32([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
        a = ops.Assignment([[0], [0]], [[0.5], [0.6]], expert_count=3)
        limited = ops.limit_capacity(a, 3, capacity=1, overflow="next_best", scores=scores)
        assert limited.experts.tolist() == [[0], [2]]
        np.testing.assert_array_equal(limited.weights, np.float32([[0.5], [0.3]]))
        with pytest.raises(ValueError, match="scores are required"):
            ops.limit_capacity(a, 3, overflow="next_best")

    def test_dropless(self) -> None:
        a = ops.route(logits_of(9, 4, 20), 2)
        same = ops.limit_capacity(a, 4, 0.1, "none")
        np.testing.assert_array_equal(same.experts, a.experts)
        np.testing.assert_array_equal(same.weights, a.weights)
        assert same.dropped == 0


def test_plan_permute_combine_are_a_way_there_and_back() -> None:
    x = logits_of(25, 12, 21)
    a = ops.limit_capacity(ops.route(x, 3), 12, 1.0)
    p = ops.plan(a, 12)
    assert p.offsets.dtype == np.int64
    assert p.rows.dtype == p.slots.dtype == np.int32
    np.testing.assert_array_equal(np.diff(p.offsets), a.counts)
    for expert in range(12):
        mine = np.argwhere(a.experts == expert)
        part = slice(p.offsets[expert], p.offsets[expert + 1])
        np.testing.assert_array_equal(np.stack([p.rows[part], p.slots[part]], 1), mine)
    sorted_x = ops.permute(x, p)
    np.testing.assert_array_equal(sorted_x, x[p.rows])
    half = torch.from_numpy(x).bfloat16()
    assert ops.permute(half, p).dtype.name == "bfloat16"
    np.testing.assert_array_equal(
        ops.permute(x.astype(np.float64)[:, :, None], p)[..., 0], sorted_x
    )
    expected = x * a.weights.sum(1, keepdims=True)
    np.testing.assert_allclose(ops.combine(sorted_x, p, a), expected, rtol=1e-5, atol=1e-7)
    # Weights that scaled the inputs do not scale the outputs again.
    b = ops.route(x, 2, score="input_sigmoid")
    q = ops.plan(b, 12)
    np.testing.assert_allclose(ops.combine(ops.permute(x, q), q, b), 2 * x, rtol=1e-6)


def test_no_tokens_at_all() -> None:
    empty = np.zeros((0, 6), np.float32)
    a = ops.route(empty, 2)
    assert a.experts.shape == a.weights.shape == (0, 2)
    p = ops.plan(a, 6)
    assert p.offsets.tolist() == [0] * 7
    assert ops.combine(ops.permute(empty, p), p, a).shape == (0, 6)
    assert len(ops.route_expert_choice(empty, 3)) == 0


def test_mistakes_are_named() -> None:
    x = logits_of(4, 6)
    for call, text in [
        (lambda: ops.route(x, 7), r"k is 7; 1 to 6 \(the number of experts\)"),
        (lambda: ops.route(x, 0), "k is 0"),
        (lambda: ops.route(x, 2, score="relu"), "score is 'relu'; one of softmax, softmax_topk"),
        (lambda: ops.route(x, 2, groups=4), "groups is 4; a divisor of 6"),
        (lambda: ops.route(x, 3, groups=3), "top_groups leaves 2 experts"),
        (lambda: ops.route(x, 2, select_bias=np.zeros(5)), r"select_bias has shape \[5\]; \[6\]"),
        (lambda: ops.route(x, 2, select_bias=[0, 0, np.nan, 0, 0, 0]), r"select_bias\[2\] is nan"),
        (lambda: ops.route(x, 2, noise=x[:2]), "noise has shape"),
        (lambda: ops.route(x, 2, mask=np.zeros((3, 6), bool)), r"mask has shape \[3, 6\]"),
        (lambda: ops.route(x[0], 2), r"logits has shape \[6\]; 2 dimension"),
        (lambda: ops.route(x * [[1], [1], [np.inf], [1]], 2, check_finite=True), "token 2, expert"),
        (lambda: ops.weigh(x, [[6]] * 4), "token 0, slot 0 has expert 6"),
        (lambda: ops.weigh(x, [[1]] * 3), "4 tokens are required"),
        (lambda: ops.Assignment([[1, 5]], [[1, 1]], expert_count=5), "slot 1 has expert 5"),
        (lambda: ops.Assignment([[1]], [[1, 1]]), "experts has shape"),
        (lambda: ops.plan(ops.Assignment([[1, 3]], [[1, 1]]), 3), "slot 1 has expert 3"),
        (lambda: ops.limit_capacity(ops.route(x, 1), 6, -1.0), "capacity_factor is -1.0"),
        (lambda: ops.limit_capacity(ops.route(x, 1), 6, overflow="x"), "overflow is 'x'"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="mask has dtype int64; bool is required"):
        ops.route(x, 2, mask=np.zeros(6, int))
    with pytest.raises(TypeError, match="experts has dtype float64; integers are required"):
        ops.Assignment([[1.5]], [[1.0]])
    p = ops.plan(ops.route(x, 1), 6)
    with pytest.raises(ValueError, match="x has 2 rows"):
        ops.permute(x[:2], p)
    with pytest.raises(ValueError, match="y has 3 rows; the plan has 4"):
        ops.combine(x[:3], p, ops.route(x, 1))
