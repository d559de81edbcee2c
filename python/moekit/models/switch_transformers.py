"""Switch Transformers (arXiv 2101.03961): a T5 whose feed-forward layers are experts in part.

Router: softmax over all experts, the best one, times its probability. An expert serves
`expert_capacity` tokens of a sequence in one pass; a token too many passes by. Experts have one
hidden layer with ReLU and no gate. Encoder and decoder share the embedding, and the head, where it
is the embedding too, reads its input times d_model ** -0.5.
"""

from typing import Any

from ..config import Config
from ..nn import (
    MLP,
    Block,
    CrossAttention,
    CrossBlock,
    EncoderDecoder,
    Linear,
    Model,
    MoE,
    RelativeAttention,
    RelativeBias,
)
from .base import MAX_HEAD_DIM, MAX_LAYERS, read_activation
from .expert_layouts import Layout
from .reader import Reader

_PARTS = (None, "wi", "wo")
_MAX_BUCKETS = 1 << 16


def build(config: Config, reader: Reader) -> Model:
    """The model of a Switch Transformers checkpoint."""
    return _Builder(config).build(reader)


class _Builder:
    """The sizes of both stacks, and their layers."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hidden = config.size("d_model", "hidden_size")
        self.heads = config.size("num_heads", "num_attention_heads")
        self.width = self.heads * config.size("d_kv", most=MAX_HEAD_DIM)
        self.inner = config.size("d_ff")
        self.experts = config.size("num_experts")
        self.capacity = config.size("expert_capacity", default=64)
        self.buckets = config.size("relative_attention_num_buckets", default=32, most=_MAX_BUCKETS)
        self.longest = config.size("relative_attention_max_distance", default=128)
        self.eps = config.number("layer_norm_epsilon", default=1e-6, above=0)
        self.bias = config.flag("router_bias", default=False)
        config.choice("router_dtype", ["float32"], default="float32")
        config.require(self.buckets >= 4, "relative_attention_num_buckets", "at least 4")
        config.require(
            self.longest > self.buckets // 2,
            "relative_attention_max_distance",
            f"more than half of the {self.buckets} buckets",
        )

    def build(self, reader: Reader) -> Model:
        """Both stacks around the one embedding."""
        config, hidden = self.config, self.hidden
        reader.activation = read_activation(config, "dense_act_fn", "relu")
        vocab = config.size("vocab_size")
        layers = config.size("num_layers", "num_hidden_layers", most=MAX_LAYERS)
        later = config.size("num_decoder_layers", default=layers, most=MAX_LAYERS)
        start = config.size("decoder_start_token_id", "pad_token_id", default=0, least=0)
        config.require(start < vocab, "decoder_start_token_id", f"less than vocab_size, {vocab},")
        tied = config.flag("tie_word_embeddings", default=True)
        embedding, later_embedding = self._tables(reader, vocab, tied)
        encoder, decoder = reader.under("encoder"), reader.under("decoder")
        blocks = self.encoder(encoder, _sparse(config, "encoder", layers))
        writers = self.decoder(decoder, _sparse(config, "decoder", later))
        if tied:
            reader.ignore("lm_head.weight")
            head = Linear(reader.pack_table(embedding), kind="head")
        else:
            head = reader.linear("lm_head", vocab, hidden, kind="head")
        model = EncoderDecoder(
            embedding,
            blocks,
            encoder.norm("final_layer_norm", hidden, self.eps),
            writers,
            decoder.norm("final_layer_norm", hidden, self.eps),
            head,
            start_id=start,
            decoder_embedding=later_embedding,
            logit_scale=hidden**-0.5 if tied else 1.0,
            config=config,
        )
        reader.require_all_used(lambda name: False)
        return model

    def _tables(self, reader: Reader, vocab: int, tied: bool) -> tuple[Any, Any]:
        """The embeddings of both stacks, the second None where they share one.

        Nothing is shared where the head is not, if the file has tables for both.
        """
        own = ("encoder.embed_tokens", "decoder.embed_tokens")
        if not tied and all(f"{name}.weight" in reader for name in own):
            reader.ignore("shared.weight")
            first, second = (reader.embedding(name, vocab, self.hidden) for name in own)
            return first, second
        for name in own:
            reader.ignore(f"{name}.weight")
        return reader.embedding("shared", vocab, self.hidden), None

    def encoder(self, reader: Reader, sparse: list[bool]) -> list[Block]:
        """Layers that see the whole source."""
        bias = self._bias(reader, bidirectional=True)
        blocks = []
        for n, mixed in enumerate(sparse):
            first, last = reader.under(f"block.{n}.layer.0"), reader.under(f"block.{n}.layer.1")
            blocks.append(
                Block(
                    first.norm("layer_norm", self.hidden, self.eps),
                    self._attention(first, bias, n, causal=False),
                    last.norm("layer_norm", self.hidden, self.eps),
                    self._feed_forward(last, mixed),
                )
            )
        return blocks

    def decoder(self, reader: Reader, sparse: list[bool]) -> list[CrossBlock]:
        """Layers that see what was written, and the source."""
        bias = self._bias(reader, bidirectional=False)
        blocks = []
        for n, mixed in enumerate(sparse):
            first, cross, last = (reader.under(f"block.{n}.layer.{part}") for part in range(3))
            blocks.append(
                CrossBlock(
                    first.norm("layer_norm", self.hidden, self.eps),
                    self._attention(first, bias, n, causal=True),
                    cross.norm("layer_norm", self.hidden, self.eps),
                    CrossAttention(
                        *self._projections(cross.under("EncDecAttention")), heads=self.heads
                    ),
                    last.norm("layer_norm", self.hidden, self.eps),
                    self._feed_forward(last, mixed),
                )
            )
        return blocks

    def _bias(self, reader: Reader, bidirectional: bool) -> RelativeBias:
        name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table = reader.tensor(name, self.buckets, self.heads)
        return RelativeBias(table, bidirectional=bidirectional, longest=self.longest)

    def _projections(self, layer: Reader) -> tuple[Linear, Linear, Linear, Linear]:
        q, k, v = (layer.linear(part, self.width, self.hidden) for part in "qkv")
        return q, k, v, layer.linear("o", self.hidden, self.width)

    def _attention(
        self, layer: Reader, bias: RelativeBias, n: int, *, causal: bool
    ) -> RelativeAttention:
        parts = self._projections(layer.under("SelfAttention"))
        return RelativeAttention(
            *parts, heads=self.heads, bias=bias, causal=causal, owns_bias=n == 0
        )

    def _feed_forward(self, layer: Reader, mixed: bool) -> MoE | MLP:
        if not mixed:
            return layer.mlp("mlp", self.inner, self.hidden, parts=_PARTS)
        router = layer.router(
            "mlp.router.classifier", self.experts, self.hidden, 1, bias=self.bias, score="softmax"
        )
        experts = layer.experts(
            "mlp.experts",
            self.experts,
            self.inner,
            self.hidden,
            _PARTS,
            layout=Layout(each="expert_{}"),
        )
        return MoE(router, experts, capacity=self.capacity)


def _sparse(config: Config, stack: str, layers: int) -> list[bool]:
    """Which layers of a stack have experts: every step-th, from the second on."""
    count = config.size(f"num_sparse_{stack}_layers", default=3, least=0)
    step = layers // count if count else layers
    step = config.size(f"{stack}_sparse_step", default=step, least=0)
    return [step == 1 or (step > 0 and n % step == 1) for n in range(layers)]
