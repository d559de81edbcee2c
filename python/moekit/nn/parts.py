"""Going through the parts of a model, whatever its family: what it holds, and a copy with changes.

A part is an object with a method `weights`, or an `Experts`. Its attributes are followed into
lists and dictionaries; everything else is left alone. Parts that occur twice stay one.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..ops import Experts, PackedWeight

Held: TypeAlias = PackedWeight | npt.NDArray[Any]
Part = TypeVar("Part")
# (path of attributes, what stands there) -> the same object, or what is to stand there.
Swap: TypeAlias = Callable[[str, Any], Any]

# What a model knows about itself and its file, and what parts make anew when they need it.
_NOT_FOLLOWED = {
    "config",
    "tokenizer",
    "placed",
    "quantization",
    "pages",
    "expert_origin",
    "_banks",
    "_everyone",
    "_steps",
}


def held(part: object) -> Iterator[tuple[str, Held]]:
    """Every array and packed weight of `part` once, with the path of its first occurrence."""
    found: dict[str, Held] = {}

    def look(path: str, value: Any) -> Any:
        if isinstance(value, (PackedWeight, np.ndarray)):
            found[path] = value
        return value

    rebuilt(part, look)
    yield from found.items()


def rebuilt(part: Part, swap: Swap) -> Part:
    """`part` with what `swap` exchanges; parts above an exchange are copies, all others shared.

    `swap` sees parts before what they hold; a part that it exchanges is not followed. It sees each
    object once.
    """
    result: Part = _Rebuilding(swap).of("", part, top=True)
    return result


def replaced(part: Part, exchanges: dict[int, Any]) -> Part:
    """`part` with objects exchanged by their `id`."""
    return rebuilt(part, lambda _, value: exchanges.get(id(value), value))


def is_part(value: object) -> bool:
    """True for what `rebuilt` follows."""
    return isinstance(value, Experts) or (
        not isinstance(value, type) and callable(getattr(value, "weights", None))
    )


class _Rebuilding:
    def __init__(self, swap: Swap) -> None:
        self._swap = swap
        # The originals are kept alive with the results: an id must not be used again meanwhile.
        self._seen: dict[int, tuple[Any, Any]] = {}

    def of(self, path: str, value: Any, top: bool = False) -> Any:
        follow = is_part(value)
        if not follow and not isinstance(value, (PackedWeight, np.ndarray, list, tuple, dict)):
            return value
        if id(value) in self._seen:
            return self._seen[id(value)][1]
        result = value
        if follow or isinstance(value, (PackedWeight, np.ndarray)):
            result = value if top else self._swap(path, value)
            if result is value and follow:
                result = self._part(path, value)
        elif isinstance(value, dict):
            result = self._dict(path, value)
        else:
            result = self._sequence(path, value)
        self._seen[id(value)] = (value, result)
        return result

    def _part(self, path: str, part: Any) -> Any:
        prefix = f"{path}." if path else ""
        changes = {}
        names = attributes(part)
        for name in names:
            value = getattr(part, name, None)
            # Paths are read by people and stand in files: `_router` goes by its public name.
            public = name.lstrip("_")
            new = self.of(prefix + (name if public in names else public), value)
            if new is not value:
                changes[name] = new
        if not changes:
            return part
        result = copy.copy(part)
        for name, new in changes.items():
            object.__setattr__(result, name, new)
        if isinstance(result, Experts):
            result.rebind()
        return result

    def _dict(self, path: str, value: dict[Any, Any]) -> dict[Any, Any]:
        new = {key: self.of(f"{path}.{key}", item) for key, item in value.items()}
        return new if any(new[key] is not value[key] for key in value) else value

    def _sequence(self, path: str, value: Any) -> Any:
        new = [self.of(f"{path}.{i}", item) for i, item in enumerate(value)]
        if all(a is b for a, b in zip(new, value, strict=True)):
            return value
        if hasattr(value, "_fields"):
            return type(value)(*new)
        return type(value)(new)


def attributes(part: object) -> list[str]:
    """Names of what a part holds, of its own class and those above; caches left out."""
    names = [
        name
        for kind in type(part).__mro__
        for name in _slots(kind)
        if name not in _NOT_FOLLOWED and not name.startswith("__")
    ]
    names += [name for name in getattr(part, "__dict__", {}) if name not in _NOT_FOLLOWED]
    return sorted(set(names), key=names.index)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
