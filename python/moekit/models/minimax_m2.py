"""MiniMax-M2: every layer has experts; q and k normalised as a whole, half of each head rotates.

Router: sigmoid scores plus a bias for the selection, the best k, renormalised.
"""

from ..config import Config
from ..nn import Model
from .grouped import GroupedQuery, decoder
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope


def build(config: Config, reader: Reader) -> Model:
    """The model of a MiniMax-M2 checkpoint."""
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    partial = 1.0
    rotated = config.optional_size("rotary_dim")
    if rotated is not None:
        head_dim = config.size("head_dim")
        config.require(rotated <= head_dim, "rotary_dim", f"at most head_dim, {head_dim},")
        partial = rotated / head_dim
    attention = GroupedQuery(
        config,
        eps,
        norms=("q_norm", "k_norm"),
        whole=True,
        rope=read_rope(config, default_theta=5e6, default_partial=partial),
    )
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {"score": "sigmoid", "normalize": True},
        select_bias="e_score_correction_bias",
        parts=("w1", "w3", "w2"),
    )
    return decoder(
        config,
        reader,
        lambda n, layer: attention.read(layer),
        lambda n, layer: mixture.read(layer.under("block_sparse_moe")),
        eps=eps,
    )
