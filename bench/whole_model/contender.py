"""What every contender does: read a prompt, then continue it token by token."""

from __future__ import annotations

from typing import Protocol


class Missing(Exception):
    """A library that is not there, or a file that it cannot run; the message says which."""


class Contender(Protocol):
    """Times are seconds of the clock that it was made with."""

    name: str

    def prompt(self, ids: list[int]) -> float:
        """Forget everything, read `ids` at once and choose the next token."""
        ...

    def decode(self, count: int) -> list[float]:
        """Choose `count` more tokens, the likeliest each; one time for each."""
        ...

    def chosen(self) -> list[int]:
        """The tokens since the last prompt."""
        ...

    def close(self) -> None:
        """Give back the memory."""
        ...
