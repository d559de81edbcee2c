"""What all families share: the fields of a config.json, and the frame around the layers."""

from collections.abc import Callable
from typing import TypeAlias

from .. import ops
from ..config import Config
from ..nn import Block, Linear, Model
from ..nn.types import Floats
from .reader import Reader
from .rope import RopeSettings

# A family: reads its fields, asks for its tensors, returns the model.
Family: TypeAlias = Callable[[Config, Reader], Model]

ACTIVATIONS = ("silu", "swish")
# Ten times what is published. Tables of these sizes are made before a tensor could say no.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 8192


def check_activation(config: Config) -> None:
    """Only SiLU, which every checkpoint of these families uses."""
    config.choice("hidden_act", ACTIVATIONS, default="silu")


def layer_count(config: Config) -> int:
    """num_hidden_layers, bounded."""
    return config.size("num_hidden_layers", most=MAX_LAYERS)


def top_k(config: Config, experts: int, *names: str) -> int:
    """Experts per token: at most as many as there are."""
    names = names or ("num_experts_per_tok",)
    k = config.size(*names)
    if k > experts:
        raise config.error(names[0], f"at most the number of experts, {experts},")
    return k


def attention_heads(config: Config) -> tuple[int, int]:
    """(heads, key-value heads), the first a multiple of the second."""
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"a divisor of num_attention_heads, {heads},")
    return heads, kv_heads


def head_size(config: Config, hidden: int, heads: int) -> int:
    """head_dim, or an equal share of the hidden size; even, since rotation takes pairs."""
    size = config.optional_size("head_dim") or hidden // heads
    if not 2 <= size <= MAX_HEAD_DIM or size % 2:
        wanted = f"an even number of 2 to {MAX_HEAD_DIM} (hidden_size / heads: {hidden // heads})"
        raise config.error("head_dim", wanted)
    return size


def rope_table(rope: RopeSettings, dim: int) -> tuple[Floats, float]:
    """(frequencies float32 [dim / 2], factor on cos and sin)."""
    frequencies, factor = ops.rope_frequencies(dim, rope.theta, rope.scaling)
    return frequencies, float(factor)


def sparse_layers(config: Config, layers: int, step: int, dense: list[int]) -> list[bool]:
    """Which layers have experts: every `step`-th but those in `dense`.

    `mlp_layer_types`, a list of "sparse" and "dense", says it directly where it is given.
    """
    types = config.get("mlp_layer_types")
    if types is None:
        return [n not in dense and (n + 1) % step == 0 for n in range(layers)]
    if not isinstance(types, list) or not all(kind in ("sparse", "dense") for kind in types):
        raise config.error("mlp_layer_types", 'a list of "sparse" and "dense"')
    if len(types) != layers:
        raise config.error("mlp_layer_types", f"an entry for each of {layers} layers")
    return [kind == "sparse" for kind in types]


def assemble(
    config: Config, reader: Reader, hidden: int, eps: float, block: Callable[[int, Reader], Block]
) -> Model:
    """The decoder around `block(n, reader of layer n)`, and the check that no tensor is left."""
    layers = layer_count(config)
    vocab = config.size("vocab_size")
    embedding = reader.embedding("model.embed_tokens", vocab, hidden)
    blocks = [block(n, reader.under(f"model.layers.{n}")) for n in range(layers)]
    norm = reader.norm("model.norm", hidden, eps)
    if config.flag("tie_word_embeddings", default=False):
        # Transformers writes no head then, and ignores one that is there.
        reader.ignore("lm_head.weight")
        head = Linear(reader.pack_table(embedding), kind="head")
    else:
        head = reader.linear("lm_head", vocab, hidden, kind="head")
    reader.require_all_used(lambda name: _is_later_layer(name, layers))
    return Model(embedding, blocks, norm, head, config=config)


def _is_later_layer(name: str, layers: int) -> bool:
    """Layers for multi-token prediction follow those of the model; they are not run."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"] or len(parts) < 3 or not parts[2].isdecimal():
        return False
    return int(parts[2]) >= layers
