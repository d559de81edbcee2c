"""The families with latent attention against transformers: logits, experts, greedy tokens, and
bytes that do not depend on the batch; odd sizes throughout."""

from pathlib import Path
from typing import Any

import family_checks
import numpy as np
import pytest
from family_checks import prompt_of
from latent_families import CASES, FIELDS

import moekit as mk

NAMES = [f"{family}-{'-'.join(changes) or 'plain'}" for family, changes in CASES]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_logits_and_experts_are_those_of_transformers(
    checkpoint_maker: Any, family: str, changes: dict[str, Any], seed: int
) -> None:
    family_checks.logits_and_experts(*checkpoint_maker(family, seed, **changes), seed)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_greedy_tokens_are_those_of_transformers(
    checkpoint_maker: Any, family: str, changes: dict[str, Any]
) -> None:
    family_checks.greedy_tokens(*checkpoint_maker(family, 1, **changes))


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_a_token_has_the_same_bytes_however_it_is_batched(
    checkpoint_maker: Any, family: str, changes: dict[str, Any]
) -> None:
    family_checks.same_bytes(checkpoint_maker(family, 0, **changes)[1])


@pytest.mark.parametrize("family", list(FIELDS))
def test_what_is_saved_is_what_was_loaded(
    checkpoint_maker: Any, family: str, tmp_path: Path
) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1])
    ids = prompt_of(2, 14)
    model.save(tmp_path / "saved")
    assert mk.load(tmp_path / "saved").forward(ids).tobytes() == model.forward(ids).tobytes()


@pytest.mark.parametrize("family", list(FIELDS))
def test_a_quantised_directory_is_the_quantised_model(
    checkpoint_maker: Any, family: str, tmp_path: Path
) -> None:
    path, ids = checkpoint_maker(family, 0)[1], prompt_of(2, 14)
    model = mk.quantize(path, "int8", out=tmp_path / "quantised", progress=False)
    again = mk.load(tmp_path / "quantised")
    assert again.forward(ids).tobytes() == model.forward(ids).tobytes()
    again.save(tmp_path / "plain")
    assert mk.load(tmp_path / "plain").forward(ids).shape == (14, 97)


@pytest.mark.parametrize("family", list(FIELDS))
@pytest.mark.parametrize("format", ["int4", "int8", "q8_0", "bf16"])
def test_packed_weights_keep_a_tokens_bytes(
    checkpoint_maker: Any, family: str, format: str
) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1], format=format)
    prompts = [prompt_of(4, 13), prompt_of(5, 3)]
    alone = [model.forward(prompt).tobytes() for prompt in prompts]
    assert [logits.tobytes() for logits in model.forward(prompts)] == alone
    cache = model.new_cache()
    parts = [model.forward(prompts[0][a:b], cache=cache) for a, b in ((0, 1), (1, 9), (9, 13))]
    assert np.concatenate(parts).tobytes() == alone[0]


@pytest.mark.parametrize("family", list(FIELDS))
def test_every_family_can_be_steered(checkpoint_maker: Any, family: str) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1])
    layer = model.moe_layers[-1]
    ids = prompt_of(3, 9)
    with (
        model.record(logits=True) as record,
        model.intervene(mask={(layer, 2)}, force={(layer, 1)}),
    ):
        steered = model.forward(ids)
    chosen = record.experts[:, record.layer_index(layer)]
    assert (chosen == 1).any(axis=1).all()
    assert not (chosen == 2).any()
    # A replay needs no intervention to give the same bytes.
    assert model.forward(ids, routing=record).tobytes() == steered.tobytes()
    assert model.forward(ids).tobytes() != steered.tobytes()


@pytest.mark.parametrize("family", ["deepseek_v32", "deepseek_v4", "longcat_flash"])
def test_caches_fork_and_survive_an_interruption(
    checkpoint_maker: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mk.load(checkpoint_maker(family, 1)[1])
    start, left, right = prompt_of(1, 13), prompt_of(2, 9), prompt_of(3, 9)
    expected = [model.forward([*start, *more])[-9:].tobytes() for more in (left, right)]
    cache = model.new_cache()
    model.forward(start, cache=cache)
    fork = cache.fork()

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(model.layers[-1].moe), "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.forward(right, cache=cache)
    assert cache.lengths == [13]
    parts: list[list[Any]] = [[], []]
    for a, b in ((0, 4), (4, 5), (5, 9)):  # in turn, so that one finds what the other has written
        parts[0].append(model.forward(left[a:b], cache=cache))
        parts[1].append(model.forward(right[a:b], cache=fork))
    assert [np.concatenate(p).tobytes() for p in parts] == expected
    assert cache.lengths == fork.lengths == [22]
    assert cache.nbytes > 0
