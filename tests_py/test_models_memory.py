"""Loading needs hardly more memory than what stays: matrices are read and packed some rows at a
time, whatever form the file has them in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import bulky_checkpoints
import numpy as np
import pytest

import moekit as mk

LAYERS = 4

CODE = """
import sys
import moekit as mk

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

path, format = sys.argv[1], sys.argv[2] or None
# What the libraries need once is not the model's.
mk.load(path + "-small", format=format)
before = status("VmRSS")
model = mk.load(path, format=format)
print(status("VmHWM") - before, status("VmRSS") - before, sum(model.memory().values()))
"""


def grown(path: Path, format: str = "") -> tuple[int, int, int]:
    """Bytes at the peak of loading, bytes that stay, and bytes of weights."""
    out = subprocess.run(
        [sys.executable, "-c", CODE, str(path), format],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    peak, resident, weights = map(int, out.stdout.split())
    return peak, resident, weights


@pytest.mark.parametrize("kind", bulky_checkpoints.KINDS)
def test_peak_memory_is_what_stays(tmp_path: Path, kind: str) -> None:
    for name, layers in (("model-small", 1), ("model", LAYERS)):
        bulky_checkpoints.write(tmp_path / name, layers, kind)
    peak, resident, weights = grown(tmp_path / "model")
    assert weights > 30e6
    assert peak < 1.15 * weights
    assert peak < 1.15 * resident


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("bf16", "int4"),
        ("f32", "q4_k"),
        ("f16", "f32"),
        ("fused", "int8"),
        ("mxfp4", "bf16"),
        ("fp8", "int8"),
        ("gptq act-order", "int4"),
        ("gguf q4_k", "fp8"),
    ],
)
def test_peak_memory_in_another_format(tmp_path: Path, kind: str, format: str) -> None:
    for name, layers in (("model-small", 1), ("model", LAYERS)):
        bulky_checkpoints.write(tmp_path / name, layers, kind)
    peak, resident, weights = grown(tmp_path / "model", format)
    assert weights > 30e6
    assert peak < 1.15 * weights
    assert peak < 1.15 * resident


def test_peak_memory_of_a_quantised_directory(tmp_path: Path) -> None:
    for name, layers in (("model-small", 1), ("model", LAYERS)):
        source = bulky_checkpoints.write(tmp_path / f"{name}-source", layers)
        mk.quantize(source, out=tmp_path / name, recipe="int8")
    peak, resident, weights = grown(tmp_path / "model")
    assert peak < 1.15 * weights
    assert peak < 1.15 * resident


@pytest.mark.parametrize("format", ["int8", "mxfp4", "f16"])
def test_large_matrices_are_the_same_in_parts(
    checkpoint_maker: Any, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    _, path = checkpoint_maker("qwen3_moe", 0, vocab_size=300)
    whole = mk.load(path, format=format)
    monkeypatch.setattr("moekit.models.tensor_reader._PART_VALUES", 1000)
    parts = mk.load(path, format=format)
    assert parts.embedding.tobytes() == whole.embedding.tobytes()
    for mine, theirs in zip(parts.placed, whole.placed, strict=True):
        if mine.slot >= 0:
            found = mine.weight.expert_bytes(mine.slot)
            np.testing.assert_array_equal(found, theirs.weight.expert_bytes(theirs.slot))
