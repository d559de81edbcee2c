"""The parts of a model, each usable alone: small classes over `moekit.ops`.

    moe = nn.MoE(nn.Router(weight, k=2, normalize=True), nn.Experts(gate, up, down, format="int8"))
    y = moe(x)                                  # x float32 [T, H]

A `Model` is blocks of these; every part takes rows of tokens, float32 [T, H].
"""

from .attention import Attention, LongContext, QueryTemperature
from .attention_mixture import AttentionMixture
from .batch import Batch, Cache
from .block import Block, Layer
from .block_sparse import BlockIndexer, BlockSparseAttention
from .compressed_attention import CompressedAttention, EntrySelector
from .compressor import Compressor
from .delta_net import DeltaNet, DeltaSizes, GroupedInputs, SeparateInputs
from .encoder_decoder import CrossBlock, EncoderDecoder
from .experts import Experts
from .hyper import HyperBlock, HyperConnection, HyperHead
from .indexer import Indexer
from .kv_cache import KVCache
from .layer_inputs import LayerInputBlock, LayerInputs
from .lightning import LightningAttention, NormedStreamBlock
from .linear import Linear
from .mamba import Mamba, Mamba2
from .mla import MLA
from .model import Model
from .moe import MLP, MoE
from .norm import LayerNorm, Norm, RMSNorm
from .parallel_moe import NormedRouter, ParallelMoE, ScaledBlock
from .relative_attention import CrossAttention, RelativeAttention, RelativeBias
from .router import HashRouter, Router
from .short_conv import GatedConvolution, ShortConvolution
from .shortcut import ShortcutBlock
from .single_block import LatentMoE, SingleBlock

__all__ = [
    "MLA",
    "MLP",
    "Attention",
    "AttentionMixture",
    "Batch",
    "Block",
    "BlockIndexer",
    "BlockSparseAttention",
    "Cache",
    "CompressedAttention",
    "Compressor",
    "CrossAttention",
    "CrossBlock",
    "DeltaNet",
    "DeltaSizes",
    "EncoderDecoder",
    "EntrySelector",
    "Experts",
    "GatedConvolution",
    "GroupedInputs",
    "HashRouter",
    "HyperBlock",
    "HyperConnection",
    "HyperHead",
    "Indexer",
    "KVCache",
    "LatentMoE",
    "Layer",
    "LayerInputBlock",
    "LayerInputs",
    "LayerNorm",
    "LightningAttention",
    "Linear",
    "LongContext",
    "Mamba",
    "Mamba2",
    "MoE",
    "Model",
    "Norm",
    "NormedRouter",
    "NormedStreamBlock",
    "ParallelMoE",
    "QueryTemperature",
    "RMSNorm",
    "RelativeAttention",
    "RelativeBias",
    "Router",
    "ScaledBlock",
    "SeparateInputs",
    "ShortConvolution",
    "ShortcutBlock",
    "SingleBlock",
]
