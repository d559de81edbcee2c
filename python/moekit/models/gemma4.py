"""Gemma 4 with experts (Google, 2026), its language model.

Five of six layers see a window and rotate all of their smaller heads; the sixth sees all, rotates a
part of larger heads, and may use its keys as values (`attention_k_eq_v`). Queries, keys and values
are normalised, scores are not scaled. A dense part and the experts stand side by side between
norms of their own; where `hidden_size_per_layer_input` is not 0, a gated projection of what a
table and the embedding give each layer follows. Router: the input is normalised; softmax over all
experts, the best k, renormalised, times a number of each expert.

A `gemma4` checkpoint wraps the text model in `text_config`; its pictures and sounds are not read.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import Config
from ..nn import (
    Attention,
    LayerInputBlock,
    LayerInputs,
    Model,
    NormedRouter,
    ParallelMoE,
    RMSNorm,
    ScaledBlock,
)
from ..nn.types import Floats
from .base import (
    MAX_HEAD_DIM,
    Names,
    assemble,
    attention_heads,
    layer_count,
    mixer_types,
    read_activation,
    rope_table,
    top_k,
)
from .reader import Reader
from .rope import read_rope

SLIDING, FULL = "sliding_attention", "full_attention"
_ROPE = {
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
_WRAPPED = "model.language_model"
_OTHERS = ("model.vision_tower.", "model.embed_vision.", "model.audio_tower.", "model.embed_audio.")


def build(config: Config, reader: Reader) -> Model:
    """The text model of a Gemma 4 checkpoint with experts."""
    if config.get("model_type") == "gemma4":
        config.require(isinstance(config.get("text_config"), dict), "text_config", "an object")
        names = Names(f"{_WRAPPED}.embed_tokens", f"{_WRAPPED}.layers", f"{_WRAPPED}.norm")
        return _text_model(config.section("text_config"), reader, names)
    return _text_model(config, reader, Names())


def _text_model(config: Config, reader: Reader, names: Names) -> Model:
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    layers = layer_count(config)
    default = [SLIDING if (n + 1) % 6 else FULL for n in range(layers - 1)] + [FULL]
    kinds = mixer_types(config, layers, (SLIDING, FULL), default)
    reader.activation = read_activation(config, "hidden_activation", "gelu_pytorch_tanh")
    config.require(config.flag("enable_moe_block", default=False), "enable_moe_block", "true")
    shared = config.size("num_kv_shared_layers", default=0, least=0)
    config.require(shared == 0, "num_kv_shared_layers", "0 beside experts")
    config.require(
        config.get("use_bidirectional_attention") != "all",
        "use_bidirectional_attention",
        "causal attention",
    )
    attention = _attention(config, hidden, eps)
    feed_forward = _feed_forward(config, hidden, eps)
    inputs = _layer_inputs(config, reader, names, hidden, eps)

    def block(n: int, layer: Reader) -> ScaledBlock:
        parts = (
            layer.norm("input_layernorm", hidden, eps),
            attention(n, kinds[n] == SLIDING, layer.under("self_attn")),
            None,
            feed_forward(layer),
        )
        options: dict[str, Any] = {
            "attention_post_norm": layer.norm("post_attention_layernorm", hidden, eps),
            "ffn_post_norm": layer.norm("post_feedforward_layernorm", hidden, eps),
            "scale": float(layer.tensor("layer_scalar", 1)[0]),
        }
        if inputs is None:
            return ScaledBlock(*parts, **options)
        return LayerInputBlock(
            *parts,
            **options,
            layer_inputs=inputs,
            number=n,
            gate=layer.linear(
                "per_layer_input_gate", inputs.size, hidden, kind="dense feed-forward"
            ),
            projection=layer.linear(
                "per_layer_projection", hidden, inputs.size, kind="dense feed-forward"
            ),
            input_norm=layer.norm("post_per_layer_input_norm", hidden, eps),
            activation=reader.activation,
        )

    softcap = None
    if config.get("final_logit_softcapping") is not None:
        softcap = config.number("final_logit_softcapping", above=0)
    return assemble(
        config,
        reader,
        hidden,
        eps,
        block,
        tied=True,
        names=names,
        ignored=_OTHERS,
        embedding_scale=hidden**0.5,
        logit_softcap=softcap,
    )


def _layer_inputs(
    config: Config, reader: Reader, names: Names, hidden: int, eps: float
) -> LayerInputs | None:
    """What the layers are given of each token beside the stream, or None."""
    size = config.size("hidden_size_per_layer_input", default=256, least=0)
    if size == 0:
        return None
    root = names.embedding.removesuffix("embed_tokens")
    vocab, layers = config.size("vocab_size_per_layer_input", default=262_144), layer_count(config)
    return LayerInputs(
        reader.embedding(f"{root}embed_tokens_per_layer", vocab, layers * size),
        reader.linear(
            f"{root}per_layer_model_projection", layers * size, hidden, kind="dense feed-forward"
        ),
        reader.norm(f"{root}per_layer_projection_norm", size, eps),
        layers=layers,
    )


def _attention(config: Config, hidden: int, eps: float) -> Callable[[int, bool, Reader], Attention]:
    heads, kv_heads = attention_heads(config)
    small = config.size("head_dim", default=256, most=MAX_HEAD_DIM)
    large, few = small, None
    keys_are_values = config.flag("attention_k_eq_v", default=False)
    # Transformers 5 writes per_layer_config, what differs from the fields above, instead of these.
    if config.get("per_layer_config") is None:
        large = config.size("global_head_dim", default=512, most=MAX_HEAD_DIM)
        few = config.optional_size("num_global_key_value_heads") if keys_are_values else None
    bias = config.flag("attention_bias", default=False)
    window = config.size("sliding_window", default=512)
    config = config.with_defaults(rope_parameters=_ROPE)
    sliding = read_rope(config, layer_type=SLIDING)
    full = read_rope(config, layer_type=FULL)
    per_layer = config.section("per_layer_config")
    tables: dict[tuple[bool, int], tuple[Floats, float]] = {}

    def attention(n: int, slides: bool, layer: Reader) -> Attention:
        own = per_layer.section(str(n))
        size = own.size("head_dim", default=small if slides else large, most=MAX_HEAD_DIM)
        kv = own.size("num_key_value_heads", default=kv_heads if slides else few or kv_heads)
        own.require(size % 2 == 0, "head_dim", "an even number")
        own.require(heads % kv == 0, "num_key_value_heads", f"a divisor of {heads} heads")
        if (slides, size) not in tables:
            tables[slides, size] = rope_table(sliding if slides else full, size)
        frequencies, factor = tables[slides, size]
        k = layer.linear("k_proj", kv * size, hidden, bias=bias)
        v = k
        if slides or not keys_are_values:
            v = layer.linear("v_proj", kv * size, hidden, bias=bias)
        return Attention(
            layer.linear("q_proj", heads * size, hidden, bias=bias),
            k,
            v,
            layer.linear("o_proj", hidden, heads * size, bias=bias),
            heads=heads,
            kv_heads=kv,
            frequencies=frequencies,
            rope_factor=factor,
            q_norm=layer.norm("q_norm", size, eps),
            k_norm=layer.norm("k_norm", size, eps),
            v_norm=RMSNorm(None, eps),
            scale=1.0,
            window=window if slides else None,
        )

    return attention


def _feed_forward(config: Config, hidden: int, eps: float) -> Callable[[Reader], ParallelMoE]:
    experts = config.size("num_experts")
    k = top_k(config, experts, "top_k_experts", "num_experts_per_tok")
    inner, dense = config.size("moe_intermediate_size"), config.size("intermediate_size")

    def feed_forward(layer: Reader) -> ParallelMoE:
        scale = layer.tensor("router.scale", hidden) * np.float32(hidden**-0.5)
        router = NormedRouter(
            layer.packed("router.proj.weight", experts, hidden, layer.formats.router),
            k,
            norm=RMSNorm(scale, eps),
            expert_scale=layer.tensor("router.per_expert_scale", experts),
            score="softmax",
            normalize=True,
        )
        return ParallelMoE(
            router,
            layer.experts("experts", experts, inner, hidden),
            layer.mlp("mlp", dense, hidden),
            norm=layer.norm("pre_feedforward_layernorm_2", hidden, eps),
            post=layer.norm("post_feedforward_layernorm_2", hidden, eps),
            dense_norm=layer.norm("pre_feedforward_layernorm", hidden, eps),
            dense_post=layer.norm("post_feedforward_layernorm_1", hidden, eps),
        )

    return feed_forward
