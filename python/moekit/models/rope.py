"""Rotary position embedding as a config.json describes it, in any of its spellings.

Transformers 5 writes `rope_parameters {rope_type, rope_theta, ...}`; before, `rope_theta` stood
beside `rope_scaling {type or rope_type, ...}`, which is null for the plain kind.
"""

import math
from dataclasses import dataclass

from ..config import MAX_NUMBER, Config

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
# Longer lists of factors than any head could use are a fault of the file.
_MAX_FACTORS = 4096


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """`theta` is the base of the frequencies; `scaling` has `rope_type` and the kind's numbers;
    `partial` is the part of a head that rotates. `source` is where they were read."""

    theta: float
    scaling: dict[str, object]
    partial: float
    source: Config

    @property
    def kind(self) -> str:
        return str(self.scaling["rope_type"])


def read_rope(
    config: Config,
    default_theta: float = 10000.0,
    *,
    layer_type: str = "",
    default_partial: float | None = None,
) -> RopeSettings:
    """The settings for all layers; FileError naming what is absurd or unknown.

    `layer_type`: those of such layers (`sliding_attention`, ...), where `rope_parameters` has a
    section for each type. `default_partial`: the part of a head that rotates where the file does
    not say; None where a family always rotates heads whole.
    """
    scaling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    section = config.section(scaling)
    if layer_type and isinstance(section.get(layer_type), dict):
        section = section.section(layer_type)
    theta = _nearest(section, config, "rope_theta").number(
        "rope_theta", default=default_theta, above=0
    )
    partial = _nearest(section, config, "partial_rotary_factor").number(
        "partial_rotary_factor", default=default_partial or 1.0, above=0
    )
    section.require(partial <= 1, "partial_rotary_factor", "a number above 0 and at most 1")
    name = "rope_type" if section.get("rope_type") is not None else "type"
    kind = section.choice(name, KINDS, default="default")
    if default_partial is None and kind != "proportional":
        # Transformers reads the field in every scaled kind, whose tables then fit no head, and not
        # in the plain one: files have it there that mean nothing by it.
        section.require(
            kind == "default" or partial == 1,
            "partial_rotary_factor",
            f"1, or rope_type default, for {config.get('model_type')}",
        )
        partial = 1.0
    values: dict[str, object] = {"rope_type": kind}
    if kind == "default":
        return RopeSettings(theta, values, partial, section)
    if kind == "proportional":  # the whole head is paired, a part of the pairs rotates
        values["partial_rotary_factor"] = partial
        return RopeSettings(theta, values, 1.0, section)
    # The other two are Dbrx's and Ling's names of it.
    longest = config.optional_size("max_position_embeddings", "max_seq_len", "model_max_length")
    original = section.optional_size("original_max_position_embeddings")
    if original is None:
        original = config.optional_size("original_max_position_embeddings") or longest
    if kind in ("yarn", "llama3", "longrope", "dynamic"):
        section.require(
            original is not None, "original_max_position_embeddings", "the trained context length"
        )
        values["original_max_position_embeddings"] = original
    if kind in ("yarn", "longrope") and section.get("factor") is None and longest and original:
        values["factor"] = longest / original
    else:
        values["factor"] = section.number("factor", above=0)
    if kind == "dynamic":
        values["max_position_embeddings"] = longest or original
    if kind == "llama3":
        low = section.number("low_freq_factor", above=0)
        high = section.number("high_freq_factor", above=0)
        section.require(low != high, "high_freq_factor", "a number other than low_freq_factor")
        values |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "longrope":
        # Its factor on cos and sin divides by the logarithm of this length.
        section.require(
            original is not None and original > 1,
            "original_max_position_embeddings",
            "a trained context length of 2 or more",
        )
        for option in ("short_factor", "long_factor"):
            values[option] = _factors(section, option)
    if kind in ("yarn", "longrope"):
        if section.get("attention_factor") is not None:
            values["attention_factor"] = section.number("attention_factor", above=0)
        for option in ("mscale", "mscale_all_dim"):  # 0 asks for none
            if section.get(option) is not None:
                values[option] = section.number(option, least=0)
    if kind == "yarn":
        values["beta_fast"] = section.number("beta_fast", default=32.0, above=0)
        values["beta_slow"] = section.number("beta_slow", default=1.0, above=0)
        values["truncate"] = section.flag("truncate", default=True)
        section.require(theta > 1, "rope_theta", "a number above 1 for yarn")
    return RopeSettings(theta, values, partial, section)


def _nearest(section: Config, config: Config, name: str) -> Config:
    """Where field `name` stands: beside the kind, or at the top of the file."""
    return section if section.get(name) is not None else config


def _factors(section: Config, name: str) -> list[float]:
    """A list of positive numbers, one for each pair of dimensions."""
    values = section.get(name)
    wanted = f"a list of up to {_MAX_FACTORS} positive numbers"
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_FACTORS:
        raise section.error(name, wanted)
    if not all(type(v) in (int, float) and 0 < v <= MAX_NUMBER for v in values):
        raise section.error(name, wanted)
    return [float(v) for v in values]


def yarn_softmax_scale(rope: RopeSettings) -> float:
    """The factor that DeepSeek's models put on the softmax scale under yarn: mscale squared.

    mscale = 0.1 * mscale_all_dim * ln(factor) + 1 (DeepSeek-V2, arXiv 2405.04434, and its code).
    """
    factor = rope.scaling.get("factor")
    all_dim = rope.scaling.get("mscale_all_dim")
    if not isinstance(factor, float) or not isinstance(all_dim, float) or not all_dim:
        return 1.0
    mscale = 0.1 * all_dim * math.log(factor) + 1.0 if factor > 1 else 1.0
    return mscale * mscale
