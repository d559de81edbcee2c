"""The metadata of a GGUF file for a model: hyperparameters and vocabulary."""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.gguf_architectures import SOFTMAX, Architecture
from ..checkpoint.gguf_config import (
    FULL,
    SLIDING,
    WRITTEN,
    take,
    window_layers,
    yarn_attention_factor,
)
from ..checkpoint.gguf_hybrids import HYBRIDS
from ..config import Config
from ..gguf_splitting import name_of
from ..gguf_tokenizer import WHOLE
from ..models.kimi_linear import standard_fields
from ..tokenizer import Tokenizer
from .gguf_states import STATES, state_keys

if TYPE_CHECKING:
    from ..nn import Model

_FILE_TYPE = 0  # general.file_type: what is said of a file whose types are as they come
_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # the format's own spelling
    "pad_token": "padding_token_id",
}
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
    for row in rows:
        if row.family == family:
            return row
    known = ", ".join(sorted({row.family for row in rows}))
    raise ValueError(f"[save] {family} has no architecture in GGUF; one of {known} is required")


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
    if row.gating == SOFTMAX and config.get("topk_method", "greedy") == "greedy":
        values["expert_group_count"] = values["expert_group_used_count"] = 1
    if any(key == "leading_dense_block_count" for _, key in row.all_fields) and row.gating:
        values["leading_dense_block_count"] = layers - len(model.moe_layers)
    # Some of llama.cpp's architectures read the experts' size under the general key.
    if "expert_feed_forward_length" in values:
        values.setdefault("feed_forward_length", values["expert_feed_forward_length"])
    values.update(row.written)
    values.update(_heads(row, config, values))
    types = config.get("layer_types")
    if row.mixer and isinstance(types, list):
        heads = values["attention.head_count_kv"]
        counts = [0 if kind == row.mixer else heads for kind in types]
        values["attention.head_count_kv"] = np.array(counts, np.int32)
    if row.windows == "pattern" and isinstance(types, list):
        windowed = [kind == "sliding_attention" for kind in types]
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
        values.update(_rope(row, config))
    if row.family in STATES:
        values.update(state_keys(row, config, names, values))
    return values


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
    values.update(_rope(row, {**config, "rope_parameters": sections[FULL]}))
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
    if gate is None:
        return {}
    rule = gate.rule
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
        if name == "num_local_experts" or (name == "time_step_min" and 0 <= (found or 0) < 1e-20):
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
    if isinstance(types, list) and row.family != "llama4_text" and row.windows != "pattern":
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
    if row.family == "cohere2_moe" and config.get("expert_selection_fn") != "sigmoid":
        raise refuse("expert_selection_fn", config.get("expert_selection_fn"), "sigmoid")
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
    "first_k_dense_replace": 0,
    "n_shared_experts": None,
    "routed_scaling_factor": 1.0,
    "logit_scale": 0.0625,
    "layer_norm_eps": 1e-5,
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
        nope, rope = int(_number(config, "qk_nope_head_dim")), int(values["rope.dimension_count"])
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
    rotary = int(width * float(partial)) if partial else width
    if row.partial and not partial:
        given: Any = config.get("rotary_dim")
        rotary = int(given or width)
    found = {
        "attention.key_length": int(width),
        "attention.value_length": int(values.get("attention.value_length") or width),
        "rope.dimension_count": int(rotary),
    }
    # How wide the shared expert is where the architecture does not take its count for it.
    inner = values.get("expert_feed_forward_length", 0)
    if row.name in ("ernie4_5-moe", "hy_v3", "cohere2moe"):
        inner *= values.get("expert_shared_count", 0)
    if row.name in ("ernie4_5-moe", "hunyuan-moe", "hy_v3", "cohere2moe"):
        found["expert_shared_feed_forward_length"] = inner
    return found


def _number(config: Mapping[str, object], name: str) -> float:
    value = take(config, name)
    if type(value) not in (int, float):
        raise ValueError(f"[save] {name} is {value!r}; a number is required")
    return float(value)


def _rope(row: Architecture, config: Mapping[str, object]) -> dict[str, Any]:
    section: Any = config.get("rope_scaling") or config.get("rope_parameters") or {}
    above: Any = config.get("rope_theta") or take(config, "attn_config.rope_theta")
    theta = section.get("rope_theta") or above or _THETA.get(row.family, 1e4)
    found: dict[str, Any] = {"rope.freq_base": float(theta)}
    kind = str(section.get("rope_type") or section.get("type") or "default")
    if kind == "default":
        return found
    if kind == "dynamic" and section.get("alpha"):
        # Hunyuan's scaling is a larger base (its own code: NTK-aware, alpha).
        width = take(config, "head_dim") or _number(config, "hidden_size") // _number(
            config, "num_attention_heads"
        )
        return {"rope.freq_base": float(theta * section["alpha"] ** (width / (width - 2)))}
    if kind == "linear":
        return found | {"rope.scaling.type": "linear", "rope.scaling.factor": section["factor"]}
    if kind in ("llama3", "longrope"):
        return found  # tensors of factors say it
    if kind == "yarn" and section.get("truncate", True) != row.truncate:
        raise ValueError(
            f"[save] yarn's truncate is {section.get('truncate', True)}; GGUF's {row.name} means "
            f"{row.truncate}, which is required"
        )
    if kind != "yarn":
        raise ValueError(f"[save] rope_type is {kind}; default, linear, llama3, longrope or yarn")
    original = section.get("original_max_position_embeddings") or config.get(
        "max_position_embeddings"
    )
    longest = config.get("max_position_embeddings")
    factor = section.get("factor")
    if factor is None and isinstance(longest, int) and isinstance(original, int):
        factor = longest / original
    found |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(factor or 1.0),
        "rope.scaling.original_context_length": original,
    }
    for name in ("beta_fast", "beta_slow"):
        if section.get(name) is not None:
            found[f"rope.scaling.yarn_{name}"] = float(section[name])
    scale, all_dim = section.get("mscale"), section.get("mscale_all_dim")
    if row.latent:
        if (scale or 0) != (all_dim or 0):
            raise ValueError(
                f"[save] mscale {scale} and mscale_all_dim {all_dim}; GGUF keeps one number, equal "
                "ones are required"
            )
        if all_dim:
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * float(all_dim)
        if section.get("llama_4_scaling_beta") is not None:
            found["attention.temperature_scale"] = float(section["llama_4_scaling_beta"])
            found["attention.temperature_length"] = original
    elif section.get("attention_factor") is not None:
        share = float(section["attention_factor"]) / yarn_attention_factor(float(factor or 1.0))
        found["rope.scaling.yarn_attn_factor"] = share
    return found


