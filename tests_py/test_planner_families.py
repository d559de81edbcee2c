"""Every family's count against the transformers class on device meta: odd sizes, random options."""

from __future__ import annotations

import json
from typing import Any

import pytest
from drawn_configs import DRAWS, Draw
from planner_models import model_of

from moekit.planner import plan_model
from moekit.planner.families import FAMILIES
from moekit.planner.one_offs import WHOLE_MODELS

pytest.importorskip("torch")
pytest.importorskip("transformers")

SEEDS = range(6)


def parameters(model_type: str, config: dict[str, Any], model: Any) -> int:
    """What the class holds, less what no checkpoint has."""
    total = sum(p.numel() for p in model.parameters())
    if model_type == "longcat_flash":
        # the class allocates gate/up rows for its identity experts too; checkpoints hold none
        extra = config["zero_expert_num"] * 2 * config["expert_ffn_hidden_size"]
        total -= extra * config["hidden_size"] * config["num_layers"]
    return total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model_type", sorted(DRAWS))
def test_count_matches_transformers(model_type: str, seed: int) -> None:
    config = DRAWS[model_type](Draw(seed))
    model = model_of(model_type, config, "meta")
    expected = parameters(model_type, config, model)
    plan = plan_model({"model_type": model_type, **config})
    assert plan.total_params == expected
    # what a token leaves alone: E - K of E experts of every sparse layer
    routed = sum(p.numel() for n, p in model.named_parameters() if _is_routed(model_type, n))
    if model_type == "longcat_flash":
        routed -= sum(p.numel() for p in model.parameters()) - expected
    assert plan.components["routed"] == routed
    if routed:
        idle = routed * (plan.num_experts - plan.top_k)
        assert plan.active_params * plan.num_experts == expected * plan.num_experts - idle
    if model_type == "dbrx":  # the class cannot read back what it saves
        return
    # and the configuration as transformers 5 saves it, with every default written out
    saved = json.loads(model.config.to_json_string(use_diff=False))
    assert plan_model(saved).total_params == expected


def _is_routed(model_type: str, name: str) -> bool:
    if model_type == "jetmoe":  # attention has experts too
        return "_linear" in name
    return ".experts." in name


def test_every_family_is_drawn() -> None:
    # DeepSeekMoE's class is remote code; its figures are among the published ones
    assert set(FAMILIES) | set(WHOLE_MODELS) == set(DRAWS) | {"deepseek"}
