"""The rotation of positions as a GGUF file says it, in the fields of a config.json."""

import math
from collections.abc import Mapping

from .gguf_architectures import Architecture
from .gguf_keys import Keys, share_of, shortest
from .gguf_layers import FULL, SLIDING

# Longer tables than any head could use are a fault of the file.
_MAX_FACTORS = 4096


def read_gguf_rope(row: Architecture, keys: Keys) -> dict[str, object]:
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


def read_rotations(
    row: Architecture, keys: Keys, config: Mapping[str, object]
) -> dict[str, object]:
    """A section for layers without a window, and a plain one for those with one."""
    full = read_gguf_rope(row, keys)
    theta = keys.field("rope.freq_base_swa", float, float(str(full["rope_theta"])))
    sliding: dict[str, object] = {"rope_type": "default", "rope_theta": theta}
    width = config.get("head_dim")
    for section, end in ((full, ""), (sliding, "_swa")):
        rotary = keys.get(f"rope.dimension_count{end}") or keys.get("rope.dimension_count")
        if type(rotary) is int and type(width) is int and width and row.partial:
            section["partial_rotary_factor"] = share_of(rotary, width)
    return {FULL: full, SLIDING: sliding}


def yarn_attention_factor(factor: float) -> float:
    """What yarn multiplies cos and sin with unless told otherwise (Peng et al. 2023, eq. 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factors(keys: Keys, original: object) -> dict[str, object]:
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
