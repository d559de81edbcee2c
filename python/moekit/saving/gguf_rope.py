"""The rotation of positions in the keys of a GGUF file."""

from collections.abc import Mapping
from typing import Any

from ..checkpoint.gguf_architectures import Architecture
from ..checkpoint.gguf_config import take
from ..checkpoint.gguf_rope import yarn_attention_factor


def number_of(config: Mapping[str, object], name: str) -> float:
    value = take(config, name)
    if type(value) not in (int, float):
        raise ValueError(f"[save] {name} is {value!r}; a number is required")
    return float(value)


def rope_keys(row: Architecture, config: Mapping[str, object]) -> dict[str, Any]:
    section: Any = config.get("rope_scaling") or config.get("rope_parameters") or {}
    above: Any = config.get("rope_theta") or take(config, "attn_config.rope_theta")
    theta = section.get("rope_theta") or above or _THETA.get(row.family, 1e4)
    found: dict[str, Any] = {"rope.freq_base": float(theta)}
    kind = str(section.get("rope_type") or section.get("type") or "default")
    if kind == "default":
        return found
    if kind == "dynamic" and section.get("alpha"):
        # Hunyuan's scaling is a larger base (its own code: NTK-aware, alpha).
        width = take(config, "head_dim") or number_of(config, "hidden_size") // number_of(
            config, "num_attention_heads"
        )
        return {"rope.freq_base": float(theta * section["alpha"] ** (width / (width - 2)))}
    if kind == "linear" and row.latent:
        raise ValueError(
            f"[save] rope_type is linear; GGUF's {row.name} means default or yarn, which are "
            "required"
        )
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
        if not all_dim and section.get("attention_factor") is None and (factor or 1.0) > 1:
            raise ValueError(
                f"[save] yarn without mscale_all_dim; GGUF's {row.name} means one, which is "
                "required"
            )
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
