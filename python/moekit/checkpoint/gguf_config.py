"""The fields of a config.json from the metadata of a GGUF file, and the reverse.

Both directions read `gguf_architectures.ARCHITECTURES`; what no row can say, such as the kinds of
rotary scaling and sizes that GGUF adds up, is here.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .gguf_architectures import ARCHITECTURES, SOFTMAX, Architecture
from .gguf_hybrids import HYBRIDS
from .gguf_kinds import KINDS
from .source import quoted
from .tensors import Checkpoint

#: The rows that are read in both directions.
WRITTEN = (*ARCHITECTURES, *KINDS)
FULL, SLIDING = "full_attention", "sliding_attention"
# Longer tables than any head could use are a fault of the file.
_MAX_FACTORS = 4096
_MAX_LAYERS = 4096
# What a head has of the channels of a layer's states.
_WIDTHS = {
    "nemotron_h": "mamba_head_dim",
    "qwen3_next": "linear_value_head_dim",
    "qwen3_5_moe_text": "linear_value_head_dim",
}
_HEADS = ("attention.head_count", "attention.head_count_kv")
# Keys that hybrids have an array of.
_BY_LAYER = ("attention.head_count_kv", "feed_forward_length")


def gguf_architecture_names() -> list[str]:
    """The values of `general.architecture` that are read."""
    return sorted({row.name for row in (*WRITTEN, *HYBRIDS)})


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """The row of the table that a GGUF file is; FileError naming the architecture if none is."""
    name = checkpoint.field("general.architecture", str)
    known_rows = (*WRITTEN, *HYBRIDS)
    rows = [row for row in known_rows if row.name == name]
    for row in rows:
        found = {key: checkpoint.metadata.get(f"{name}.{key}") for key in row.requires}
        if all(_meets(found[key], wanted) for key, wanted in row.requires.items()):
            return row
    known = " ".join(dict.fromkeys(row.name for row in known_rows))
    raise checkpoint.error(None, f"has architecture {quoted(name)}; read are {known}")


def _meets(value: object, wanted: object) -> bool:
    return bool(value) if wanted is int else value == wanted


class _Keys:
    """Metadata of one architecture by their names without it."""

    def __init__(self, checkpoint: Checkpoint, architecture: str) -> None:
        self.checkpoint = checkpoint
        self.start = architecture + "."

    def __contains__(self, key: str) -> bool:
        return self.start + key in self.checkpoint.metadata

    def get(self, key: str) -> Any:
        """A number, bool or text; of an array with one value for each layer that value."""
        value = self.checkpoint.metadata.get(self.start + key)
        if isinstance(value, np.ndarray):
            kinds = np.unique(value)
            if len(kinds) != 1:
                text = f"metadata key {quoted(self.start + key)} differs by layer; one is read"
                raise self.checkpoint.error(None, text)
            value = kinds[0].item()
        if isinstance(value, float):
            if not math.isfinite(value):
                text = f"metadata key {quoted(self.start + key)} is {value}; a number is required"
                raise self.checkpoint.error(None, text)
            return shortest(value)
        return value

    def by_layer(self, key: str, layers: int) -> list[int]:
        """A count for each layer: an array, or one number for all of them."""
        value = self.checkpoint.metadata.get(self.start + key)
        if type(value) is int and 0 <= layers <= _MAX_LAYERS:
            value = np.full(layers, value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iub":
            value = np.full(1, -1)
        if value.shape == (layers,) and value.min(initial=0) >= 0:
            return [int(count) for count in value]
        text = f"metadata key {quoted(self.start + key)} is no count, nor one for each layer"
        raise self.checkpoint.error(None, text)

    def field(self, key: str, kind: type[int | float | str], default: Any = None) -> Any:
        """A value that has to be of this type; FileError where it is missing and has no default."""
        value = self.checkpoint.field(self.start + key, kind, default)
        return shortest(value) if isinstance(value, float) else value


def shortest(value: float) -> float:
    """The double that float32 `value` was meant to be: 1e-06 and not 9.99999997e-07."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def read_gguf_config(checkpoint: Checkpoint) -> dict[str, object]:
    """The fields of the config.json that the file's model would have."""
    row = read_architecture(checkpoint)
    keys = _Keys(checkpoint, row.name)
    config: dict[str, object] = {"model_type": row.family}
    for name, value in row.fixed.items():
        _put(config, name, value)
    _read_layers(config, row, keys)
    for name, key in row.all_fields:
        if (row.kinds and key in _BY_LAYER) or (row.rotations and key in _HEADS):
            continue
        value = config.get(name) if row.mixer and name in config else keys.get(key)
        if value is not None:
            _put(config, name, value)
    if row.kinds:
        _read_kinds(config, row, keys)
    if "ssm.inner_size" in keys:
        _read_inner_size(config, row, keys)
    config["vocab_size"] = checkpoint.info("token_embd.weight").shape[0]
    tied = "output.weight" not in checkpoint
    config["tie_word_embeddings"] = config["tie_embedding"] = tied
    layers_field = next(name for name, key in row.all_fields if key == "block_count")
    further = keys.field("nextn_predict_layers", int, 0)
    if further:
        config[layers_field] = keys.field("block_count", int) - further
    _read_heads(config, row, keys)
    _read_flags(config, row, checkpoint)
    config["rope_parameters"] = _read_rope(row, keys)
    if row.rotations:
        config["rope_parameters"] = _read_rotations(row, keys, config)
    ends = [
        checkpoint.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")
    ]
    config["eos_token_id"] = list(dict.fromkeys(e for e in ends if type(e) is int)) or None
    begin = checkpoint.metadata.get("tokenizer.ggml.bos_token_id")
    config["bos_token_id"] = begin if type(begin) is int else None
    return config


