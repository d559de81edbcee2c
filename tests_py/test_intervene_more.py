"""Substitutes, thresholds, temperatures, live balance, and settings of single requests."""

from threading import Thread
from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit import nn

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]
IDS = [5, 17, 3, 90, 41, 41, 8, 63]
OTHERS = [[9], [1, 2, 3, 4, 5], [77, 13]]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint_maker: Any) -> Any:
    return mk.load(checkpoint_maker(request.param, 0)[1])


def run(model: Any, ids: Any = IDS, **wishes: Any) -> tuple[Any, mk.Record]:
    with model.record(logits=True) as record, model.intervene(**wishes):
        logits = model.forward(ids)
    return logits, record


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])
    return drawn.astype(np.float32)


def uneven_model() -> nn.Model:
    """Layers with 7 experts of which 3, 2 of which 1, 6 (2 of them zero) of which 4 are chosen."""
    hidden, blocks = 40, []
    for seed, (count, k, zero) in enumerate([(7, 3, 0), (2, 1, 0), (4, 4, 2)]):
        bank = nn.Experts(
            *(normal(count, 24, hidden, seed=seed + i) * 2 for i in (1, 2)),
            normal(count, hidden, 24, seed=seed + 3) * 2,
            format="f32",
        )
        router = nn.Router(normal(count + zero, hidden, seed=seed) * 3, k, normalize=seed != 2)
        attention = nn.Attention(
            *(nn.Linear(normal(hidden, hidden, seed=seed + i)) for i in range(4)),
            heads=2,
            kv_heads=2,
            frequencies=np.ones(10, np.float32) / np.arange(1, 11, dtype=np.float32),
        )
        norms = [nn.RMSNorm(np.ones(hidden, np.float32)) for _ in range(2)]
        moe = nn.MoE(router, bank, zero_experts=zero)
        blocks.append(nn.Block(norms[0], attention, norms[1], moe))
    return nn.Model(
        normal(50, hidden, seed=50) * 6,
        blocks,
        nn.RMSNorm(np.ones(hidden, np.float32)),
        nn.Linear(normal(50, hidden, seed=51)),
    )


