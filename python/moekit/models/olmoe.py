"""OLMoE (arXiv 2409.02060): every layer has experts; q and k are normalised as a whole.

Router: softmax over all experts, the best k; the released models do not renormalise.
"""

from ..config import Config
from ..nn import Model
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope


def attention_of(config: Config, eps: float, default_theta: float = 1e4) -> GroupedQuery:
    """Norms over the whole projection; `clip_qkv` clamps what they give."""
    clip = config.get("clip_qkv")
    return GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        norms=("q_norm", "k_norm"),
        whole=True,
        rope=read_rope(config, default_theta),
        clip=None if clip is None else config.number("clip_qkv", above=0),
    )


def mixture_of(config: Config) -> Mixture:
    """Softmax over all, renormalised where norm_topk_prob says so."""
    normalize = config.flag("norm_topk_prob", default=False)
    return Mixture.of(config, "intermediate_size", {"score": "softmax", "normalize": normalize})


def build(config: Config, reader: Reader) -> Model:
    """The model of an OLMoE checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    attention, mixture = attention_of(config, eps), mixture_of(config)
    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        lambda n, layer: mixture.read(layer.under("mlp")),
        eps=eps,
    )
