"""The tokenizer inside a GGUF file: byte-level BPE, SentencePiece's BPE, or a unigram model.

`tokenizer.ggml.model` says which: `gpt2` has tokens and merges, `llama` tokens and scores (pairs
are merged by the score of what they become), `t5` tokens and log-probabilities.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from .checkpoint import Checkpoint
from .gguf_splitting import BEGINNING, SPLITTING, WHOLE_PIECES
from .tokenizer import Tokenizer, backend_of, check_charsmap, refusing

_KEY = "tokenizer.ggml."
#: The key of a whole tokenizer.json, for readers that know what is in it.
WHOLE = "tokenizer.huggingface.json"
#: enum llama_token_type; texts are searched for UNKNOWN, CONTROL and USER_DEFINED before being cut.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
#: Special tokens and the keys of their ids.
SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # the format's own spelling
    "pad_token": "padding_token_id",
}
SPACE = "\u2581"
_MOST_CUT = 1 << 30


def load_gguf_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None if it has none, FileError where it is broken or of a
    kind that is not read."""
    kind = checkpoint.metadata.get(f"{_KEY}model")
    if kind is None or kind == "none":
        return _whole(checkpoint) if WHOLE in checkpoint.metadata else None
    if kind not in ("gpt2", "llama", "t5"):
        problem = f"tokenizer.ggml.model is {ascii(kind)[:40]}; gpt2, llama or t5 is required"
        raise checkpoint.error(None, problem)
    tokens = _texts(checkpoint, "tokens")
    ids = {token: n for n, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(n for n, token in enumerate(tokens) if ids[token] != n)
        raise checkpoint.error(None, f"tokenizer.ggml.tokens {twice} stands twice")
    with refusing(checkpoint.path):
        backend = _BUILDERS[kind](checkpoint, tokens, ids)
        _add_special(backend, checkpoint, tokens)
        special = _special(checkpoint, tokens)
        _add_ends(backend, checkpoint, special, ids, kind)
    return Tokenizer(backend, special, _templates(checkpoint), checkpoint.path)


def _whole(checkpoint: Checkpoint) -> Tokenizer:
    backend = backend_of(checkpoint.field(WHOLE, str), checkpoint.path)
    count = backend.get_vocab_size(with_added_tokens=True)
    special = {}
    for name, key in SPECIAL_IDS.items():
        value = checkpoint.metadata.get(_KEY + key)
        token = backend.id_to_token(value) if type(value) is int and 0 <= value < count else None
        if token is not None:
            special[name] = token
    return Tokenizer(backend, special, _templates(checkpoint), checkpoint.path)


def _texts(checkpoint: Checkpoint, name: str) -> list[str]:
    value = checkpoint.metadata.get(_KEY + name)
    # A lazy sequence of the reader; empty arrays of another type mean the same.
    if value is None or isinstance(value, (str, np.ndarray)) or not isinstance(value, Sequence):
        raise checkpoint.error(None, f"{_KEY}{name} is missing; an array of texts is required")
    return list(value)


def _numbers(checkpoint: Checkpoint, name: str, count: int) -> "np.ndarray[Any, Any] | None":
    value = checkpoint.metadata.get(_KEY + name)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or len(value) != count or value.dtype.kind not in "iuf":
        raise checkpoint.error(
            None, f"{_KEY}{name} is no array of {count} numbers, as many as tokens"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise checkpoint.error(None, f"{_KEY}{name} has numbers that are not finite")
    return value


def _byte_level(
    checkpoint: Checkpoint, tokens: list[str], ids: dict[str, int]
) -> tokenizers.Tokenizer:
    merges = []
    for n, merge in enumerate(_texts(checkpoint, "merges")):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or not right or left not in ids or right not in ids or left + right not in ids:
            problem = (
                f"tokenizer.ggml.merges {n} is {ascii(merge)[:60]}; two tokens that make a third"
            )
            raise checkpoint.error(None, f"{problem} are required")
        merges.append((left, right))
    pre = checkpoint.metadata.get(f"{_KEY}pre", "default")
    if pre not in SPLITTING:
        known = " ".join(SPLITTING)
        text = f"tokenizer.ggml.pre is {ascii(pre)[:40]}; read are {known}"
        raise checkpoint.error(None, text)
    whole = pre in WHOLE_PIECES
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole))
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(rule), behavior="isolated") for rule in SPLITTING[pre]
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _scored(checkpoint: Checkpoint, tokens: list[str], ids: dict[str, int]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE as merges in the order of their scores."""
    scores = _numbers(checkpoint, "scores", len(tokens))
    if scores is None:
        raise checkpoint.error(
            None, "tokenizer.ggml.scores is missing; a score a token is required"
        )
    # Every cut of every token is looked at: real tokens have some ten characters.
    if sum(len(token) ** 2 for token in tokens) > _MOST_CUT:
        longest = max(map(len, tokens))
        raise checkpoint.error(
            None, f"tokenizer.ggml.tokens has texts of up to {longest} characters; fewer are read"
        )
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores.tolist(), strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], left, right))
    merges.sort()
    unknown = checkpoint.metadata.get(f"{_KEY}unknown_token_id", 0)
    named = tokens[unknown] if type(unknown) is int and 0 <= unknown < len(tokens) else None
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(left, right) for *_, left, right in merges],
            unk_token=named,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = checkpoint.metadata.get(f"{_KEY}add_space_prefix", True) is True
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ends: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return backend


def _unigram(
    checkpoint: Checkpoint, tokens: list[str], ids: dict[str, int]
) -> tokenizers.Tokenizer:
    scores = _numbers(checkpoint, "scores", len(tokens))
    if scores is None:
        raise checkpoint.error(
            None, "tokenizer.ggml.scores is missing; a score a token is required"
        )
    unknown = checkpoint.metadata.get(f"{_KEY}unknown_token_id", 2)
    if type(unknown) is not int or not 0 <= unknown < len(tokens):
        raise checkpoint.error(None, f"tokenizer.ggml.unknown_token_id is {ascii(unknown)[:20]}")
    vocabulary = list(zip(tokens, scores.tolist(), strict=True))
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    steps: list[Any] = []
    table = checkpoint.metadata.get(f"{_KEY}precompiled_charsmap")
    if isinstance(table, np.ndarray) and len(table):
        data = table.astype(np.uint8).tobytes()
        check_charsmap(data, checkpoint.path)
        steps.append(normalizers.Precompiled(data))
    if checkpoint.metadata.get(f"{_KEY}remove_extra_whitespaces", False) is True:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    prefix = checkpoint.metadata.get(f"{_KEY}add_space_prefix", True) is True
    scheme = "always" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme)
    return backend


_BUILDERS = {"gpt2": _byte_level, "llama": _scored, "t5": _unigram}


def _add_special(backend: tokenizers.Tokenizer, checkpoint: Checkpoint, tokens: list[str]) -> None:
    kinds = _numbers(checkpoint, "token_type", len(tokens))
    if kinds is None:
        return
    control = [tokens[n] for n in np.flatnonzero((kinds == CONTROL) | (kinds == UNKNOWN))]
    defined = [tokens[n] for n in np.flatnonzero(kinds == USER_DEFINED)]
    backend.add_special_tokens([AddedToken(text, special=True) for text in control if text])
    backend.add_tokens([AddedToken(text, normalized=False) for text in defined if text])


def _special(checkpoint: Checkpoint, tokens: list[str]) -> dict[str, str]:
    found = {}
    for name, key in SPECIAL_IDS.items():
        value = checkpoint.metadata.get(_KEY + key)
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < len(tokens):
            text = f"{_KEY}{key} is {ascii(value)[:20]}; a token below {len(tokens)} is required"
            raise checkpoint.error(None, text)
        found[name] = tokens[value]
    return found


def _add_ends(
    backend: tokenizers.Tokenizer,
    checkpoint: Checkpoint,
    special: dict[str, str],
    ids: dict[str, int],
    kind: str,
) -> None:
    """The tokens put around a prompt."""
    by_habit = kind == "llama" or checkpoint.metadata.get(f"{_KEY}pre") in BEGINNING
    begins = checkpoint.metadata.get(f"{_KEY}add_bos_token", by_habit) is True
    ends = checkpoint.metadata.get(f"{_KEY}add_eos_token", kind == "t5") is True
    bos = special.get("bos_token") if begins else None
    eos = special.get("eos_token") if ends else None
    pieces = [piece for piece in (bos, "$A:0", eos) if piece]
    if len(pieces) > 1:
        known: list[Any] = [(piece, ids[piece]) for piece in (bos, eos) if piece]
        backend.post_processor = processors.TemplateProcessing(
            single=[p if p == "$A:0" else f"{p}:0" for p in pieces], special_tokens=known
        )


def _templates(checkpoint: Checkpoint) -> dict[str, str]:
    start = "tokenizer.chat_template"
    found = {}
    for key, value in checkpoint.metadata.items():
        if isinstance(value, str) and (key == start or key.startswith(start + ".")):
            found[key.removeprefix(start).removeprefix(".") or "default"] = value
    return found
