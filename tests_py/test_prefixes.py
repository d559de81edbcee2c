"""What a generation keeps for later ones: the same bytes, fewer tokens read."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from checkpoints import save, tiny_model

import moekit as mk
from moekit.nn import Model

VOCAB = 97


class Reading:
    """Counts the rows that a model computes."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        embed = model.embed

        def counted(ids: Any) -> Any:
            self.rows += len(ids)
            return embed(ids)

        monkeypatch.setattr(model, "embed", counted)

    def of(self, run: Any) -> int:
        self.rows = 0
        run()
        return self.rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return mk.load(save(tiny_model("qwen3_moe"), tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def forget(model: Model) -> Iterator[None]:
    yield
    model.prefixes.clear()


def ids_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def fresh(model: Model, prompt: Any, count: int = 6, **options: Any) -> Any:
    model.prefixes.clear()
    out = model.generate(prompt, count, **options)
    model.prefixes.clear()
    return out


def test_a_conversation_reads_only_what_is_new(model: Model, monkeypatch: pytest.MonkeyPatch):
    prompt, more = ids_of(0, 37), ids_of(1, 11)
    answer = fresh(model, prompt)
    longer = prompt + answer + more
    expected = fresh(model, longer, temperature=1.0, seed=3)
    reading = Reading(model, monkeypatch)
    assert reading.of(lambda: model.generate(prompt, 6)) == 37 + 5
    got: list[int] = []
    read = reading.of(lambda: got.extend(model.generate(longer, 6, temperature=1.0, seed=3)))
    assert got == expected
    assert read == 1 + 11 + 5  # the answer's last token was never read


def test_prompts_that_part_ways_and_the_same_once_more(
    model: Model, monkeypatch: pytest.MonkeyPatch
):
    start = ids_of(2, 70)
    prompts = [start + ids_of(3, 9), start + ids_of(4, 5), start[:20], start + ids_of(3, 9)]
    prompts[1][70] = (prompts[0][70] + 1) % VOCAB
    expected = [fresh(model, prompt) for prompt in prompts]
    reading = Reading(model, monkeypatch)
    for prompt, wanted, unread in zip(prompts, expected, (79, 5, 1, 1), strict=True):
        got: list[int] = []
        assert reading.of(lambda p=prompt, g=got: g.extend(model.generate(p, 6))) == unread + 5
        assert got == wanted


def test_logits_after_a_taken_prefix_are_the_same_bytes(model: Model):
    prompt = ids_of(5, 40)
    model.generate(prompt[:25] + ids_of(6, 4), 3)
    cache = model.new_cache()
    rest = model.resume_prefixes([np.array(prompt, np.int32)], cache)
    assert len(rest[0]) == 15
    got = model.logits(rest, cache)
    assert got.tobytes() == model.forward(prompt)[25:].tobytes()


def test_lists_take_and_keep_each_for_itself(model: Model, monkeypatch: pytest.MonkeyPatch):
    prompts = [ids_of(7, 30), ids_of(8, 13), ids_of(9, 1)]
    longer = [prompt + ids_of(10 + n, 3) for n, prompt in enumerate(prompts)]
    expected = fresh(model, longer)
    reading = Reading(model, monkeypatch)
    model.generate(prompts, 1)
    got: list[Any] = []
    assert reading.of(lambda: got.extend(model.generate(longer, 1))) == 9
    assert model.generate(longer, 6) == expected


def test_blocks_that_look_or_intervene_see_every_token(model: Model):
    prompt = ids_of(13, 33)
    expected = fresh(model, prompt)
    model.generate(prompt, 2)
    with model.record() as record:
        assert model.generate(prompt, 6) == expected
    assert len(record.experts) == 33 + 5
    with model.intervene(mask={("*", 0)}):
        masked = model.generate(prompt, 6)
        stream = model.stream(prompt, 6)
        first = next(stream)
    assert first == masked[0]
    list(stream)  # begun inside, ended outside: its cache is of neither
    assert model.generate(prompt, 6) == expected


def test_a_changed_model_keeps_nothing(tmp_path: Any):
    model = mk.load(save(tiny_model("qwen3_moe"), tmp_path))
    prompt = ids_of(14, 33)
    changes: list[Any] = [
        lambda: model.layers[0].moe.__setattr__("compute", "exact"),
        lambda: model.layers[1].moe.experts.down.fill(2, np.ones((72, 40), np.float32)),
        lambda: model.layers[0].attention_norm.weight.__imul__(3.0),
        lambda: model.layers[2].attention.__setattr__("window", 4),
        lambda: model.layers[0].moe.gate.__setattr__("k", 1),
    ]
    for change in changes:
        model.generate(prompt, 2)
        assert len(model.prefixes) > 0
        change()
        cache = model.new_cache()
        assert len(model.resume_prefixes([np.array(prompt, np.int32)], cache)[0]) == 33
        model.prefixes.clear()


def test_a_router_of_the_callers_own_sees_every_token(tmp_path: Any):
    model = mk.load(save(tiny_model("qwen3_moe"), tmp_path))
    moe, seen = model.layers[0].moe, []
    own = moe.gate

    def choose(x: Any, logits: Any) -> Any:
        seen.append(len(x))
        return own.route(logits, None)

    moe.router = choose
    for _ in range(2):
        seen.clear()
        model.generate(ids_of(15, 20), 1)
        assert seen == [20]


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next"])
def test_other_caches(family: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """Latent ones are cut, recurrent states are taken whole or not at all."""
    model = mk.load(save(tiny_model(family), tmp_path))
    prompt, more = ids_of(16, 30), ids_of(17, 6)
    answer = fresh(model, prompt)
    expected = [fresh(model, prompt[:20] + more), fresh(model, prompt + answer + more)]
    reading = Reading(model, monkeypatch)
    model.generate(prompt, 6)
    got: list[Any] = []
    read = reading.of(lambda: got.append(model.generate(prompt[:20] + more, 6)))
    assert read == (6 if family == "deepseek_v3" else 26) + 5
    read = reading.of(lambda: got.append(model.generate(prompt + answer + more, 6)))
    assert read == 1 + 6 + 5
    assert got == expected


def test_memory_is_bounded(model: Model):
    one = 40 * 3 * 2 * 20 * 4
    model.prefixes.max_bytes = 5 * one
    try:
        for seed in range(8):
            model.generate(ids_of(seed, 40), 1)
            assert model.prefixes.nbytes <= 5 * one
        assert len(model.prefixes) > 0
        model.prefixes.max_bytes = 0
        model.prefixes.clear()
        model.generate(ids_of(0, 40), 1)
        assert len(model.prefixes) == 0
    finally:
        model.prefixes.max_bytes = 256 << 20
