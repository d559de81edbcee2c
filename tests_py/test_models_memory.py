"""Loading needs little more memory than what stays: tensors are read and packed one at a time."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import rewrite_config, tiny_config
from safetensors.numpy import save_file

import moekit as mk

LAYERS, E, H, F, V = 3, 8, 512, 1024, 1000

CODE = """
import resource, sys
import numpy as np
import moekit as mk
from moekit import ops
# What the libraries need once is not the model's.
ops.matmul(np.ones((1, 64), np.float32), ops.pack(np.ones((64, 64), np.float32), "bf16"))

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

path, format = sys.argv[1:]
mk.load(path + "-small", format=format)
before = peak()
model = mk.load(path, format=format)
print(peak() - before, sum(model.memory().values()))
"""


def write(path: Path, layers: int) -> int:
    """A Mixtral in bfloat16; the bytes of its largest tensor."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix(V, H), "lm_head.weight": matrix(V, H)}
    tensors["model.norm.weight"] = np.ones(H, ml_dtypes.bfloat16)
    for n in range(layers):
        layer = f"model.layers.{n}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = np.ones(H, ml_dtypes.bfloat16)
        for part in "qkvo":
            tensors[f"{layer}.self_attn.{part}_proj.weight"] = matrix(H, H)
        tensors[f"{layer}.block_sparse_moe.gate.weight"] = matrix(E, H)
        for e in range(E):
            for name, shape in (("w1", (F, H)), ("w3", (F, H)), ("w2", (H, F))):
                tensors[f"{layer}.block_sparse_moe.experts.{e}.{name}.weight"] = matrix(*shape)
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    config = tiny_config("mixtral", num_key_value_heads=8, num_attention_heads=8)
    config.save_pretrained(path)
    rewrite_config(
        path,
        hidden_size=H,
        intermediate_size=F,
        num_hidden_layers=layers,
        num_local_experts=E,
        vocab_size=V,
    )
    return max(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("format", ["bf16", "int8", "f32"])
def test_peak_memory_is_what_stays_and_one_tensor(tmp_path: Path, format: str) -> None:
    write(tmp_path / "model-small", 1)
    largest = write(tmp_path / "model", LAYERS)
    out = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "model"), format],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    grown, kept = map(int, out.stdout.split())
    assert kept > 30e6
    assert grown < 1.15 * kept + largest


@pytest.mark.parametrize("format", ["int8", "mxfp4", "f16"])
def test_large_matrices_are_the_same_in_parts(
    checkpoint_maker: Any, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    _, path = checkpoint_maker("qwen3_moe", 0, vocab_size=300)
    whole = mk.load(path, format=format)
    monkeypatch.setattr("moekit.models.reader._PART_VALUES", 1000)
    parts = mk.load(path, format=format)
    assert parts.embedding.tobytes() == whole.embedding.tobytes()
    for mine, theirs in zip(parts.placed, whole.placed, strict=True):
        if mine.slot >= 0:
            found = mine.weight.expert_bytes(mine.slot)
            np.testing.assert_array_equal(found, theirs.weight.expert_bytes(theirs.slot))
