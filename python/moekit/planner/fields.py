"""Reading a model configuration field by field, with every value checked before it is used.

Arithmetic on a configuration needs no memory, so nothing here is bounded by the machine; the
limits are what no published model comes near. They turn a slipped digit into an error that names
the field instead of a plan for a model that cannot exist.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_LAYERS = 10_000
MAX_EXPERTS = 1 << 20  # the largest published layer has 131,072 (arXiv 1701.06538)
MAX_WIDTH = 1 << 24  # hidden sizes, expert widths, ranks, head sizes
MAX_VOCABULARY = 1 << 28
MAX_TOKENS = 1 << 40  # contexts, windows, batches

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Flag:
    """A true/false field of the configuration and the value it has when left out."""

    name: str
    default: bool = False


Names = str | tuple[str, ...]


class Fields:
    """A configuration with checked access; every error names the field and its value."""

    def __init__(self, config: Mapping[str, Any], model_type: str) -> None:
        self.config = config
        self.model_type = model_type

    def error(self, name: str, requirement: str) -> ValueError:
        """The error for the field `name`; the caller raises it."""
        value = self.config.get(name, _MISSING)
        given = "is missing" if value is _MISSING else f"is {short(value)}"
        return ValueError(f"[plan_model] {self.model_type}: {name} {given}; {requirement}")

    def check_finite(self) -> None:
        """Refuses NaN anywhere and infinities but in a limit (Mamba's time_step_limit)."""
        waiting = [(str(name), value) for name, value in self.config.items()]
        met: set[int] = set()  # a mapping from Python may hold itself
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, Mapping | list | tuple):
                if id(value) in met:
                    continue
                met.add(id(value))
            if isinstance(value, Mapping):
                waiting += [(f"{name}.{inner}", entry) for inner, entry in value.items()]
            elif isinstance(value, list | tuple):
                waiting += [(name, entry) for entry in value]
            elif value in (math.inf, -math.inf) and name.endswith("_limit"):
                continue
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"[plan_model] {self.model_type}: {short(name)[1:-1]} is {value}; "
                    "a finite number is required"
                )

    def find(self, names: Names) -> tuple[str, Any]:
        """The first of `names` that the configuration holds, with its value; null comes last."""
        listed = (names,) if isinstance(names, str) else names
        present = [name for name in listed if name in self.config]
        for name in present:
            if self.config[name] is not None:
                return name, self.config[name]
        return (present[0], None) if present else (listed[0], _MISSING)

    def has(self, names: Names) -> bool:
        """Whether one of `names` is present and not null."""
        value = self.find(names)[1]
        return value is not _MISSING and value is not None

    def size(
        self,
        names: Names,
        default: int | None = None,
        *,
        null: int | None = None,
        low: int = 1,
        high: int = MAX_WIDTH,
    ) -> int:
        """An integer in [low, high].

        `default` stands in for a field that is left out, `null` (else `default`) for JSON null;
        without them the field is required.
        """
        name, value = self.find(names)
        if value is None:
            value = null if null is not None else default
        elif value is _MISSING:
            value = default
        if value is None:
            others = [] if isinstance(names, str) else [other for other in names if other != name]
            also = f" (as {' or '.join(others)} it would be read too)" if others else ""
            raise self.error(name, f"an integer from {low} to {high} is required{also}")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"an integer from {low} to {high} is required")
        return value

    def layers(self, names: Names) -> int:
        return self.size(names, high=MAX_LAYERS)

    def experts(self, names: Names, default: int | None = None, *, low: int = 1) -> int:
        return self.size(names, default, low=low, high=MAX_EXPERTS)

    def top_k(self, names: Names, experts: int, default: int | None = None) -> int:
        """Experts per token; never more than there are. A list must agree on all layers."""
        name, value = self.find(names)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            return Fields({name: value[0]}, self.model_type).top_k(name, experts)
        top_k = self.size(names, default, high=MAX_EXPERTS)
        if top_k > experts:
            name = self.find(names)[0]
            raise self.error(name, f"at most the number of experts, {experts}, can be chosen")
        return top_k

    def flag(self, flag: bool | Flag) -> bool:
        """A constant of the family, or the value of a true/false field."""
        if isinstance(flag, bool):
            return flag
        value = self.config.get(flag.name)
        if value is None:
            return flag.default
        if not isinstance(value, bool):
            raise self.error(flag.name, "true or false is required")
        return value

    def choices(self, names: Names, count: int, allowed: Sequence[str]) -> list[str] | None:
        """A list with one of `allowed` for each of `count` layers, or None when left out."""
        name, value = self.find(names)
        if value is _MISSING or value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) < count:
            raise self.error(name, f"a list with an entry for each of {count} layers is required")
        for entry in value:
            if entry not in allowed:
                raise ValueError(
                    f"[plan_model] {self.model_type}: {name} holds {short(entry)}; "
                    f"known kinds are {', '.join(allowed)}"
                )
        return list(value[:count])

    def integers(self, names: Names, *, low: int, high: int) -> list[int] | None:
        """A list of integers in [low, high], or None when left out."""
        name, value = self.find(names)
        if value is _MISSING or value is None:
            return None
        ok = isinstance(value, list | tuple) and all(
            isinstance(v, int) and not isinstance(v, bool) and low <= v <= high for v in value
        )
        if not ok:
            raise self.error(name, f"a list of integers from {low} to {high} is required")
        return list(value)

    def section(self, name: str) -> Fields:
        """A nested object of the configuration (DBRX keeps its sizes in two)."""
        value = self.config.get(name)
        if not isinstance(value, Mapping):
            raise self.error(name, "an object is required")
        return Fields(value, f"{self.model_type}.{name}")


def check_count(name: str, value: Any, *, low: int = 0, high: int = MAX_TOKENS) -> int:
    """An integer argument of the planner itself (context, batch) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"[plan_model] {name} is {short(value)}; an integer from {low} to {high} is required"
        )
    return value


def check_number(name: str, value: Any, *, above: float = 0.0, most: float = math.inf) -> float:
    """A finite number argument greater than `above` and at most `most`."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not abs(value) <= sys.float_info.max or not above < value <= most:
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise ValueError(
            f"[plan_model] {name} is {short(value)}; a number above {above:g}{limit} is required"
        )
    return float(value)


def short(value: object) -> str:
    """`value` as a few characters: a message stays one line whatever a file holds."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return f"an integer of about {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits somewhere inside
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
