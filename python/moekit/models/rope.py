"""Rotary position embedding as a config.json describes it, in any of its spellings.

Transformers 5 writes `rope_parameters {rope_type, rope_theta, ...}`; before, `rope_theta` stood
beside `rope_scaling {type or rope_type, ...}`, which is null for the plain kind.
"""

import math
from dataclasses import dataclass

from ..config import Config

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """`theta` is the base of the frequencies; `scaling` has `rope_type` and the kind's numbers."""

    theta: float
    scaling: dict[str, object]

    @property
    def kind(self) -> str:
        return str(self.scaling["rope_type"])


def read_rope(config: Config, default_theta: float = 10000.0) -> RopeSettings:
    """The settings that hold for all layers; FileError naming what is absurd or unknown."""
    scaling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    section = config.section(scaling)
    theta_in = section if section.get("rope_theta") is not None else config
    theta = theta_in.number("rope_theta", default=default_theta, above=0)
    name = "rope_type" if section.get("rope_type") is not None else "type"
    kind = section.choice(name, KINDS, default="default")
    values: dict[str, object] = {"rope_type": kind}
    if kind == "default":
        return RopeSettings(theta, values)
    longest = config.optional_size("max_position_embeddings")
    original = section.optional_size("original_max_position_embeddings")
    if original is None:
        original = longest
    if kind in ("yarn", "llama3"):
        section.require(
            original is not None, "original_max_position_embeddings", "the trained context length"
        )
        values["original_max_position_embeddings"] = original
    if kind == "yarn" and section.get("factor") is None and longest and original:
        values["factor"] = longest / original
    else:
        values["factor"] = section.number("factor", above=0)
    if kind == "llama3":
        low = section.number("low_freq_factor", above=0)
        high = section.number("high_freq_factor", above=0)
        section.require(low != high, "high_freq_factor", "a number other than low_freq_factor")
        values |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        for option in ("attention_factor", "mscale", "mscale_all_dim"):
            if section.get(option) is not None:
                values[option] = section.number(option)
        values["beta_fast"] = section.number("beta_fast", default=32.0, above=0)
        values["beta_slow"] = section.number("beta_slow", default=1.0, above=0)
        values["truncate"] = section.flag("truncate", default=True)
        section.require(theta > 1, "rope_theta", "a number above 1 for yarn")
    return RopeSettings(theta, values)


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
