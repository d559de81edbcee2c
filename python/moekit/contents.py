"""What a checkpoint holds: architecture, sizes, and its tensors by class; headers only."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import checkpoint
from .models import FAMILIES

# The first pattern that is found in a tensor's name tells its class; names of Hugging Face
# families and of GGUF.
_CLASSES = (
    ("shared experts", r"shared_expert|shared_mlp|_shexp"),
    ("experts", r"\.experts\.|_exps\b|block_sparse_moe\.(input|output)_linear"),
    ("norm", r"norm"),
    ("router", r"\.gate\.|\.router|ffn_gate_inp|exp_probs_b|e_score_correction_bias|expert_bias"),
    ("attention", r"attn|attention|indexer"),
    ("recurrent", r"mamba|mixer|\.conv\.|ssm_"),
    ("embedding", r"embed|token_embd|\.wte\.|backbone\.embeddings"),
    ("head", r"lm_head|^output\.weight|^head\."),
    ("dense feed-forward", r"mlp|feed_forward|ffn_|block_sparse_moe"),
)
# The same for the places in a model, as a directory in moekit's own layout has them.
_PLACES = (
    ("shared experts", r"\.shared\.|\.shared_gate\."),
    ("experts", r"\.experts\."),
    ("router", r"\.router\."),
    ("norm", r"norm"),
    ("embedding", r"^embedding"),
    ("head", r"^head\."),
    ("recurrent", r"\.(conv|into|inputs|out|rate|decay|skip|step|step_bias|select)\b"),
    ("attention", r"\.(attentions?|part)\."),
)
# What is shown of a configuration: fact, and its spellings.
_FACTS = (
    ("layers", ("num_hidden_layers", "block_count", "num_layers", "n_layers")),
    ("hidden size", ("hidden_size", "embedding_length", "d_model")),
    ("vocabulary", ("vocab_size",)),
    ("attention heads", ("num_attention_heads", "attention.head_count", "num_heads")),
    ("key-value heads", ("num_key_value_heads", "attention.head_count_kv")),
    ("latent size", ("kv_lora_rank", "attention.kv_lora_rank")),
    (
        "experts",
        (
            "n_routed_experts",
            "num_local_experts",
            "num_experts",
            "expert_count",
            "moe_num_experts",
        ),
    ),
    (
        "experts per token",
        (
            "num_experts_per_tok",
            "expert_used_count",
            "top_k_experts",
            "moe_topk",
            "moe_top_k",
            "moe_k",
            "num_experts_per_token",
        ),
    ),
    ("shared experts", ("n_shared_experts", "expert_shared_count", "num_shared_experts")),
    ("expert size", ("moe_intermediate_size", "expert_feed_forward_length")),
    ("context", ("max_position_embeddings", "context_length")),
)


@dataclass(frozen=True, slots=True)
class TensorClass:
    """All tensors of one class: how many, what they add up to, and their dtypes."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    stored: str


@dataclass(frozen=True, slots=True)
class Contents:
    """`total` counts all parameters of the model, `active` those that one token meets: of the
    routed experts K of E. Layers for multi-token prediction are listed and not counted."""

    path: str
    architecture: str
    runs: bool
    facts: dict[str, int]
    total: int
    active: int
    classes: list[TensorClass]
    tensors: list[tuple[str, str, tuple[int, ...], str]]

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """Plain JSON types."""
        result: dict[str, Any] = {
            "path": self.path,
            "architecture": self.architecture,
            "runs": self.runs,
            **{name.replace(" ", "_").replace("-", "_"): v for name, v in self.facts.items()},
            "total_params": self.total,
            "active_params": self.active,
            "classes": {
                row.name: {
                    "tensors": row.tensors,
                    "parameters": row.parameters,
                    "bytes": row.nbytes,
                    "stored": row.stored,
                }
                for row in self.classes
            },
        }
        if tensors:
            result["tensors"] = [
                {"name": name, "dtype": dtype, "shape": list(shape), "class": kind}
                for name, dtype, shape, kind in self.tensors
            ]
        return result


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """The contents of a directory or a file; FileError if it is neither or broken."""
    name = os.fsdecode(path)
    if checkpoint.is_packed(name):
        return _read_packed(name)
    with checkpoint.open_model(name) as file:
        if file.format == "gguf":
            architecture = str(file.metadata.get("general.architecture", "unknown"))
            runs = architecture in checkpoint.gguf_architecture_names()
            start = architecture + "."
            fields: Mapping[str, Any] = {
                key.removeprefix(start): value
                for key, value in file.metadata.items()
                if key.startswith(start)
            }
        else:
            fields = checkpoint.read_config(name) if os.path.isdir(name) else {}
            architecture = str(fields.get("model_type", "unknown"))
            runs = architecture in FAMILIES
        facts = _facts(fields)
        rows = _rows(file, fields, facts.get("layers"), runs)
        tied = fields.get("tie_word_embeddings") is True
    return _contents(name, architecture, runs, facts, rows, rows, tied)


