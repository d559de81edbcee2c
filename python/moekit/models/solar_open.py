"""Solar Open 100B: DeepSeek-V3's router in every layer over grouped-query attention."""

from ..config import Config
from ..nn import Model
from .grouped import GroupedQuery, decoder
from .latent import grouped_mixture
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a Solar Open checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=False),
        o_bias=False,
        rope=read_rope(config, default_theta=1e6),
    )
    mixture = grouped_mixture(config)
    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        lambda n, layer: mixture(layer.under("mlp")),
        eps=eps,
    )
