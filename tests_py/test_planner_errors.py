"""Bad configurations and arguments: a ValueError that names the field and its value."""

from __future__ import annotations

import contextlib
import json
import math
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_models import MIXTRAL

from moekit.planner import (
    FORMATS,
    break_even_utilisation,
    catalog,
    distinct_experts,
    find_api_price,
    find_machine,
    known_types,
    load_machines,
    plan_model,
)

ABSURD = [0, -1, 10**12, 10**30, 2.5, math.nan, math.inf, True, False, "8", [], {}]
SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_local_experts",
    "num_experts_per_tok",
]


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", ABSURD, ids=repr)
def test_absurd_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field) as error:
        plan_model({**MIXTRAL, field: value})
    if isinstance(value, int | float) and abs(value) < 10**13:
        assert repr(value) in str(error.value)


@pytest.mark.parametrize("field", [f for f in SIZES if f != "num_key_value_heads"])
def test_missing_field_is_named(field: str) -> None:
    config = {k: v for k, v in MIXTRAL.items() if k != field}
    with pytest.raises(ValueError, match=rf"is missing.*{field}|{field} is missing"):
        plan_model(config)


@pytest.mark.parametrize("name", sorted(catalog()))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
def test_no_number_of_a_model_is_infinite(name: str, value: float) -> None:
    config = catalog()[name]["config"]
    for field in config:
        if field != "model_type":
            with pytest.raises(ValueError, match=f"{field} is {value}"):
                plan_model({**config, field: value})
    with pytest.raises(ValueError, match=r"rope_parameters\.factor is"):
        plan_model({**config, "rope_parameters": {"factor": value}})
    assert plan_model({**config, "time_step_limit": [0.0, math.inf]}).total_params > 0


@pytest.mark.parametrize("name", sorted(catalog()))
def test_sizes_of_every_model_are_checked(name: str) -> None:
    """A size that is absurd is refused by its name, or it is one that the family does not read."""
    config = catalog()[name]["config"]
    wanted = plan_model(config).to_dict()
    for field, size in config.items():
        if isinstance(size, bool) or not isinstance(size, int):
            continue
        for value in (-1, 10**12, 10**30, 2.5, "8", True, [], {}):
            if field == "sliding_window" and value == 10**12:  # longer than any text: no window
                continue
            try:
                plan = plan_model({**config, field: value})
            except ValueError as error:
                assert f"{field} is" in str(error)  # noqa: PT017
                continue
            assert plan.to_dict() == wanted, (field, value)


def test_a_configuration_may_be_deep_or_hold_itself() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    itself: dict[str, Any] = dict(MIXTRAL)
    itself["rope_parameters"] = itself
    assert plan_model(itself).total_params == plan_model(MIXTRAL).total_params
    with pytest.raises(ValueError, match="hidden_size is a list"):
        plan_model({**MIXTRAL, "hidden_size": deep})
    with pytest.raises(ValueError, match="model_type is a list"):
        plan_model({**MIXTRAL, "model_type": deep})
    with pytest.raises(ValueError, match="num_hidden_layers is an integer of about"):
        plan_model({**MIXTRAL, "num_hidden_layers": 10**5000})


