"""Qwen3.5-MoE (2026), its language model: Qwen3-Next with a matrix for each input of DeltaNet.

The chosen experts' weights are always renormalised.
"""

from ..config import Config
from ..nn import DeltaSizes, Model, SeparateInputs
from ..nn.delta_net import DeltaInputs
from .qwen3_next import hybrid
from .reader import Reader


def build(config: Config, reader: Reader) -> Model:
    """The model of a Qwen3.5-MoE text checkpoint."""
    return hybrid(config, reader, _inputs, normalize=True)


def _inputs(layer: Reader, hidden: int, sizes: DeltaSizes) -> DeltaInputs:
    return SeparateInputs(
        [layer.linear("in_proj_qkv", 2 * sizes.keys + sizes.values, hidden)],
        [layer.linear("in_proj_z", sizes.values, hidden)],
        layer.linear("in_proj_b", sizes.heads, hidden),
        [layer.linear("in_proj_a", sizes.heads, hidden)],
    )
