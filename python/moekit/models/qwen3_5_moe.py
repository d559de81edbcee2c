"""Qwen3.5-MoE (2026), its language model: Qwen3-Next with a matrix for each input of DeltaNet.

The chosen experts' weights are always renormalised. A `qwen3_5_moe` checkpoint wraps the text
model in `text_config`; its pictures are not read.
"""

from ..config import Config
from ..nn import DeltaSizes, Model, SeparateInputs
from ..nn.delta_net import DeltaInputs
from .base import Names
from .qwen3_next import hybrid
from .reader import Reader

_ROOT = "model.language_model"
_WRAPPED = Names(f"{_ROOT}.embed_tokens", f"{_ROOT}.layers", f"{_ROOT}.norm")
_PICTURES = ("model.visual.",)


def build(config: Config, reader: Reader) -> Model:
    """The text model of a Qwen3.5-MoE checkpoint."""
    if config.get("model_type") != "qwen3_5_moe":
        return hybrid(config, reader, _inputs, normalize=True)
    config.require(isinstance(config.get("text_config"), dict), "text_config", "an object")
    # What holds for the whole model stands outside.
    outside = {"tie_word_embeddings": config.flag("tie_word_embeddings", default=False)}
    text = config.section("text_config")
    text = Config({**text.fields, **outside}, text.path)
    return hybrid(text, reader, _inputs, normalize=True, names=_WRAPPED, ignored=_PICTURES)


def _inputs(layer: Reader, hidden: int, sizes: DeltaSizes) -> DeltaInputs:
    return SeparateInputs(
        [layer.linear("in_proj_qkv", 2 * sizes.keys + sizes.values, hidden)],
        [layer.linear("in_proj_z", sizes.values, hidden)],
        layer.linear("in_proj_b", sizes.heads, hidden),
        [layer.linear("in_proj_a", sizes.heads, hidden)],
    )