def _read_packed(name: str) -> Contents:
    """The contents of a directory in moekit's own layout."""
    fields = checkpoint.read_config(name)
    architecture = str(fields.get("model_type", "unknown"))
    with checkpoint.open_packed(name) as file:
        stored = []
        for path, entry in file.entries.items():
            names = {entry.format} if isinstance(entry.format, str) else set(entry.format)
            dtype = ", ".join(sorted(names - {""})) or file.dtype(path)
            kind = _class_in(path, entry.shape)
            nbytes = file.nbytes(path)
            stored.append(_Row(path, kind, dtype, entry.shape, prod(entry.shape), nbytes))
        # What was made out of the tensors (frequencies, folded projections) is no parameter.
        counted = stored
        if not file.edited:
            counted = [
                _Row(tensor, _class_of(tensor, None), dtype, shape, prod(shape), 0)
                for tensor, (dtype, shape) in file.outline.items()
            ]
    tied = fields.get("tie_word_embeddings") is True
    runs = architecture in FAMILIES
    return _contents(name, architecture, runs, _facts(fields), counted, stored, tied)


def _contents(
    name: str,
    architecture: str,
    runs: bool,
    facts: dict[str, int],
    counted: list["_Row"],
    stored: list["_Row"],
    tied: bool,
) -> Contents:
    """What is told of `stored`; the parameters are those of `counted`."""
    # Switch Transformers has no field for its one expert a token.
    share = facts.get("experts per token", 1) / facts["experts"] if facts.get("experts") else 1.0
    counted = [row for row in counted if row.kind != "multi-token prediction"]
    total = sum(row.parameters for row in counted)
    routed = sum(row.parameters for row in counted if row.kind == "experts")
    if tied:
        total -= sum(row.parameters for row in counted if row.kind == "head")
    return Contents(
        name,
        architecture,
        runs,
        facts,
        total,
        total - routed + round(routed * share),
        _by_class(stored),
        [(row.name, row.dtype, row.shape, row.kind) for row in stored],
    )


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int


def _facts(fields: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    # Of models with pictures, and of DBRX.
    sections = [fields, *(fields.get(name) for name in ("text_config", "ffn_config"))]
    for fact, names in _FACTS:
        for name in names:
            given = (part.get(name) for part in sections if isinstance(part, Mapping))
            value = next((one for one in given if one is not None), None)
            if isinstance(value, np.integer | int) and not isinstance(value, bool):
                found[fact] = int(value)
                break
    return found


def _rows(
    file: checkpoint.Checkpoint, fields: Mapping[str, Any], layers: int | None, runs: bool
) -> list[_Row]:
    if file.format == "gguf" and not runs:  # no other names than the file's own are known
        return [
            _Row(name, _class_of(name, layers), i.dtype, i.shape, prod(i.shape), i.nbytes)
            for name, i in ((name, file.info(name)) for name in file)
        ]
    config = checkpoint.read_gguf_config(file) if file.format == "gguf" else fields
    weights = checkpoint.open_weights(file, config)
    rows = []
    for name in weights:
        info = weights.info(name)
        parts = [file.info(part) for part in info.parts.values()]
        dtype = parts[0].dtype if info.scheme == "plain" else info.scheme
        nbytes = sum(part.nbytes for part in parts)
        kind = _class_of(name, layers)
        rows.append(_Row(name, kind, dtype, info.shape, prod(info.shape), nbytes))
    return rows


def _class_of(name: str, layers: int | None) -> str:
    number = re.search(r"(?:layers|blk)\.(\d+)\.", name)
    # Layers beyond the model's own predict further tokens and are not run.
    if layers is not None and number and int(number.group(1)) >= layers:
        return "multi-token prediction"
    for kind, pattern in _CLASSES:
        if re.search(pattern, name):
            return kind
    return "other"


def _class_in(path: str, shape: tuple[int, ...]) -> str:
    """The class of what a directory in moekit's own layout has at `path`."""
    if path.startswith(checkpoint.TENSOR):
        return _class_of(path.removeprefix(checkpoint.TENSOR), None)
    kind = next((kind for kind, pattern in _PLACES if re.search(pattern, path)), "other")
    # A dense layer is kept as one expert.
    return "dense feed-forward" if kind == "experts" and shape[:1] == (1,) else kind


def _by_class(rows: list[_Row]) -> list[TensorClass]:
    kinds: dict[str, list[_Row]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    classes = []
    for kind, own in kinds.items():
        stored = ", ".join(sorted({name for row in own for name in row.dtype.split(", ")}))
        parameters = sum(row.parameters for row in own)
        nbytes = sum(row.nbytes for row in own)
        classes.append(TensorClass(kind, len(own), parameters, nbytes, stored))
    return sorted(classes, key=lambda row: -row.nbytes)
