"""What the families with grouped-query attention share: how attention is read,
and the frame of pre-norm blocks.

A family's file says which choices it makes; `nn.Attention`, `nn.Block` and `ops.route` say what
they mean.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ..config import Config
from ..nn import MLP, Attention, Block, Model, MoE, Norm
from .base import assemble, attention_heads, head_size, read_activation, rope_options
from .reader import Reader
from .rope import RopeSettings, read_rope

# (layer's number, reader of the layer) -> the part.
MakeFeedForward: TypeAlias = Callable[[int, Reader], MoE | MLP]
MakeAttention: TypeAlias = Callable[[int, Reader], Attention]
SLIDING, FULL = "sliding_attention", "full_attention"


class GroupedQuery:
    """Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` and what a family adds to them.

    `bias`: q, k and v have one; `o_bias`: o has (as `bias` unless given). `norms`: the names of
    the norms of q and k, of each head or, with `whole`, of the whole projection. `value_dim` is
    the width of a head's values where it is not that of its keys. `rope`: False for no position at
    all, else settings (those of config.json by default). `o_name` is what the file calls `o_proj`.
    Other options go to `nn.Attention`.
    """

    def __init__(
        self,
        config: Config,
        eps: float = 1e-6,
        *,
        bias: bool = False,
        o_bias: bool | None = None,
        norms: tuple[str, str] | None = None,
        whole: bool = False,
        value_dim: int | None = None,
        rope: RopeSettings | bool = True,
        o_name: str = "o_proj",
        **options: Any,
    ) -> None:
        self.hidden = config.size("hidden_size")
        self.heads, self.kv_heads = attention_heads(config)
        self.config = config
        self.head_dim = head_size(config, self.hidden, self.heads, even=False)
        self.eps = eps
        self.bias = bias
        self.o_bias = bias if o_bias is None else o_bias
        self.norms = norms
        self.whole = whole
        self.value_dim = value_dim or self.head_dim
        self.o_name = o_name
        self.options = options
        if rope:
            settings = read_rope(config) if isinstance(rope, bool) else rope
            self.options = {**self.rotation(settings), **options}

    def rotation(self, settings: RopeSettings) -> dict[str, Any]:
        """The options of `nn.Attention` for these settings; one table for all layers."""
        if settings.partial == 1:
            head_size(self.config, self.hidden, self.heads)
        return rope_options(settings, self.head_dim)

    def rotations(self, **settings: Any) -> dict[str, dict[str, Any]]:
        """The options of `rotation` by layer type, for a `rope_parameters` with a section each."""
        return {
            kind: self.rotation(read_rope(self.config, layer_type=kind, **settings))
            for kind in (FULL, SLIDING)
        }

    def read(
        self,
        layer: Reader,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        make: Callable[..., Attention] = Attention,
        **changes: Any,
    ) -> Attention:
        """The attention of one layer, by `make`; `changes` replace options for it."""
        heads, kv_heads = heads or self.heads, kv_heads or self.kv_heads
        q_size, k_size = heads * self.head_dim, kv_heads * self.head_dim
        options = {**self.options, **changes}
        if self.norms:
            for role, name, size in zip(
                ("q_norm", "k_norm"), self.norms, (q_size, k_size), strict=True
            ):
                options[role] = layer.norm(name, size if self.whole else self.head_dim, self.eps)
        return make(
            layer.linear("q_proj", q_size, self.hidden, bias=self.bias),
            layer.linear("k_proj", k_size, self.hidden, bias=self.bias),
            layer.linear("v_proj", kv_heads * self.value_dim, self.hidden, bias=self.bias),
            layer.linear(self.o_name, self.hidden, heads * self.value_dim, bias=self.o_bias),
            heads=heads,
            kv_heads=kv_heads,
            **options,
        )


def decoder(
    config: Config,
    reader: Reader,
    attention: MakeAttention,
    feed_forward: MakeFeedForward,
    *,
    eps: float,
    norm: Callable[[Reader, str], Norm] | None = None,
    residual: float = 1.0,
    **options: Any,
) -> Model:
    """Pre-norm blocks under the usual names; `norm` makes the norms, RMSNorm by default.

    Options are those of `assemble`.
    """
    hidden = config.size("hidden_size")
    reader.activation = read_activation(config)

    def plain(layer: Reader, name: str) -> Norm:
        return layer.norm(name, hidden, eps)

    make = norm or plain

    def block(n: int, layer: Reader) -> Block:
        return Block(
            make(layer, "input_layernorm"),
            attention(n, layer.under("self_attn")),
            make(layer, "post_attention_layernorm"),
            feed_forward(n, layer),
            residual=residual,
        )

    return assemble(config, reader, hidden, eps, block, norm=norm, **options)


def feed_forwards(
    config: Config, sparse: Sequence[bool], mixture: Callable[[Reader], MoE], **options: Any
) -> MakeFeedForward:
    """`mixture` in the layers that are `sparse`, else a dense layer of intermediate_size; both
    under `mlp`. Options are those of `Reader.mlp`."""
    hidden = config.size("hidden_size")

    def feed_forward(n: int, layer: Reader) -> MoE | MLP:
        if sparse[n]:
            return mixture(layer.under("mlp"))
        return layer.mlp("mlp", config.size("intermediate_size"), hidden, **options)

    return feed_forward


def layer_windows(
    config: Config, layers: int, default: Callable[[int], bool] = lambda n: False
) -> list[int | None]:
    """The sliding window of each layer, None where attention is full.

    `layer_types` says which layers slide; where it is absent, `default(n)` does.
    """
    types = config.get("layer_types")
    if types is None:
        slides = [default(n) for n in range(layers)]
    else:
        if not isinstance(types, list) or not all(kind in (SLIDING, FULL) for kind in types):
            raise config.error("layer_types", f'a list of "{SLIDING}" and "{FULL}"')
        if len(types) < layers:
            raise config.error("layer_types", f"an entry for each of {layers} layers")
        slides = [kind == SLIDING for kind in types[:layers]]
    if not any(slides):
        return [None] * layers
    window = config.size("sliding_window")
    return [window if sliding else None for sliding in slides]
