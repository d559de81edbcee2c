"""gpt-oss (OpenAI, arXiv 2508.10925): biases everywhere, attention sinks, clamped SwiGLU.

Router: the best k of logits with a bias, softmax over these. Every second layer sees a window; a
learnt score per head takes its share of each softmax. Gate and up alternate in one bank that is
stored transposed; up counts with one added to it.
"""

from ..config import Config
from ..nn import Attention, Model
from .base import layer_count
from .expert_layouts import Layout
from .grouped import GroupedQuery, decoder, layer_windows
from .mixture import Mixture
from .reader import Reader
from .rope import read_rope

# What transformers takes where a file says nothing.
_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False}
_YARN_CONTEXT = {"original_max_position_embeddings": 4096}
_ALPHA = 1.702


def build(config: Config, reader: Reader) -> Model:
    """The model of a gpt-oss checkpoint."""
    if config.get("rope_scaling") is None:
        config = config.with_defaults(rope_parameters={**_YARN, **_YARN_CONTEXT})
    eps = config.number("rms_norm_eps", default=1e-5, above=0)
    windows = layer_windows(config, layer_count(config), lambda n: n % 2 == 0)
    alpha = config.number("swiglu_alpha", default=_ALPHA)
    config.require(abs(alpha - _ALPHA) < 1e-6, "swiglu_alpha", f"{_ALPHA}")
    attention = GroupedQuery(
        config,
        eps,
        bias=config.flag("attention_bias", default=True),
        rope=read_rope(config, default_theta=1.5e5),
    )
    mixture = Mixture.of(
        config,
        "intermediate_size",
        {"score": "softmax_topk"},
        gate="router",
        router_bias=True,
        layout=Layout(transposed=True, interleaved=True, bias=True),
        options={
            "activation": "swiglu_oai",
            "limit": config.number("swiglu_limit", default=7.0, above=0),
        },
    )

    def attend(n: int, layer: Reader) -> Attention:
        sinks = layer.tensor("sinks", attention.heads)
        return attention.read(layer, window=windows[n], sinks=sinks)

    return decoder(
        config, reader, attend, lambda n, layer: mixture.read(layer.under("mlp")), eps=eps
    )
