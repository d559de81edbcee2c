"""The hyperparameters of a GGUF file for a model."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.gguf_architectures import SOFTMAX, Architecture
from ..checkpoint.gguf_config import WRITTEN, take
from ..checkpoint.gguf_hybrids import HYBRIDS
from ..checkpoint.gguf_layers import FULL, SLIDING, window_layers
from ..config import Config
from ..models.kimi_linear import standard_fields
from .gguf_families import WRITE
from .gguf_rope import number_of, rope_keys
from .gguf_states import STATES, state_keys

if TYPE_CHECKING:
    from ..nn import Model

#: Other families that are a row under another name: what they compute is the same.
ALIKE = {
    "kimi_k2": "deepseek_v3",
    "glm4_moe_lite": "deepseek_v3",
    "solar_open": "glm4_moe",
    "llama4": "llama4_text",
}


def architecture_of(config: Mapping[str, object]) -> Architecture:
    """The row that a model is written as; ValueError where GGUF has none."""
    family = str(config.get("model_type"))
    family = ALIKE.get(family, family)
    rows = [*WRITTEN, *(row for row in HYBRIDS if row.family in STATES)]
    own = [row for row in rows if row.family == family]
    if own:
        return max(own, key=lambda row: _agreeing(row, config))
    known = ", ".join(sorted({row.family for row in rows}))
    raise ValueError(f"[save] {family} has no architecture in GGUF; one of {known} is required")


def _agreeing(row: Architecture, config: Mapping[str, object]) -> int:
    """How many of the settings that the row takes for granted the config has."""
    return sum(config.get(name, value) == value for name, value in row.fixed.items())


def hyperparameters(row: Architecture, model: "Model", names: Collection[str]) -> dict[str, Any]:
    """Keys without the architecture, of a file with these tensors (by Hugging Face's names).

    ValueError for a setting that GGUF cannot say.
    """
    config: Mapping[str, object] = model.config
    if row.family == "kimi_linear":
        config = standard_fields(Config(config))
    require_sayable(row, model)
    values: dict[str, Any] = {}
    for name, key in row.all_fields:
        value = take(config, name)
        if value is None and name == row.expert_count:
            value = next((config[other] for other in _EXPERTS if config.get(other)), None)
        if value is None:
            value = _DEFAULTS.get(name)
        if value is None:
            continue
        values[key] = value if name == _HEADS_BY_LAYER else _scalar(name, value, key)
    layers = len(model.layers)
    values["block_count"] = layers
    values.setdefault("attention.head_count_kv", values["attention.head_count"])
    values["vocab_size"] = model.vocab_size
    if row.gating is not None:
        values["expert_gating_func"] = row.gating
        values.update(_routing(row, model))
    if row.gating == SOFTMAX and row.latent and config.get("topk_method", "greedy") == "greedy":
        values["expert_group_count"] = values["expert_group_used_count"] = 1
    if any(key == "leading_dense_block_count" for _, key in row.all_fields) and row.gating:
        values["leading_dense_block_count"] = layers - len(model.moe_layers)
    # Some of llama.cpp's architectures read the experts' size under the general key.
    if "expert_feed_forward_length" in values:
        values.setdefault("feed_forward_length", values["expert_feed_forward_length"])
    values.update(row.written)
    values.update(_heads(row, config, values))
    if row.name in _SHARED_BY_WIDTH:
        values["expert_shared_feed_forward_length"] = _shared_width(model)
    if row.name == "granitehybrid" and not model.moe_layers:  # the shared part is all there is
        values["feed_forward_length"] = values["expert_shared_feed_forward_length"]
        values["expert_used_count"] = 0
    types = config.get("layer_types")
    if row.mixer and isinstance(types, list):
        heads = values["attention.head_count_kv"]
        counts = [0 if kind == row.mixer else heads for kind in types]
        values["attention.head_count_kv"] = np.array(counts, np.int32)
    if row.windows == "pattern":
        parts = [getattr(layer, "attention", None) for layer in model.layers]
        windowed = [getattr(part, "window", None) is not None for part in parts]
        values["attention.sliding_window_pattern"] = np.array(windowed, np.bool_)
    if row.family == "cohere2_moe":  # one of the two says which norm it is
        rms = config.get("rms_norm_eps") is not None
        del values["attention.layer_norm" + ("" if rms else "_rms") + "_epsilon"]
    if row.family == "glm_moe_dsa":
        parts = [getattr(layer, "attention", None) for layer in model.layers]
        own = [getattr(part, "indexer", None) is not None for part in parts]
        values["attention.indexer.types"] = np.array(own, np.bool_)
    if row.rotations:
        _add_kinds(row, config, values)
    else:
        values.update(rope_keys(row, config))
    if row.family in STATES:
        values.update(state_keys(row, config, names, values))
    if row.family in WRITE:
        WRITE[row.family](model, values)
    return values


# Architectures that do not take the shared expert's width for a multiple of an expert's.
_SHARED_BY_WIDTH = ("ernie4_5-moe", "hunyuan-moe", "hy_v3", "cohere2moe", "exaone-moe")


def _shared_width(model: "Model") -> int:
    """The inner size of the shared expert, 0 where there is none."""
    parts = [layer.moe.shared for layer in model.layers if layer.moe is not None]
    return next((shared.inter for shared in parts if shared is not None), 0)


_HEADS_BY_LAYER = "num_attention_heads_per_layer"


def _add_kinds(row: Architecture, config: Mapping[str, object], values: dict[str, Any]) -> None:
    """What differs between layers with a window and those without."""
    sections: Any = config.get("rope_parameters")
    if not isinstance(sections, Mapping) or not {FULL, SLIDING} <= {*sections}:
        raise ValueError(f"[save] rope_parameters is {sections!r:.80}; a section for each kind of")
    kinds: Any = config.get("layer_types")
    windowed = [kind == SLIDING for kind in kinds or [FULL] * values["block_count"]]
    if not any(windowed):
        values.pop("attention.sliding_window", None)
    elif sections[SLIDING].get("rope_type", "default") != "default":
        raise ValueError(f"[save] rope_type of {SLIDING} is not default, which is required")
    values.update(rope_keys(row, {**config, "rope_parameters": sections[FULL]}))
    values["rope.freq_base_swa"] = float(sections[SLIDING]["rope_theta"])
    if row.partial:
        share = float(sections[SLIDING].get("partial_rotary_factor") or _PARTIAL[row.family])
        values["rope.dimension_count_swa"] = int(values["attention.key_length"] * share)
    if row.family == "laguna":
        values["attention.head_count"] = np.array(
            config.get(_HEADS_BY_LAYER) or [config["num_attention_heads"]] * len(windowed), np.int32
        )
    if row.family == "mimo_v2_flash":
        shared = values["attention.head_count_kv"]
        values["attention.head_count_kv"] = np.array([shared * (1 + w) for w in windowed], np.int32)


# The part of a head that rotates, where no file says it.
_PARTIAL = {"laguna": 1.0, "mimo_v2_flash": 0.334, "mellum": 1.0}


def _routing(row: Architecture, model: "Model") -> dict[str, Any]:
    """The rule of the routers: what a config.json leaves out, its family has decided."""
    gate = next((layer.moe.gate for layer in model.layers if layer.moe is not None), None)
    # Where all layers are dense, one group is all that llama.cpp opens.
    rule: Mapping[str, Any] = {} if gate is None else gate.rule
    found = {
        "expert_weights_norm": bool(rule.get("normalize", False)),
        "expert_weights_scale": float(rule.get("scale", 1.0)),
        "expert_group_count": int(rule.get("groups", 1)),
        "expert_group_used_count": int(rule.get("top_groups", 1)),
    }
    keys = {key for _, key in row.all_fields}
    return {key: value for key, value in found.items() if key in keys}


# Spellings of the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def require_sayable(row: Architecture, model: "Model") -> None:
    """ValueError naming a setting that the architecture's files have no key for."""
    config = model.config

    def refuse(name: str, found: object, wanted: object) -> ValueError:
        return ValueError(
            f"[save] {name} is {found!r}; GGUF's {row.name} means {wanted!r}, which is required"
        )

    for name, wanted in row.fixed.items():
        found = take(config, name)
        if name in ("num_local_experts", "time_step_min"):  # these have keys
            continue
        nulled = name.startswith("ffn_config.") and found is None
        if nulled and name.partition(".")[2] not in _section(config, "ffn_config"):
            nulled = False
        if nulled or (found is not None and found != wanted and not (wanted == [] and not found)):
            raise refuse(name, found, wanted)
    layers = len(model.layers)
    for layer in model.layers:
        if layer.moe is not None and layer.moe.experts.activation != row.activation:
            raise refuse("activation", layer.moe.experts.activation, row.activation)
    types = config.get("layer_types")
    if (
        isinstance(types, list)
        and row.family != "llama4_text"
        and row.windows not in ("pattern", "ratios")
    ):
        windowed = [kind == "sliding_attention" for kind in types]
        if windowed != window_layers(row, layers):
            raise refuse("layer_types", types, "those of the released models")
    if row.family == "llama4_text":
        ropes = config.get("no_rope_layers")
        usual = [int((n + 1) % 4 != 0) for n in range(layers)]
        if ropes and ropes != usual:
            raise refuse("no_rope_layers", ropes, usual)
        norm = take(config, row.expert_count) != 128
        if config.get("use_qk_norm", True) != norm:
            raise refuse("use_qk_norm", config.get("use_qk_norm", True), norm)
    last = config.get("moe_layer_end_index")
    if last not in (None, -1, layers - 1):
        raise refuse("moe_layer_end_index", last, -1)
    if row.family == "mellum" and len(model.moe_layers) != layers:
        raise refuse("mlp_layer_types", config.get("mlp_layer_types"), "experts in every layer")
    if row.gating is not None and not row.kinds:
        sparse = model.moe_layers
        if sparse != list(range(layers - len(sparse), layers)):
            raise refuse("layers with experts", sparse, "all after the dense ones")


def _section(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


# What transformers takes where a config.json says nothing.
_DEFAULTS: dict[str, object] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "time_step_min": 0.001,
    "first_k_dense_replace": 0,
    "n_shared_experts": None,
    "routed_scaling_factor": 1.0,
    "logit_scale": 0.0625,
    "layer_norm_eps": 1e-5,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def _scalar(name: str, value: object, key: str) -> Any:
    if isinstance(value, (list, tuple)):
        if len(set(map(str, value))) != 1:
            raise ValueError(f"[save] {name} differs by layer; one value is required by {key}")
        value = value[0]
    return value


def _heads(
    row: Architecture, config: Mapping[str, object], values: Mapping[str, Any]
) -> dict[str, Any]:
    if row.latent:
        nope, rope = int(number_of(config, "qk_nope_head_dim")), int(values["rope.dimension_count"])
        rank = int(values["attention.kv_lora_rank"])
        return {
            "attention.head_count_kv": 1,
            "attention.key_length_mla": nope + rope,
            "attention.key_length": rank + rope,
            "attention.value_length": rank,
            "expert_shared_count": values.get("expert_shared_count", 0),
        }
    width: Any = (
        take(config, "head_dim") or values["embedding_length"] // values["attention.head_count"]
    )
    rope_section: Any = config.get("rope_parameters") or {}
    if row.rotations:
        rope_section = rope_section.get(FULL) or {}
    partial: Any = rope_section.get("partial_rotary_factor") or config.get("partial_rotary_factor")
    rotary = width
    if row.partial:  # others rotate whole heads, whatever the field says
        given: Any = config.get("rotary_dim")
        rotary = int(width * float(partial)) if partial else int(given or width)
    return {
        "attention.key_length": int(width),
        "attention.value_length": int(values.get("attention.value_length") or width),
        "rope.dimension_count": int(rotary),
    }
