"""Parts that tell when they are changed."""

from typing import Any


class Settings:
    """How often a setting of any watched part was set."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes = 0


#: Whoever keeps something made of parts compares this: it is one number for all, since setting an
#: attribute is rare and asking is not.
settings = Settings()


class Watched:
    """A part whose attributes, set anew, count as a change of `settings`."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        settings.changes += 1