_THETA = {"mixtral": 1e6, "gpt_oss": 1.5e5, "minimax_m2": 5e6, "ernie4_5_moe": 5e5}


def vocabulary(tokenizer: Tokenizer | None, size: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """The keys `tokenizer.*`.

    A tokenizer that llama.cpp has no rules for goes along as Hugging Face's document, under the
    key that the format has for it, with a warning: llama.cpp then takes ids and no text.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    document = json.loads(tokenizer.backend.to_str())
    found = _tables(document, size)
    if found is None:
        warnings.warn(
            "[save] llama.cpp has no rules that cut text as this tokenizer does; the file has the "
            "tokenizer for moekit, and llama.cpp runs it on ids alone",
            stacklevel=2,
        )
        found = {"tokenizer.ggml.model": "none", WHOLE: tokenizer.backend.to_str()}
    for name, key in _SPECIAL_IDS.items():
        token = tokenizer.id_of(tokenizer.special[name]) if name in tokenizer.special else None
        if token is not None and token < size:
            found[f"tokenizer.ggml.{key}"] = token
    if end_ids:
        found["tokenizer.ggml.eos_token_id"] = int(end_ids[0])
    if len(end_ids) > 1:
        found["tokenizer.ggml.eot_token_id"] = int(end_ids[1])
    begins = tokenizer.encode("a")
    plain = tokenizer.encode("a", add_special_tokens=False)
    bos = found.get("tokenizer.ggml.bos_token_id")
    found["tokenizer.ggml.add_bos_token"] = begins[:1] == [bos] and begins != plain
    if begins != plain and begins[-1:] == [found.get("tokenizer.ggml.eos_token_id")]:
        found["tokenizer.ggml.add_eos_token"] = True
    for name, text in tokenizer.chat_templates.items():
        end = "" if name == "default" else f".{name}"
        found[f"tokenizer.chat_template{end}"] = text
    return found


def _tables(document: Mapping[str, Any], size: int) -> dict[str, Any] | None:
    """The vocabulary as llama.cpp reads it; None for a kind or a way of cutting it has not."""
    model = document["model"]
    if (model.get("type") or ("BPE" if "merges" in model else "?")) != "BPE":
        return None
    tokens, kinds = _tokens(document, size)
    sentencepiece = model.get("byte_fallback")
    found = _sentencepiece(document, tokens, kinds) if sentencepiece else _byte_level(document)
    if found is not None:
        found["tokenizer.ggml.tokens"] = tokens
        found["tokenizer.ggml.token_type"] = np.array(kinds, np.int32)
    return found


def _tokens(document: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{n}]" for n in range(size)]
    kinds = [_UNUSED] * size
    for text, n in document["model"]["vocab"].items():
        if n < size:
            tokens[n], kinds[n] = text, _NORMAL
    for added in document.get("added_tokens", ()):
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    return tokens, kinds


def _byte_level(document: Mapping[str, Any]) -> dict[str, Any] | None:
    rules = _rules(document.get("pre_tokenizer"))
    whole = bool(document["model"].get("ignore_merges"))
    name = name_of(rules, whole)
    if name is None or (document.get("normalizer") or {}).get("type") not in (None, "NFC"):
        return None
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": merges,
    }


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _rules(pre: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The expressions of a pre-tokenizer, () for what cannot be said by any."""
    if pre is None:
        return ()
    if pre["type"] == "Sequence":
        steps = [_rules(step) for step in pre["pretokenizers"]]
        return tuple(rule for step in steps for rule in step)
    if pre["type"] == "Split" and pre["behavior"] == "Isolated" and not pre.get("invert"):
        pattern = pre["pattern"]
        return (pattern.get("Regex") or "",)
    if pre["type"] == "Digits" and pre.get("individual_digits"):
        return (r"\p{N}",)
    if pre["type"] == "ByteLevel" and not pre.get("add_prefix_space"):
        return (_GPT2,) if pre.get("use_regex", True) else ()
    return (str(pre["type"]),)


def _sentencepiece(
    document: Mapping[str, Any], tokens: Sequence[str], kinds: list[int]
) -> dict[str, Any]:
    """Merges as scores: a token scores less the later its merge comes."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(document["model"]["merges"]):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    scores = np.zeros(len(tokens), np.float32)
    last = len(ranks)
    for n, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[n] = _BYTE
        elif kinds[n] == _NORMAL:
            scores[n] = -float(ranks.get(token, last + n))
    unknown = document["model"].get("unk_token")
    if unknown in tokens:
        kinds[list(tokens).index(unknown)] = _UNKNOWN
    prefix = "Prepend" in json.dumps(document.get("normalizer"))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
