"""Quantising a checkpoint needs its source and one layer: what is done makes room."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bulky_checkpoints import write

import moekit as mk

LAYERS = 5

CODE = """
import json, sys
import numpy as np
import moekit as mk

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

path, out, wishes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if wishes.pop("calibrated"):
    rng = np.random.default_rng(0)
    wishes["calibration"] = rng.integers(0, 900, (8, 128)).tolist()
# What libraries and the hidden states of the calibration need is not the layers'.
mk.quantize(path + "-small", out=out + "-small", **wishes)
before = peak()
made = mk.quantize(path, out=out, **wishes)
print(peak() - before, sum(made.memory().values()))
"""


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("int4", {}),
        ("f32", {}),
        pytest.param("int4", {"method": "gptq"}, marks=pytest.mark.slow),
        pytest.param("int4", {"method": "awq"}, marks=pytest.mark.slow),
        ("int4", {"layout": "gptq"}),
        pytest.param(
            {"default": "int4", "budget": 4.6, "candidates": ["int4", "int8"]},
            {},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["nearest", "wider", "gptq", "awq", "layout", "budget"],
)
def test_peak_memory_is_one_layer_above_the_source(
    tmp_path: Path, recipe: Any, options: dict[str, str]
) -> None:
    write(tmp_path / "model-small", 1)
    write(tmp_path / "model", LAYERS)
    source = mk.load(tmp_path / "model")
    held = sum(source.memory().values())
    layer = held // LAYERS
    calibrated = options.get("method", "rtn") != "rtn" or isinstance(recipe, dict)
    wishes = {"recipe": recipe, **options, "calibrated": calibrated}
    arguments = [str(tmp_path / "model"), str(tmp_path / "q"), json.dumps(wishes)]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, kept = map(int, done.stdout.split())
    # Wider than the source, the result is what has to fit.
    assert grown < max(held, kept) + layer
