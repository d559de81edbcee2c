"""What a model costs before it is loaded: parameters, bytes, cache, work, speed and money.

    plan = mk.plan_model("deepseek-v3", format="fp8", context=8192, batch=16)
    plan.active_params, plan.total_params, plan.weight_bytes
    plan.tokens_per_second("h200"), plan.devices(141e9)

The arithmetic is exact where it can be (parameters, bytes, cache) and a bound where it cannot
(speed). It reads configurations only, never weights, and imports neither numpy nor torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .cost import (
    ApiPrice,
    Cost,
    api_prices,
    break_even_tokens,
    break_even_utilisation,
    cost_per_million,
    find_api_price,
    monthly_saving,
    training_cost,
)
from .fields import check_count, short
from .formats import CACHE_BITS, FORMATS, Format, cache_bits, find_format
from .inventory import known_types, take_inventory
from .machines import Machine, find_machine, load_machines, machines
from .plan import ModelPlan, Placement
from .roofline import Roofline, distinct_experts
from .source import catalog, resolve
from .tensors import COMPONENTS

__all__ = [
    "CACHE_BITS",
    "COMPONENTS",
    "FORMATS",
    "ApiPrice",
    "Cost",
    "Format",
    "Machine",
    "ModelPlan",
    "Placement",
    "Roofline",
    "api_prices",
    "break_even_tokens",
    "break_even_utilisation",
    "catalog",
    "cost_per_million",
    "distinct_experts",
    "find_api_price",
    "find_format",
    "find_machine",
    "known_types",
    "load_machines",
    "machines",
    "monthly_saving",
    "plan_model",
    "training_cost",
]


def plan_model(
    model: Mapping[str, Any] | str | os.PathLike[str],
    format: str = "bf16",
    context: int = 0,
    batch: int = 1,
    *,
    kv_format: str | float = "bf16",
    recipe: Mapping[str, str] | None = None,
) -> ModelPlan:
    """Plan a model from its configuration alone.

    model: a config.json's content, its path, a directory that holds one, a .gguf file or a
        directory with one (only headers are read; the first of a split set stands for the set), or
        a built-in name in any case ("deepseek-v3", "Mixtral 8x7B").
    format: of every matrix; a quantised model keeps routers, norms and biases in float32, a
        floating-point format is used for everything.
    context: tokens already in each sequence's cache; 0 leaves the cache out of work and memory.
    batch: sequences decoded together.
    kv_format: "f32", "bf16", "f16", "fp8", "int8" (8.5 bits with scales), "int4" or bits a value.
    recipe: formats by component that differ from `format`, e.g. {"embedding": "bf16"}.

    Raises ValueError naming the field and value that is missing, absurd or unknown.
    """
    found = resolve(model)
    chosen = find_format(format)
    check_count("context", context)
    check_count("batch", batch, low=1)
    cache_bits(kv_format)
    formats = {}
    if recipe is not None and not isinstance(recipe, Mapping):
        raise ValueError(f"[plan_model] recipe is {short(recipe)}; a mapping is required")
    for component, name in (recipe or {}).items():
        if component not in COMPONENTS:
            raise ValueError(
                f"[plan_model] recipe names {short(component)}; "
                f"components are {', '.join(COMPONENTS)}"
            )
        formats[component] = find_format(name, f"recipe of {component}")
    inventory = take_inventory(found.config)
    return ModelPlan(
        inventory=inventory,
        format=chosen,
        name=found.name,
        context=context,
        batch=batch,
        kv_format=kv_format,
        recipe=formats,
        source=found.origin,
    )
