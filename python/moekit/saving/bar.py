"""A bar on stderr that appears only when the work turns out to be long."""

import sys
import time
from types import TracebackType
from typing import Any, Self

_PATIENCE_S = 2.0


class Bar:
    """Over `total` steps; `wanted` None shows it on a terminal after two seconds."""

    def __init__(self, what: str, total: int, wanted: bool | None, unit: str = "") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._patience = _PATIENCE_S if wanted is None else 0.0
        self._begin = time.monotonic()
        self._done = 0
        self._bar: Any = None

    def advance(self, steps: int) -> None:
        """So many more steps are done."""
        self.reach(self._done + steps)

    def reach(self, done: int) -> None:
        """So many steps are done in all."""
        grown, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.update(grown)
        elif self._wanted and time.monotonic() - self._begin >= self._patience:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=self._done,
                unit=self._unit,
                unit_scale=True,
                unit_divisor=1024,
                desc=self._what,
                file=sys.stderr,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
