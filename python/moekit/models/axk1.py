"""A.X-K1: DeepSeek-V3 with one more norm, of what a mixture gives before it is added.

Published checkpoints route without V3's correction bias and hold the norm for dense layers too,
which do not use it.
"""

from ..config import Config
from ..nn import Model, MoE, RMSNorm
from .latent import grouped_mixture, latent_attention, latent_decoder
from .reader import Reader

# What a file may leave out, as transformers fills it in.
_DEFAULTS = {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "routed_scaling_factor": 2.5}
_NORM = "post_mlp_layernorm"


def build(config: Config, reader: Reader) -> Model:
    """The model of an A.X-K1 checkpoint."""
    config = config.with_defaults(**_DEFAULTS)
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)

    def post_norm(sparse: bool, layer: Reader) -> RMSNorm | None:
        # Transformers 5 has the norm inside of the mixture; files have it beside.
        name = f"mlp.{_NORM}" if f"mlp.{_NORM}.weight" in layer else _NORM
        if sparse:
            return layer.norm(name, hidden, eps)
        layer.ignore(f"{name}.weight")
        return None

    biased, plain = grouped_mixture(config), grouped_mixture(config, select_bias="")

    def mixture(layer: Reader) -> MoE:
        return (biased if "gate.e_score_correction_bias" in layer else plain)(layer)

    return latent_decoder(
        config, reader, latent_attention(config), mixture, first_dense=1, post_norm=post_norm
    )
