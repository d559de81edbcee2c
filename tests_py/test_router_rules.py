"""Hash layers, zero experts, noisy top-k, GShard's top 2, and functions as routers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import moekit as mk
from moekit import nn, ops

H, F, E = 72, 40, 5


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def experts_of(count: int, seed: int = 0) -> nn.Experts:
    sizes = ((count, F, H), (count, F, H), (count, H, F))
    return nn.Experts(*(draw(*s, seed=seed + i) / 8 for i, s in enumerate(sizes)), format="f32")


@pytest.mark.parametrize("capacity", [1, 2, 100])
@pytest.mark.parametrize(("tokens", "experts"), [(1, 2), (9, 5), (30, 7)])
def test_gshard_with_capacity_is_nllbs(tokens: int, experts: int, capacity: int) -> None:
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    settings = SimpleNamespace(
        num_experts=experts,
        expert_capacity=capacity,
        hidden_size=8,
        router_bias=False,
        router_ignore_padding_tokens=False,
        router_dtype="float32",
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        batch_prioritized_routing=False,
        moe_eval_capacity_token_fraction=-1.0,
    )
    router = NllbMoeTop2Router(settings).train()
    logits = draw(tokens, experts, seed=tokens)
    first, weights = router.route_tokens(torch.from_numpy(logits.copy()))[:2]
    mine = ops.limit_capacity(ops.route_gshard(logits), experts, capacity=capacity)
    dense = np.zeros((tokens, experts), np.float32)
    for t in range(tokens):
        for e, w in zip(mine.experts[t], mine.weights[t], strict=True):
            if e >= 0:
                dense[t, e] = w
    theirs = weights.numpy()
    np.testing.assert_allclose(dense, theirs, atol=1e-6)
    assert first.shape == (tokens, experts)


def test_gshards_second_expert_comes_with_twice_its_weight() -> None:
    logits = np.tile(np.float32([[1.0, 0.0, -3.0]]), (20000, 1))
    a = ops.route_gshard(logits, seed=1)
    share = float(ops.route(logits[:1], 2, normalize=True).weights[0, 1])
    assert (a.experts[:, 1] >= 0).mean() == pytest.approx(2 * share, abs=0.02)
    assert (a.weights[a.experts < 0] == 0).all()
    assert ops.route_gshard(logits, seed=1).experts.tobytes() == a.experts.tobytes()
    with pytest.raises(ValueError, match="uniform has 3 draws"):
        ops.route_gshard(logits, uniform=np.zeros(3, np.float32))


def test_noisy_top_k_draws_are_repeatable_and_off_in_evaluation() -> None:
    logits, spread = draw(12, 7), draw(12, 7, seed=1)
    quiet = ops.route_noisy(logits, spread, 3)
    plain = ops.route(logits, 3, score="softmax_topk")
    assert quiet.weights.tobytes() == plain.weights.tobytes()
    noisy = ops.route_noisy(logits, spread, 3, seed=4)
    assert (noisy.experts != plain.experts).any()
    # A row's noise is its own: shorter batches see the same draws.
    shorter = ops.route_noisy(logits[:5], spread[:5], 3, seed=4)
    assert shorter.weights.tobytes() == noisy.weights[:5].tobytes()
    # With a very negative x·Wnoise the spread is next to nothing.
    still = ops.route_noisy(logits, np.full_like(spread, -80), 3, seed=4)
    np.testing.assert_array_equal(still.experts, plain.experts)
    for given, text in [
        ({"normal": spread, "seed": 1}, "normal and seed"),
        ({"normal": spread[:3]}, "normal has shape"),
    ]:
        with pytest.raises(ValueError, match=text):
            ops.route_noisy(logits, spread, 3, **given)
    with pytest.raises(ValueError, match="noise_logits has shape"):
        ops.route_noisy(logits, spread[:, :3], 3)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(
    "rule",
    [
        {"score": "softmax"},
        {"score": "softmax", "normalize": True, "scale": 2.5},
        {"score": "softmax", "normalize": True, "normalize_min": 0.7},
        {"score": "softmax_topk"},
        {"score": "sigmoid", "normalize": True, "select_bias": draw(E, seed=9)},
        {"score": "sqrtsoftplus", "normalize": True, "scale": 1.5},
        {"score": "input_sigmoid"},
        {"score": "sparsemixer", "jitter_eps": 0.1},
    ],
    ids=lambda rule: "-".join(rule),
)
def test_weighing_what_a_router_chose_gives_its_bytes(rule: dict[str, Any], k: int) -> None:
    logits = draw(33, E, seed=k) * 3
    router = nn.Router(draw(E, H), k, **rule)
    chosen = router.route(logits)
    again = router.weigh(logits, chosen.experts)
    assert again.weights.tobytes() == chosen.weights.tobytes()
    assert again.on_input == chosen.on_input


class TestHashRouter:
    table = np.stack([np.random.default_rng(t).permutation(E)[:3] for t in range(50)])
    rule = {"score": "sqrtsoftplus", "normalize": True, "scale": 1.5}  # noqa: RUF012

    def router(self) -> nn.HashRouter:
        return nn.HashRouter(draw(E, H), self.table, **self.rule)

    def test_is_transformers(self) -> None:
        from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter

        settings = SimpleNamespace(
            num_experts_per_tok=3,
            num_local_experts=E,
            hidden_size=H,
            scoring_func="sqrtsoftplus",
            routed_scaling_factor=1.5,
            vocab_size=50,
        )
        theirs = DeepseekV4HashRouter(settings)
        x, ids = draw(20, H, seed=2), np.random.default_rng(3).integers(0, 50, 20)
        with torch.no_grad():
            theirs.weight.copy_(torch.from_numpy(draw(E, H)))
            theirs.tid2eid.copy_(torch.from_numpy(self.table))
            _, weights, indices = theirs(torch.from_numpy(x), torch.from_numpy(ids))
        mine = self.router()(x, ids.astype(np.int32))
        np.testing.assert_array_equal(mine.experts, indices.numpy())
        np.testing.assert_allclose(mine.weights, weights.numpy(), rtol=1e-5)
        moe = nn.MoE(self.router(), experts_of(E))
        assert moe.assign(x, ids.astype(np.int32)).weights.tobytes() == mine.weights.tobytes()

    def test_a_mask_takes_the_expert_out_of_the_weights(self) -> None:
        logits, ids = draw(50, E), np.arange(50, dtype=np.int32)
        a = self.router().route(logits, ids, mask=np.arange(E) == 2)
        had = (self.table == 2).any(axis=1)
        assert (a.experts != 2).all()
        assert ((a.experts == -1).sum(axis=1) == had).all()
        np.testing.assert_allclose(a.weights.sum(axis=1), 1.5, rtol=1e-5)
        fewer = self.router().route(logits, ids, k=2)
        np.testing.assert_array_equal(fewer.experts, self.table[:, :2])

    def test_names_mistakes(self) -> None:
        logits = draw(2, E)
        for call, text in [
            (lambda: self.router().route(logits), "no token ids"),
            (lambda: self.router().route(logits, np.int32([0, 50])), "token 1 has id 50"),
            (lambda: self.router().route(logits, np.int32([0, 1]), k=4), "k is 4"),
            (lambda: nn.HashRouter(draw(E, H), [[5]]), "experts 5 to 5"),
            (lambda: nn.HashRouter(draw(E, H), [1, 2]), "table has shape"),
            (lambda: ops.route_hash(logits, [0, -1], self.table), "token 1 has id -1"),
        ]:
            with pytest.raises(ValueError, match=text):
                call()


class TestZeroExperts:
    def test_is_longcats(self) -> None:
        from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts

        settings = SimpleNamespace(
            expert_ffn_hidden_size=F,
            hidden_size=H,
            n_routed_experts=E,
            zero_expert_num=3,
            hidden_act="silu",
        )
        theirs = LongcatFlashExperts(settings)
        bank = experts_of(E)
        assert bank.gate is not None
        with torch.no_grad():
            both = np.concatenate([bank.gate.unpack(), bank.up.unpack()], axis=1)
            theirs.gate_up_proj[:E].copy_(torch.from_numpy(both))
            theirs.down_proj.copy_(torch.from_numpy(bank.down.unpack()))
        x = draw(21, H, seed=5)
        router = nn.Router(draw(E + 3, H) / 8, 4, scale=6.0)
        moe = nn.MoE(router, bank, zero_experts=3)
        chosen = moe.assign(x)
        assert (chosen.experts >= E).any() and (chosen.experts < E).any()
        with torch.no_grad():
            expected = theirs(
                torch.from_numpy(x),
                torch.from_numpy(chosen.experts).long(),
                torch.from_numpy(chosen.weights),
            )
        whole = moe(x)
        np.testing.assert_allclose(whole, expected.numpy(), rtol=1e-4, atol=1e-5)
        for t in range(len(x)):
            assert moe(x[t : t + 1]).tobytes() == whole[t : t + 1].tobytes()

    def test_a_token_of_zero_experts_alone_is_scaled(self) -> None:
        x = draw(3, H)
        a = mk.Assignment(np.int32([[E, E + 1]] * 3), np.float32([[0.5, 0.25]] * 3))
        out = ops.moe_ffn(x, a, experts_of(E), zero_experts=2)
        np.testing.assert_array_equal(out, np.float32(0.75) * x)
        with pytest.raises(ValueError, match="token 0, slot 1 has expert 6; there are 5 and 1"):
            ops.moe_ffn(x, a, experts_of(E), zero_experts=1)
        with pytest.raises(ValueError, match="5 experts; there are 5 and 2 zero"):
            nn.MoE(nn.Router(draw(E, H), 2), experts_of(E), zero_experts=2)


class TestFunctionsAsRouters:
    def test_a_function_in_a_routers_place_sees_its_logits(self) -> None:
        moe = nn.MoE(nn.Router(draw(E, H), 2, normalize=True), experts_of(E))
        x = draw(6, H)
        before = moe(x)

        def same(hidden: np.ndarray, logits: np.ndarray) -> mk.Assignment:
            assert hidden is x
            return ops.route(logits, 2, normalize=True)

        moe.router = same
        assert moe.gate is not None
        assert moe(x).tobytes() == before.tobytes()
        moe.router = lambda hidden, logits: ops.route(-logits, 1)
        assert moe(x).tobytes() != before.tobytes()
        moe.router = moe.gate
        assert moe(x).tobytes() == before.tobytes()

    def test_answers_are_checked(self) -> None:
        moe = nn.MoE(nn.Router(draw(E, H), 2), experts_of(E))
        x = draw(6, H)
        moe.router = lambda hidden, logits: logits
        with pytest.raises(TypeError, match="gave ndarray; an Assignment"):
            moe(x)
        moe.router = lambda hidden, logits: ops.route(logits[:2], 2)
        with pytest.raises(ValueError, match="gave 2 tokens; 6 are"):
            moe(x)
        moe.router = lambda hidden, logits: mk.Assignment([[7]] * 6, [[1.0]] * 6)
        with pytest.raises(ValueError, match="expert 7"):
            moe(x)
        with pytest.raises(TypeError, match="a Router or a function"):
            moe.router = 3
