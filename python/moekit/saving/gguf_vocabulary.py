"""The vocabulary of a GGUF file: a tokenizer's tables as llama.cpp reads them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..gguf_splitting import name_of
from ..gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL_IDS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE,
)
from ..tokenizer import Tokenizer


def vocabulary(tokenizer: Tokenizer | None, size: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """The keys `tokenizer.*`.

    A tokenizer that llama.cpp has no rules for goes along as Hugging Face's document, under the
    key that the format has for it, with a warning: llama.cpp then takes ids and no text.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    document = json.loads(tokenizer.backend.to_str())
    found = _tables(document, size)
    if found is None:
        warnings.warn(
            "[save] llama.cpp has no rules that cut text as this tokenizer does; the file has the "
            "tokenizer for moekit, and llama.cpp runs it on ids alone",
            stacklevel=2,
        )
        found = {"tokenizer.ggml.model": "none", WHOLE: tokenizer.backend.to_str()}
    for name, key in SPECIAL_IDS.items():
        token = tokenizer.id_of(tokenizer.special[name]) if name in tokenizer.special else None
        if token is not None and token < size:
            found[f"tokenizer.ggml.{key}"] = token
    if end_ids:
        found["tokenizer.ggml.eos_token_id"] = int(end_ids[0])
    if len(end_ids) > 1:
        found["tokenizer.ggml.eot_token_id"] = int(end_ids[1])
    begins = tokenizer.encode("a")
    plain = tokenizer.encode("a", add_special_tokens=False)
    bos = found.get("tokenizer.ggml.bos_token_id")
    found["tokenizer.ggml.add_bos_token"] = begins[:1] == [bos] and begins != plain
    if begins != plain and begins[-1:] == [found.get("tokenizer.ggml.eos_token_id")]:
        found["tokenizer.ggml.add_eos_token"] = True
    for name, text in tokenizer.chat_templates.items():
        end = "" if name == "default" else f".{name}"
        found[f"tokenizer.chat_template{end}"] = text
    return found


def _tables(document: Mapping[str, Any], size: int) -> dict[str, Any] | None:
    """The vocabulary as llama.cpp reads it; None for a kind or a way of cutting it has not."""
    model = document["model"]
    if (model.get("type") or ("BPE" if "merges" in model else "?")) != "BPE":
        return None
    tokens, kinds = _tokens(document, size)
    sentencepiece = model.get("byte_fallback")
    found = _sentencepiece(document, tokens, kinds) if sentencepiece else _byte_level(document)
    if found is not None:
        found["tokenizer.ggml.tokens"] = tokens
        found["tokenizer.ggml.token_type"] = np.array(kinds, np.int32)
    return found


def _tokens(document: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{n}]" for n in range(size)]
    kinds = [UNUSED] * size
    for text, n in document["model"]["vocab"].items():
        if n < size:
            tokens[n], kinds[n] = text, NORMAL
    for added in document.get("added_tokens", ()):
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def _byte_level(document: Mapping[str, Any]) -> dict[str, Any] | None:
    rules = _rules(document.get("pre_tokenizer"))
    whole = bool(document["model"].get("ignore_merges"))
    name = name_of(rules, whole)
    if name is None or (document.get("normalizer") or {}).get("type") not in (None, "NFC"):
        return None
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": merges,
    }


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _rules(pre: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The expressions of a pre-tokenizer, () for what cannot be said by any."""
    if pre is None:
        return ()
    if pre["type"] == "Sequence":
        steps = [_rules(step) for step in pre["pretokenizers"]]
        return tuple(rule for step in steps for rule in step)
    if pre["type"] == "Split" and pre["behavior"] == "Isolated" and not pre.get("invert"):
        pattern = pre["pattern"]
        return (pattern.get("Regex") or "",)
    if pre["type"] == "Digits" and pre.get("individual_digits"):
        return (r"\p{N}",)
    if pre["type"] == "ByteLevel" and not pre.get("add_prefix_space"):
        return (_GPT2,) if pre.get("use_regex", True) else ()
    return (str(pre["type"]),)


def _sentencepiece(
    document: Mapping[str, Any], tokens: Sequence[str], kinds: list[int]
) -> dict[str, Any]:
    """Merges as scores: a token scores less the later its merge comes."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(document["model"]["merges"]):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    scores = np.zeros(len(tokens), np.float32)
    last = len(ranks)
    for n, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[n] = BYTE
        elif kinds[n] == NORMAL:
            scores[n] = -float(ranks.get(token, last + n))
    unknown = document["model"].get("unk_token")
    if unknown in tokens:
        kinds[list(tokens).index(unknown)] = UNKNOWN
    prefix = "Prepend" in json.dumps(document.get("normalizer"))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
