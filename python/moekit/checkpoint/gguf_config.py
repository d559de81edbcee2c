"""The fields of a config.json from the metadata of a GGUF file, and the reverse.

Both directions read the tables of architectures; what no row can say, such as sizes that GGUF adds
up, is here, in `gguf_layers`, `gguf_rope` and `gguf_families`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .gguf_architectures import SOFTMAX, Architecture
from .gguf_classics import CLASSICS
from .gguf_families import READ
from .gguf_hybrids import HYBRIDS
from .gguf_keys import MAX_LAYERS, Keys, share_of
from .gguf_kinds import KINDS
from .gguf_layers import HEADS, read_inner_size, read_kinds, read_layers
from .gguf_rope import read_gguf_rope, read_rotations
from .gguf_selective import SELECTIVE
from .source import quoted
from .tensors import Checkpoint

#: The rows that are read in both directions.
WRITTEN = (*CLASSICS, *KINDS, *SELECTIVE)
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
    if isinstance(value, np.ndarray):  # one for each layer
        return value.size > 0 and bool(value.any() if wanted is int else (value == wanted).all())
    return bool(value) if wanted is int else value == wanted


def read_gguf_config(checkpoint: Checkpoint) -> dict[str, object]:
    """The fields of the config.json that the file's model would have."""
    row = read_architecture(checkpoint)
    keys = Keys(checkpoint, row.name)
    config: dict[str, object] = {"model_type": row.family}
    for name, value in row.fixed.items():
        _put(config, name, value)
    read_layers(config, row, keys)
    for name, key in row.all_fields:
        if (row.kinds and key in _BY_LAYER) or (row.rotations and key in HEADS):
            continue
        if key in row.own:
            continue
        value = config.get(name) if row.mixer and name in config else keys.get(key)
        if key == "expert_weights_scale":
            value = value or 1.0  # llama.cpp's reading; a family's own default is another
        if value is not None:
            _put(config, name, value)
    if row.kinds:
        read_kinds(config, row, keys)
    if "ssm.inner_size" in keys:
        read_inner_size(config, row, keys)
    config["vocab_size"] = checkpoint.info("token_embd.weight").shape[0]
    tied = "output.weight" not in checkpoint
    config["tie_word_embeddings"] = config["tie_embedding"] = tied
    layers_field = next(name for name, key in row.all_fields if key == "block_count")
    further = keys.field("nextn_predict_layers", int, 0)
    if further:
        config[layers_field] = keys.field("block_count", int) - further
    _read_heads(config, row, keys)
    _read_flags(config, row, checkpoint)
    config["rope_parameters"] = read_gguf_rope(row, keys)
    if row.rotations:
        config["rope_parameters"] = read_rotations(row, keys, config)
    if row.family in READ:
        READ[row.family](config, keys)
    ends = [
        checkpoint.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")
    ]
    config["eos_token_id"] = list(dict.fromkeys(e for e in ends if type(e) is int)) or None
    begin = checkpoint.metadata.get("tokenizer.ggml.bos_token_id")
    config["bos_token_id"] = begin if type(begin) is int else None
    return config


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


def _read_heads(config: dict[str, object], row: Architecture, keys: Keys) -> None:
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
        config["partial_rotary_factor"] = share_of(rotary, width)
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
            for n in range(min(blocks - further, MAX_LAYERS))
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
    if row.gating == SOFTMAX and row.latent:
        groups = config.get("n_group")
        grouped = type(groups) is int and groups > 1
        config["topk_method"] = "group_limited_greedy" if grouped else "greedy"
