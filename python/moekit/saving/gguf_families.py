"""What the GGUF files of single families say in a way of their own, from the model itself.

The reverse is `checkpoint.gguf_families`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.gguf_architectures import Architecture
from ..checkpoint.gguf_families import RATIOS, STREAMS
from ..checkpoint.gguf_layers import FULL, SLIDING
from ..config import Config
from ..models import deepseek_v4
from ..models.rope import read_rope
from ..nn import LightningAttention
from .placing import Array

if TYPE_CHECKING:
    from ..nn import Model

# The factor of frequencies of pairs that do not rotate.
_STILL = 1e30
# What config.json may leave out, by its key.
_DEEPSEEK_4: dict[str, Any] = {
    "attention.key_length": 512,
    "attention.q_lora_rank": 1024,
    "attention.output_group_count": 8,
    "attention.output_lora_rank": 1024,
    "attention.sliding_window": 128,
    "attention.indexer.head_count": 64,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 512,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 20,
    "hyper_connection.epsilon": 1e-6,
    "swiglu_clamp_exp": 10.0,
    "expert_weights_scale": 1.5,
}
_MINIMAX_3: dict[str, Any] = {
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 16,
    "attention.indexer.block_size": 128,
    "attention.indexer.local_blocks": 1,
    "feed_forward_length": 12288,
    "expert_weights_scale": 2.0,
}


def _attention(model: "Model") -> list[Any]:
    return [getattr(layer, "attention", None) for layer in model.layers]


def row_of(row: Architecture, model: "Model") -> Architecture:
    """The row, with the names that this checkpoint has: DeepSeek-V4's own and transformers'."""
    if row.family != "deepseek_v4" or "embed.weight" not in model.outline:
        return row
    frame = {
        "token_embd": "embed",
        "output_norm": "norm",
        "output": "head",
        **{f"output_hc_{part}.weight": f"hc_head_{part}" for part in ("fn", "base", "scale")},
    }
    names = {**row.names, "attn_kv_a_norm": "attn.kv_norm"}
    return replace(row, prefix="layers.", frame=frame, names=names)


def _gemma4(model: "Model", values: dict[str, Any]) -> None:
    """Heads by the kind of layer; see the converter's Gemma4Model."""
    parts: list[Any] = _attention(model)
    windowed = [part.window is not None for part in parts]
    widths = {}
    for kind in (False, True):
        found = {p.k.rows // p.kv_heads for p, w in zip(parts, windowed, strict=True) if w == kind}
        if len(found) > 1:
            raise ValueError(
                f"[save] head_dim is one of {sorted(found)} in layers of one kind; GGUF's gemma4 "
                "keeps one, which is required"
            )
        widths[kind] = found.pop() if found else 0
    full, small = widths[False] or widths[True], widths[True] or widths[False]
    config = Config(model.config)
    values |= {
        "attention.head_count_kv": np.array([part.kv_heads for part in parts], np.int32),
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": small,
        "attention.value_length_swa": small,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": config.size(
            "hidden_size_per_layer_input", default=256, least=0
        ),
        "rope.dimension_count": full,
        "rope.dimension_count_swa": small,
        "rope.freq_base": read_rope(config, 1e6, layer_type=FULL).theta,
        "rope.freq_base_swa": read_rope(config, layer_type=SLIDING).theta,
        # Without the key llama.cpp takes 30.
        "final_logit_softcapping": model.logit_softcap or 0.0,
    }
    values.setdefault("attention.sliding_window", 512)


def _granitemoe_swa(model: "Model", values: dict[str, Any]) -> None:
    """Layers without position, and the one base of the others."""
    thetas: Any = model.config.get("layer_rope_theta")
    values.setdefault("attention.sliding_window", 128)
    if thetas is None:
        return
    bases = sorted({float(theta) for theta in thetas} - {0.0})
    if len(bases) > 1:
        raise ValueError(
            f"[save] layer_rope_theta has the bases {bases[:4]}; GGUF's granite_swa keeps one, "
            "which is required"
        )
    values["rope.freq_base"] = bases[0] if bases else 10000.0
    values["attention.rope_pattern"] = np.array([theta > 0 for theta in thetas], np.bool_)


