"""llama.cpp in a process of its own, through llama-cpp-python's low-level interface.

Run as a script by an interpreter that has `llama_cpp`, it answers commands, a JSON line each. The
process sleeps while others have their turn. MOEKIT_LLAMA_PYTHON names the interpreter.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 2048
BATCH = 512


class LlamaCpp:
    """A contender that asks such a process; without repacked weights where it dies of them."""

    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, clock: str, missing: type[Exception]) -> None:
        python = os.environ.get("MOEKIT_LLAMA_PYTHON")
        if python is None and importlib.util.find_spec("llama_cpp") is None:
            raise missing("llama_cpp; MOEKIT_LLAMA_PYTHON may name a Python that has it")
        self._missing = missing
        self._python = python or sys.executable
        load = {"do": "load", "path": str(path), "threads": threads, "clock": clock}
        try:
            self._start(load)
        except missing:
            # On processors with AMX llama-cpp-python 0.3.36 dies of an illegal instruction: its
            # tiles are configured with zeros (DECISIONS.md).
            self.name = "llama.cpp, plain"
            self._start(load | {"plain": True})

    def _start(self, load: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [self._python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        self._ask(**load)
        self.prompt(list(range(64)))
        self.decode([0])

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise self._missing(f"llama.cpp ended with status {code} on {command['do']}")
        return json.loads(line)

    def prompt(self, ids: list[int]) -> float:
        return float(self._ask(do="prompt", ids=ids))

    def decode(self, ids: list[int]) -> list[float]:
        return list(self._ask(do="decode", ids=ids))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Server:
    """The other end: one model and one context, with llama.cpp's defaults but for the sizes."""

    def __init__(self, library: Any, command: dict[str, Any]) -> None:
        threads, clock, path = command["threads"], command["clock"], command["path"]
        self.library = library
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.scale = threads if clock == "cpu" else 1
        library.llama_backend_init()
        model_settings = library.llama_model_default_params()
        model_settings.use_extra_bufts = not command.get("plain", False)
        self.model = library.llama_model_load_from_file(path.encode(), model_settings)
        if not self.model:
            raise SystemExit(f"{path} cannot be loaded")
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self.context = library.llama_init_from_model(self.model, settings)
        vocabulary = library.llama_model_get_vocab(self.model)
        self.vocab_size = library.llama_vocab_n_tokens(vocabulary)

    def clear(self) -> None:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def step(self, ids: list[int]) -> float:
        """The time to read `ids` and find the likeliest token after them."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        start = self.now()
        batch = self.library.llama_batch_get_one(tokens, len(ids))
        if self.library.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        logits = self.library.llama_get_logits_ith(self.context, -1)
        np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax()
        return (self.now() - start) / self.scale


def main() -> None:
    import llama_cpp

    server: _Server | None = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: float | list[float] | None = None
        if command["do"] == "load":
            server = _Server(llama_cpp, command)
        elif command["do"] == "prompt":
            assert server is not None
            server.clear()
            answer = server.step(command["ids"])
        else:
            assert server is not None
            answer = [server.step([token]) for token in command["ids"]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
