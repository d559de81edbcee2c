"""gpt-oss as it is published, experts in MXFP4, against transformers on the values they mean."""

import json
from pathlib import Path
from typing import Any

import checkpoints
import family_checks
import numpy as np
import torch
from family_checks import prompt_of
from safetensors.numpy import load_file, save_file

import moekit as mk

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
SIZES = {"hidden_size": 96, "intermediate_size": 64, "num_attention_heads": 3}


def encoded(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, blocks, scales) of a bank [E, in, out]; blocks of 32 run along `in`."""
    rows = np.ascontiguousarray(weight.numpy().transpose(0, 2, 1))
    groups = rows.reshape(*rows.shape[:2], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(-1))).astype(np.int32) - 2
    scaled = np.abs(groups) / np.exp2(exponents)[..., None]
    codes = np.abs(scaled[..., None] - E2M1).argmin(-1)
    values = np.where(groups < 0, -1, 1) * E2M1[codes] * np.exp2(exponents)[..., None]
    nibbles = (codes + 8 * (groups < 0)).astype(np.uint8)
    blocks = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    meant = values.reshape(rows.shape).transpose(0, 2, 1).astype(np.float32)
    return meant, blocks, (exponents + 127).astype(np.uint8)


def published(model: Any, path: Path) -> Path:
    """Write the checkpoint with packed experts; the model takes the values they mean."""
    packed: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate_up_proj", "down_proj")):
                meant, packed[f"{name}_blocks"], packed[f"{name}_scales"] = encoded(parameter)
                parameter.copy_(torch.from_numpy(meant))
    checkpoints.save(model, path)
    plain = load_file(path / "model.safetensors")
    for name in packed:
        plain.pop(name.rpartition("_")[0], None)
    save_file({**plain, **packed}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_packed_experts_are_kept_and_give_the_same_logits(tmp_path: Path) -> None:
    for seed in (0, 1):
        theirs = checkpoints.tiny_model("gpt_oss", seed, **SIZES)
        model = mk.load(published(theirs, tmp_path / str(seed)))
        for block in model.layers:
            assert block.moe is not None
            experts = block.moe.experts
            assert (experts.gate.format, experts.down.format) == ("mxfp4", "mxfp4")
            block.moe.compute = "exact"
        ids = prompt_of(seed, 23)
        logits = model.forward(ids)
        expected = checkpoints.their_logits(theirs, ids)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=family_checks.TOLERANCE)
        assert model.generate(ids[:9], max_new_tokens=8) == checkpoints.their_greedy(
            theirs, ids[:9], 8
        )