def test_nothing_is_allocated_for_an_absurd_size() -> None:
    tracemalloc.start()
    try:
        for field in (*SIZES, "sliding_window"):
            for value in (10**12, 2**62, 10**400):
                with contextlib.suppress(ValueError):
                    plan_model({**MIXTRAL, field: value}, "q4_k", 1 << 40, 1 << 40)
        plan_model({**MIXTRAL, "num_hidden_layers": 10_000}, "int4", 1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_more_chosen_than_there_are() -> None:
    with pytest.raises(ValueError, match="num_experts_per_tok is 9"):
        plan_model({**MIXTRAL, "num_experts_per_tok": 9})
    with pytest.raises(ValueError, match="num_key_value_heads is 3"):
        plan_model({**MIXTRAL, "num_key_value_heads": 3})


def test_unknown_model_type_lists_the_known() -> None:
    with pytest.raises(ValueError, match="did you mean mixtral") as error:
        plan_model({**MIXTRAL, "model_type": "mixtrel"})
    assert all(name in str(error.value) for name in known_types())
    with pytest.raises(ValueError, match="model_type"):
        plan_model({})


def test_lists_of_kinds_must_cover_the_layers() -> None:
    config = dict(catalog()["gpt-oss-20b"]["config"])
    with pytest.raises(ValueError, match="layer_types"):
        plan_model({**config, "layer_types": ["full_attention"]})
    with pytest.raises(ValueError, match="banana"):
        plan_model({**config, "layer_types": ["banana"] * 24})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("context", -1),
        ("context", 1.5),
        ("context", True),
        ("context", 10**30),
        ("batch", 0),
        ("batch", math.nan),
        ("batch", "4"),
        ("format", "int5"),
        ("format", None),
        ("kv_format", "tiny"),
        ("kv_format", 0),
        ("kv_format", math.nan),
        ("recipe", {"wheels": "int4"}),
        ("recipe", {"head": "int7"}),
    ],
)
def test_bad_arguments_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        plan_model(MIXTRAL, **{argument: value})


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-3, 10), max_size=12),
    st.dictionaries(st.text(max_size=3), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), value=_values)
def test_any_value_anywhere_plans_or_explains(seed: int, value: Any) -> None:
    """One field of a real configuration replaced by anything: a plan or a one-line ValueError."""
    rng = random.Random(seed)
    entry = catalog()[rng.choice(sorted(catalog()))]["config"]
    field = rng.choice(sorted(entry))
    plan, refusal = None, "[plan_model]"
    try:
        plan = plan_model({**entry, field: value}, rng.choice(sorted(FORMATS)), 100, 3)
    except ValueError as error:
        refusal = str(error)
    assert "[plan_model]" in refusal
    assert "\n" not in refusal
    if plan is not None:
        assert 0 < plan.active_params <= plan.total_params
        assert plan.weight_bytes > 0
        assert json.loads(json.dumps(plan.to_dict()))


@pytest.mark.parametrize("value", ["x", None, True, math.nan, -1, 10**400, [], {}], ids=repr)
def test_bad_arguments_of_every_function_are_value_errors(value: Any) -> None:
    plan = plan_model(MIXTRAL, "int4", context=100)
    table = {"memory_bytes": 1e9, "bandwidth": 1e9, "peak": {"f32": 1e9}}
    calls: dict[str, Any] = {
        "devices": lambda: plan.devices(value),
        "max_context": lambda: plan.max_context(value),
        "max_context batch": lambda: plan.max_context(8e9, value),
        "max_batch": lambda: plan.max_batch(value),
        "placement": lambda: plan.placement(value),
        "cache_bytes": lambda: plan.cache_bytes(value),
        "tokens_per_second": lambda: plan.tokens_per_second(value),
        "phase": lambda: plan.tokens_per_second("h200", value),
        "utilisation": lambda: plan.cost("h200", utilisation=value),
        "power_price": lambda: plan.cost("h200", power_price=value),
        "training": lambda: plan.training(value, "h800"),
        "training_flops": lambda: plan.training_flops(value),
        "memory_bytes": lambda: find_machine({**table, "memory_bytes": value}),
        "bandwidth": lambda: find_machine({**table, "bandwidth": value}),
        "peak": lambda: find_machine({**table, "peak": {"f32": value}}),
        "low_bit": lambda: find_machine({**table, "low_bit": value}),
        "break even": lambda: break_even_utilisation(1.0, value),
        "break even cost": lambda: break_even_utilisation(value, 1.0),
        "distinct": lambda: distinct_experts(8, 2, value),
        "distinct k": lambda: distinct_experts(8, value, 2),
        "machines": lambda: load_machines(value),
        "api price": lambda: find_api_price(value),
        "format": lambda: plan_model(MIXTRAL, value),
        "model": lambda: plan_model(value),
    }
    if value is not None:
        calls["placement devices"] = lambda: plan.placement(8e9, value)
        calls["price"] = lambda: plan.cost("h200", price_per_hour=value)
        calls["recipe"] = lambda: plan_model(MIXTRAL, recipe=value)
    if value == {}:
        del calls["recipe"]
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"^\[") as error:
            call()
        assert len(str(error.value)) < 1500, name
