"""Attention blocks: grouped-query, multi-head latent, sparse-indexed and compressed.

Each class is a row of options; `build` turns it into a Block for a configuration. Shapes follow
the checkpoints (transformers 5.23, `modeling_*.py`): a projection is [outputs, inputs].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .fields import MAX_TOKENS, Fields, Flag, Names
from .tensors import Attend, Block, Cache, Weight, matrix, vector

HIDDEN: Names = ("hidden_size", "d_model")
HEADS: Names = ("num_attention_heads", "n_heads")
_ATTENTION = "attention"


class Mixer(Protocol):
    """What mixes tokens in a layer of kind `kind` ("full_attention", "sliding_attention", …)."""

    def build(self, f: Fields, kind: str) -> Block: ...


def window_of(f: Fields, kind: str, names: Names, default: int | None = None) -> int | None:
    """Tokens that a layer of this kind keeps; None when it keeps them all."""
    if kind not in ("sliding_attention", "chunked_attention"):
        return None
    return f.size(names, default, high=MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class Gqa:
    """Grouped-query attention (arXiv 2305.13245) with the options families add to it."""

    qkv_bias: bool | Flag = False
    o_bias: bool | Flag = False
    qk_norm: str = ""  # "head": one norm of head_dim; "full": over the whole projection
    qk_norm_if: bool | Flag = True
    head_dim: int | None = None  # the family's default; else hidden / heads
    v_head_dim: int | None = None
    sinks: str = ""  # kinds of layers with one learned logit a head: "all", "sliding"
    gate: str = ""  # output gate: "query" (q_proj twice as wide), "matrix", "head"
    window: Names = "sliding_window"
    window_default: int | None = None
    sliding_kv: int = 1  # key/value heads of sliding layers, as a multiple
    heads_default: int | None = None
    kv_default: int | None = None  # else as many as there are query heads
    index: bool = False  # the block-sparse indexer of MiniMax-M3

    def heads(self, f: Fields) -> tuple[int, int, int]:
        """Query heads, key/value heads and head size."""
        heads = f.size(HEADS, self.heads_default)
        kv = f.size("num_key_value_heads", self.kv_default or heads, null=heads)
        if kv > heads or heads % kv:
            raise f.error("num_key_value_heads", f"it must divide the {heads} query heads")
        hidden = f.size(HIDDEN)
        if heads > hidden and not f.has("head_dim") and self.head_dim is None:
            raise f.error("num_attention_heads", f"hidden size {hidden} leaves heads of size 0")
        shared = max(hidden // heads, 1)
        head_dim = f.size("head_dim", self.head_dim or shared, null=shared)
        return heads, kv, head_dim

    def build(self, f: Fields, kind: str) -> Block:
        hidden = f.size(HIDDEN)
        heads, kv, head_dim = self.heads(f)
        v_dim = f.size("v_head_dim", self.v_head_dim) if self.v_head_dim else head_dim
        sliding = kind == "sliding_attention"
        kv *= self.sliding_kv if sliding else 1
        qkv_bias = f.flag(self.qkv_bias)
        query = heads * head_dim
        block = (
            matrix(_ATTENTION, "q", query * (2 if self.gate == "query" else 1), hidden, qkv_bias)
            + matrix(_ATTENTION, "k", kv * head_dim, hidden, qkv_bias)
            + matrix(_ATTENTION, "v", kv * v_dim, hidden, qkv_bias)
            + matrix(_ATTENTION, "o", hidden, heads * v_dim, f.flag(self.o_bias))
        )
        if self.qk_norm and f.flag(self.qk_norm_if):
            full = self.qk_norm == "full"
            block += vector("norms", "q_norm", query if full else head_dim)
            block += vector("norms", "k_norm", kv * head_dim if full else head_dim)
        if self.sinks == "all" or (self.sinks == "sliding" and sliding):
            block += vector(_ATTENTION, "sinks", heads)
        if self.gate in ("matrix", "head"):
            rows = query if self.gate == "matrix" else heads
            block += matrix(_ATTENTION, "gate", rows, hidden)
        window = window_of(f, kind, self.window, self.window_default)
        block += Block(
            caches=(Cache(kv * (head_dim + v_dim), window=window),),
            attends=(Attend(heads, head_dim, v_dim, window=window),),
        )
        if self.index and kind == "minimax_m3_sparse":
            block += _block_indexer(f, hidden)
        return block


def _block_indexer(f: Fields, hidden: int) -> Block:
    """MiniMax-M3: a small attention scores blocks of keys; only the best blocks are attended."""
    heads, dim = f.size("index_n_heads", 4), f.size("index_head_dim", 128)
    return (
        matrix(_ATTENTION, "index_q", heads * dim, hidden)
        + matrix(_ATTENTION, "index_k", dim, hidden)
        + vector("norms", "index_q_norm", dim)
        + vector("norms", "index_k_norm", dim)
        + Block(caches=(Cache(dim, index=True),), attends=(Attend(heads, dim, 0),))
    )


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Only the latent and the shared rotary key are cached: kv_lora_rank + qk_rope_head_dim elements
    a token and layer, whatever the number of heads. Decoding works on the latent itself (the
    up-projection is absorbed into the query), which is the work counted here.
    """

    q_lora: int | None = 1536  # the family's default; JSON null means a plain query projection
    kv_lora: int = 512
    nope: int = 128
    rope: int = 64
    v: int = 128
    index_heads: int | None = None  # the lightning indexer of DeepSeek-V3.2
    gate: bool = False

    def build(self, f: Fields, kind: str) -> Block:
        hidden, heads = f.size(HIDDEN), f.size(HEADS)
        kv_lora = f.size("kv_lora_rank", self.kv_lora)
        nope, rope = f.size("qk_nope_head_dim", self.nope), f.size("qk_rope_head_dim", self.rope)
        v = f.size("v_head_dim", self.v)
        bias = f.flag(Flag("attention_bias"))
        block, rank = self._query(f, hidden, heads * (nope + rope), bias)
        block += matrix(_ATTENTION, "kv_a", kv_lora + rope, hidden, bias)
        block += vector("norms", "kv_a_norm", kv_lora)
        block += matrix(_ATTENTION, "kv_b", heads * (nope + v), kv_lora)
        block += matrix(_ATTENTION, "o", hidden, heads * v, bias)
        if self.gate:
            block += matrix(_ATTENTION, "gate", heads, hidden)
        top: int | None = None
        expanded: int | None = nope + rope + v
        if self.index_heads is not None:
            top, expanded = f.size("index_topk", 2048, high=MAX_TOKENS), None
            block += _indexer(f, hidden, rank, self.index_heads, full=kind != "shared_index")
        return block + Block(
            caches=(Cache(kv_lora + rope, top=top),),
            attends=(Attend(heads, kv_lora + rope, kv_lora, top=top, expanded=expanded),),
        )

    def _query(self, f: Fields, hidden: int, rows: int, bias: bool) -> tuple[Block, int]:
        plain = "q_lora_rank" in f.config and f.config["q_lora_rank"] is None
        if plain or (self.q_lora is None and not f.has("q_lora_rank")):
            return matrix(_ATTENTION, "q", rows, hidden), hidden
        rank = f.size("q_lora_rank", self.q_lora)
        block = matrix(_ATTENTION, "q_a", rank, hidden, bias)
        block += vector("norms", "q_a_norm", rank)
        return block + matrix(_ATTENTION, "q_b", rows, rank), rank


