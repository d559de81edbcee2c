"""A decoder: embed → blocks → norm → head, and what one does with a whole model."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, overload
from zlib import crc32

import numpy as np
import numpy.typing as npt

from .. import generate, ops
from ..counters import Counters
from ..intervention import Intervention
from ..ops import PackedWeight
from ..record import Record
from ..routing import (
    Recorder,
    begin_pass,
    drop_pass,
    end_pass,
    is_watched,
    open_intervention,
    pushed,
)
from ..token_ids import TokenIds, sequences_of
from ..wishes import check_feasible, intervention
from .batch import Batch, Cache
from .block import Layer
from .kv_cache import KVCache
from .linear import Linear
from .moe import MoE
from .norm import Norm
from .prefixes import Prefixes, reusable
from .types import Floats, Weights

if TYPE_CHECKING:
    from ..ops.paged_experts import Pages
    from ..tokenizer import Tokenizer


class Model:
    """A language model of blocks. `embedding` [V, H] is a table in float32,
    bfloat16 or float16, its rows times `embedding_scale`; `head` gives [V] logits, which are
    multiplied by `logit_scale` and then, with a `logit_softcap` c, become c * tanh(logit / c).

    `config` are the fields of its config.json, `tokenizer` turns text into ids and back; both may
    be missing in a model put together by hand. `end_ids` are the tokens that end a generation.
    Several threads may call one model; a `Cache` belongs to one thread at a time.
    """

    #: Is a prompt read by an encoder, whole, instead of being continued?
    encodes_prompt = False

    def __init__(
        self,
        embedding: npt.NDArray[Any],
        layers: Sequence[Layer],
        norm: Norm,
        head: Linear,
        *,
        embedding_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        config: Mapping[str, object] | None = None,
        tokenizer: "Tokenizer | None" = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        if embedding.ndim != 2 or embedding.dtype.name not in ("float32", "bfloat16", "float16"):
            raise TypeError(
                f"[Model] embedding is {embedding.dtype} {list(embedding.shape)}; "
                "float32, bfloat16 or float16 [V, H] is required"
            )
        self.embedding = np.ascontiguousarray(embedding)
        self.layers = list(layers)
        self.norm = norm
        self.head = head
        self.embedding_scale = embedding_scale
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap
        self.config: Mapping[str, object] = config or {}
        self.tokenizer = tokenizer
        self.end_ids = tuple(end_ids)
        # Which piece of which stored tensor went where, for `save`; set by the loader.
        self.placed: Sequence[Any] = ()
        # Dtype and shape of the tensors that it was read from, and whose grouping they have.
        self.outline: Mapping[str, tuple[str, tuple[int, ...]]] = {}
        self.grouping = "hf"
        # Tensors of the file that nothing was made of.
        self.passed_over: Sequence[str] = ()
        # The memory of experts that stay in the file (`mk.load(max_memory=...)`).
        self.pages: Pages | None = None
        #: What keys and values are kept in: "f32", "bf16", "f16" or "int8".
        self.kv_format = "f32"
        #: What `generate` keeps of its sequences for later prompts that begin like them.
        self.prefixes = Prefixes()
        self._saver: Callable[[Model, Any], None] | None = None
        # Where its small files are, and what `mk.quantize` has noted about it.
        self.source: str | None = None
        self.quantization: Any = None
        # layer -> [E of the model it was made from]: which expert each became, -1 for none.
        self.expert_origin: Mapping[int, npt.NDArray[np.int32]] = {}
        # Whether `mk.assemble` gave it layers that its family does not know.
        self.assembled = False

    def __repr__(self) -> str:
        kind = self.config.get("model_type", "model")
        size = sum(self.memory().values())
        return f"<{kind}: {len(self.layers)} layers, {len(self.moe_layers)} with experts, {size} B>"

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1."""
        return int(self.embedding.shape[0])

    @property
    def moe_layers(self) -> list[int]:
        """The numbers of the layers that have experts."""
        return [n for n, block in enumerate(self.layers) if block.moe is not None]

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token of the largest single operation."""
        return max((block.row_work for block in self.layers), default=0)

    def new_cache(self) -> Cache:
        """An empty cache; it takes as many sequences as its first forward pass has."""
        return Cache()

    # -- running ---------------------------------------------------------------------------

    def forward(
        self, ids: TokenIds, cache: Cache | None = None, routing: Record | None = None
    ) -> Floats | list[Floats]:
        """Logits of every token: float32 [T, V] for ids [T], [B, T, V] for [B, T], else a list.

        `ids`: integers, one sequence or several (a list of lists may be ragged). `cache`: its
        sequences are continued, only the new tokens are computed. `routing`: a record whose
        choices replace the routers'. ValueError for empty prompts and ids out of range.
        """
        sequences, shape = sequences_of(ids, self.vocab_size)
        logits = self.logits(sequences, cache, routing)
        if shape is not None:
            return logits.reshape(*shape, -1)
        return np.split(logits, np.cumsum([len(s) for s in sequences])[:-1])

    __call__ = forward

    def logits(
        self,
        sequences: Sequence[npt.NDArray[np.int32]],
        cache: Cache | None = None,
        routing: Record | None = None,
        *,
        last: bool = False,
    ) -> Floats:
        """Float32 [rows, V] of checked ids, all sequences after one another.

        With `last`, only the last token's row of each sequence, which is all that choosing the
        next token needs.
        """
        ids = sequences[0] if len(sequences) == 1 else np.concatenate(sequences)
        lengths = [len(sequence) for sequence in sequences]
        batch = Batch(lengths, self._continued(len(lengths), cache), ids)
        begin_pass(self, batch, routing)
        if batch.routing is not None:
            for sequence in batch.sequences:
                sequence.plain = False
        x = self._hidden(batch)
        if last and len(x) > len(batch.rows):
            x = x[[rows.stop - 1 for rows in batch.rows]]
        return self.read_out(x)

    def read_out(self, x: Floats) -> Floats:
        """Logits [rows, V] of what the last block gives."""
        logits = self.head(self.norm(x))
        if self.logit_scale != 1.0:
            logits *= np.float32(self.logit_scale)
        if self.logit_softcap is not None:
            cap = np.float32(self.logit_softcap)
            logits = np.tanh(logits / cap) * cap
        return logits

    def _continued(self, count: int, cache: Cache | None) -> list[KVCache]:
        # Without a cache the keys still go through one: it may store them in fewer bits, and a
        # token's bytes must not depend on how its prompt was cut.
        if cache is None:
            return self.new_sequences(count)
        if len(cache) != count and not any(cache.lengths):
            cache.sequences = self.new_sequences(count, cache.first_request)
        if len(cache.sequences) != count:
            raise ValueError(
                f"[forward] {count} sequences; the cache continues {len(cache.sequences)}"
            )
        return cache.sequences

    def new_sequences(self, count: int, first: int = 0) -> list[KVCache]:
        """Empty caches for the sequences number `first` and on of a call."""
        sequences = [self._new_sequence() for _ in range(count)]
        for i, sequence in enumerate(sequences):
            sequence.request = first + i
        return sequences

    def _new_sequence(self) -> KVCache:
        return KVCache([block.cache_rows for block in self.layers], self.kv_format)

    def embed(self, ids: npt.NDArray[np.int32]) -> Floats:
        """What the first block reads: float32 [T, H] of ids [T]."""
        x = ops.embed(self.embedding, ids)
        if self.embedding_scale != 1.0:
            x *= np.float32(self.embedding_scale)
        return x

    def _hidden(self, batch: Batch) -> Floats:
        try:
            x = self.embed(batch.ids)
            for n, block in enumerate(self.layers):
                x = block(x, batch, n)
        except BaseException:
            # Ctrl-C included: the cache stays usable, with the tokens that it had.
            batch.roll_back()
            drop_pass(batch)
            raise
        end_pass(batch)
        return x

    # -- prefixes of earlier generations ---------------------------------------------------

    def resume_prefixes(
        self, prompts: Sequence[npt.NDArray[np.int32]], cache: Cache
    ) -> list[npt.NDArray[np.int32]]:
        """Fill the empty `cache` with what is known of `prompts`; the rest of each of them.

        Nothing is known inside of blocks that record or change the routing: they see every token.
        """
        found: list[KVCache | None] = [None] * len(prompts)
        if self._reuses_prefixes() and not is_watched(self):
            found = [self.prefixes.take(self, prompt) for prompt in prompts]
        if any(found):
            cache.sequences = self.new_sequences(len(prompts), cache.first_request)
            for i, known in enumerate(found):
                if known is not None:
                    known.request = cache.sequences[i].request
                    cache.sequences[i] = known
        return [
            prompt if known is None else prompt[known.length :]
            for prompt, known in zip(prompts, found, strict=True)
        ]

    def keep_prefix(self, ids: npt.NDArray[np.int32], sequence: KVCache) -> None:
        """Keep what a generation has read of `ids`; the sequence is not used again by others."""
        if sequence.plain and self._reuses_prefixes():
            self.prefixes.keep(self, ids[: sequence.length], sequence)

    def _reuses_prefixes(self) -> bool:
        return self.prefixes.max_bytes > 0 and not self.encodes_prompt and reusable(self.layers)

    # -- text ------------------------------------------------------------------------------

    def generate(self, prompt: Any, max_new_tokens: int = 128, **options: Any) -> Any:
        """New text for a text, new ids for ids, a list for a list.

        Options (temperature, top_k, top_p, min_p, seed, stop) as in `moekit.generate.start`.
        """
        return generate.generate(self, prompt, max_new_tokens, **options)

    def stream(self, prompt: Any, max_new_tokens: int = 128, **options: Any) -> Iterator[Any]:
        """The same for one prompt, piece by piece; pieces are whole characters."""
        return generate.stream(self, prompt, max_new_tokens, **options)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int = 128, **options: Any
    ) -> str:
        """The model's answer to `messages`, laid out by the checkpoint's own chat template.

        `messages` are mappings with `role` and `content`. `template={...}` sets further variables
        of the template (`tools`, `enable_thinking`, ...); other options are those of `generate`.
        """
        return "".join(self.stream_chat(messages, max_new_tokens, **options))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int = 128,
        *,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The same, piece by piece."""
        ids = generate.chat_ids(self, messages, template)
        return generate.stream(self, ids, max_new_tokens, as_text=True, **options)

    # -- looking and intervening -----------------------------------------------------------

    @overload
    def record(
        self, logits: bool = False, margins: bool = False, *, counters: Literal[False] = False
    ) -> AbstractContextManager[Record]: ...
    @overload
    def record(self, *, counters: Literal[True]) -> AbstractContextManager[Counters]: ...
    def record(
        self, logits: bool = False, margins: bool = False, *, counters: bool = False
    ) -> AbstractContextManager[Record] | AbstractContextManager[Counters]:
        """Record the routing of every pass that this thread makes inside the block.

        `logits` keeps the routers' logits too, `margins` how far the K-th score lies above the next
        one. `counters` only counts how often each expert was used: it gives `Counters` with
        `.counts` [layers, E] instead of a `Record`, holds nothing but them, and costs next to
        nothing.

        A record holds one policy: ValueError from a pass that another intervention routes.
        """
        if not counters:
            return self._recording(logits, margins)
        if logits or margins:
            raise ValueError("[record] counters=True keeps counts alone, no logits and no margins")
        return self._counting()

    @contextmanager
    def _recording(self, logits: bool, margins: bool) -> Iterator[Record]:
        layers = self.moe_layers
        counts = [self._experts_of(n) for n in layers]
        none = np.zeros((0, len(layers), 0), np.float32)
        most = max(counts, default=0)
        record = Record(
            none.astype(np.int32),
            none,
            layers,
            num_experts=counts,
            logits=np.zeros((0, len(layers), most), np.float32) if logits else None,
            margins=none.reshape(0, len(layers)) if margins else None,
            on_input=np.zeros(len(layers), np.bool_),
            tokenizer=self.tokenizer,
        )
        rules = {n: moe.gate.rule for n, moe in self._mixtures() if moe.gate is not None}
        recorder = Recorder(
            record, self.routing_policy(), logits=logits, rules=rules if margins else None
        )
        with pushed(self, recorder):
            yield record

    @contextmanager
    def _counting(self) -> Iterator[Counters]:
        layers = self.moe_layers
        counters = Counters(layers, [self._experts_of(n) for n in layers])
        with pushed(self, counters):
            yield counters

    @contextmanager
    def intervene(
        self,
        *,
        bias: Mapping[Any, Any] | None = None,
        strength: float = 1.0,
        mask: Iterable[tuple[int | str, int]] = (),
        force: Iterable[tuple[int | str, int]] = (),
        substitute: Mapping[tuple[int | str, int], int] | None = None,
        k: int | Mapping[int | str, int] | None = None,
        threshold: float | Mapping[int | str, float] | None = None,
        temperature: float | Mapping[int | str, float] | None = None,
        balance: float | Mapping[int | str, Any] | None = None,
        router: Any = None,
        requests: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[Intervention]:
        """Change the routing of every pass that this thread makes inside the block.

        Layers go by the model's own numbers, "*" is every layer with experts. In this order:

        router=function(x, logits) chooses by itself (an Assignment) or changes the logits (an
        array); {layer: function} for some layers. bias={(12, 5): 0.3}, or {12: amounts [E]}, times
        `strength`, is added to the logits. temperature=0.5 divides them. mask={(12, 7)} forbids an
        expert, as if it were not there. force={(3, 1)} makes every token use it. balance=0.001
        starts a `mk.balance.BiasController` of that gamma in each layer ({layer: controller} goes
        on with one), which moves after every pass; they are `.controllers` of what the block gives.
        k={"*": 6} sets the experts per token. substitute={(12, 7): 11} lets 11 serve for 7,
        weight included. threshold=0.1 leaves out chosen experts with less than this share of the
        token's weights; a token may end up with none.

        requests=[{...}, {...}] holds the same keywords once more for each sequence of a call, the
        i-th for the i-th sequence, on top of those for all.

        Blocks nest: biases add up, masks and forces unite, temperatures multiply, the higher
        threshold and the inner K and router win. ValueError for what a layer cannot do.
        """
        moes = {n: moe for n, moe in self._mixtures() if moe.gate is not None}
        wanted = intervention(
            moes,
            bias=bias,
            strength=strength,
            mask=mask,
            force=force,
            substitute=substitute,
            k=k,
            threshold=threshold,
            temperature=temperature,
            balance=balance,
            router=router,
            requests=requests,
        )
        check_feasible(open_intervention(self).then(wanted), moes)
        if wanted.layers or wanted.requests:
            with pushed(self, wanted):
                yield wanted
        else:
            yield wanted  # nothing to look for in any pass: exactly the way without hooks

    def _mixtures(self) -> Iterator[tuple[int, MoE]]:
        for n, block in enumerate(self.layers):
            if block.moe is not None:
                yield n, block.moe

    def _experts_of(self, layer: int) -> int:
        moe = self.layers[layer].moe
        assert moe is not None
        return moe.count

    def routing_policy(self) -> str:
        """In words, which model chooses: two records of one policy belong together.

        Kind and size, the formats of the experts, and a checksum of the first and the last router.
        """
        kind = self.config.get("model_type", "model")
        moes = [moe for _, moe in self._mixtures()]
        if not moes:
            return f"{kind} without experts"
        counts = sorted({moe.count for moe in moes})
        formats = sorted({str(moe.experts.up.format) for moe in moes})
        mark = 0
        for moe in (moes[0], moes[-1]):
            for _, _, weight in () if moe.gate is None else moe.gate.weights():
                array = weight.unpack() if isinstance(weight, PackedWeight) else weight
                mark = crc32(np.ascontiguousarray(array).data, mark)
        own = [m.router for m in moes if m.router is not m.gate]
        names = sorted({getattr(function, "__qualname__", "a function") for function in own})
        functions = f", {len(own)} by {', '.join(names)}" if own else ""
        return (
            f"{kind} of {len(moes)} x {'/'.join(map(str, counts))} experts in "
            f"{'/'.join(formats)}, routers #{mark:08x}{functions}"
        )

    def save(self, path: Any) -> None:
        """Write the model: a GGUF file where `path` ends in `.gguf`, else a directory that
        transformers loads.

        Nothing is left behind by an error or an interrupt. ValueError for a model put together by
        hand, and for what GGUF cannot say.
        """
        if self._saver is None:
            raise ValueError(
                "[save] the model was put together by hand; one that mk.load has read is required"
            )
        self._saver(self, path)

    # -- size ------------------------------------------------------------------------------

    def weights(self) -> Weights:
        """(name, class, weight) of everything."""
        yield "embedding", "embedding", self.embedding
        for n, block in enumerate(self.layers):
            for name, kind, weight in block.weights():
                yield f"layers.{n}.{name}", kind, weight
        for name, kind, weight in self.norm.weights():
            yield f"norm.{name}", kind, weight
        for name, kind, weight in self.head.weights():
            yield f"head.{name}", kind, weight

    def memory(self) -> dict[str, int]:
        """Resident bytes of the weights by class (experts, attention, embedding, ...)."""
        sizes: dict[str, int] = defaultdict(int)
        for _, kind, weight in self.weights():
            sizes[kind] += weight.nbytes
        return dict(sizes)