@pytest.mark.parametrize("format", ["f32", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_empty_blocks_and_replays_change_no_byte_in_any_format(
    checkpoint_maker: Any, family: str, format: str
) -> None:
    model = mk.load(checkpoint_maker(family, 1)[1], format=format)
    batch = [IDS, *OTHERS]
    before = model.forward(batch)
    with model.intervene(requests=[{}, {}, {}, {}]), model.record(margins=True) as record:
        inside = model.forward(batch)
    again = model.forward(batch, routing=record)
    with model.record(counters=True) as counters:
        counted = model.forward(batch)
    for a, b, c, d in zip(before, inside, again, counted, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes() == d.tobytes()
    np.testing.assert_array_equal(counters.counts, record.counts)


def test_layers_of_different_size_are_ordinary() -> None:
    model = uneven_model()
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    with model.record(logits=True, margins=True) as record:
        logits = model.forward(ids)
    assert record.experts.shape == (11, 3, 4)
    assert record.num_experts.tolist() == [7, 2, 6]
    assert ((record.experts >= 0).sum(axis=2) == [3, 1, 4]).all()
    assert (record.experts[:, 2] >= 4).any()
    assert model.forward(ids, routing=record).tobytes() == logits.tobytes()
    assert record.logits is not None
    assert np.isnan(record.logits[:, 1, 2:]).all() and np.isfinite(record.logits[:, 2, :6]).all()
    margins = mk.analysis.margins(record.logits[:, 0, :7], 3)
    assert record.margins is not None
    np.testing.assert_allclose(record.margins[:, 0], margins, rtol=1e-6)
    # A zero expert can be masked as any other; k and force know each layer's own size.
    _, masked = run(model, ids, mask={(2, 5)}, k={0: 5, 1: 2}, force={(2, 4)})
    assert ((masked.experts >= 0).sum(axis=2) == [5, 2, 4]).all()
    assert not (masked.experts[:, 2] == 5).any()
    assert (masked.experts[:, 2] == 4).any(axis=1).all()
    with pytest.raises(ValueError, match="k 3 in layer 1; 1 to 2"):
        run(model, ids, k=3)


RULES: list[dict[str, Any]] = [
    {},
    {"normalize": True, "scale": 2.5},
    {"score": "softmax_topk"},
    {"score": "sigmoid", "normalize": True, "select_bias": normal(7, seed=8)},
    {"select_bias": normal(7, seed=8) / 9},
    {"score": "sqrtsoftplus", "normalize": True},
    {"score": "input_sigmoid"},
    {"score": "sparsemixer", "jitter_eps": 0.1},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule)) or "plain")
@pytest.mark.parametrize("gone", [0, 3, 6])
def test_a_mask_is_a_layer_without_the_expert(rule: dict[str, Any], gone: int) -> None:
    """Under every rule: the same choice, weights and output as a layer built without it."""
    count, k, hidden = 7, 3, 40
    left = np.delete(np.arange(count), gone)
    gate, up = (normal(count, 24, hidden, seed=i) * 2 for i in (1, 2))
    down, weight = normal(count, hidden, 24, seed=3) * 2, normal(count, hidden, seed=4) * 4
    whole = nn.MoE(nn.Router(weight, k, **rule), nn.Experts(gate, up, down, format="f32"))
    fewer = {n: v[left] if n == "select_bias" else v for n, v in rule.items()}
    small = nn.MoE(
        nn.Router(weight[left], k, **fewer),
        nn.Experts(gate[left], up[left], down[left], format="f32"),
    )
    x = normal(29, hidden, seed=5) * 6
    mask = np.arange(count) == gone
    masked = whole.gate.route(whole.logits(x), mask=mask)  # type: ignore[union-attr, arg-type]
    expected = small.assign(x)
    np.testing.assert_array_equal(masked.experts, left[expected.experts])
    np.testing.assert_allclose(masked.weights, expected.weights, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(whole.apply(x, masked), small(x), rtol=1e-4, atol=1e-5)


def test_a_substitute_serves_with_the_weight(model: Any) -> None:
    layer = model.moe_layers[0]
    plain, before = run(model)
    expert = int(before.experts[0, 0, 0])
    other = next(e for e in range(5) if e not in before.experts[0, 0])
    logits, record = run(model, substitute={(layer, expert): other})
    assert not (record.experts[:, 0] == expert).any()
    # What an edited record replays, and what a substitute does, are the same bytes.
    edited = before.edit(layer=layer, swap={expert: other})
    np.testing.assert_array_equal(record.experts[:, 0], edited.experts[:, 0])
    assert record.weights[:, 0].tobytes() == edited.weights[:, 0].tobytes()
    if len(model.moe_layers) == 1 or layer == model.moe_layers[-1]:
        assert model.forward(IDS, routing=edited).tobytes() == logits.tobytes()
    assert logits.tobytes() != plain.tobytes()


def test_a_threshold_gives_each_token_its_own_k(model: Any) -> None:
    _, plain = run(model, k=3)
    layer = model.moe_layers[0]
    share = plain.weights[:, 0] / plain.weights[:, 0].sum(axis=1, keepdims=True)
    limit = float(np.median(share))
    _, record = run(model, k=3, threshold={layer: limit})
    used = record.experts[:, 0] >= 0
    np.testing.assert_array_equal(used, share >= np.float32(limit))
    assert 0 < used.sum() < used.size
    np.testing.assert_array_equal(record.weights[:, 0][used], plain.weights[:, 0][used])
    # Nobody reaches a share above one half of three: such a token passes all experts by.
    logits, record = run(model, k=3, threshold=1.0)
    assert not (record.experts >= 0).all()
    assert np.isfinite(logits).all()


def test_a_temperature_divides_the_logits(model: Any) -> None:
    layer = model.moe_layers[0]
    declared, first = run(model, temperature={layer: 2.5})
    own, second = run(model, router={layer: lambda x, logits: logits / np.float32(2.5)})
    assert declared.tobytes() == own.tobytes()
    assert first == second
    assert declared.tobytes() != model.forward(IDS).tobytes()
    assert run(model, temperature=1.0)[0].tobytes() == model.forward(IDS).tobytes()


def test_strength_scales_a_bias_of_any_form(model: Any) -> None:
    layer = model.moe_layers[0]
    amounts = normal(5, seed=3)
    pairs = {(layer, e): float(amounts[e]) for e in range(5)}
    one, _ = run(model, bias={layer: amounts * np.float32(4)})
    two, _ = run(model, bias=pairs, strength=4)
    assert one.tobytes() == two.tobytes()
    assert run(model, bias=pairs, strength=0)[0].tobytes() == model.forward(IDS).tobytes()


SETTINGS: list[dict[str, Any]] = [
    {"mask": {("*", 0)}},
    {},
    {"k": 4, "temperature": 0.5},
    {"force": {(2, 1)}, "bias": {("*", 2): 1.5}, "threshold": 0.2},
]


def test_requests_of_one_batch_have_settings_of_their_own(model: Any) -> None:
    batch = [IDS, *OTHERS]
    together, record = run(model, batch, requests=SETTINGS)
    for i, (ids, settings) in enumerate(zip(batch, SETTINGS, strict=True)):
        alone, own = run(model, ids, **settings)
        assert together[i].tobytes() == alone.tobytes(), settings
        rows, k = record.sequences == i, own.experts.shape[2]
        np.testing.assert_array_equal(record.experts[rows][..., :k], own.experts)
        assert (record.experts[rows][..., k:] == -1).all()
    assert model.forward(batch, routing=record)[2].tobytes() == together[2].tobytes()


def test_generation_keeps_the_settings_of_each_request(model: Any) -> None:
    batch = [IDS, *OTHERS]
    alone = []
    for ids, settings in zip(batch, SETTINGS, strict=True):
        with model.intervene(**settings):
            alone.append(model.generate(ids, max_new_tokens=6))
    # One request ends early and leaves the batch: the others keep their own settings.
    stop = alone[0][1]
    with model.intervene(requests=SETTINGS):
        together = model.generate(batch, max_new_tokens=6)
        again = model.generate(batch, max_new_tokens=6)
    assert together == alone == again
    with model.intervene(requests=SETTINGS):
        ended = model.generate(batch, max_new_tokens=6, stop=[stop])
    for found, whole in zip(ended, alone, strict=True):
        assert found == whole[: len(found)]
    assert len(ended[0]) <= 2


def test_settings_hold_where_prompts_are_read_in_parts(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [IDS, *OTHERS]
    with model.intervene(requests=SETTINGS):
        whole = model.generate(batch, max_new_tokens=3)
        monkeypatch.setattr("moekit.generate.PREFILL_ROWS", 3)
        monkeypatch.setattr("moekit.generate.PREFILL_WORK", 0)
        assert model.generate(batch, max_new_tokens=3) == whole


def test_requests_and_common_settings_add_up(model: Any) -> None:
    batch = [IDS, [1, 2]]
    both, record = run(model, batch, mask={("*", 3)}, requests=[{"mask": {("*", 1)}}, {"k": 1}])
    first, second = record.sequences == 0, record.sequences == 1
    assert not np.isin(record.experts[first], [1, 3]).any()
    assert not (record.experts == 3).any()
    assert ((record.experts[second] >= 0).sum(axis=2) == 1).all()
    with (
        model.intervene(mask={("*", 3)}),
        model.intervene(requests=[{"mask": {("*", 1)}}, {"k": 1}]),
    ):
        nested = model.forward(batch)
    assert nested[0].tobytes() == both[0].tobytes()


def test_balance_moves_a_bias_after_every_pass(model: Any) -> None:
    with model.record() as record, model.intervene(balance=0.05) as wanted:
        for _ in range(30):
            model.forward(IDS)
    controllers = wanted.controllers
    assert set(controllers) == set(model.moe_layers)
    assert all(c.steps == 30 for c in controllers.values())
    place = record.layer_index(model.moe_layers[0])
    chosen = record.experts[:, place].reshape(30, -1)
    first = np.bincount(chosen[0], minlength=5)
    late = np.bincount(chosen[10:].ravel(), minlength=5)
    assert late.max() / late.mean() < first.max() / first.mean()
    # The same controllers go on, and the first pass starts where the last one ended.
    bias = controllers[model.moe_layers[0]].bias
    with model.intervene(balance=dict(controllers)):
        model.forward(IDS)
    assert (controllers[model.moe_layers[0]].bias != bias).any()
    assert controllers[model.moe_layers[0]].steps == 31


def test_balance_moves_once_a_pass_whatever_the_requests(model: Any) -> None:
    together, apart = {}, {}
    with model.intervene(balance=0.05) as wanted:
        model.forward([IDS, IDS])
    together = {n: c.bias for n, c in wanted.controllers.items()}
    with model.intervene(balance=0.05, requests=[{}, {"threshold": 0.0}]) as wanted:
        model.forward([IDS, IDS])
    apart = {n: c.bias for n, c in wanted.controllers.items()}
    assert all(c.steps == 1 for c in wanted.controllers.values())
    for layer, bias in together.items():
        np.testing.assert_array_equal(apart[layer], bias)


def test_several_threads_have_settings_of_their_own(model: Any) -> None:
    wishes: list[dict[str, Any]] = [{}, {"mask": {("*", 0)}}, {"k": 1}, {"k": 5}]
    expected = [run(model, **w)[0].tobytes() for w in wishes]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if run(model, **wishes[i])[0].tobytes() != expected[i]:
                wrong.append(i)

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_cache_goes_on_under_the_settings(model: Any) -> None:
    whole, _ = run(model, mask={("*", 2)}, k=1)
    cache = model.new_cache()
    parts = []
    with model.intervene(mask={("*", 2)}, k=1):
        for token in IDS:
            parts.append(model.forward([token], cache=cache))
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_damage_stays_in_its_row(model: Any) -> None:
    """NaN logits of one token: its weights are NaN, other tokens keep their bytes."""

    def damage(_x: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[3] = np.nan
        return logits

    layer = model.moe_layers[-1]
    plain = model.forward(IDS)
    damaged, record = run(model, router={layer: damage}, threshold=0.01)
    place = record.layer_index(layer)
    assert np.isnan(record.weights[3, place]).all()
    assert damaged[:3].tobytes() == plain[:3].tobytes()
    assert np.isnan(damaged[3]).all()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"substitute": {(1, 9): 0}}, "expert 9 of layer 1"),
    ({"substitute": {(1, 0): 5}}, "expert 5 of layer 1"),
    ({"substitute": {(1, 0): 2}, "mask": {(1, 2)}}, "expert 2 of layer 1 is masked and takes"),
    ({"threshold": 1.5}, "threshold 1.5 in layer 1; 0 to 1"),
    ({"temperature": 0}, "temperature 0 in layer 1; above 0"),
    ({"temperature": "hot"}, "temperature 'hot' in layer 1; a number"),
    ({"strength": float("nan")}, "strength nan"),
    ({"bias": {1: np.zeros(4)}}, r"bias of layer 1 has shape \(4,\); \[5\]"),
    ({"bias": {1: [0, 1, np.inf, 0, 0]}}, "bias inf of expert 2, layer 1"),
    ({"balance": {1: mk.balance.BiasController(4)}}, "4 experts; 5 are required"),
    ({"requests": [{"k": 9}]}, "k 9 in layer 1"),
    ({"requests": [{"requests": []}]}, r"requests\[0\] has requests"),
    ({"k": 1, "requests": [{"force": {(1, 0), (1, 2)}}]}, "2 experts are forced in layer 1"),
    ({"k": {1: 2.5}}, "k 2.5 in layer 1; a number"),
]


@pytest.mark.parametrize(("wishes", "message"), BAD, ids=[b[1] for b in BAD])
def test_impossible_wishes_are_named(
    checkpoint_maker: Any, wishes: dict[str, Any], message: str
) -> None:
    model = mk.load(checkpoint_maker("deepseek_v3", 0)[1])
    with pytest.raises(ValueError, match=message), model.intervene(**wishes):
        pass


def test_wishes_of_another_kind_are_type_errors(model: Any) -> None:
    layer = model.moe_layers[0]
    for wishes in ({"bias": [((layer, 0), 1.0)]}, {"substitute": {(layer, 1)}}, {"mask": 3}):
        with pytest.raises(TypeError), model.intervene(**wishes):
            pass


def test_contradictions_of_nested_blocks_are_named(model: Any) -> None:
    layer = model.moe_layers[0]
    with (
        model.intervene(mask={(layer, 1)}),
        pytest.raises(ValueError, match="masked and forced"),
        model.intervene(force={(layer, 1)}),
    ):
        pass
    with (
        model.intervene(requests=[{}, {}]),
        pytest.raises(ValueError, match="settings for 3 requests inside of settings for 2"),
        model.intervene(requests=[{}, {"k": 1}, {}]),
    ):
        pass
    with (
        model.intervene(requests=[{"k": 1}]),
        pytest.raises(ValueError, match=r"a sequence 1 in the call; requests= has settings for 1"),
    ):
        model.forward([[1], [2]])


def test_a_function_in_a_layer_takes_what_it_can(model: Any) -> None:
    layer = model.moe_layers[0]
    moe = model.layers[layer].moe
    gate = moe.router
    moe.router = lambda x, logits: gate.route(logits)
    try:
        _, record = run(model, mask={(layer, 0)}, bias={(layer, 1): 2.0}, threshold=0.1)
        assert not (record.experts[:, 0] == 0).any()
        with (
            pytest.raises(ValueError, match=f"k in layer {layer}, where a function"),
            model.intervene(k=1),
        ):
            pass
    finally:
        moe.router = gate