def _indexer(f: Fields, hidden: int, rank: int, heads_default: int, *, full: bool) -> Block:
    """The lightning indexer (DeepSeek-V3.2 report, section 2.1); `full` layers own one."""
    heads, dim = f.size("index_n_heads", heads_default), f.size("index_head_dim", 128)
    if not full:  # reuses the choice of the previous indexer
        return Block()
    return (
        matrix(_ATTENTION, "index_q", heads * dim, rank)
        + matrix(_ATTENTION, "index_k", dim, hidden)
        + vector("norms", "index_k_norm", dim)
        + vector("norms", "index_k_norm.bias", dim)
        + matrix(_ATTENTION, "index_weights", heads, hidden)
        + Block(caches=(Cache(dim, index=True),), attends=(Attend(heads, dim, 0),))
    )


@dataclass(frozen=True, slots=True)
class Compressed:
    """DeepSeek-V4: one key that is its own value, a 128-token window, and compressed entries.

    "compressed_sparse_attention" keeps an entry for every 4 tokens, chosen by an indexer with keys
    of its own; "heavily_compressed_attention" one for every 128; "sliding_attention" none.
    """

    def build(self, f: Fields, kind: str) -> Block:
        hidden, heads = f.size(HIDDEN), f.size(HEADS)
        dim, rank = f.size("head_dim", 512), f.size("q_lora_rank", 1024)
        groups, o_rank = f.size("o_groups", 8), f.size("o_lora_rank", 1024)
        if heads * dim % groups:
            raise f.error("o_groups", f"it must divide {heads * dim} attention outputs")
        window = f.size("sliding_window", 128, high=MAX_TOKENS)
        block = (
            vector(_ATTENTION, "sinks", heads)
            + matrix(_ATTENTION, "q_a", rank, hidden)
            + vector("norms", "q_a_norm", rank)
            + matrix(_ATTENTION, "q_b", heads * dim, rank)
            + matrix(_ATTENTION, "kv", dim, hidden)
            + vector("norms", "kv_norm", dim)
            # block-diagonal: every group of heads has its own low-rank output projection
            + matrix(_ATTENTION, "o_a", groups * o_rank, heads * dim // groups)
            + matrix(_ATTENTION, "o_b", hidden, groups * o_rank)
            + Block(
                caches=(Cache(dim, window=window, ring=True),),
                attends=(Attend(heads, dim, dim, window=window),),
            )
        )
        rates = f.config.get("compress_rates") or {}
        nested = Fields(rates if isinstance(rates, dict) else {}, f.model_type + ".compress_rates")
        if kind == "heavily_compressed_attention":
            rate = f.size("compress_rate_hca", nested.size(kind, 128))
            block += self._compressor(hidden, dim, rate, 1, "")
            block += Block(caches=(Cache(dim, rate),), attends=(Attend(heads, dim, dim, rate),))
        elif kind == "compressed_sparse_attention":
            rate = f.size("compress_rate_csa", nested.size(kind, 4))
            block += self._sparse(f, hidden, heads, dim, rank, rate)
        return block

    def _sparse(self, f: Fields, hidden: int, heads: int, dim: int, rank: int, rate: int) -> Block:
        index_heads, index_dim = f.size("index_n_heads", 64), f.size("index_head_dim", 128)
        top = f.size("index_topk", 512, high=MAX_TOKENS)
        return (
            # windows overlap by half, so pooling reads two projections of each token
            self._compressor(hidden, dim, rate, 2, "")
            + self._compressor(hidden, index_dim, rate, 2, "index_")
            + matrix(_ATTENTION, "index_q", index_heads * index_dim, rank)
            + matrix(_ATTENTION, "index_weights", index_heads, hidden)
            + Block(
                caches=(Cache(dim, rate, top=top), Cache(index_dim, rate)),
                attends=(
                    Attend(heads, dim, dim, rate, top=top),
                    Attend(index_heads, index_dim, 0, rate),
                ),
            )
        )

    def _compressor(self, hidden: int, dim: int, rate: int, overlap: int, prefix: str) -> Block:
        return (
            Block((Weight(_ATTENTION, prefix + "position_bias", (rate * overlap * dim,)),))
            + matrix(_ATTENTION, prefix + "compress_kv", overlap * dim, hidden)
            + matrix(_ATTENTION, prefix + "compress_gate", overlap * dim, hidden)
            + vector("norms", prefix + "compress_norm", dim)
        )
