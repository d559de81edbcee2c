"""The families with latent attention against transformers: logits, experts, greedy tokens, and
bytes that do not depend on the batch; odd sizes throughout."""

from typing import Any

import family_checks
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
