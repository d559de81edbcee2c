"""Broken and hostile model files, made from a sound one: `CASES` names them, with those that
`malformed_safetensors`, `malformed_configs`, `malformed_gguf` and `hostile_files` add some six
hundred.

A case is a function of a folder that holds a copy of the sound checkpoint (`model.safetensors`,
`config.json`, tokenizer files and `model.gguf`), breaks something, and returns the path to load.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = Callable[[Path], Path]
CASES: dict[str, Case] = {}

ST = "model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000


def case(name: str) -> Callable[[Case], Case]:
    def keep(function: Case) -> Case:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return keep


def split(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / ST).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(folder: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    size = len(header) if length is None else length
    (folder / ST).write_bytes(size.to_bytes(8, "little") + header + data)
    return folder
