"""What this build of moekit runs on: the first thing to look at, and to put into a report."""

import os
import platform
import sys
from typing import Any, TextIO

import numpy as np

from . import __version__, _core, ops

# Variables that change what runs; MOEKIT_* all do.
_OTHERS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "OMP_PLACES")


def config() -> dict[str, Any]:
    """Version, processor, instruction set in use and those that could be, threads, formats."""
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("MOEKIT_") or name in _OTHERS
    }
    return {
        "moekit": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": _core.cpu_name(),
        "isa": _core.isa(),
        "runnable_isas": list(_core.runnable_isas()),
        "threads": _core.num_threads(),
        "formats": ops.format_names(),
        "environment": variables,
    }


def show_config(file: TextIO | None = None) -> None:
    """Print `config()`, a line for each entry, to `file` (standard output)."""
    for name, value in config().items():
        if isinstance(value, dict):
            value = " ".join(f"{key}={text}" for key, text in value.items()) or "-"
        elif isinstance(value, list):
            value = " ".join(value)
        print(f"{name:<14} {value}", file=file or sys.stdout)
