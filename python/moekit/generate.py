"""From a prompt to its continuation, token by token.

Text in, new text out; ids in, new ids out (the prompt is not repeated; the token that ends a
generation is its last id). Everything here is a loop over `model.logits`, so Ctrl-C arrives between
two operations; caches stay usable.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from . import chat
from .sampling import Sampler, Sampling
from .token_ids import sequence_of
from .tokenizer import TextStream, Tokenizer

if TYPE_CHECKING:
    from .nn.attention import LongContext
    from .nn.batch import Cache
    from .nn.kv_cache import KVCache

Ids: TypeAlias = npt.NDArray[np.int32]
Stop: TypeAlias = str | int | Sequence[str | int] | None

# Prompt tokens of one pass, which bound its memory; no byte depends on it (LongRoPE, where one
# would, does not keep to it).
PREFILL_ROWS = 512
# Multiply-adds of one operation in such a pass. Ctrl-C is noticed between two operations, and two
# slow cores do this in a quarter of a second.
PREFILL_WORK = 20e9


class LanguageModel(Protocol):
    """What generation needs of a model."""

    @property
    def vocab_size(self) -> int: ...

    tokenizer: Tokenizer | None
    end_ids: tuple[int, ...]

    @property
    def row_work(self) -> int: ...
    def new_cache(self) -> "Cache": ...
    def logits(
        self, sequences: Sequence[Ids], cache: "Cache | None" = None, *, last: bool = False
    ) -> npt.NDArray[np.float32]: ...


class Reply:
    """One sequence while it grows: its new ids, its text, and whether it has come to an end."""

    def __init__(
        self,
        prompt: Ids,
        tokenizer: Tokenizer | None,
        end_ids: frozenset[int],
        stops: Sequence[str],
        max_new_tokens: int,
        context: Ids | None = None,
    ) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.done = max_new_tokens == 0
        self._end_ids = end_ids
        self._stops = stops
        self._max = max_new_tokens
        # What the new text continues, the prompt unless told otherwise.
        before = prompt if context is None else context
        self._stream = TextStream(tokenizer, before[-16:].tolist()) if tokenizer else None
        # Text that may be the beginning of a stop string is held back here.
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token; the text that is certain to belong to the reply."""
        self.ids.append(token)
        ended = token in self._end_ids
        self.done = ended or len(self.ids) >= self._max
        if self._stream is None:
            return ""
        if not ended:
            self._held += self._stream.push(token)
        if self.done:
            self._held += self._stream.finish()
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.done = True
            piece, self._held = self._held[: min(found)], ""
            return piece
        keep = 0 if self.done else _longest_beginning(self._held, self._stops)
        cut = len(self._held) - keep
        piece, self._held = self._held[:cut], self._held[cut:]
        return piece


