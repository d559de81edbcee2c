"""Reading checkpoints: strict, bounded, without memory maps and without pickle.

    with moekit.checkpoint.open_directory("path/to/model") as ckpt:   # or open("x.safetensors")
        ckpt.keys(); len(ckpt); "model.norm.weight" in ckpt           # a Mapping of str to array
        ckpt.info(name)        # TensorInfo: name dtype shape nbytes offset file; reads nothing
        ckpt[name]             # the tensor in a fresh, 64-byte-aligned array, dtype as stored
        ckpt.read_rows(name, e, e + 1)      # ckpt[name][e:e+1] reading only that (one expert)
        ckpt.read_into(name, buffer)        # the stored bytes into memory of the caller's
        ckpt.blocks(name, start, stop)      # the stored bytes as uint8 [rows, bytes of a row]
        ckpt.metadata; ckpt.format; ckpt.path

    config = moekit.checkpoint.read_config("path/to/model")           # config.json as a dict
    read_json(directory, name), read_text(directory, name, limit), has_file(directory, name)

Opening reads headers only. bfloat16, float8 and float4 tensors have the dtypes of `ml_dtypes`.
Tensors come in the order of their data, so that loading in the mapping's order reads files from
front to back. A file that breaks its format's rules, or shrinks while it is open, is a `FileError`
(a ValueError); a name that is not there is a `MissingTensorError` (a FileError and a KeyError).
"""

import os

from ..errors import FileError, MissingTensorError
from .directory import has_file, open_directory, read_bytes, read_config, read_json, read_text
from .safetensors import open_safetensors
from .source import SourceFile
from .tensors import Checkpoint, TensorInfo

__all__ = [
    "Checkpoint",
    "FileError",
    "MissingTensorError",
    "TensorInfo",
    "has_file",
    "open",
    "open_directory",
    "read_bytes",
    "read_config",
    "read_json",
    "read_text",
]


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """One `.safetensors` file as a mapping from tensor name to array."""
    name = os.fsdecode(path)
    if name.endswith(".safetensors"):
        return open_safetensors(SourceFile(name, "safetensors"))
    raise FileError(f"[checkpoint] {name}: unknown ending; a .safetensors file is required")
