"""Jinja2's immutable sandbox with bounds: a template can neither fill memory nor run for long.

Every loop is counted, and every call; what makes much text out of little (operators, filters and
methods that join, repeat, pad or replace) is measured before it is made. Templates are compiled
with counting loops and concatenations, so that no way around them remains.
"""

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import wraps
from itertools import islice
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_RENDERED_CHARACTERS = 4 << 20
#: Rounds of loops and calls in one rendering, and characters that are written in all of them.
MAX_STEPS = 1 << 18
MAX_WORK = 1 << 30
_PLACE_BYTES = 64  # a place in a list, or in a dict, beside what lies there
_COUNTED, _BOUNDED = "_counted", "_bounded"
# Methods and filters that write text of any length asked for.
_WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})
_WIDENING |= {"translate"}
# Bytes have operators and methods of their own, none of them measured.
_TO_BYTES = frozenset({"encode", "to_bytes"})
# Filters that make a text of whatever they are given.
_WRITING = frozenset(
    {"capitalize", "e", "escape", "forceescape", "indent", "lower", "replace", "safe", "string"}
    | {"striptags", "title", "trim", "truncate", "upper", "urlencode", "wordcount"}
)
# Filters of Jinja2 that do so, and have no use in a conversation.
_LEFT_OUT = ("center", "format", "batch", "slice", "wordwrap", "urlize", "xmlattr", "pprint")


class Budget:
    """What one rendering has used."""

    def __init__(self) -> None:
        self.steps = 0
        self.work = 0

    def step(self) -> None:
        """One more round or call."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SecurityError(f"more than {MAX_STEPS} rounds of loops and calls")

    @staticmethod
    def require(characters: int) -> None:
        """SecurityError for a text, or a list, of too many parts."""
        if characters > MAX_RENDERED_CHARACTERS:
            raise SecurityError(
                f"text of {characters} characters; at most {MAX_RENDERED_CHARACTERS} are written"
            )

    def keep(self, made: Any) -> Any:
        """What a filter made: each grows little by little, or makes a list out of a text."""
        self.step()
        if isinstance(made, str):
            self.write(len(made))
        elif isinstance(made, list | tuple | dict):
            self.write(len(made))
            self.work += _PLACE_BYTES * len(made)
        return made

    def write(self, characters: int) -> None:
        """A text, or a list, of so many parts is about to be made."""
        self.require(characters)
        self.work += characters
        if self.work > MAX_WORK:
            raise SecurityError(f"more than {MAX_WORK} characters on the way to the text")


#: The budget of the rendering that runs in this context.
budget: ContextVar[Budget] = ContextVar("budget")


class _Counting(NodeTransformer):
    """Loops over counted items; what is written or concatenated is of bounded length."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            _filtered(part, _BOUNDED)
            if isinstance(part, nodes.Expr) and not isinstance(part, nodes.TemplateData)
            else part
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(part, _BOUNDED) for part in node.nodes]
        return _filtered(node, _BOUNDED)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    used = budget.get()
    for item in items:
        used.step()
        yield item


def _bounded(value: Any) -> Any:
    budget.get().write(written_length(value))
    return value


def written_length(value: Any) -> int:
    """About how many characters ``value`` has as a text; no more than twice the bound is counted.

    A list that holds one long text a thousand times is small, and what it is written as is not.
    """
    if isinstance(value, str):
        return len(value)
    length, waiting = 0, [value]
    while waiting and length <= 2 * MAX_RENDERED_CHARACTERS:
        part = waiting.pop()
        if isinstance(part, str):
            length += len(part) + 2
        elif isinstance(part, list | tuple | set | frozenset | dict):
            length += 2 + 2 * len(part)
            budget.get().require(length)
            waiting.extend(part)
            waiting.extend(part.values() if isinstance(part, dict) else ())
        else:
            length += 8
    return length


