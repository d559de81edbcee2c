"""Interventions: bias, mask, force, K, routers of one's own; by the model's own numbers."""

from typing import Any

import numpy as np
import pytest

import moekit as mk

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]
IDS = [5, 17, 3, 90, 41, 41, 8, 63]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint_maker: Any) -> Any:
    return mk.load(checkpoint_maker(request.param, 0)[1])


def run(model: Any, **wishes: Any) -> tuple[np.ndarray, mk.Record]:
    with model.record(logits=True) as record, model.intervene(**wishes):
        logits = model.forward(IDS)
    return logits, record


def test_an_empty_intervention_changes_no_byte(model: Any) -> None:
    before = model.forward(IDS)
    with model.intervene():
        assert model.forward(IDS).tobytes() == before.tobytes()
    with model.intervene(bias={}, mask=set(), force=set(), k={}, router={}):
        assert model.forward(IDS).tobytes() == before.tobytes()
        tokens = model.generate(IDS, max_new_tokens=5)
    assert model.generate(IDS, max_new_tokens=5) == tokens


def test_masked_experts_are_never_chosen(model: Any) -> None:
    _, record = run(model, mask={("*", 0), (2, 3)})
    assert not (record.experts == 0).any()
    last = record.layer_index(2)
    assert not (record.experts[:, last] == 3).any()
    assert (record.experts[:, :last] == 3).any()


def test_a_mask_is_as_if_the_expert_were_not_there(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("mixtral", 0)[1])
    _, record = run(model, mask={(0, 2)})
    moe = model.layers[0].moe
    without = np.delete(np.arange(5), 2)
    assert record.logits is not None
    logits = np.ascontiguousarray(record.logits[:, 0][:, without])
    expected = mk.ops.route(logits, moe.router.k, **moe.router.rule)
    np.testing.assert_array_equal(record.experts[:, 0], without[expected.experts])
    np.testing.assert_allclose(record.weights[:, 0], expected.weights, rtol=1e-6)


def test_forced_experts_serve_every_token(model: Any) -> None:
    layer = model.moe_layers[-1]
    plain, before = run(model)
    logits, record = run(model, force={(layer, 1)})
    place = record.layer_index(layer)
    assert (record.experts[:, place] == 1).any(axis=1).all()
    assert not (before.experts[:, place] == 1).any(axis=1).all()
    assert np.isfinite(record.weights).all()
    assert (record.weights[:, place] > 0).all()
    # Where the expert had been chosen anyway, its weight is what it was.
    anyway = (before.experts[:, place] == 1).any(axis=1)
    for token in np.flatnonzero(anyway):
        np.testing.assert_array_equal(
            np.sort(record.weights[token, place]), np.sort(before.weights[token, place])
        )
    assert logits.tobytes() != plain.tobytes()


def test_k_changes_the_experts_per_token(model: Any) -> None:
    _, record = run(model, k=4)
    assert ((record.experts >= 0).sum(axis=-1) == 4).all()
    last = model.moe_layers[-1]
    _, record = run(model, k={"*": 1, last: 3})
    used = (record.experts >= 0).sum(axis=-1)
    assert (used[:, record.layer_index(last)] == 3).all()
    assert (used[:, : record.layer_index(last)] == 1).all()


def test_a_declared_bias_is_the_same_bias_from_a_function(model: Any) -> None:
    layer = model.moe_layers[0]
    amount = np.zeros(5, np.float32)
    amount[3] = 0.7
    declared, first = run(model, bias={(layer, 3): 0.7})

    def function(_x: Any, logits: np.ndarray) -> np.ndarray:
        return logits + amount

    own, second = run(model, router={layer: function})
    assert declared.tobytes() == own.tobytes()
    assert first == second
    plain, _ = run(model)
    assert declared.tobytes() != plain.tobytes()


def test_a_function_may_choose_by_itself(model: Any) -> None:
    def everyone_to_first_two(x: np.ndarray, logits: np.ndarray) -> mk.Assignment:
        assert x.shape == (len(logits), 72)
        experts = np.tile(np.array([1, 0], np.int32), (len(logits), 1))
        return mk.Assignment(experts, np.full(experts.shape, 0.5, np.float32))

    _, record = run(model, router=everyone_to_first_two)
    assert (record.experts == [1, 0]).all()
    assert (record.weights == 0.5).all()


def test_blocks_nest(model: Any) -> None:
    layer = model.moe_layers[0]
    direct, _ = run(model, bias={(layer, 1): 0.5}, mask={(layer, 0)}, k=1)
    with (
        model.intervene(bias={(layer, 1): 0.25}, k=3),
        model.intervene(mask={(layer, 0)}),
        model.intervene(bias={(layer, 1): 0.25}, k=1),
    ):
        nested = model.forward(IDS)
    assert nested.tobytes() == direct.tobytes()


def test_generation_is_steered_too(model: Any) -> None:
    with model.record() as record, model.intervene(mask={("*", 4)}):
        model.generate(IDS, max_new_tokens=4)
    assert len(record) == len(IDS) + 3
    assert not (record.experts == 4).any()


def test_groups_are_respected(checkpoint_maker: Any) -> None:
    options = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
    model = mk.load(checkpoint_maker("deepseek_v3", 0, **options)[1])
    _, record = run(model, force={("*", 0), ("*", 11)})
    assert (record.experts == 0).any(axis=-1).all()
    assert (record.experts == 11).any(axis=-1).all()
    with (
        pytest.raises(ValueError, match="3 groups; 2 are"),
        model.intervene(force={(1, 0), (1, 5), (1, 11)}),
    ):
        pass


def nothing(_x: Any, _logits: Any) -> Any:
    return np.zeros((1, 1))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mask": {(0, 1)}}, r"layer 0; layers with experts are \[1, 2\]"),
    ({"mask": {(3, 1)}}, "layer 3"),
    ({"bias": {(1, 5): 1.0}}, "expert 5 of layer 1; it has 5"),
    ({"bias": {(1, -1): 1.0}}, "expert -1"),
    ({"bias": {(1, 0): float("inf")}}, "bias inf"),
    ({"force": {(1, 0), (1, 1), (1, 2)}}, "3 experts are forced in layer 1; K is 2"),
    ({"force": {(1, 0)}, "mask": {(1, 0)}}, "expert 0 of layer 1 is masked and forced"),
    ({"mask": {(1, e) for e in range(4)}}, "leaves 1 experts in layer 1; K is 2"),
    ({"k": 6}, "k 6 in layer 1"),
    ({"k": {"*": 0}}, "k 0 in layer 1"),
    ({"mask": {1}}, r"\(layer, expert\) is required"),
    ({"mask": {("all", 1)}}, "layer 'all'"),
    ({"mask": {(1, 0.5)}}, "expert 0.5"),
]


@pytest.mark.parametrize(("wishes", "message"), BAD, ids=[b[1] for b in BAD])
def test_impossible_wishes_are_named(
    checkpoint_maker: Any, wishes: dict[str, Any], message: str
) -> None:
    model = mk.load(checkpoint_maker("deepseek_v3", 0)[1])
    with pytest.raises(ValueError, match=message), model.intervene(**wishes):
        pass


def test_answers_of_functions_are_checked(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("deepseek_v3", 0)[1])
    with model.intervene(router=nothing), pytest.raises(ValueError, match="layer 1 gave shape"):
        model.forward(IDS)
    with pytest.raises(TypeError, match="a function is required"), model.intervene(router={1: "x"}):
        pass
    record = run(model)[1]
    with model.intervene(k=1), pytest.raises(ValueError, match="routing= inside"):
        model.forward(IDS, routing=record)
