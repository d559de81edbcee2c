"""Checkpoints of random weights in the sizes of published models, cut to a few layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import moekit as mk
from moekit.checkpoint import write_model

CONFIGS: dict[str, dict[str, Any]] = {
    "olmoe-1b-7b": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
}
_POOL = 1 << 25


def directory_of(root: Path, name: str, layers: int) -> Path:
    """The checkpoint in bfloat16 as transformers reads it, written unless it is there."""
    folder = root / f"{name}-{layers}"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = CONFIGS[name] | {
            "num_hidden_layers": layers,
            "max_position_embeddings": 4096,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": None,
        }
        shapes = _shapes(config)
        specs = {tensor: ("BF16", shape) for tensor, shape in shapes.items()}
        write_model(folder, specs, _values(shapes))
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def gguf_of(folder: Path, format: str) -> Path:
    """The same weights as a GGUF file of `format`, written unless it is there."""
    path = folder.parent / f"{folder.name}-{format}.gguf"
    if not path.exists():
        mk.load(folder, format=format, progress=False).save(path)
    return path


def remove(root: Path) -> None:
    """Delete everything that was written."""
    shutil.rmtree(root, ignore_errors=True)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim", hidden // heads)
    inter = config.get("moe_intermediate_size", config["intermediate_size"])
    q, kv = heads * width, config["num_key_value_heads"] * width
    whole = config["model_type"] == "olmoe"  # its norms span all heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (q, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, q),
            f"{layer}.self_attn.q_norm.weight": (q if whole else width,),
            f"{layer}.self_attn.k_norm.weight": (kv if whole else width,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.mlp.gate.weight": (config["num_experts"], hidden),
        }
        for e in range(config["num_experts"]):
            expert = f"{layer}.mlp.experts.{e}"
            shapes |= {
                f"{expert}.gate_proj.weight": (inter, hidden),
                f"{expert}.up_proj.weight": (inter, hidden),
                f"{expert}.down_proj.weight": (hidden, inter),
            }
    return shapes | {
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }


def _values(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Pieces of one pool of normal numbers, from a random place each: no time depends on more."""
    random = np.random.default_rng(0)
    pool = random.standard_normal(_POOL, np.float32)
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if len(shape) == 1:
            values = np.ones(shape, np.float32)
        else:
            start = int(random.integers(_POOL))
            values = np.take(pool, np.arange(start, start + count), mode="wrap")
            values = values.reshape(shape) / np.float32(shape[-1] ** 0.5)
        yield name, values.astype(ml_dtypes.bfloat16)
