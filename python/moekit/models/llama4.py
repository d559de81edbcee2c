"""Llama 4 Scout and Maverick: one expert a token, whose input is scaled; chunks and full layers.

Router: the best k of the raw logits; their sigmoid multiplies the expert's input, before its
nonlinearity. Three of four layers rotate queries and keys and see only their own chunk of
`attention_chunk_size` tokens; the others know no position, see all, and scale queries by theirs.
A `llama4` checkpoint wraps the text model in `text_config` and `language_model.`; its pictures are
not read.
"""

from typing import Any

from ..config import Config
from ..nn import MLP, Attention, Model, MoE, QueryTemperature, RMSNorm
from .base import layer_count
from .expert_layouts import Layout
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

_CHUNKED, _FULL = "chunked_attention", "full_attention"
_PICTURES = ("vision_model.", "multi_modal_projector.")


def build(config: Config, reader: Reader) -> Model:
    """The text model of a Llama 4 checkpoint."""
    if config.get("model_type") == "llama4":
        config.require(isinstance(config.get("text_config"), dict), "text_config", "an object")
        return _text_model(config.section("text_config"), reader.under("language_model"))
    return _text_model(config, reader)


def _text_model(config: Config, reader: Reader) -> Model:
    config = config.with_defaults(num_experts_per_tok=1)
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    # The norm of queries and keys has no weight.
    norm = RMSNorm(None, eps) if config.flag("use_qk_norm", default=True) else None
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        rope=read_rope(config, default_theta=5e5),
        interleaved=True,
        norm_after_rope=True,
        q_norm=norm,
        k_norm=norm,
    )
    temperature = None
    if config.flag("attn_temperature_tuning", default=True):
        temperature = QueryTemperature(
            config.number("attn_scale", default=0.1),
            config.number("floor_scale", default=8192, above=0),
            offset=1,
        )
    rotated, chunked = _rotated_layers(config, layers), _chunked_layers(config, layers)
    mixed = _moe_layers(config, layers)
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {"score": "input_sigmoid"},
        gate="router",
        layout=Layout(transposed=True),
        shared=config.size("intermediate_size"),
        shared_name="shared_expert",
    )

    def attend(n: int, layer: Reader) -> Attention:
        changes: dict[str, Any] = {"chunk": chunked[n]}
        if not rotated[n]:
            changes |= {"frequencies": None, "q_norm": None, "k_norm": None}
            changes["temperature"] = temperature
        return attention.read(layer, **changes)

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if mixed[n]:
            return mixture.read(layer.under("feed_forward"))
        return layer.mlp("feed_forward", config.size("intermediate_size_mlp"), mixture.hidden)

    return decoder(config, reader, attend, feed_forward, eps=eps, ignored=_PICTURES)


def _rotated_layers(config: Config, layers: int) -> list[bool]:
    """Which layers rotate: `no_rope_layers` has a 1 for those, whatever its name says."""
    listed = config.sizes("no_rope_layers")
    if not listed:
        interval = config.size("no_rope_layer_interval", default=4)
        return [(n + 1) % interval != 0 for n in range(layers)]
    config.require(len(listed) >= layers, "no_rope_layers", f"a number for each of {layers} layers")
    return [listed[n] != 0 for n in range(layers)]


def _chunked_layers(config: Config, layers: int) -> list[int | None]:
    """The chunk that a layer sees, None for layers that see all."""
    chunk = config.optional_size("attention_chunk_size")
    if "attention_chunk_size" not in config:  # null, too, says something: no chunks
        chunk = 8192
    types = config.get("layer_types")
    if types is None:
        return [chunk if rotated else None for rotated in _rotated_layers(config, layers)]
    wanted = f"{_CHUNKED} or {_FULL} for each of {layers} layers"
    if not isinstance(types, list) or not all(kind in (_CHUNKED, _FULL) for kind in types):
        raise config.error("layer_types", wanted)
    config.require(len(types) >= layers, "layer_types", wanted)
    if _CHUNKED in types and chunk is None:
        raise config.error("attention_chunk_size", f"an integer, for layers of {_CHUNKED},")
    return [chunk if types[n] == _CHUNKED else None for n in range(layers)]


def _moe_layers(config: Config, layers: int) -> list[bool]:
    """Which layers have experts: `moe_layers`, or every `interleave_moe_layer_step`-th."""
    step = config.size("interleave_moe_layer_step", default=1)
    if config.get("moe_layers") is None:
        return [(n + 1) % step == 0 for n in range(layers)]
    listed = set(config.sizes("moe_layers"))
    return [n in listed for n in range(layers)]
