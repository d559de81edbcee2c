"""What the kernels run on, and with how many threads."""

from __future__ import annotations

import platform

import numpy as np

import moekit
from moekit import _core


def set_num_threads(threads: int) -> None:
    """Threads of every operation from now on, 1 to 1024; ValueError otherwise.

    Without it: ``MOEKIT_NUM_THREADS``, else the processors that this process may run on.
    """
    _core.set_num_threads(threads)


def config() -> dict[str, str | int | list[str]]:
    """Processor, instruction sets, threads and build, by name."""
    return {
        "moekit": moekit.__version__,
        "processor": _core.cpu_name(),
        "isa": _core.isa(),
        "runnable_isas": _core.runnable_isas(),
        "threads": _core.num_threads(),
        "formats": _core.format_names(),
        "compiler": _core.compiler(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def show_config() -> None:
    """Prints :func:`config`: the instruction set in use, threads, build."""
    facts = config()
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:{width}}  {text}")
