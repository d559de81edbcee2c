"""What every contender does: read a prompt, then more tokens one by one."""

from __future__ import annotations

from typing import Protocol


class Missing(Exception):
    """A library that is not there, or a file that it cannot run; the message says which."""


class Contender(Protocol):
    """Times are seconds of the clock that it was made with."""

    name: str

    def prompt(self, ids: list[int]) -> float:
        """Forget everything, read `ids` at once and find the likeliest next token."""
        ...

    def decode(self, ids: list[int]) -> list[float]:
        """Read each of `ids` and find the likeliest next token; one time for each. Whatever that
        is, the next of `ids` follows: models of random weights fall into circles, whose few experts
        a cache would hold."""
        ...

    def close(self) -> None:
        """Give back the memory."""
        ...
