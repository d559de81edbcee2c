"""What GPTQModel makes of a directory in GPTQ's layout, in a process of its own.

Run as a script by an interpreter that has `gptqmodel` (which builds on transformers): the directory
and a file for the answer as arguments, a JSON request on stdin.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def find() -> str | None:
    """The Python named by MOEKIT_GPTQMODEL_PYTHON; importing the package here takes seconds."""
    return os.environ.get("MOEKIT_GPTQMODEL_PYTHON")


def ask(
    folder: Path, answer: Path, ids: list[int], layers: list[str]
) -> dict[str, npt.NDArray[Any]]:
    """`logits` float32 [T, V] of transformers' modules in float16; each layer's float16 weight."""
    python = find()
    assert python is not None
    done = subprocess.run(
        [python, __file__, str(folder), str(answer)],
        input=json.dumps({"ids": ids, "layers": layers}),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(answer) as found:
        return dict(found)


def main() -> None:
    import torch
    from gptqmodel import BACKEND, GPTQModel

    torch.set_num_threads(1)
    request = json.loads(sys.stdin.read())
    model = GPTQModel.load(sys.argv[1], backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    with torch.no_grad():
        found = {"logits": model.model(torch.tensor([request["ids"]])).logits[0].float().numpy()}
        for name in request["layers"]:
            # [inputs, outputs] there.
            weight = model.model.get_submodule(name).dequantize_weight().T
            found[name] = weight.contiguous().numpy()
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