def _join(separator: str, items: Iterable[Any]) -> str:
    parts = list(islice(items, MAX_STEPS))
    budget.get().require(written_length(parts))
    texts = [str(item) for item in parts]
    budget.get().write(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old) if count < 0 else min(text.count(old), count)
    budget.get().write(len(text) + found * max(0, len(new) - len(old)))
    return text.replace(old, new, count)


# Methods of texts that are called in these ways instead.
_METHODS: dict[str, Callable[..., str]] = {"join": _join, "replace": _replace}


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on everything that makes much out of little."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in _LEFT_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        for name in ("join", "replace", "indent", "sum"):
            self.filters[name] = _measured(self.filters[name], name)
        for name, original in self.filters.items():
            self.filters[name] = _kept(original, name in _WRITING)
        self.filters[_COUNTED], self.filters[_BOUNDED] = _counted, _bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        changed = _Counting().visit(tree)
        assert isinstance(changed, nodes.Template)
        return changed

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise SecurityError(f"exponent {right} is above 64")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text formatting is not offered")
        if operator == "*":
            for items, count in ((left, right), (right, left)):
                if isinstance(items, str | list | tuple) and isinstance(count, int):
                    budget.get().write(len(items) * max(0, count))
        if operator == "+" and isinstance(left, str | list | tuple):
            budget.get().write(len(left) + (len(right) if hasattr(right, "__len__") else 0))
        for number in (left, right):
            if isinstance(number, int) and number.bit_length() > 4096:
                raise SecurityError("a number of more than 4096 bits")
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget.get().step()
        if isinstance(obj, jinja2.runtime.LoopContext):  # a loop that calls itself
            args = (_counted(args[0]), *args[1:])
        text = getattr(obj, "__self__", None)
        method = _METHODS.get(getattr(obj, "__name__", "")) if isinstance(text, str) else None
        if method is not None:
            return method(text, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        """No formatting of texts, which is given widths; `is_safe_attribute` then refuses it."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        widens = isinstance(obj, str) and attr in _WIDENING
        return not widens and attr not in _TO_BYTES and super().is_safe_attribute(obj, attr, value)


def _kept(original: Callable[..., Any], writes: bool) -> Callable[..., Any]:
    """A filter whose results count; it takes the context where the original does."""

    @wraps(original)
    def kept(*args: Any, **kwargs: Any) -> Any:
        used = budget.get()
        if writes:
            for value in (*args, *kwargs.values()):
                used.require(written_length(value))
        return used.keep(original(*args, **kwargs))

    return kept


def _measured(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter of Jinja2 with the length of what it makes bounded first; its own arguments."""

    @jinja2.pass_eval_context
    def join(context: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> Any:
        items = list(islice(value, MAX_STEPS))
        if attribute is None:
            _join(str(d), items)
        return original(context, items, d, attribute)

    @jinja2.pass_eval_context
    def replace(context: Any, s: Any, old: str, new: str, count: int | None = None) -> Any:
        _replace(str(s), str(old), str(new), -1 if count is None else count)
        return original(context, s, old, new, count)

    def indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
        wide = len(width) if isinstance(width, str) else int(width)
        budget.get().write(len(s) + (str(s).count("\n") + 1) * max(0, wide))
        return original(s, width, first, blank)

    @jinja2.pass_environment
    def total(
        environment: Any, iterable: Iterable[Any], attribute: Any = None, start: Any = 0
    ) -> Any:
        items = list(islice(iterable, MAX_STEPS))
        # With an attribute the items are added to `start`: a number takes numbers alone.
        added = items if attribute is None else ()
        if not all(isinstance(number, int | float) for number in (start, *added)):
            raise SecurityError("sums of something else than numbers are not offered")
        return original(environment, items, attribute, start)

    made: dict[str, Any] = {"join": join, "replace": replace, "indent": indent, "sum": total}
    function: Callable[..., Any] = made[name]
    return function
