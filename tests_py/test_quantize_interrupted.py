"""Killed or out of space: what a real process leaves behind, and that the next one goes on."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moekit as mk

# Writes the n-th part, then is killed as the kernel does it when memory runs out.
CODE = """
import os, signal, sys
import moekit as mk
from moekit.checkpoint import packed

out, left = sys.argv[1], int(sys.argv[2])
write = packed.PackedWriter.write

def counted(*arguments):
    global left
    write(*arguments)
    left -= 1
    print("written", flush=True)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

packed.PackedWriter.write = counted
ids = [list(range(40, 140)), list(range(200, 300))]
recipe = {"default": "int4", "down": "int8", (2, 5): "bf16"}
mk.quantize(mk.demo_path(), recipe, ids, "gptq", window=64, out=out)
"""


def run(out: Path, left: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CODE, str(out), str(left)], capture_output=True, text=True
    )


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 99)
    assert whole.returncode == 0, whole.stderr
    for left in (1, 3):
        killed = run(tmp_path / "cut", left)
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "cut").exists()
    resumed = run(tmp_path / "cut", 99)
    assert resumed.returncode == 0, resumed.stderr
    # Five layers and the rest; one was written by the first run, three by the second.
    assert resumed.stdout.count("written") == 2
    assert sorted(os.listdir(tmp_path)) == ["cut", "whole"]
    names = sorted(os.listdir(tmp_path / "whole"))
    assert names == sorted(os.listdir(tmp_path / "cut"))
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    mk.load(tmp_path / "cut")


def limited() -> None:
    """Files of a megabyte at most; then writing fails with EFBIG, as ENOSPC does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.parametrize(
    ("layout", "name"), [("moekit", "q"), ("gptq", "q"), ("gguf", "q.gguf")], ids=lambda v: v
)
def test_no_space_leaves_nothing(tmp_path: Path, layout: str, name: str) -> None:
    arguments: list[Any] = ["quantize", "demo", "--format", "q4_0", "--layout", layout]
    done = subprocess.run(
        [sys.executable, "-m", "moekit", *arguments, "--out", str(tmp_path / name)],
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    assert done.returncode not in (0, -signal.SIGXFSZ)
    assert done.stderr.splitlines()[-1] == "moekit: [Errno 27] File too large", done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
