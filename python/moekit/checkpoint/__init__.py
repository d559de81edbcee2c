"""Reading checkpoints: strict, bounded, without memory maps and without pickle.

    with moekit.checkpoint.open_model("directory or x.gguf") as ckpt:   # all files of a model
    with moekit.checkpoint.open("x.safetensors or x.gguf") as ckpt:     # one file
        ckpt.keys(); len(ckpt); "model.norm.weight" in ckpt           # a Mapping of str to array
        ckpt.info(name)        # TensorInfo: name dtype shape nbytes offset file; reads nothing
        ckpt[name]             # the tensor in a fresh, 64-byte-aligned array, dtype as stored
        ckpt.read_rows(name, e, e + 1)      # ckpt[name][e:e+1] reading only that (one expert)
        ckpt.read_into(name, buffer)        # the stored bytes into memory of the caller's
        ckpt.blocks(name, start, stop)      # the stored bytes as uint8 [rows, bytes of a row]
        ckpt.metadata; ckpt.field("llama.block_count", int); ckpt.format; ckpt.path

    weights = moekit.checkpoint.open_weights(ckpt, config)  # the names of the unquantised model:
        weights[name]; weights.read_rows(name, e, e + 1)    # FP8, MXFP4, GPTQ, AWQ as float32
        weights.info(name)     # WeightInfo: scheme ("plain", "fp8", ...), shape, parts
    config = moekit.checkpoint.read_config("path/to/model")           # config.json as a dict
    write_safetensors(path, {name: array}); stream_safetensors(path, specs, arrays)
    write_model(directory, specs, arrays)                             # sharded, with its index
    write_gguf(path, metadata, specs, arrays)
    with open_packed(directory) as packed: packed.read(path)          # moekit's own layout
    read_json(directory, name), read_text(directory, name, limit), has_file(directory, name)

Tensors of ggml's quantised types come as float32 from `ckpt[name]` and `read_rows`, and as the
file's bytes from `blocks`; `info(name).dtype` is the GGUF name in capitals ("Q4_K"). GGUF metadata
are ints, floats, bools, str, NumPy arrays and, for arrays of strings, a lazy `Sequence[str]`.

Opening reads headers only. bfloat16, float8 and float4 tensors have the dtypes of `ml_dtypes`.
Tensors come in the order of their data, so that loading in the mapping's order reads files from
front to back. A file that breaks its format's rules, or shrinks while it is open, is a `FileError`
(a ValueError); a name that is not there is a `MissingTensorError` (a FileError and a KeyError).
"""

import os

from ..errors import FileError, MissingTensorError
from .directory import (
    has_file,
    open_directory,
    open_model,
    read_bytes,
    read_config,
    read_json,
    read_text,
)
from .ggml_dequant import dequantize
from .gguf import open_gguf
from .gguf_config import gguf_architecture_names, read_gguf_config
from .open_weights import open_weights
from .packed import TENSOR, Outline, PackedEntry, PackedReader, PackedWriter, is_packed, open_packed
from .pieces import ALL, Piece
from .safetensors import open_safetensors
from .source import SourceFile
from .tensors import Checkpoint, TensorInfo
from .weights import KEPT_DTYPES, WeightInfo, Weights
from .write import stream_safetensors, write_model, write_safetensors
from .write_gguf import write_gguf

__all__ = [
    "ALL",
    "KEPT_DTYPES",
    "TENSOR",
    "Checkpoint",
    "FileError",
    "MissingTensorError",
    "Outline",
    "PackedEntry",
    "PackedReader",
    "PackedWriter",
    "Piece",
    "TensorInfo",
    "WeightInfo",
    "Weights",
    "dequantize",
    "gguf_architecture_names",
    "has_file",
    "is_packed",
    "open",
    "open_directory",
    "open_model",
    "open_packed",
    "open_weights",
    "read_bytes",
    "read_config",
    "read_gguf_config",
    "read_json",
    "read_text",
    "stream_safetensors",
    "write_gguf",
    "write_model",
    "write_safetensors",
]


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """One `.safetensors` or `.gguf` file as a mapping from tensor name to array.

    Of a split GGUF set only the named part is read; `open_model` reads the set.
    """
    name = os.fsdecode(path)
    if name.endswith(".safetensors"):
        return open_safetensors(SourceFile(name, "safetensors"))
    if name.endswith(".gguf"):
        return open_gguf(SourceFile(name, "gguf"))
    raise FileError(f"[checkpoint] {name}: unknown ending; .safetensors or .gguf is required")
