"""What moekit says about itself."""

import io
import os
import subprocess
import sys

import moekit as mk
from moekit import _core
from moekit.environment import config


def test_the_report_says_what_runs() -> None:
    out = io.StringIO()
    mk.show_config(out)
    lines = dict(line.split(maxsplit=1) for line in out.getvalue().splitlines())
    assert lines["moekit"] == mk.__version__
    assert lines["isa"] == _core.isa()
    assert lines["isa"] in lines["runnable_isas"].split()
    assert int(lines["threads"]) == _core.num_threads()
    assert "int8" in lines["formats"].split()


def test_variables_that_change_what_runs_are_shown() -> None:
    code = "import moekit; moekit.show_config()"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MOEKIT_ISA": "scalar", "MOEKIT_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "isa            scalar\n" in out
    assert "threads        3\n" in out
    assert "MOEKIT_ISA=scalar MOEKIT_NUM_THREADS=3" in out


def test_it_is_data_too() -> None:
    assert config()["isa"] == _core.isa()
