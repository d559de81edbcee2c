"""JSON as the formats mean it: one reading only, bounded depth.

Python's parser accepts a repeated key (the last one wins), NaN, and 1e999 as infinity; each is a
way to make two readers see two different files.
"""

import json
import math
from collections.abc import Callable

from ..errors import FileError

MAX_DEPTH = 64


class _Refused(Exception):
    """What is wrong, found inside a hook of the parser."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"key {ascii(key)[:120]} stands twice in one object")
            seen.add(key)
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"number {text[:40]} does not fit a double")
    return value


def _no_constant(text: str) -> float:
    raise _Refused(f"{text} is not a number of JSON")


def _infinity(text: str) -> float:
    return float(text) if text != "NaN" else _no_constant(text)


def parse_object(
    data: bytes | bytearray,
    error: Callable[[str], FileError],
    what: str,
    *,
    infinity: bool = False,
) -> dict[str, object]:
    """The JSON object in `data` (UTF-8, no byte-order mark).

    `error` makes the exception and `what` names the text in it. With `infinity`, Infinity and
    -Infinity are read (transformers writes them in configurations); NaN never is.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_infinity if infinity else _no_constant,
        )
    except UnicodeDecodeError as problem:
        raise error(f"{what} is not UTF-8 at byte {problem.start}") from problem
    except _Refused as problem:
        raise error(f"{what}: {problem}") from None
    except RecursionError:
        raise error(f"{what} is nested too deep; {MAX_DEPTH} levels are read") from None
    except ValueError as problem:
        raise error(f"{what} is not JSON: {str(problem)[:120]}") from problem
    if not isinstance(value, dict):
        raise error(f"{what} is a {type(value).__name__}; a JSON object is required")
    if _too_deep(value):
        raise error(f"{what} is nested too deep; {MAX_DEPTH} levels are read")
    return value


def _too_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(x for x in item.values() if isinstance(x, (dict, list)))
            elif isinstance(item, list):
                inner.extend(x for x in item if isinstance(x, (dict, list)))
        if not inner:
            return False
        level = inner
    return True


def is_text(value: object) -> bool:
    """True for a string that UTF-8 can hold (JSON can spell lone surrogates, which it cannot)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
