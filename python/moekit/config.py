"""A model's config.json read with checks: each field by name, each fault named with its value.

Fields have several spellings over the years (`num_local_experts`, `num_experts`); a reader lists
them and the first one present counts. `null` counts as absent, as in transformers.
"""

from collections.abc import Iterator, Mapping, Sequence

from .errors import FileError

# No published size comes near; more would overflow sums of products of sizes.
MAX_SIZE = 2**31 - 1
# The largest of float32.
MAX_NUMBER = 2.0**128 - 2.0**104
_REQUIRED = object()


class Config(Mapping[str, object]):
    """The fields of a config.json. `path` names the file in messages."""

    def __init__(self, fields: Mapping[str, object], path: str = "config.json") -> None:
        self.fields = dict(fields)
        self.path = path

    def __getitem__(self, name: str) -> object:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"Config({self.fields!r})"

    def with_defaults(self, **fields: object) -> "Config":
        """This one, with `fields` where they are absent or null."""
        given = {name: value for name, value in self.fields.items() if value is not None}
        return Config({**self.fields, **fields, **given}, self.path)

    def error(self, name: str, wanted: str) -> FileError:
        """The exception that says what was found in field `name` and what is required."""
        value = self.fields.get(name)
        found = "is missing" if value is None else f"is {ascii(value)[:80]}"
        return FileError(f"[config] {self.path}: {name} {found}; {wanted} is required")

    def _find(self, names: Sequence[str], default: object, wanted: str) -> tuple[str, object]:
        for name in names:
            if self.fields.get(name) is not None:
                return name, self.fields[name]
        if default is _REQUIRED:
            raise self.error(names[0], wanted)
        return names[0], default

    def size(
        self,
        *names: str,
        default: int | object = _REQUIRED,
        least: int = 1,
        most: int = MAX_SIZE,
    ) -> int:
        """An integer of `least` to `most`; FileError naming the field otherwise."""
        wanted = f"an integer of {least} to {most}"
        name, value = self._find(names, default, wanted)
        # type() and not isinstance: true is an int to Python.
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, wanted)
        return value

    def optional_size(self, *names: str, least: int = 1, most: int = MAX_SIZE) -> int | None:
        """As `size`, or None where the field is absent or null."""
        if all(self.fields.get(name) is None for name in names):
            return None
        return self.size(*names, least=least, most=most)

    def number(
        self,
        *names: str,
        default: float | object = _REQUIRED,
        above: float | None = None,
        least: float | None = None,
    ) -> float:
        """A finite number, greater than `above` or not less than `least` where those are given."""
        wanted = "a finite number"
        if above is not None:
            wanted += f" above {above:g}"
        if least is not None:
            wanted += f" of at least {least:g}"
        name, value = self._find(names, default, wanted)
        # Infinite is what float32, in which all of them end, cannot hold; NaN compares to nothing.
        if type(value) not in (int, float) or not -MAX_NUMBER <= value <= MAX_NUMBER:  # type: ignore[operator]
            raise self.error(name, wanted)
        number = float(value)  # type: ignore[arg-type]
        if (above is not None and number <= above) or (least is not None and number < least):
            raise self.error(name, wanted)
        return number

    def flag(self, *names: str, default: bool | object = _REQUIRED) -> bool:
        """true or false."""
        name, value = self._find(names, default, "true or false")
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str | object = _REQUIRED) -> str:
        """One of the texts in `allowed`."""
        wanted = "one of " + ", ".join(allowed)
        name, value = self._find([name], default, wanted)
        if not isinstance(value, str) or value not in allowed:
            raise self.error(name, wanted)
        return value

    def sizes(self, name: str, least: int = 0) -> list[int]:
        """A list of integers; empty where the field is absent."""
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(name, "a list of integers")
        if not all(least <= item <= MAX_SIZE for item in value):
            raise self.error(name, f"a list of integers of {least} to {MAX_SIZE}")
        return list(value)

    def section(self, name: str) -> "Config":
        """A nested object; empty where the field is absent."""
        value = self.fields.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "an object")
        return Config(value or {}, f"{self.path}: {name}")

    def require(self, holds: bool, name: str, wanted: str) -> None:
        """FileError about field `name` unless `holds`."""
        if not holds:
            raise self.error(name, wanted)
