"""Nemotron-H and Nemotron 3 (arXiv 2504.03624): a layer is Mamba-2, attention, a mixture or dense.

Attention has no positions. Feed-forward parts are down(relu(up x)²), without a gate. Router: that
of DeepSeek-V3, by sigmoid scores, a selection bias and groups. With `moe_latent_size` the experts
work in a smaller space than the stream.
"""

from collections.abc import Callable
from typing import Any

from ..config import Config
from ..nn import LatentMoE, Mamba2, Model, MoE, SingleBlock
from .base import MAX_LAYERS, Names, assemble, mixer_types, read_activation, top_k
from .granitemoehybrid import mamba_2
from .grouped import GroupedQuery
from .jamba import MAX_TAPS
from .mixture import group_rule
from .reader import Reader

LINEAR, FULL, SPARSE, DENSE = "linear_attention", "full_attention", "moe", "mlp"
_LETTERS = {"M": LINEAR, "*": FULL, "E": SPARSE, "-": DENSE}
_PARTS = (None, "up_proj", "down_proj")


def build(config: Config, reader: Reader) -> Model:
    """The model of a Nemotron-H checkpoint."""
    kinds = _kinds(config)
    # Transformers never ties the head.
    config = Config({**config.fields, "tie_word_embeddings": False}, config.path)
    hidden = config.size("hidden_size")
    eps = config.number("layer_norm_epsilon", default=1e-5, above=0)
    reader.activation = read_activation(config, "mlp_hidden_act", "relu2")
    config.choice("mamba_hidden_act", ("silu", "swish"), default="silu")
    bias = config.flag("mlp_bias", default=False)
    attention = GroupedQuery(config, eps, rope=False) if FULL in kinds else None
    mamba = _mamba(config, hidden, eps) if LINEAR in kinds else None
    mixture = _mixture(config, hidden, bias) if SPARSE in kinds else None

    def block(n: int, layer: Reader) -> SingleBlock:
        norm, mixer = layer.norm("norm", hidden, eps), layer.under("mixer")
        if kinds[n] == LINEAR and mamba is not None:
            return SingleBlock(norm, mamba(mixer))
        if kinds[n] == FULL and attention is not None:
            return SingleBlock(norm, attention.read(mixer))
        if kinds[n] == SPARSE and mixture is not None:
            return SingleBlock(norm, mixture(mixer))
        inner = config.size("intermediate_size")
        return SingleBlock(norm, layer.mlp("mixer", inner, hidden, parts=_PARTS, bias=bias))

    names = Names("backbone.embeddings", "backbone.layers", "backbone.norm_f")
    # Layers for multi-token prediction are not run.
    return assemble(
        config, reader, hidden, eps, block, names=names, ignored=("mtp.",), layers=len(kinds)
    )


def _kinds(config: Config) -> list[str]:
    """What each layer is: a list of names, or a letter for each layer."""
    pattern = config.get("hybrid_override_pattern")
    if config.get("layers_block_type") is None and isinstance(pattern, str):
        known = all(letter in _LETTERS for letter in pattern)
        config.require(
            known and 0 < len(pattern) <= MAX_LAYERS,
            "hybrid_override_pattern",
            f"a letter of {''.join(_LETTERS)} for each layer",
        )
        return [_LETTERS[letter] for letter in pattern]
    name = "layers_block_type" if config.get("layers_block_type") is not None else "layer_types"
    given = config.get(name)
    if given is None:
        return [LINEAR, SPARSE, FULL, DENSE]
    if not isinstance(given, list) or not 0 < len(given) <= MAX_LAYERS:
        raise config.error(name, f"a list of 1 to {MAX_LAYERS} names")
    return mixer_types(config, len(given), (LINEAR, FULL, SPARSE, DENSE), None, name)


def _mamba(config: Config, hidden: int, eps: float) -> Callable[[Reader], Mamba2]:
    heads = config.size("mamba_num_heads", default=128)
    low = config.number("time_step_min", "mamba_dt_min", default=0.001)
    config.require(low >= 0, "time_step_min", "a number of at least 0")
    return mamba_2(
        config,
        hidden,
        heads * config.size("mamba_head_dim", default=64, most=8192),
        heads,
        groups=config.size("n_groups", "mamba_n_groups", default=8),
        states=config.size("ssm_state_size", default=128),
        taps=config.size("conv_kernel", "mamba_d_conv", default=4, most=MAX_TAPS),
        conv_bias=config.flag("use_conv_bias", "mamba_conv_bias", default=True),
        bias=config.flag("use_bias", default=False),
        eps=eps,
        step_limits=(low, float("inf")),
    )


def _mixture(config: Config, hidden: int, bias: bool) -> Callable[[Reader], MoE]:
    experts = config.size("n_routed_experts", "num_local_experts", "num_experts")
    k = top_k(config, experts)
    latent = config.optional_size("moe_latent_size")
    shared = config.size("moe_shared_expert_intermediate_size", default=7688)
    inner = config.size("moe_intermediate_size")
    rule: dict[str, Any] = {
        "score": "sigmoid",
        "group_score": "top2",
        "normalize": config.flag("norm_topk_prob", default=True),
        "scale": config.number("routed_scaling_factor", default=1.0),
        **group_rule(config, experts, k),
    }

    def read(layer: Reader) -> MoE:
        correction = layer.tensor("gate.e_score_correction_bias", experts)
        router = layer.router("gate", experts, hidden, k, select_bias=correction, **rule)
        banks = layer.experts("experts", experts, inner, latent or hidden, _PARTS)
        beside = layer.gated_mlp("shared_experts", shared, hidden, "shared", _PARTS, bias=bias)
        if latent is None:
            return MoE(router, banks, beside)
        into = layer.linear("fc1_latent_proj", latent, hidden, kind="latent", bias=bias)
        out = layer.linear("fc2_latent_proj", hidden, latent, kind="latent", bias=bias)
        return LatentMoE(router, banks, beside, into, out)

    return read
