"""Granite MoE with sliding windows: sinks in every layer, and a base of rotation for each layer."""

from dataclasses import replace

from ..config import Config
from ..nn import Attention, Model
from .base import layer_count
from .expert_layouts import Layout
from .granitemoe import granite_factors, granite_mixture
from .grouped import GroupedQuery, decoder, layer_windows
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Granite MoE SWA checkpoint."""
    layers = layer_count(config)
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    config = config.with_defaults(sliding_window=128)
    windows = layer_windows(config, layers, lambda n: n % 4 != 0)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        rope=False,
        scale=config.number("attention_multiplier", default=1.0),
    )
    thetas = _thetas(config, layers)
    rotations = {
        theta: attention.rotation(replace(read_rope(config), theta=theta))
        for theta in set(thetas)
        if theta
    }
    mixture = replace(
        granite_mixture(config, config.size("shared_intermediate_size", default=0, least=0)),
        gate="block_sparse_moe.router",
        experts_name="block_sparse_moe.experts",
        layout=Layout(),
    )

    def attend(n: int, layer: Reader) -> Attention:
        sinks = layer.tensor("sinks", attention.heads)
        rotation = rotations.get(thetas[n], {})
        return attention.read(layer, window=windows[n], sinks=sinks, **rotation)

    return decoder(
        config,
        reader,
        attend,
        lambda n, layer: mixture.read(layer),
        eps=eps,
        **granite_factors(config),
    )


def _thetas(config: Config, layers: int) -> list[float]:
    """layer_rope_theta, 0 for a layer without position; else the one theta for all."""
    values = config.get("layer_rope_theta")
    if values is None:
        return [read_rope(config).theta] * layers
    wanted = f"{layers} numbers of 0 or more"
    if not isinstance(values, list) or len(values) != layers:
        raise config.error("layer_rope_theta", wanted)
    if not all(type(v) in (int, float) and 0 <= v < 1e30 for v in values):
        raise config.error("layer_rope_theta", wanted)
    return [float(v) for v in values]