def _longest_beginning(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` with which one of `stops` begins."""
    most = min(len(text), max((len(stop) - 1 for stop in stops), default=0))
    for length in range(most, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def _grow(
    model: LanguageModel, replies: Sequence[Reply], sampler: Sampler
) -> Iterator[tuple[int, int, str]]:
    """Let all replies grow to their ends: yields (sequence, token, text) as they come."""
    live = [i for i, reply in enumerate(replies) if not reply.done]
    if not live:
        return
    cache = model.new_cache()
    order = {i: row for row, i in enumerate(live)}
    long = _long_context(model)
    try:
        logits = _read_prompts(model, [replies[i].prompt for i in live], cache)
        step = 0
        while live:
            for i, token in zip(live, sampler.choose(logits, live, step), strict=True):
                yield i, token, replies[i].push(token)
            live = [i for i in live if not replies[i].done]
            step += 1
            if live:
                chosen = cache.select([order[i] for i in live])
                read = [
                    _unread(replies[i], sequence, long)
                    for i, sequence in zip(live, chosen.sequences, strict=True)
                ]
                logits = model.logits(read, chosen, last=True)
    finally:
        if (keep := getattr(model, "keep_prefix", None)) is not None:
            for i, sequence in zip(order, cache.sequences, strict=False):
                keep(_whole(replies[i]), sequence)


def _whole(reply: Reply) -> Ids:
    return np.array([*reply.prompt, *reply.ids], np.int32)


def _unread(reply: Reply, sequence: "KVCache", long: "LongContext | None") -> Ids:
    """The last token; all of them, once, where the model reads a sequence that grows long anew."""
    length = len(reply.prompt) + len(reply.ids)
    if long is not None and long.anew and length == long.beyond + 1:
        sequence.truncate(0)
        return _whole(reply)
    return np.array([reply.ids[-1]], np.int32)


def _read_prompts(
    model: LanguageModel, prompts: Sequence[Ids], cache: "Cache"
) -> npt.NDArray[np.float32]:
    """Run all prompts into the cache, in passes of bounded size; logits of their last tokens.

    What an earlier generation has read of them is not read again. A prompt that LongRoPE rotates
    by its whole length goes in one pass.
    """
    if (resume := getattr(model, "resume_prefixes", None)) is not None:
        prompts = resume(prompts, cache)
    whole = sum(len(prompt) for prompt in prompts)
    most = int(min(PREFILL_ROWS, max(PREFILL_WORK / max(model.row_work, 1), 16)))
    encoded, long = _encodes_prompt(model), _long_context(model)
    if encoded and len(prompts) == 1:
        most = whole
    if whole <= most:
        return model.logits(prompts, cache, last=True)
    rows = []
    resumed, cache.sequences = cache.sequences, []
    for i, prompt in enumerate(prompts):
        own = model.new_cache()
        own.first_request = i
        own.sequences = resumed[i : i + 1]
        step = len(prompt) if encoded or (long and len(prompt) > long.beyond) else most
        for start in range(0, len(prompt), step):
            part = prompt[start : start + step]
            logits = model.logits([part], own, last=True)
        rows.append(logits)
        cache.sequences.extend(own.sequences)
    return np.concatenate(rows)


def _long_context(model: LanguageModel) -> "LongContext | None":
    """Other frequencies that the model's attention has for long sequences."""
    for layer in getattr(model, "layers", ()):
        long: LongContext | None = getattr(getattr(layer, "attention", None), "long", None)
        if long is not None:
            return long
    return None


def _encodes_prompt(model: LanguageModel) -> bool:
    """Does an encoder read the prompt, at once, so that nothing continues it?"""
    return bool(getattr(model, "encodes_prompt", False))


def generate(model: LanguageModel, prompt: Any, max_new_tokens: int = 128, **options: Any) -> Any:
    """Continue a text, token ids, or a list of either; the kind that came in goes out.

    `options` are those of `start`.
    """
    run = start(model, prompt, max_new_tokens, **options)
    pieces: list[list[str]] = [[] for _ in run.replies]
    for i, _, piece in run.steps:
        pieces[i].append(piece)
    texts = ["".join(p) for p in pieces]
    results: list[Any] = list(texts) if run.from_text else [reply.ids for reply in run.replies]
    return results[0] if run.single else results


def stream(
    model: LanguageModel,
    prompt: Any,
    max_new_tokens: int = 128,
    *,
    as_text: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """The same for one prompt, as it comes: pieces of text for a text, ids for ids.

    Pieces are whole characters and never part of a stop text; joined they are what `generate`
    gives. `as_text` streams text for a prompt of ids too. Mistakes are raised by this call, not
    by the first piece.
    """
    run = start(model, prompt, max_new_tokens, **options)
    if not run.single:
        raise ValueError(f"[stream] {len(run.replies)} prompts; one is required")
    if as_text and model.tokenizer is None:
        raise ValueError("[stream] the model has no tokenizer; token ids are streamed only")
    if run.from_text or as_text:
        return (piece for _, _, piece in run.steps if piece)
    return (token for _, token, _ in run.steps)


@dataclass(frozen=True, slots=True)
class Run:
    """A generation that has been checked and not begun: iterating `steps` drives it.

    `steps` yields (sequence, token, text); `replies` grow meanwhile.
    """

    replies: list[Reply]
    steps: Iterator[tuple[int, int, str]]
    from_text: bool
    single: bool


def start(
    model: LanguageModel,
    prompt: Any,
    max_new_tokens: int = 128,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | Sequence[int] | None = None,
    stop: Stop = None,
) -> Run:
    """Check everything that a generation is given.

    `temperature` 0 takes the likeliest token; the other settings are `Sampling`'s. `seed` makes
    the choice repeatable: a sequence's tokens depend on it and on the place in the list, not on
    the other sequences (a list gives each its own seed). `stop`: texts before which a generation
    ends, token ids after which it ends; the checkpoint's own end tokens always count.
    """
    settings = Sampling(temperature, top_k, top_p, min_p)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int | np.integer):
        raise ValueError(f"[generate] max_new_tokens {max_new_tokens!r}; a number is required")
    if max_new_tokens < 0:
        raise ValueError(f"[generate] max_new_tokens {max_new_tokens}; 0 or more is required")
    from_text, prompts, single = _read_prompt(model, prompt)
    stops, ends = _read_stop(model, stop)
    context = np.zeros(0, np.int32) if _encodes_prompt(model) else None
    replies = [
        Reply(ids, model.tokenizer, ends, stops, int(max_new_tokens), context) for ids in prompts
    ]
    steps = _grow(model, replies, Sampler(settings, len(prompts), seed))
    return Run(replies, steps, from_text, single)


def prefill(model: LanguageModel, prompt: Any) -> "Cache":
    """Run a text or ids (one or a list) through the model in passes of bounded size."""
    _, prompts, _ = _read_prompt(model, prompt)
    cache = model.new_cache()
    _read_prompts(model, prompts, cache)
    return cache


def chat_ids(
    model: LanguageModel,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """A conversation as the ids of a prompt, by the checkpoint's chat template."""
    if model.tokenizer is None:
        raise ValueError("[chat] the model has no tokenizer; a checkpoint with one is required")
    text = chat.render(model.tokenizer, messages, variables)
    return model.tokenizer.encode(text, add_special_tokens=False)


def _read_prompt(model: LanguageModel, prompt: Any) -> tuple[bool, list[Ids], bool]:
    """(is it text, checked ids of each sequence, was it one sequence alone)."""
    single = isinstance(prompt, str) or not _is_list_of_prompts(prompt)
    items: list[Any] = [prompt] if single else list(prompt)
    if not items:
        raise ValueError("[generate] no prompt; a text or token ids are required")
    texts = [isinstance(item, str) for item in items]
    if any(texts) and not all(texts):
        raise ValueError("[generate] texts and ids in one list; one kind is required")
    prompts = []
    for i, item in enumerate(items):
        what = "prompt" if single else f"prompt {i}"
        if texts[0]:
            if model.tokenizer is None:
                raise ValueError(
                    "[generate] the model has no tokenizer; token ids are required, not text"
                )
            item = model.tokenizer.encode(item)
            if not item:
                raise ValueError(f"[generate] {what} is empty; at least one token is required")
        prompts.append(sequence_of(item, model.vocab_size, what))
    return texts[0], prompts, single


def _is_list_of_prompts(prompt: Any) -> bool:
    if isinstance(prompt, list | tuple):
        return any(
            isinstance(item, str | list | tuple) or getattr(item, "ndim", 0) > 0 for item in prompt
        )
    return getattr(prompt, "ndim", 1) > 1


def _read_stop(model: LanguageModel, stop: Stop) -> tuple[list[str], frozenset[int]]:
    """(stop texts, ids that end a generation)."""
    items = [stop] if isinstance(stop, str | int) else list(stop or ())
    texts: list[str] = []
    ends = set(model.end_ids)
    for item in items:
        if isinstance(item, str) and item:
            texts.append(item)
        elif (
            isinstance(item, int | np.integer)
            and not isinstance(item, bool)
            and 0 <= item < model.vocab_size
        ):
            ends.add(int(item))
        else:
            raise ValueError(
                f"[generate] stop {item!r}; text, or a token of 0 to {model.vocab_size - 1}, "
                "is required"
            )
    if texts and model.tokenizer is None:
        raise ValueError("[generate] stop texts need a tokenizer, which the model lacks")
    return texts, frozenset(ends)