def _read_kinds(config: dict[str, object], row: Architecture, keys: _Keys) -> None:
    """What each layer of a hybrid is: where there are keys, a router, a feed-forward layer."""
    checkpoint, layers = keys.checkpoint, keys.field("block_count", int)
    heads = keys.by_layer("attention.head_count_kv", layers)
    inner = keys.by_layer("feed_forward_length", layers)
    routers = [f"blk.{n}.ffn_gate_inp.weight" in checkpoint for n in range(layers)]
    config["num_key_value_heads"] = max(heads, default=0) or None
    config["intermediate_size"] = max(inner, default=0) or None
    kinds = ["full_attention" if count else row.recurrent for count in heads]
    if row.family == "nemotron_h":
        for n in range(layers):
            if routers[n]:
                kinds[n] = "moe"
            elif not heads[n] and inner[n]:
                kinds[n] = "mlp"
    if row.family == "kimi_linear":
        config["linear_num_heads"] = config.get("num_attention_heads")
    if row.family == "granitemoehybrid":
        rotates = keys.get("rope.scaling.finetuned") is True
        config["position_embedding_type"] = "rope" if rotates else "nope"
    config[row.kinds] = kinds
    if row.family == "jamba":
        config["mlp_layer_types"] = ["sparse" if sparse else "dense" for sparse in routers]


def _read_inner_size(config: dict[str, object], row: Architecture, keys: _Keys) -> None:
    """All channels of a layer's states: as a head's share, or as a multiple of the stream."""
    total = keys.get("ssm.inner_size")
    field = _WIDTHS.get(row.family, "mamba_expand")
    parts = keys.get("embedding_length" if field == "mamba_expand" else "ssm.time_step_rank")
    if all(type(size) is int and size > 0 for size in (total, parts)):
        config[field] = total // parts


def _put(config: dict[str, object], name: str, value: object) -> None:
    section, _, last = name.rpartition(".")
    if not section:
        config[name] = value
        return
    inner = config.setdefault(section, {})
    assert isinstance(inner, dict)
    inner[last] = value


def take(config: Mapping[str, object], name: str) -> Any:
    """A field of a config.json, or of a section of it: "attn_config.clip_qkv"."""
    section, _, last = name.rpartition(".")
    if section:
        inner = config.get(section)
        return inner.get(last) if isinstance(inner, Mapping) else None
    return config.get(last)


def window_layers(row: Architecture, layers: int) -> list[bool]:
    """Which layers see a window where the architecture decides."""
    if row.windows == "alternate":
        return [n % 2 == 0 for n in range(layers)]
    if row.windows == "but first":
        return [n % 4 != 0 for n in range(layers)]
    return [row.windows == "but fourth" and (n + 1) % 4 != 0 for n in range(layers)]