def _minimax(model: "Model", values: dict[str, Any]) -> None:
    """Layers of lightning attention; one factor of the stream, none of what is added to it."""
    config = Config(model.config)
    alphas = {config.number(f"{part}_alpha_factor", default=1.0) for part in STREAMS}
    betas = {config.number(f"{part}_beta_factor", default=1.0) for part in STREAMS}
    if len(alphas) > 1 or betas != {1.0}:
        raise ValueError(
            f"[save] factors of the stream are {sorted(alphas)} and of what is added to it "
            f"{sorted(betas)}; GGUF's minimax-01 means one and 1, which are required"
        )
    parts = _attention(model)
    if len(parts) < 2 or any(getattr(part, "window", None) is not None for part in parts):
        raise ValueError(
            f"[save] {len(parts)} layers, sliding_window {config.get('sliding_window')}; GGUF's "
            "minimax-01 means two layers at least and no window, which are required"
        )
    linear = [isinstance(part, LightningAttention) for part in parts]
    values["attention.recurrent_layers"] = np.array(linear, np.bool_)
    values["attention.value_length"] = values["attention.key_length"]
    values["residual_scale"] = alphas.pop()


def _minimax_m3(model: "Model", values: dict[str, Any]) -> None:
    """Layers with experts choose blocks; the shared expert is as wide as so many others."""
    for key, default in _MINIMAX_3.items():
        values.setdefault(key, default)
    parts: list[Any] = _attention(model)
    choosing = [n for n, part in enumerate(parts) if getattr(part, "indexer", None) is not None]
    if choosing != model.moe_layers:
        raise ValueError(
            f"[save] layer_types: layers {choosing} choose blocks; GGUF's minimax-m3 means those "
            f"with experts, {model.moe_layers}, which are required"
        )
    width: Any = model.config.get("shared_intermediate_size") or 0
    inner = values["expert_feed_forward_length"]
    if not width or width % inner:
        raise ValueError(
            f"[save] shared_intermediate_size is {width}; GGUF's minimax-m3 means a multiple of "
            f"intermediate_size, {inner}, which is required"
        )
    values["expert_shared_count"] = width // inner
    values["leading_dense_block_count"] = len(parts) - len(choosing)
    values["rope.dimension_count"] = 2 * len(parts[0].frequencies)


def _deepseek_v4(model: "Model", values: dict[str, Any]) -> None:
    """Kinds of layers as ratios, the hashed ones as a count, and two rotations."""
    for key, default in _DEEPSEEK_4.items():
        values.setdefault(key, default)
    config = Config(model.config)
    rates = deepseek_v4.compress_rates(config)
    ratio_of = {kind: ratio for ratio, kind in RATIOS.items()}
    kinds = deepseek_v4.layer_types(config)
    for kind in kinds:
        if kind != SLIDING and rates[kind] != ratio_of[kind]:
            raise ValueError(
                f"[save] compress_rates: {kind} is {rates[kind]}; GGUF's deepseek4 means "
                f"{ratio_of[kind]}, which is required"
            )
    hashed = deepseek_v4.hash_layers(config)
    count = sum(hashed)
    if hashed != [n < count for n in range(len(hashed))]:
        raise ValueError(
            "[save] mlp_layer_types: GGUF's deepseek4 means hash_moe in the first layers alone, "
            "which is required"
        )
    width = values["attention.key_length"]
    main, far = deepseek_v4.rope_settings(config)
    if main.kind != "default" or far.kind not in ("default", "yarn"):
        raise ValueError(
            f"[save] rope_type is {main.kind} and {far.kind}; GGUF's deepseek4 means default and "
            "default or yarn, which are required"
        )
    values |= {
        "attention.value_length": width,
        "attention.compress_ratios": np.array([ratio_of[kind] for kind in kinds], np.int32),
        "attention.compress_rope_freq_base": far.theta,
        "embedding_length_out": values["embedding_length"] * values["hyper_connection.count"],
        "expert_shared_count": 1,
        "hash_layer_count": count,
        "rope.dimension_count": deepseek_v4.rotary_size(config, width),
        "rope.freq_base": main.theta,
    }
    for key in [key for key in values if key.startswith("rope.scaling.")]:
        del values[key]
    if far.kind == "yarn":
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": far.scaling["factor"],
            "rope.scaling.original_context_length": far.scaling["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": far.scaling["beta_fast"],
            "rope.scaling.yarn_beta_slow": far.scaling["beta_slow"],
        }


WRITE: Mapping[str, Callable[["Model", dict[str, Any]], None]] = {
    "gemma4_text": _gemma4,
    "granitemoe_swa": _granitemoe_swa,
    "minimax": _minimax,
    "minimax_m3_vl_text": _minimax_m3,
    "deepseek_v4": _deepseek_v4,
}


def gemma4_factors(model: "Model") -> dict[str, Array]:
    """1 for the pairs of full layers' heads that rotate, a huge number for the others."""
    parts: list[Any] = _attention(model)
    full = [part for part in parts if part.window is None]
    if not full:
        return {}
    still = full[0].frequencies == 0
    return {"rope_freqs.weight": np.where(still, np.float32(_STILL), np.float32(1))}
