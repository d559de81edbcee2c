"""Specialisation, saturation, ablation, intent, the balanced stream, coloured text."""

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit import analysis

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]
rng = np.random.default_rng(7)
TEXTS = [rng.integers(0, 97, 23).tolist(), [5, 5, 9], rng.integers(0, 97, 11).tolist(), [1]]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint_maker: Any) -> Any:
    return mk.load(checkpoint_maker(request.param, 0)[1])


def routed(tokens: int, tilt: float, seed: int, ids: Any = None, experts: int = 8) -> mk.Record:
    """One layer; with `tilt` > 0 the experts of the first half are chosen more often."""
    draw = np.random.default_rng(seed)
    scores = draw.gumbel(size=(tokens, experts)) + tilt * (np.arange(experts) < experts // 2)
    chosen = np.argsort(-scores, axis=1)[:, :2]
    return mk.Record(
        chosen[:, None], np.full((tokens, 1, 2), 0.5), [3], num_experts=[experts], ids=ids
    )


class TestSpecialisation:
    def test_unrelated_domains_are_called_unrelated(self) -> None:
        found = analysis.specialisation({"a": routed(900, 0, 1), "b": routed(700, 0, 2)})
        assert found.domain_strength.verdicts == ["none"]
        assert abs(found.domain_strength.explained[0]) < 0.01
        assert "does not depend on the domain" in str(found)

    def test_a_false_alarm_is_as_rare_as_promised(self) -> None:
        alarms = 0
        for seed in range(60):
            pair = {"a": routed(200, 0, 2 * seed), "b": routed(200, 0, 2 * seed + 1)}
            strength = analysis.specialisation(
                pair, block=8, resamples=40, permutations=60, seed=seed
            ).domain_strength
            alarms += strength.p_value[0] <= 0.05
        assert alarms <= 9  # 3 are expected, 9 or fewer in 99.9 % of runs

    def test_blocks_keep_a_text_that_dwells_from_looking_specialised(self) -> None:
        """Routing that goes on for 40 tokens, but for no reason of the domain."""
        draw = np.random.default_rng(5)
        alarms = 0
        for seed in range(20):
            records = {}
            for name in "ab":
                runs = np.repeat(draw.integers(0, 8, 20), 40)
                experts = np.stack([runs, (runs + 1) % 8], axis=1)[:, None]
                records[name] = mk.Record(experts, np.ones(experts.shape), [0], num_experts=[8])
            found = analysis.specialisation(
                records, block=40, resamples=40, permutations=60, seed=seed
            )
            alarms += found.domain_strength.verdicts != ["none"]
        assert alarms <= 4

    def test_planted_specialisation_is_found_and_measured(self) -> None:
        found = analysis.specialisation({"a": routed(4000, 3, 1), "b": routed(4000, 0, 2)})
        strength = found.domain_strength
        assert strength.verdicts == ["clear"]
        # The truth, from a sample in which chance is negligible.
        many = analysis.specialisation(
            {"a": routed(60000, 3, 3), "b": routed(60000, 0, 4)}, resamples=20, permutations=20
        )
        assert strength.low[0] < many.domain_strength.explained[0] < strength.high[0]
        np.testing.assert_array_equal(found.tokens, [4000, 4000])
        assert {e for e, _ in found.top("a", 3, 4)} == {0, 1, 2, 3}

    def test_shares_are_olmoes_definition(self) -> None:
        a = mk.Record([[[0, 1]], [[0, 2]], [[1, 2]]], np.ones((3, 1, 2)), [5], num_experts=[4])
        b = mk.Record([[[3, 2]]] * 4, np.ones((4, 1, 2)), [5], num_experts=[4])
        found = analysis.specialisation({"a": a, "b": b}, block=1)
        np.testing.assert_allclose(found.domain[0, :, 0], [2 / 3, 2 / 3, 2 / 3, 0])
        np.testing.assert_allclose(found.domain[0, :, 1], [0, 0, 1, 1])
        first = analysis.specialisation({"a": a, "b": b}, k=1, block=1)
        np.testing.assert_allclose(first.domain[0, :, 0], [2 / 3, 1 / 3, 0, 0])
        assert (found.domain_low <= found.domain + 1e-12).all()
        assert (found.domain_high >= found.domain - 1e-12).all()

    def test_words_that_always_go_to_one_expert(self) -> None:
        draw = np.random.default_rng(3)
        ids = draw.integers(0, 6, 1200)
        experts = np.where(ids[:, None] < 3, ids[:, None], draw.integers(3, 8, (1200, 1)))
        parts = {
            name: mk.Record(
                experts[rows][:, None], np.ones((600, 1, 1)), [0], num_experts=[8], ids=ids[rows]
            )
            for name, rows in (("a", slice(0, 600)), ("b", slice(600, None)))
        }
        found = analysis.specialisation(parts, k=1)
        assert found.ids.tolist() == [0, 1, 2, 3, 4, 5]
        for word in range(3):
            assert found.vocabulary[0, word, word] == 1
            assert found.words(0, word, 1) == [(str(word), 1.0)]
        assert found.vocabulary_strength.verdicts == ["clear"]
        assert found.domain_strength.verdicts == ["none"]

    def test_words_that_follow(self) -> None:
        """Experts that look ahead: only the next id explains them, within its own sequence."""
        draw = np.random.default_rng(3)
        ids = draw.integers(0, 5, 1000)
        experts = np.append(ids[1:], 0)[:, None, None]
        sequences, positions = np.arange(1000) // 100, np.arange(1000) % 100
        parts = {
            name: mk.Record(
                experts[rows],
                np.ones((500, 1, 1)),
                [0],
                num_experts=[5],
                ids=ids[rows],
                sequences=sequences[rows] - sequences[rows][0],
                positions=positions[rows],
            )
            for name, rows in (("a", slice(0, 500)), ("b", slice(500, None)))
        }
        read = analysis.specialisation(parts)
        following = analysis.specialisation(parts, words="next")
        assert read.vocabulary_strength.verdicts == ["none"]
        assert following.vocabulary_strength.explained[0] > 0.95
        np.testing.assert_array_equal(following.vocabulary[0], np.eye(5))
        with pytest.raises(ValueError, match="words is 'all'"):
            analysis.specialisation(parts, words="all")

    def test_the_same_seed_gives_the_same_figures(self) -> None:
        pair = {"a": routed(300, 1, 1), "b": routed(300, 0, 2)}
        one, two = (analysis.specialisation(pair, seed=4) for _ in range(2))
        assert one.domain_strength.low.tobytes() == two.domain_strength.low.tobytes()

    def test_names_mistakes(self, model: Any) -> None:
        record = routed(300, 0, 1)
        for records, options, text in [
            ({"a": record}, {}, "1 domains; two or more"),
            ({"a": record, "b": routed(20, 0, 2)}, {}, "'b' has 1 blocks of 32"),
            ({"a": record, "b": record}, {"block": 0}, "block 0"),
            ({"a": record, "b": record.edit(drop=0)}, {}, "one policy"),
            ({"a": record, "b": routed(300, 0, 2, experts=9)}, {}, "the same are required"),
        ]:
            with pytest.raises(ValueError, match=text):
                analysis.specialisation(records, **options)
        found = analysis.specialisation({"a": record, "b": record})
        with pytest.raises(ValueError, match=r"layer 9; measured are \[3\]"):
            found.top("a", 9)
        with pytest.raises(ValueError, match="domain 'c'"):
            found.top("c", 3)


def test_saturation_is_the_overlap_of_choices(model: Any) -> None:
    before = mk.Record([[[0, 1]], [[2, 3]]], np.ones((2, 1, 2)), [0], num_experts=[8])
    after = mk.Record([[[1, 0]], [[2, 4]]], np.ones((2, 1, 2)), [0], num_experts=[8])
    assert analysis.saturation(before, after).tolist() == [0.75]
    record = analysis.record_texts(model, TEXTS)
    assert (analysis.saturation(record, record) == 1).all()
    with pytest.raises(ValueError, match="the same text"):
        analysis.saturation(before, record)


@pytest.mark.parametrize("window", [256, 7])
def test_ablation_is_a_masked_model(model: Any, window: int) -> None:
    found = analysis.ablate(model, TEXTS, window=window, progress=False)
    windows = [np.array(t[i : i + window]) for t in TEXTS for i in range(0, len(t), window)]

    def losses() -> np.ndarray:
        logits = model.forward([w.tolist() for w in windows])
        return np.concatenate(
            [
                analysis.reading.token_losses(x[:-1], w[1:])
                for x, w in zip(logits, windows, strict=True)
            ]
        )

    whole = losses()
    assert found.tokens == len(whole)
    assert found.loss == pytest.approx(whole.mean(), rel=1e-12)
    assert found.change.shape == (len(model.moe_layers), 5)
    for row, layer in enumerate(model.moe_layers):
        for expert in range(5):
            with model.intervene(mask={(layer, expert)}):
                without = losses()
            # A softmax without the expert rounds otherwise for tokens that never used it.
            change = (without - whole).mean()
            assert found.change[row, expert] == pytest.approx(change, rel=1e-4, abs=1e-6)
    best = found.most_important(1)[0]
    assert best[2] == np.nanmax(found.change)
    assert f"layer {best[0]:>3} expert {best[1]:>3}" in str(found)


def test_ablation_where_the_softmax_is_over_all_experts(checkpoint_maker: Any) -> None:
    """Without renormalising, a mask raises the weights of tokens that never used the expert."""
    model = mk.load(checkpoint_maker("qwen3_moe", 0, norm_topk_prob=False)[1])
    found = analysis.ablate(model, TEXTS[:2], progress=False)
    whole = [model.forward(t) for t in TEXTS[:2]]
    for expert in range(5):
        with model.intervene(mask={(1, expert)}):
            without = [model.forward(t) for t in TEXTS[:2]]
        change = np.concatenate(
            [
                analysis.reading.token_losses(b[:-1], np.array(t[1:]))
                - analysis.reading.token_losses(a[:-1], np.array(t[1:]))
                for a, b, t in zip(whole, without, TEXTS[:2], strict=True)
            ]
        ).mean()
        assert found.change[1, expert] == pytest.approx(change, rel=1e-4, abs=1e-6)


def test_ablation_of_some_experts_and_of_ones_nobody_uses(model: Any) -> None:
    layer = model.moe_layers[-1]
    found = analysis.ablate(model, TEXTS, layers=[layer], experts=[1, 3], progress=False)
    assert np.isnan(found.change[0, [0, 2, 4]]).all()
    assert np.isfinite(found.change[0, [1, 3]]).all()
    with model.intervene(mask={(layer, 1)}):
        masked = analysis.ablate(model, TEXTS, layers=[layer], experts=[1], progress=False)
    assert masked.change[0, 1] == 0 and masked.used[0, 1] == 0
    with pytest.raises(ValueError, match="layer 77; layers with experts"):
        analysis.ablate(model, TEXTS, layers=[77])
    with pytest.raises(ValueError, match="every text has one token"):
        analysis.ablate(model, [[1], [2]], progress=False)


def test_ablation_of_a_model_that_runs_otherwise(model: Any) -> None:
    class Other(mk.nn.Model):
        def logits(self, *arguments: Any, **options: Any) -> Any:
            return super().logits(*arguments, **options)

    expected = analysis.ablate(model, TEXTS, progress=False)
    kind = model.__class__
    model.__class__ = Other
    found = analysis.ablate(model, TEXTS, progress=False)
    model.__class__ = kind
    np.testing.assert_allclose(found.change, expected.change, rtol=1e-4, atol=1e-6)


def test_an_expert_with_a_capacity_is_ablated_in_the_whole_model(checkpoint_maker: Any) -> None:
    """Capacity counts the tokens before a cut: nothing of a pass can be reused."""
    model = mk.load(checkpoint_maker("mixtral", 0)[1])
    for layer in model.moe_layers:
        model.layers[layer].moe.capacity = 4
    text = TEXTS[0]
    whole = model.forward(text)
    found = analysis.ablate(model, text, layers=[1], progress=False)
    for expert in range(5):
        with model.intervene(mask={(1, expert)}):
            without = model.forward(text)
        change = np.mean(
            analysis.reading.token_losses(without[:-1], np.array(text[1:]))
            - analysis.reading.token_losses(whole[:-1], np.array(text[1:]))
        )
        assert found.change[0, expert] == pytest.approx(change, rel=1e-4, abs=1e-6)


def test_an_encoder_decoder_is_refused_where_its_prompt_would_be_predicted(model: Any) -> None:
    profile = analysis.profile({"a": [[1, 2]], "b": [[3]]}, model)["a"]
    kind = model.__class__
    model.__class__ = type("Reading", (kind,), {"encodes_prompt": True})
    try:
        for call in (
            lambda: analysis.ablate(model, TEXTS),
            lambda: analysis.intent(model, profile, TEXTS),
            lambda: analysis.balance_stream(model, TEXTS),
        ):
            with pytest.raises(
                ValueError, match=r"texts\[0\] is one text.*a pair \(source, answer\)"
            ):
                call()
    finally:
        model.__class__ = kind


def test_a_profile_is_the_log_ratio_of_shares() -> None:
    a = mk.Record([[[0]], [[0]], [[0]], [[1]]], np.ones((4, 1, 1)), [2], num_experts=[3])
    b = mk.Record([[[1]], [[1]], [[2]], [[2]]], np.ones((4, 1, 1)), [2], num_experts=[3])
    found = analysis.profile({"a": a, "b": b})
    share_a, share_b = np.array([3.5, 1.5, 0.5]) / 5.5, np.array([0.5, 2.5, 2.5]) / 5.5
    expected = np.log(share_a / ((share_a + share_b) / 2))
    assert set(found["a"]) == {(2, 0), (2, 1), (2, 2)}
    np.testing.assert_allclose([found["a"][2, e] for e in range(3)], expected)
    assert found["a"].experts() == {2: [0]}
    assert found["b"].experts(1) == {2: [2]}
    alone = analysis.profile({"a": a})["a"]
    np.testing.assert_allclose([alone[2, e] for e in range(3)], np.log(share_a * 3))
    with pytest.raises(ValueError, match="no domains"):
        analysis.profile({})


def test_intent_draws_routing_to_the_profile_at_a_cost(model: Any) -> None:
    halves = {"low": [[i % 40 for i in range(30)]], "high": [[50 + i % 40 for i in range(30)]]}
    profiles = analysis.profile(halves, model)
    found = analysis.intent(model, profiles["low"], halves["high"], (0, 1, 4), experts=2)
    assert found.kl[0] == 0 and (found.kl[1:] > 0).all()
    assert found.share[0] < found.share[1] < found.share[2] <= 1
    with model.intervene(bias=profiles["low"], strength=4), model.record() as record:
        model.forward(halves["high"])
    weight = {n: record.weights[:, i].sum() for i, n in enumerate(record.layers)}
    own = profiles["low"].experts(2)
    theirs = sum(
        record.weights[:, i][np.isin(record.experts[:, i], own[int(n)])].sum()
        for i, n in enumerate(record.layers)
        if int(n) in own
    )
    assert found.share[2] == pytest.approx(theirs / sum(weight[n] for n in own), rel=1e-5)
    assert "strength" in str(found)


def test_the_demo_model_is_steered_by_intent() -> None:
    model = mk.demo_model()
    texts = {
        name: (mk.demo_path() / "texts" / f"{name}.txt").read_text()[:1200]
        for name in ("python", "german")
    }
    profiles = analysis.profile(texts)
    found = analysis.intent(model, profiles["python"], texts["german"][:400], (0, 1, 3))
    assert found.share[0] < found.share[1] < found.share[2]


def test_a_balanced_stream_is_evener_and_costs_kl(model: Any) -> None:
    found = analysis.balance_stream(model, [[3] * 20 + [9] * 20], gamma=0.05, window=8, repeat=6)
    assert found.plain.shape == found.balanced.shape == (30, len(model.moe_layers))
    assert found.balanced[15:].mean() < found.plain[15:].mean()
    assert found.kl[0] == 0 and found.kl.max() > 0
    assert all(c.steps == 30 for c in found.controllers.values())
    more = analysis.balance_stream(model, [[3] * 20], controllers=found.controllers)
    assert all(c.steps == 31 for c in more.controllers.values())
    assert more.controllers is not found.controllers
    still = analysis.balance_stream(model, [[3] * 20], gamma=0.0)
    assert (still.kl == 0).all()
    np.testing.assert_array_equal(still.plain, still.balanced)


class TestColouredText:
    def test_every_token_is_shown_with_its_experts(self, talker: Any, tmp_path: Path) -> None:
        text = 'if a < b: print("<tag>&")\n\tnext'
        with talker.record(margins=True) as record:
            talker.forward(talker.tokenizer.encode(text))
        shown = record.show(2)
        page = shown.html()
        assert page.count("<span title=") == len(record)
        shown_text = html.unescape(re.sub("<[^>]*>", "", page))
        assert shown_text.endswith(text.replace("\n", "↵\n"))
        assert "<script" not in page and "http" not in page
        place = record.layer_index(2)
        first = record.experts[0, place]
        assert f"experts {first[0]} ({record.weights[0, place, 0]:.2f})" in page
        assert page == shown._repr_html_()
        shown.save(tmp_path / "t.html")
        assert "charset" in (tmp_path / "t.html").read_text(encoding="utf-8")
        assert "print" in str(shown)

    def test_margins_go_from_dark_to_light(self) -> None:
        record = mk.Record(
            [[[0]], [[1]], [[1]]], np.ones((3, 1, 1)), [4], margins=[[0.5], [0.001], [np.nan]]
        )
        light, dark, none = record.show(by="margin").colours
        assert (light, dark, none) == ("#fff5f0", "#a50f15", "")
        assert "[?]" in record.show(4).html()

    def test_empty_slots_and_equal_colours(self) -> None:
        record = mk.Record([[[-1, 3]], [[-1, -1]], [[23, 3]]], np.ones((3, 1, 2)), [0])
        first, none, other = record.show().colours
        assert none == "" and first == other  # 20 colours: 3 and 23 share one
        assert "no expert" in record.show().html()

    def test_names_mistakes(self) -> None:
        record = routed(5, 0, 0)
        for call, text in [
            (lambda: record.show(1), "layer 1; recorded are"),
            (lambda: record.show(3, "colour"), "by is 'colour'"),
            (lambda: record.show(3, "margin"), "no margins"),
            (lambda: record.plot("pie"), "kind 'pie'"),
        ]:
            with pytest.raises(ValueError, match=text):
                call()