def _read_layers(config: dict[str, object], row: Architecture, keys: _Keys) -> None:
    """`layer_types`, where layers differ and the family has no rule of its own."""
    layers = keys.field("block_count", int) - keys.field("nextn_predict_layers", int, 0)
    if not (row.mixer or row.windows or row.sparse) or not 0 < layers <= _MAX_LAYERS:
        return
    if row.mixer:
        heads = keys.by_layer("attention.head_count_kv", layers)
        config["layer_types"] = [FULL if count else row.mixer for count in heads]
        config["num_key_value_heads"] = max(heads)
        return
    windowed = window_layers(row, layers)
    if row.windows == "pattern" and "attention.sliding_window_pattern" in keys:
        blocks = layers + keys.field("nextn_predict_layers", int, 0)
        found = keys.by_layer("attention.sliding_window_pattern", blocks)
        windowed = [bool(w) for w in found[:layers]]
    if row.rotations and not keys.get("attention.sliding_window"):
        windowed = [False] * layers
    config["layer_types"] = [SLIDING if w else FULL for w in windowed]
    if row.rotations:
        _read_counts(config, row, keys, windowed)
    if row.sparse:
        routers = [f"blk.{n}.ffn_gate_inp.weight" in keys.checkpoint for n in range(layers)]
        config["mlp_layer_types"] = ["sparse" if sparse else "dense" for sparse in routers]


def _read_counts(
    config: dict[str, object], row: Architecture, keys: _Keys, windowed: list[bool]
) -> None:
    """Heads that differ by layer: of queries in Laguna, of keys in MiMo, twice with a window."""
    layers = len(windowed)
    blocks = layers + keys.field("nextn_predict_layers", int, 0)
    heads, shared = (keys.by_layer(key, blocks)[:layers] for key in _HEADS)
    config["num_attention_heads"] = max(heads)
    if row.family == "laguna":
        config["num_attention_heads_per_layer"] = heads
    factors = [2 if w and row.family == "mimo_v2_flash" else 1 for w in windowed]
    least = shared[0] // factors[0]
    one = row.family == "laguna" or len(set(heads)) == 1
    if not one or shared != [least * factor for factor in factors]:
        text = f"has {heads[:8]} heads and {shared[:8]} of keys; no {row.name} has these"
        raise keys.checkpoint.error(None, text)
    config["num_key_value_heads"] = least
    if row.family == "laguna":
        gate = keys.checkpoint.info("blk.0.attn_gate.weight").shape[0]
        config["gating"] = "per-head" if gate == heads[0] else "per-element"


def _read_heads(config: dict[str, object], row: Architecture, keys: _Keys) -> None:
    if row.latent:
        rotary = keys.field("rope.dimension_count", int)
        # Before the halves were told apart by `_mla`, the plain keys meant them.
        old = "attention.key_length_mla" not in keys
        width = keys.field("attention.key_length" if old else "attention.key_length_mla", int)
        if old:
            config["v_head_dim"] = keys.field("attention.value_length", int)
        config["qk_nope_head_dim"] = width - rotary
        config["num_key_value_heads"] = config.get("num_attention_heads")
        return
    hidden = keys.get("embedding_length")
    own: Any = config.get("num_attention_heads")
    heads = own if row.rotations else keys.get("attention.head_count")
    plain = any(type(x) is not int or x < 1 for x in (heads, hidden))
    share = None if plain else hidden // heads
    rotary = keys.get("rope.dimension_count")
    if any(name == "head_dim" for name, _ in row.fields) and "head_dim" not in config:
        config["head_dim"] = share if row.partial or rotary is None else rotary
    width = config.get("head_dim") or share
    if row.partial and type(rotary) is int and type(width) is int and width:
        config["partial_rotary_factor"] = rotary / width
        config["rotary_dim"] = rotary


def _read_flags(config: dict[str, object], row: Architecture, checkpoint: Checkpoint) -> None:
    """What a config says and a GGUF file shows by its tensors."""
    first = "blk.0.attn_q" if "blk.0.attn_q_a.weight" not in checkpoint else "blk.0.attn_q_a"
    if "attention_bias" not in config:
        config["attention_bias"] = f"{first}.bias" in checkpoint
    config["qkv_bias"] = config["use_bias"] = f"{first}.bias" in checkpoint
    config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in checkpoint
    if row.family == "glm_moe_dsa":
        kinds = {True: "full", False: "shared"}
        blocks = checkpoint.field(f"{row.name}.block_count", int)
        further = checkpoint.field(f"{row.name}.nextn_predict_layers", int, 0)
        config["indexer_types"] = [
            kinds[f"blk.{n}.indexer.attn_k.weight" in checkpoint]
            for n in range(min(blocks - further, _MAX_LAYERS))
        ]
    if row.family == "llama4_text":
        # llama.cpp's rule: of the released models only Maverick, with 128 experts, has none.
        config["use_qk_norm"] = config.get("num_local_experts") != 128
    if row.gating is not None:
        scale = config.get("routed_scaling_factor")
        config["routed_scaling_factor"] = scale or 1.0  # 0 means unset
        config.setdefault("norm_topk_prob", False)
        # A file says nothing of groups where there is one.
        for name in ("n_group", "topk_group"):
            config.setdefault(name, 1)
    if row.gating == SOFTMAX:
        groups = config.get("n_group")
        grouped = type(groups) is int and groups > 1
        config["topk_method"] = "group_limited_greedy" if grouped else "greedy"


