"""Encoder-decoder families: Switch Transformers (arXiv 2101.03961) and NLLB-MoE (2207.04672).

A generated token runs the decoder; the encoder runs once a prompt. Parameters count both (that is
what the published totals do); the work of a decoded token counts what both stacks hold active,
which is the convention of the papers and an upper bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .ffn import feed_forward
from .fields import MAX_LAYERS, MAX_VOCABULARY, Fields, Flag
from .tensors import Attend, Block, Cache, Inventory, Layer, Weight, matrix, vector

_ATTENTION = "attention"


def _sparse_ffn(f: Fields, width: int, hidden: int, bias: bool) -> tuple[Block, int, int]:
    experts = f.experts("num_experts")
    top_k = min(2, experts) if f.model_type == "nllb-moe" else 1
    block = matrix("router", "router", experts, hidden, f.flag(Flag("router_bias")))
    weights = []
    for name, shape in (("up", (width, hidden)), ("down", (hidden, width))):
        weights.append(Weight("routed", f"experts.{name}", shape, experts, top_k))
        if bias:
            weights.append(Weight("routed", f"experts.{name}.bias", shape[:1], experts, top_k))
    return block + Block(tuple(weights)), experts, top_k


def _attention(hidden: int, heads: int, dim: int, bias: bool, cached: bool) -> Block:
    inner = heads * dim
    block = Block()
    for name in ("q", "k", "v"):
        block += matrix(_ATTENTION, name, inner, hidden, bias)
    block += matrix(_ATTENTION, "o", hidden, inner, bias)
    if cached:
        block += Block(caches=(Cache(2 * inner),), attends=(Attend(heads, dim, dim),))
    return block


def _stack(
    f: Fields,
    side: str,
    sparse: list[bool],
    attention: Callable[[bool], Block],
    width: int,
    hidden: int,
    *,
    bias: bool,
) -> list[Layer]:
    """The distinct layers of one stack; a decoder layer attends twice and has a third norm."""
    layers = []
    decoder = side == "decoder"
    for is_sparse, repeats in Counter(sparse).items():
        block = attention(decoder)
        if decoder:
            block += attention(False)
        for _ in range(3 if decoder else 2):
            block += vector("norms", "norm", hidden)
            if bias:
                block += vector("norms", "norm.bias", hidden)
        experts = top_k = 0
        if is_sparse:
            ffn, experts, top_k = _sparse_ffn(f, width, hidden, bias)
        else:
            ffn = feed_forward("dense_ffn", width, hidden, gated=False, bias=bias)
        layers.append(
            Layer(
                f"{side} {'sparse' if is_sparse else 'dense'}", block + ffn, repeats, experts, top_k
            )
        )
    return layers


def _embedding(f: Fields, hidden: int, tied: bool) -> Block:
    vocab = f.size("vocab_size", high=MAX_VOCABULARY)
    block = Block((Weight("embedding", "embedding", (vocab, hidden), lookup=not tied),))
    return block if tied else block + matrix("head", "head", vocab, hidden)


def switch_transformers(f: Fields) -> Inventory:
    """T5 with top-1 experts of two matrices; no biases, relative position buckets."""
    hidden, width = f.size(("d_model", "hidden_size")), f.size("d_ff")
    heads, dim = f.size(("num_heads", "num_attention_heads")), f.size("d_kv", 64)
    encoder = f.size(("num_layers", "num_hidden_layers"), high=MAX_LAYERS)
    decoder = f.size("num_decoder_layers", encoder, null=encoder, high=MAX_LAYERS)
    tied = f.flag(Flag("tie_word_embeddings", True))
    layers: list[Layer] = []
    outside = _embedding(f, hidden, tied)
    buckets = f.size("relative_attention_num_buckets", 32)
    for side, count in (("encoder", encoder), ("decoder", decoder)):
        chosen = f.size(f"num_sparse_{side}_layers", 3, low=0, high=MAX_LAYERS)
        if chosen > count:
            raise f.error(f"num_sparse_{side}_layers", f"there are only {count} layers")
        step = count // chosen if chosen else count
        sparse = [(i % step == 1 or step == 1) and (chosen > 0 or count == 1) for i in range(count)]
        if not chosen and count > 1:  # transformers: a step of the whole stack, layer 1 sparse
            sparse = [i % step == 1 for i in range(count)]
        layers += _stack(
            f,
            side,
            sparse,
            lambda cached: _attention(hidden, heads, dim, False, cached),
            width,
            hidden,
            bias=False,
        )
        # position biases are learned in the first layer and shared by the rest
        outside += vector(_ATTENTION, f"{side}.relative_bias", buckets * heads)
        outside += vector("norms", f"{side}.final_norm", hidden)
    return Inventory(f.model_type, layers, outside, hidden, tied)


def nllb_moe(f: Fields) -> Inventory:
    """BART-like with top-2 experts; biases and layer norms everywhere, fixed positions."""
    hidden = f.size(("d_model", "hidden_size"))
    tied = f.flag(Flag("tie_word_embeddings", True))
    layers: list[Layer] = []
    outside = _embedding(f, hidden, tied)
    for side in ("encoder", "decoder"):
        count = f.size(f"{side}_layers", 12, high=MAX_LAYERS)
        heads, width = f.size(f"{side}_attention_heads", 16), f.size(f"{side}_ffn_dim", 4096)
        if hidden % heads:
            raise f.error(f"{side}_attention_heads", f"it must divide the hidden size {hidden}")
        step = f.size(f"{side}_sparse_step", 4, low=0, high=MAX_LAYERS)
        sparse = [step > 0 and (i + 1) % step == 0 for i in range(count)]

        def attention(cached: bool, heads: int = heads) -> Block:
            return _attention(hidden, heads, hidden // heads, True, cached)

        layers += _stack(f, side, sparse, attention, width, hidden, bias=True)
        outside += vector("norms", f"{side}.final_norm", hidden)
        outside += vector("norms", f"{side}.final_norm.bias", hidden)
    return Inventory(f.model_type, layers, outside, hidden, tied)


ENCODER_DECODERS: dict[str, Callable[[Fields], Inventory]] = {
    "switch_transformers": switch_transformers,
    "nllb-moe": nllb_moe,
}
