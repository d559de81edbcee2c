"""Text to ids and back, by the checkpoint's own tokenizer.json.

Files of the directory: `tokenizer.json` (vocabulary, splitting, special tokens added around a
prompt), `tokenizer_config.json` and `special_tokens_map.json` (names of the special tokens, chat
template), `chat_template.jinja`.
"""

import json
import os
import re
from base64 import b64decode
from binascii import Error as BinasciiError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tokenizers
from tokenizers import processors

from . import checkpoint
from .errors import FileError

# Letters written as escapes, which may spell a word that is looked for.
_ESCAPED_LETTER = re.compile(r"\\u00[4-7]")
MAX_TOKENIZER_BYTES = 256 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """`encode` and `decode`; `special` has the texts of bos_token, eos_token, ... by name."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        path: str = "tokenizer.json",
    ) -> None:
        self.backend = backend
        self.special = dict(special or {})
        self.chat_templates = dict(chat_templates or {})
        self.path = path

    def __repr__(self) -> str:
        return f"Tokenizer({self.path}, {len(self)} tokens)"

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with the tokens that the tokenizer puts around a prompt."""
        if not isinstance(text, str):
            raise TypeError(f"[encode] text is a {type(text).__name__}; a str is required")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"[encode] character {error.start} of the text is a lone surrogate; "
                "text that UTF-8 can hold is required"
            ) from None
        with refusing(self.path):  # a broken file may show in its use only
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        with refusing(self.path):
            return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token: int) -> str:
        """The text of one token, special ones by their name."""
        text = self.decode([token], skip_special_tokens=False)
        return text if text else (self.backend.id_to_token(token) or "")

    def id_of(self, token: str) -> int | None:
        """The id of a token given by its name in the vocabulary."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)


class TextStream:
    """Ids in one by one, text out: a piece comes when its bytes are complete UTF-8.

    Joined, the pieces are what `decode` gives for all ids after the prompt. `prompt` gives the
    context: some tokenizers write a space or not depending on what stands before.
    """

    # Enough for any context that a decoder looks at.
    _CONTEXT = 6

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = [int(token) for token in prompt[-self._CONTEXT :]]
        self._shown = tokenizer.decode(self._window)
        # A prompt that ends in half a character must not hold the first pieces back.
        if self._shown.endswith("\ufffd"):
            self._window, self._shown = [], ""
        self._read = len(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes, "" while a character is incomplete."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd"):
            return ""
        return self._take(text)

    def finish(self) -> str:
        """What is left: bytes that never became a character."""
        return self._take(self._tokenizer.decode(self._window))

    def _take(self, text: str) -> str:
        piece = text[len(self._shown) :]
        # The tokens shown last become the context of the next ones.
        self._window = self._window[self._read :] or self._window
        self._read = len(self._window)
        self._shown = self._tokenizer.decode(self._window)
        return piece


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory; None if it has no tokenizer.json."""
    if not checkpoint.has_file(directory, "tokenizer.json"):
        return None
    path = os.path.join(os.fsdecode(directory), "tokenizer.json")
    text = checkpoint.read_text(directory, "tokenizer.json", MAX_TOKENIZER_BYTES)
    backend = backend_of(text, path)
    config = _optional_json(directory, "tokenizer_config.json")
    special = _special_tokens(_optional_json(directory, "special_tokens_map.json"))
    special |= _special_tokens(config)
    result = Tokenizer(backend, special, _chat_templates(directory, config), path)
    _add_begin_and_end(result, config)
    return result


def backend_of(text: str, path: str) -> tokenizers.Tokenizer:
    """What a tokenizer.json says; FileError where it is broken."""
    if "Precompiled" in text or _ESCAPED_LETTER.search(text):
        _check_normalizers(text, path)
    with refusing(path):
        backend = tokenizers.Tokenizer.from_str(text)
    # Padding and truncation of a training run would cut prompts.
    backend.no_padding()
    backend.no_truncation()
    return backend


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Turn what the binding raises into a FileError: plain Exceptions, and panics beyond them."""
    try:
        yield
    except FileError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FileError(f"[tokenizer] {path}: {str(error)[:200]}") from error


def _check_normalizers(text: str, path: str) -> None:
    try:
        found: list[object] = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise FileError(f"[tokenizer] {path}: {str(error)[:200]}") from error
    while found:
        value = found.pop()
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, (list, dict))]
        elif isinstance(value, dict):
            table = value.get("precompiled_charsmap")
            if isinstance(table, str):
                try:
                    check_charsmap(b64decode(table, validate=True), path)
                except BinasciiError as error:
                    raise FileError(f"[tokenizer] {path}: precompiled_charsmap: {error}") from error
            found += [item for item in value.values() if isinstance(item, (list, dict))]


def check_charsmap(table: bytes, path: str) -> None:
    """FileError unless it is a trie of as many bytes as it says, and text behind it.

    SentencePiece's table of character replacements; the library that reads it believes its sizes.
    """
    size = int.from_bytes(table[:4], "little")
    whole = len(table) >= 4 and size % 4 == 0 and 0 < size <= len(table) - 4
    try:
        table[4 + size :].decode("utf-8")
    except UnicodeDecodeError:
        whole = False
    if not whole:
        raise FileError(
            f"[tokenizer] {path}: precompiled_charsmap has {len(table)} bytes, of which a trie "
            f"takes {size}; whole words of a trie and UTF-8 text behind it are required"
        )


def _optional_json(directory: str | os.PathLike[str], name: str) -> dict[str, object]:
    if not checkpoint.has_file(directory, name):
        return {}
    return checkpoint.read_json(directory, name)


def _special_tokens(fields: Mapping[str, object]) -> dict[str, str]:
    found = {}
    for name in _SPECIAL:
        value = fields.get(name)
        if isinstance(value, dict):  # an AddedToken with its options
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _chat_templates(
    directory: str | os.PathLike[str], config: Mapping[str, object]
) -> dict[str, str]:
    """Templates by name; a chat_template.jinja counts more than the configuration's."""
    value = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                templates[str(item.get("name"))] = item["template"]
    if checkpoint.has_file(directory, "chat_template.jinja"):
        templates["default"] = checkpoint.read_text(directory, "chat_template.jinja", 1 << 20)
    elif checkpoint.has_file(directory, "chat_template.json"):
        other = checkpoint.read_json(directory, "chat_template.json").get("chat_template")
        if isinstance(other, str):
            templates["default"] = other
    return templates


def _add_begin_and_end(tokenizer: Tokenizer, config: Mapping[str, object]) -> None:
    """Obey add_bos_token and add_eos_token, which transformers puts above the post-processor."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    bos = tokenizer.special.get("bos_token") if config.get("add_bos_token") is True else None
    eos = tokenizer.special.get("eos_token") if config.get("add_eos_token") is True else None
    pieces = [piece for piece in (bos, "$A:0", eos) if piece]
    ids = [(piece, tokenizer.id_of(piece)) for piece in (bos, eos) if piece]
    for piece, found in ids:
        if found is None:
            raise FileError(
                f"[tokenizer] {tokenizer.path}: special token {json.dumps(piece)[:80]} of "
                "tokenizer_config.json is not in the vocabulary"
            )
    known: list[Any] = ids
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single=" ".join(p if p == "$A:0" else f"{p}:0" for p in pieces), special_tokens=known
    )
