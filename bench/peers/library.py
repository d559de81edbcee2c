"""The side of a library's process that asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import LIBRARIES
from .layer import Missing

_PAUSE = 0.005
_BENCH = str(Path(__file__).parent.parent)


class Library:
    """A worker of `name`, and its peers: names and formats. Raises Missing: it is not found."""

    def __init__(self, name: str, threads: int, clock: str) -> None:
        self.name = name
        self._threads, self._clock = threads, clock
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.peers: list[tuple[str, tuple[str, ...]]] = []
        self.start()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.close()
        variable = LIBRARIES[self.name]
        python = (variable and os.environ.get(variable)) or sys.executable
        search = os.pathsep.join(filter(None, (_BENCH, os.environ.get("PYTHONPATH"))))
        environment = {
            "KMP_BLOCKTIME": "1",  # milliseconds that Intel's OpenMP spins after its work
            **os.environ,
            "PYTHONPATH": search,
            "OMP_NUM_THREADS": str(self._threads),
        }
        command = [python, "-m", "peers.worker", self.name, str(self._threads), self._clock]
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            raise Missing(f"{self.name}: {variable}={python}: {error.strerror}") from None
        try:
            self.peers = [(name, tuple(formats)) for name, formats in self._answer()]
        except Missing as missing:
            self.close()
            hint = f"; {variable} names an interpreter that has it" if variable else ""
            raise Missing(f"{missing}{hint}") from None

    def ask(self, do: str, **what: Any) -> Any:
        """Raises Missing where the library cannot, or where its process has ended."""
        if self._process is None:
            raise Missing(f"{self.name}: its process is not started")
        assert self._process.stdin is not None
        # A process that has ended shows as an answer that does not come: `_answer` tells why.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def settle(self, at_most: float = 0.2) -> None:
        """Waits until its threads, which may spin for more work, have left the processor."""
        if self._process is None:
            return
        end = time.monotonic() + at_most
        while True:
            before = _processor_seconds(self._process.pid)
            time.sleep(_PAUSE)
            used = _processor_seconds(self._process.pid) - before
            if used < _PAUSE / 10 or time.monotonic() > end:
                return

    def _answer(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise Missing(f"{self.name}: its process ended with {status}: {self._last_words()}")
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        return answer["value"]

    def _last_words(self) -> str:
        """The line of its standard error that says most."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        told = [line for line in lines if "what():" in line or "Error" in line] or lines
        return told[-1].strip()[:200] if told else "it said nothing"

    def close(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                with suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


def _processor_seconds(process: int) -> float:
    """What its threads have run; 0 where the system does not say."""
    nanoseconds = 0
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # a thread that ends meanwhile
            nanoseconds += int(file.read_text().split()[0])
    return nanoseconds / 1e9
