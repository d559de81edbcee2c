"""A conversation as one text, by the checkpoint's own chat template.

Templates are programs of strangers: they run in a sandbox (`chat_sandbox`), at most 64 KB long.
They may call the functions that transformers offers them.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from .chat_sandbox import Budget, Sandbox, budget, written_length
from .errors import FileError
from .tokenizer import Tokenizer

MAX_TEMPLATE_BYTES = 64 << 10


class _GenerationTag(Extension):
    """{% generation %} marks what an assistant says, for training; here it only encloses."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < and > as escapes, which a model has never seen.
    budget.get().require(written_length(value))
    if separators is not None and max(map(len, separators)) > 16:
        raise jinja2.exceptions.SecurityError("separators of more than 16 characters")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=None if indent is None else min(int(indent), 16),
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, ready for `tokenizer.encode(text, add_special_tokens=False)`.

    `messages` are mappings with a `role`; `variables` are what the template knows besides them:
    `tools`, `documents`, `enable_thinking`, .... FileError where the template is broken or
    refuses the conversation, with its own words; ValueError for messages that are no messages.
    """
    plain = _plain(list(messages))
    if not plain:
        raise ValueError("[chat] messages is empty; at least one message is required")
    for i, message in enumerate(plain):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"[chat] messages[{i}] has no role; {{'role', 'content'}} is required")
    extra = {"tools": None, "documents": None, **(variables or {})}
    template = _template_of(tokenizer, bool(extra["tools"]))
    size = len(template.encode())
    if size > MAX_TEMPLATE_BYTES:
        raise FileError(
            f"[chat] {tokenizer.path}: chat template of {size} bytes; "
            f"at most {MAX_TEMPLATE_BYTES} are run"
        )
    written: list[str] = []
    length = 0
    used = Budget()
    token = budget.set(used)
    try:
        for piece in _compile(template).generate(
            messages=plain,
            add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special, **_plain(extra)},
        ):
            length += len(piece)
            used.require(length)
            written.append(piece)
    except jinja2.exceptions.TemplateError as error:
        raise FileError(f"[chat] {tokenizer.path}: chat template: {error}") from error
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        RecursionError,
        MemoryError,
        AssertionError,
        AttributeError,
    ) as error:
        # What a template's own slips raise while it runs.
        kind = type(error).__name__
        raise FileError(f"[chat] {tokenizer.path}: chat template: {kind}: {error}") from error
    finally:
        budget.reset(token)
    return "".join(written)


def _template_of(tokenizer: Tokenizer, with_tools: bool) -> str:
    templates = tokenizer.chat_templates
    for name in ("tool_use", "default") if with_tools else ("default",):
        if name in templates:
            return templates[name]
    found = ", ".join(templates) or "none"
    raise FileError(
        f"[chat] {tokenizer.path}: chat templates: {found}; one named default is required"
    )


def _plain(value: Any) -> Any:
    """The value built anew of plain JSON types: a template must not meet objects with methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise ValueError(
        f"[chat] a {type(value).__name__} in messages; text, numbers, lists and mappings are read"
    )
