"""Hunyuan-A13B (Tencent, 2025): a shared expert in every layer; q and k normalised after rotation.

Router: softmax over all experts, the best `moe_topk`, renormalised. Rope of type `dynamic` with an
`alpha` is a base stretched once and for all: theta * alpha ** (D / (D - 2)).
"""

from ..config import Config
from ..nn import Model
from .base import top_k
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import RopeSettings, read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Hunyuan-V1-MoE checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("query_layernorm", "key_layernorm"),
        norm_after_rope=True,
        rope=False,
    )
    attention.options.update(attention.rotation(_settings(config, attention.head_dim)))
    experts = config.size("num_experts", "num_local_experts")
    inner = config.size("intermediate_size")
    # Released files list the experts per token for each layer, all the same.
    listed = config.sizes("moe_topk") if isinstance(config.get("moe_topk"), list) else []
    if listed:
        config.require(len(set(listed)) == 1, "moe_topk", "the same number for all layers")
        config = Config({**config, "moe_topk": listed[0]}, config.path)
    mixture = Mixture(
        config.size("hidden_size"),
        experts,
        top_k(config, experts, "moe_topk"),
        inner,
        {"score": "softmax", "normalize": True},
        gate="gate.wg",
        shared=inner,
        shared_name="shared_mlp",
    )
    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        lambda n, layer: mixture.read(layer.under("mlp")),
        eps=eps,
    )


def _settings(config: Config, head_dim: int) -> RopeSettings:
    section = config.section("rope_scaling" if config.get("rope_scaling") else "rope_parameters")
    if section.get("alpha") is None:
        return read_rope(config)
    alpha = section.number("alpha", above=0)
    kinds = [section.get("rope_type"), section.get("type")]
    section.require("dynamic" in kinds, "rope_type", "dynamic, where alpha is given,")
    theta = section if section.get("rope_theta") is not None else config
    base = theta.number("rope_theta", default=10000.0, above=0)
    stretched = base * alpha ** (head_dim / max(head_dim - 2, 1))
    return RopeSettings(stretched, {"rope_type": "default"}, 1.0, section)