def _read_rope(row: Architecture, keys: _Keys) -> dict[str, object]:
    rope: dict[str, object] = {"rope_type": "default"}
    rope["rope_theta"] = keys.field("rope.freq_base", float, 10000.0)
    kind = keys.field("rope.scaling.type", str, "none")
    if kind not in ("none", "linear", "yarn", "longrope"):
        text = f"rope.scaling.type is {ascii(kind)[:40]}; none, linear, yarn or longrope is read"
        raise keys.checkpoint.error(None, text)
    temperature = keys.get("attention.temperature_scale")
    if temperature is not None:
        rope["llama_4_scaling_beta"] = temperature
    factor = keys.field("rope.scaling.factor", float, 1.0)
    original = keys.get("rope.scaling.original_context_length")
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor, "truncate": row.truncate}
        if original is not None:
            rope["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            value = keys.get(f"rope.scaling.yarn_{name}")
            if value is not None:
                rope[name] = value
        if row.latent:
            # The converter's 0.1 * mscale_all_dim; of the two scales it keeps one.
            scale = 10.0 * keys.field("rope.scaling.yarn_log_multiplier", float, 0.0)
            rope |= {"mscale": shortest(scale), "mscale_all_dim": shortest(scale)} if scale else {}
        elif keys.get("rope.scaling.yarn_attn_factor") is not None and factor > 0:
            share = keys.field("rope.scaling.yarn_attn_factor", float)
            rope["attention_factor"] = share * yarn_attention_factor(factor)
        return rope
    return rope | _factors(keys, original)


def _read_rotations(
    row: Architecture, keys: _Keys, config: Mapping[str, object]
) -> dict[str, object]:
    """A section for layers without a window, and a plain one for those with one."""
    full = _read_rope(row, keys)
    theta = keys.field("rope.freq_base_swa", float, float(str(full["rope_theta"])))
    sliding: dict[str, object] = {"rope_type": "default", "rope_theta": theta}
    width = config.get("head_dim")
    for section, end in ((full, ""), (sliding, "_swa")):
        rotary = keys.get(f"rope.dimension_count{end}") or keys.get("rope.dimension_count")
        if type(rotary) is int and type(width) is int and width and row.partial:
            section["partial_rotary_factor"] = rotary / width
    return {FULL: full, SLIDING: sliding}


def yarn_attention_factor(factor: float) -> float:
    """What yarn multiplies cos and sin with unless told otherwise (Peng et al. 2023, eq. 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factors(keys: _Keys, original: object) -> dict[str, object]:
    """Llama 3's and LongRoPE's scalings, which GGUF keeps as one factor for each pair."""
    checkpoint = keys.checkpoint
    found: dict[str, object] = {}
    for field, name in (
        ("short_factor", "rope_factors_short.weight"),
        ("long_factor", "rope_factors_long.weight"),
        ("short_factor", "rope_freqs.weight"),
    ):
        if name in checkpoint:
            info = checkpoint.info(name)
            if len(info.shape) != 1 or info.shape[0] > _MAX_FACTORS or info.dtype != "F32":
                text = (
                    f"is {info.dtype} {list(info.shape)}; F32 [n], one for each pair, is required"
                )
                raise checkpoint.error(info, text)
            found[field] = [shortest(float(value)) for value in checkpoint[name]]
    if not found:
        return found
    found.setdefault("short_factor", found.get("long_factor"))
    found.setdefault("long_factor", found["short_factor"])
    # attn_factor is what cos and sin are multiplied with; Llama 3's are not.
    factor = keys.field("rope.scaling.attn_factor", float, 1.0)
    context = original or keys.get("context_length") or 1
    return found | {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": factor,
        "short_mscale": factor,
        "long_mscale": factor,
        "original_max_position_embeddings": context,
    }
