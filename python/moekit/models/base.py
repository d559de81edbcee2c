"""What all families share: the fields of a config.json, and the frame around the layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .. import ops
from ..config import Config
from ..nn import Layer, Linear, LongContext, Model, Norm
from ..nn.types import Floats
from .reader import Reader
from .rope import RopeSettings

# A family: reads its fields, asks for its tensors, returns the model.
Family: TypeAlias = Callable[[Config, Reader], Model]

# What config.json calls the core's activations (transformers' activations.py).
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "linear": "identity",
}


@dataclass(frozen=True, slots=True)
class Names:
    """Where a checkpoint has the parts around its layers."""

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"


STANDARD_NAMES = Names()
# Ten times what is published. Tables of these sizes are made before a tensor could say no.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 8192
# Scalings that look at each frequency by itself; dynamic ones leave them at trained lengths.
_ODD_KINDS = ("default", "linear", "llama3", "dynamic")


_OLDER_TYPES = {"attention": "full_attention", "mamba": "linear_attention"}


def read_activation(config: Config, name: str = "hidden_act", default: str = "silu") -> str:
    """The core's name of the activation in field `name`; FileError for one that it has not."""
    return ACTIVATIONS[config.choice(name, list(ACTIVATIONS), default=default)]


def require_silu(config: Config) -> None:
    """Only SiLU: families whose mixers of tokens take `hidden_act` too."""
    config.require(read_activation(config) == "silu", "hidden_act", "silu")


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


def head_size(config: Config, hidden: int, heads: int, *, even: bool = True) -> int:
    """head_dim, or an equal share of the hidden size; `even` where all of it rotates in pairs."""
    size = config.optional_size("head_dim") or hidden // heads
    if not 1 + even <= size <= MAX_HEAD_DIM or (even and size % 2):
        kind = "even number" if even else "integer"
        share = f"(hidden_size / heads: {hidden // heads})"
        raise config.error("head_dim", f"an {kind} of {1 + even} to {MAX_HEAD_DIM} {share}")
    return size


def rope_table(rope: RopeSettings, dim: int) -> tuple[Floats, float]:
    """(frequencies float32 [n], factor on cos and sin) for the part of `dim` that rotates.

    One table for sequences of every length: FileError for LongRoPE, which has two.
    """
    rope.source.require(
        rope.kind != "longrope", "rope_type", "another kind than longrope for this family"
    )
    return _rope_table(rope, dim)


def rope_options(rope: RopeSettings, dim: int) -> dict[str, Any]:
    """`frequencies`, `rope_factor` and, for LongRoPE, `long` as `nn.Attention` and `nn.MLA` take
    them."""
    frequencies, factor = _rope_table(rope, dim)
    options: dict[str, Any] = {"frequencies": frequencies, "rope_factor": factor}
    trained = rope.scaling.get("original_max_position_embeddings")
    if rope.kind == "longrope" and isinstance(trained, int):
        far, _ = _rope_table(rope, dim, trained + 1)
        # Llama 3's scaling, which GGUF has as such factors too, is one table for every length.
        if not np.array_equal(far, frequencies):
            options["long"] = LongContext(far, factor, trained)
    return options


def _rope_table(rope: RopeSettings, dim: int, length: int | None = None) -> tuple[Floats, float]:
    """A part that is odd rotates one dimension more: transformers makes a frequency of its last
    pair. `length` is that of the sequence where it matters."""
    part = int(dim * rope.partial)
    pairs = (part + 1) // 2
    rope.source.require(
        part >= 1 and 2 * pairs <= dim and (part % 2 == 0 or rope.kind in _ODD_KINDS),
        "partial_rotary_factor",
        f"an even number of a head's {dim} dimensions",
    )
    for name in ("short_factor", "long_factor"):
        factors = rope.scaling.get(name)
        if isinstance(factors, list) and len(factors) != pairs:
            raise rope.source.error(name, f"a number for each of {pairs} pairs")
    # Its base has the exponent dim / (dim - 2).
    rope.source.require(
        rope.kind != "dynamic" or pairs > 1, "rope_type", f"another kind for {2 * pairs} dimensions"
    )
    # theta ** (2 i / part) as a power of the base for 2 * pairs dimensions.
    theta = rope.theta if part % 2 == 0 else rope.theta ** (2 * pairs / part)
    frequencies, factor = ops.rope_frequencies(
        2 * pairs, theta, rope.scaling, sequence_length=length
    )
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


def mixer_types(
    config: Config,
    layers: int,
    kinds: Sequence[str],
    default: Sequence[str] | None = None,
    *names: str,
) -> list[str]:
    """What mixes tokens in each layer: a list of `kinds`, else `default`.

    The field is `layer_types`, or the first of `names` that is there.

    "attention", "mamba" and the like are older names of `full_attention` and `linear_attention`.
    """
    names = names or ("layer_types",)
    name = next((n for n in names if config.get(n) is not None), names[0])
    given = config.get(name)
    if given is None and default is not None:
        return list(default)
    if not isinstance(given, list) or len(given) != layers:
        raise config.error(name, f"a list with an entry for each of {layers} layers")
    types = [_OLDER_TYPES.get(kind, kind) if isinstance(kind, str) else None for kind in given]
    if not all(kind in kinds for kind in types):
        raise config.error(name, f"a list of {', '.join(kinds)}")
    return [str(kind) for kind in types]


def assemble(
    config: Config,
    reader: Reader,
    hidden: int,
    eps: float,
    block: Callable[[int, Reader], Layer],
    *,
    norm: Callable[[Reader, str], Norm] | None = None,
    tied: bool = False,
    head_bias: bool = False,
    names: Names = STANDARD_NAMES,
    ignored: tuple[str, ...] = (),
    layers: int | None = None,
    **options: Any,
) -> Model:
    """The decoder around `block(n, reader of layer n)`, and the check that no tensor is left.

    `norm` makes the last norm, RMSNorm with `eps` by default; `tied` is what tie_word_embeddings
    is where config.json does not say; tensors whose names begin as one of `ignored` are not
    needed; `layers` is their number, num_hidden_layers by default; `options` are those of
    `nn.Model` (embedding_scale, ...).
    """
    layers = layer_count(config) if layers is None else layers
    vocab = config.size("vocab_size")
    embedding = reader.embedding(names.embedding, vocab, hidden)
    blocks = [block(n, reader.under(f"{names.layers}.{n}")) for n in range(layers)]
    last = reader.norm(names.norm, hidden, eps) if norm is None else norm(reader, names.norm)
    if config.flag("tie_word_embeddings", default=tied):
        # Transformers writes no head then, and ignores one that is there.
        reader.ignore(f"{names.head}.weight")
        bias = reader.tensor(f"{names.head}.bias", vocab) if head_bias else None
        head = Linear(reader.pack_table(embedding), bias, kind="head")
    else:
        head = reader.linear(names.head, vocab, hidden, kind="head", bias=head_bias)
    reader.require_all_used(
        lambda name: name.startswith(ignored) or _is_later_layer(name, names.layers, layers)
    )
    return Model(embedding, blocks, last, head, config=config, **options)


def _is_later_layer(name: str, prefix: str, layers: int) -> bool:
    """Layers for multi-token prediction follow those of the model; they are not run."""
    number = name.removeprefix(f"{prefix}.").partition(".")[0]
    return name.startswith(f"{prefix}.") and number.isdecimal() and int(number) >= layers
