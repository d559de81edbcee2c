"""A model that reads a source with one stack of layers and writes with another."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .. import ops
from ..record import Record
from ..routing import begin_pass, drop_pass, end_pass
from ..token_ids import TokenIds, sequences_of
from .batch import Batch, Cache
from .block import Layer
from .kv_cache import KVCache
from .linear import Linear
from .model import Model
from .moe import MLP, MoE
from .norm import Norm
from .relative_attention import CrossAttention, RelativeAttention
from .types import Floats, Ids, Weights


class CrossBlock:
    """A decoder's layer: attention to the past, attention to the source, feed-forward."""

    __slots__ = ("attention", "attention_norm", "cross", "cross_norm", "ffn", "ffn_norm")

    def __init__(
        self,
        attention_norm: Norm,
        attention: RelativeAttention,
        cross_norm: Norm,
        cross: CrossAttention,
        ffn_norm: Norm,
        ffn: MoE | MLP,
    ) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.cross_norm, self.cross = cross_norm, cross
        self.ffn_norm, self.ffn = ffn_norm, ffn

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in the cache."""
        return self.attention.cache_rows

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token of the feed-forward layer."""
        return self.ffn.row_work

    @property
    def moe(self) -> MoE | None:
        """The mixture of experts, or None where the feed-forward layer is dense."""
        return self.ffn if isinstance(self.ffn, MoE) else None

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            raise ValueError("[CrossBlock] no batch was given; it brings the encoded source")
        mixed = self.attention(self.attention_norm(x), batch, layer)
        normed, x = self.cross_norm.of_sum(x, mixed)
        normed, x = self.ffn_norm.of_sum(x, self.cross(normed, batch, layer))
        x += self.ffn(normed, batch, layer)
        return x

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in self.__slots__:
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class EncoderDecoder(Model):
    """`encoder` layers and `encoder_norm` read the source, `decoder` layers write; the rest is as
    in `Model`. `layers` are the encoder's and then the decoder's, and so are they numbered.

    A source is encoded at once, when a cache has no tokens yet. `start_id` is the token that every
    answer begins with; generation does not give it back. `decoder_embedding` [V, H] is one table,
    `embedding`, for both stacks unless given.
    """

    encodes_prompt = True

    def __init__(
        self,
        embedding: npt.NDArray[Any],
        encoder: Sequence[Layer],
        encoder_norm: Norm,
        decoder: Sequence[CrossBlock],
        norm: Norm,
        head: Linear,
        *,
        start_id: int = 0,
        decoder_embedding: npt.NDArray[Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(embedding, [*encoder, *decoder], norm, head, **options)
        if not 0 <= start_id < self.vocab_size:
            raise ValueError(
                f"[EncoderDecoder] start_id is {start_id}; 0 to {self.vocab_size - 1} is required"
            )
        self.encoder_norm = encoder_norm
        self.encoder_depth = len(encoder)
        self.start_id = start_id
        self.decoder_embedding = self.embedding if decoder_embedding is None else decoder_embedding
        if self.decoder_embedding.shape != self.embedding.shape:
            raise ValueError(
                f"[EncoderDecoder] decoder_embedding is {list(self.decoder_embedding.shape)}; "
                f"{list(self.embedding.shape)} is required"
            )

    @property
    def encoder(self) -> list[Layer]:
        """The layers that read the source."""
        return self.layers[: self.encoder_depth]

    @property
    def decoder(self) -> list[CrossBlock]:
        """The layers that write."""
        return cast("list[CrossBlock]", self.layers[self.encoder_depth :])

    def forward(
        self,
        ids: TokenIds | None = None,
        cache: Cache | None = None,
        routing: Record | None = None,
        *,
        decoder_input_ids: TokenIds | None = None,
    ) -> Floats | list[Floats]:
        """Logits of every token of `decoder_input_ids`, in their shape as in `Model.forward`.

        `ids` is the source: [T], [B, T] or a list, as many sequences as `decoder_input_ids`; where
        those are missing, the first token of the answers is given. A `cache` remembers the encoded
        source: `ids` come with its first use, only new decoder tokens with later ones.
        """
        fresh = cache is None or not any(cache.lengths)
        if fresh == (ids is None):
            raise ValueError(
                "[forward] ids is missing; the source is required"
                if fresh
                else "[forward] ids were given again; the cache remembers its source"
            )
        sources, single = None, False
        if ids is not None:
            sources, source_shape = sequences_of(ids, self.vocab_size)
            single = source_shape is not None and len(source_shape) == 1
        if decoder_input_ids is None:
            if sources is None:
                raise ValueError(
                    "[forward] decoder_input_ids is missing; a cache goes on with new tokens"
                )
            starts = np.full((len(sources), 1), self.start_id)
            decoder_input_ids = starts[0] if single else starts
        targets, shape = sequences_of(decoder_input_ids, self.vocab_size)
        if sources is not None and len(sources) != len(targets):
            raise ValueError(
                f"[forward] {len(sources)} sources and {len(targets)} sequences of "
                "decoder_input_ids; the same number is required"
            )
        logits = self._answer(sources, targets, cache, routing)
        if shape is not None:
            return logits.reshape(*shape, -1)
        return np.split(logits, np.cumsum([len(t) for t in targets])[:-1])

    __call__ = forward

    def logits(
        self,
        sequences: Sequence[npt.NDArray[np.int32]],
        cache: Cache | None = None,
        routing: Record | None = None,
        *,
        last: bool = False,
    ) -> Floats:
        """Float32 [rows, V]: `sequences` are sources, whose answers begin, while the cache is
        empty; later they are the next tokens of the answers."""
        if cache is None or not any(cache.lengths):
            start = np.array([self.start_id], np.int32)
            return self._answer(sequences, [start] * len(sequences), cache, routing, last)
        return self._answer(None, sequences, cache, routing, last)

    def _answer(
        self,
        sources: Sequence[Ids] | None,
        targets: Sequence[Ids],
        cache: Cache | None,
        routing: Record | None,
        last: bool = False,
    ) -> Floats:
        sequences = self._continued(len(targets), cache)
        batch = Batch([len(t) for t in targets], sequences, np.concatenate(targets))
        if sources is not None:
            self._encode(sources, batch, routing)
        batch.first_number = len(sequences)  # in a record, sources come before answers
        begin_pass(self, batch, routing)
        x = self._through(batch, self.decoder_embedding, self.encoder_depth, len(self.layers))
        if last:
            x = x[[rows.stop - 1 for rows in batch.rows]]
        return self.read_out(x)

    def _encode(self, sources: Sequence[Ids], decoder: Batch, routing: Record | None) -> None:
        """Leaves each source's keys and values with its sequence."""
        readers = [KVCache([]) for _ in sources]
        for reader, sequence in zip(readers, decoder.sequences, strict=True):
            reader.request = sequence.request
        batch = Batch([len(source) for source in sources], readers, np.concatenate(sources))
        begin_pass(self, batch, routing)
        encoded = self.encoder_norm(self._through(batch, self.embedding, 0, self.encoder_depth))
        for n, block in enumerate(self.decoder, start=self.encoder_depth):
            block.cross.remember(encoded, batch, decoder, n)

    def _through(self, batch: Batch, table: npt.NDArray[Any], first: int, end: int) -> Floats:
        try:
            x = ops.embed(table, batch.ids)
            for n in range(first, end):
                x = self.layers[n](x, batch, n)
        except BaseException:
            batch.roll_back()
            drop_pass(batch)
            raise
        end_pass(batch)
        return x

    def weights(self) -> Weights:
        """(name, class, weight) of everything."""
        yield from super().weights()
        if self.decoder_embedding is not self.embedding:
            yield "decoder_embedding", "embedding", self.decoder_embedding
        for name, kind, weight in self.encoder_norm.weights():
            yield f"encoder_norm.{name}", kind, weight
