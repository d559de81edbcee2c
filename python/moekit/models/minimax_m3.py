"""MiniMax-M3's text model: attention over chosen blocks of keys, gpt-oss' clamped activation.

Router: MiniMax-M2's, times `routed_scaling_factor`; a shared expert beside it. Norms store their
weight minus one; part of each head rotates. Layers of type `minimax_m3_sparse` have an indexer.
"""

from typing import Any

from ..config import Config
from ..nn import MLP, Attention, BlockIndexer, BlockSparseAttention, Model, MoE, Norm
from .base import layer_count, sparse_layers
from .expert_layouts import Layout
from .grouped import FULL, GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

_SPARSE = "minimax_m3_sparse"
_FUSED = Layout(both="gate_up_proj.weight", down="down_proj.weight")
_ALPHA = 1.702


def build(config: Config, reader: Reader) -> Model:
    """The model of a MiniMax-M3 text checkpoint."""
    # Released files call it "swigluoai"; it is computed from swiglu_alpha and swiglu_limit.
    config = Config({**config, "hidden_act": "silu"}, config.path)
    hidden = config.size("hidden_size")
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    # As transformers has it, partial_rotary_factor counts and not rotary_dim.
    attention = GroupedQuery(
        config.with_defaults(head_dim=128),
        eps,
        rope=read_rope(config, default_theta=5e6, default_partial=1.0),
    )
    # Files of GGUF hold the one that is added here.
    offset = 0.0 if config.flag("norms_hold_one", default=False) else 1.0
    rotated = 2 * len(attention.options["frequencies"])
    alpha = config.number("swiglu_alpha", default=_ALPHA)
    config.require(abs(alpha - _ALPHA) < 1e-6, "swiglu_alpha", f"{_ALPHA}")
    clamped = {
        "activation": "swiglu_oai",
        "limit": config.number("swiglu_limit", default=7.0, above=0),
    }
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {
            "score": "sigmoid",
            "normalize": True,
            "scale": config.number("routed_scaling_factor", default=2.0),
        },
        select_bias="gate.e_score_correction_bias",
        shared=config.size("shared_intermediate_size", default=3072, least=0),
        shared_layout=_FUSED,
        options=clamped,
    )
    has_experts = sparse_layers(config, layers, 1, [])
    chooses = _choosing_layers(config, layers)

    def norm(layer: Reader, name: str) -> Norm:
        return layer.norm(name, hidden, eps, offset=offset)

    def attend(n: int, layer: Reader) -> Attention:
        size = attention.head_dim
        norms: dict[str, Any] = {
            "q_norm": layer.norm("q_norm", size, eps, offset=offset),
            "k_norm": layer.norm("k_norm", size, eps, offset=offset),
        }
        if not chooses[n]:
            return attention.read(layer, **norms)
        part = layer.under("indexer")
        width = config.size("index_head_dim", default=128)
        config.require(width >= rotated, "index_head_dim", f"at least the {rotated} that rotate")
        heads = config.size("index_n_heads", default=4)
        groups = attention.kv_heads
        config.require(heads == groups, "index_n_heads", f"num_key_value_heads, {groups},")
        indexer = BlockIndexer(
            part.linear("q_proj", heads * width, hidden),
            part.linear("k_proj", width, hidden),
            part.norm("q_norm", width, eps, offset=offset),
            part.norm("k_norm", width, eps, offset=offset),
            config.size("index_block_size", default=128),
            config.size("index_topk_blocks", default=16),
            config.size("index_local_blocks", default=1, least=0),
        )
        return attention.read(layer, make=BlockSparseAttention, indexer=indexer, **norms)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if has_experts[n]:
            return mixture.read(layer.under("mlp"))
        inner = config.size("dense_intermediate_size", default=12288)
        return layer.mlp("mlp", inner, hidden, layout=_FUSED, **clamped)

    return decoder(config, reader, attend, feed_forward, eps=eps, norm=norm)


def _choosing_layers(config: Config, layers: int) -> list[bool]:
    """Which layers have an indexer: layer_types, none where it is absent."""
    types = config.get("layer_types")
    if types is None:
        return [False] * layers
    wanted = f'a list of {layers} of "{_SPARSE}" and "{FULL}"'
    if not isinstance(types, list) or len(types) != layers:
        raise config.error("layer_types", wanted)
    if not all(kind in (_SPARSE, FULL) for kind in types):
        raise config.error("layer_types", wanted)
    return [kind == _SPARSE for kind in types]
