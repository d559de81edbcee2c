"""The parts of a model, each usable alone: small classes over `moekit.ops`.

    moe = nn.MoE(nn.Router(weight, k=2, normalize=True), nn.Experts(gate, up, down, format="int8"))
    y = moe(x)                                  # x float32 [T, H]

A `Model` is blocks of these; every part takes rows of tokens, float32 [T, H].
"""

from .attention import Attention, LongContext, QueryTemperature
from .batch import Batch, Cache
from .block import Block
from .experts import Experts
from .kv_cache import KVCache
from .linear import Linear
from .mla import MLA
from .model import Model
from .moe import MLP, MoE
from .norm import LayerNorm, Norm, RMSNorm
from .router import HashRouter, Router

__all__ = [
    "MLA",
    "MLP",
    "Attention",
    "Batch",
    "Block",
    "Cache",
    "Experts",
    "HashRouter",
    "KVCache",
    "LayerNorm",
    "Linear",
    "LongContext",
    "MoE",
    "Model",
    "Norm",
    "QueryTemperature",
    "RMSNorm",
    "Router",
]
