"""A model as a Hugging Face directory: weights, config.json, tokenizer.

Weights of 16 and 32 bits keep their type; packed ones are written as bfloat16, which is what
transformers computes with.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ..checkpoint import write_model
from ..checkpoint.directory import INDEX, SINGLE
from ..checkpoint.gguf_config import WRITTEN
from ..checkpoint.target import replacing, sync_folder, write_all
from ..ops import PackedWeight
from .bar import Bar
from .gptq import GptqMatrix, gptq_matrices, quantization_config
from .placing import (
    Array,
    Tensor,
    apart,
    as_read,
    assembled,
    plain_tensor,
    require_complete,
    value_of,
    with_zero_experts,
)

if TYPE_CHECKING:
    from ..nn import Model

_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,  # a hash layer's table
    "I32": np.int32,
}
_BY_FORMAT = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_BY_DTYPE = {np.dtype(dtype).name: name for name, dtype in _DTYPES.items()}
# Up to this many values it is looked at whether the file's own 16 bits hold them exactly.
_LOOKED_AT = 1 << 22
_EXPERT = re.compile(r"\.experts\.\d+\.")
# What does not hold for the new files.
_LEFT_OUT = ("quantization_config", "dtype", "norms_hold_one")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def tensors_of(model: "Model") -> dict[str, Tensor]:
    """The tensors of the Hugging Face checkpoint that the model is.

    ValueError for a model that was not loaded from a file, or of which parts are missing.
    """
    if not model.placed:
        raise ValueError(
            "[save] the model was put together by hand; one that mk.load has read is required"
        )
    if model.grouping == "gguf":
        family = model.config["model_type"]
        row = next((row for row in WRITTEN if row.family == family), None)
        if row is None:
            raise ValueError(
                f"[save] {family} was read from GGUF, whose states cannot be written back; a model "
                "from a Hugging Face directory is required"
            )
        tensors = apart(row, model.placed, model.outline)
        if row.holds_one:
            tensors = {name: _without_one(name, tensor) for name, tensor in tensors.items()}
    else:
        tensors = as_read(model.placed, model.outline)
        if model.config["model_type"] == "longcat_flash":
            tensors = with_zero_experts(tensors, model.outline)
    require_complete(tensors)
    for name in model.passed_over:
        # LongCat's experts that do nothing have matrices that transformers wants to find.
        if model.grouping == "hf" and name in model.outline and _EXPERT.search(name):
            dtype, shape = model.outline[name]
            tensors.setdefault(name, Tensor(shape, dtype=dtype))
    return tensors


def _without_one(name: str, tensor: Tensor) -> Tensor:
    """A norm's weight, without the one that the model adds, which GGUF's files hold."""
    if not name.endswith("norm.weight"):
        return tensor
    return plain_tensor(name, value_of(tensor.parts[0][1]) - np.float32(1))


def save_directory(
    model: "Model", path: str, progress: bool | None = None, *, gptq: bool = False
) -> None:
    """Write `model` as a directory that `mk.load` and transformers load.

    `gptq`: matrices of symmetric four-bit integers stay so, in GPTQ's layout (see `gptq.py`).

    `path` is a new or empty directory, or one with a checkpoint, whose files are replaced.
    ValueError for another directory; OSError when the disk is full or may not be written. Until
    everything is written nothing at `path` changes.
    """
    folder = os.path.abspath(path)
    if os.path.lexists(folder):
        is_folder = os.path.isdir(folder) and not os.path.islink(folder)
        if not is_folder or (os.listdir(folder) and "config.json" not in os.listdir(folder)):
            raise ValueError(
                f"[save] {path} is there and no checkpoint; a new or empty directory is required"
            )
    tensors = tensors_of(model)
    matrices = gptq_matrices(tensors) if gptq else {}
    plain = {name: tensor for name, tensor in tensors.items() if name not in matrices}
    specs = {name: (_dtype(model, name, tensor), tensor.shape) for name, tensor in plain.items()}
    for matrix in matrices.values():
        specs.update(matrix.specs)
    parent, name = os.path.split(folder)
    stage = os.path.join(parent, f".{name}.{os.getpid()}.partial")
    shutil.rmtree(stage, ignore_errors=True)
    os.mkdir(stage)
    try:
        with Bar("saving", sum(prod(shape) for _, shape in specs.values()), progress) as bar:
            write_model(stage, specs, _arrays(plain, matrices, specs, bar.advance))
        extra = {"quantization_config": quantization_config(matrices, tensors)} if matrices else {}
        for file, text in _small_files(model, specs, extra).items():
            with replacing(os.path.join(stage, file)) as fd:
                write_all(fd, text.encode(), 0)
        _move(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    sync_folder(parent)


def _move(stage: str, folder: str) -> None:
    if not os.path.lexists(folder):
        os.rename(stage, folder)
        return
    written = os.listdir(stage)
    # The index last: it names the shards.
    for name in sorted(written, key=lambda name: name in (INDEX, SINGLE)):
        os.replace(os.path.join(stage, name), os.path.join(folder, name))
    for name in os.listdir(folder):
        if _WEIGHTS.fullmatch(name) and name not in written:
            os.remove(os.path.join(folder, name))
    sync_folder(folder)


def _dtype(model: "Model", name: str, tensor: Tensor) -> str:
    """The dtype to write: the stored one, where a weight kept in float32 still fits it exactly."""
    if not tensor.parts:
        return tensor.dtype if tensor.dtype in _DTYPES else "F32"
    first = tensor.parts[0][1]
    if isinstance(first.weight, PackedWeight):
        found = _BY_FORMAT.get(tensor.format, "BF16")
    else:
        found = _BY_DTYPE[first.weight.dtype.name]
    stored = model.outline[name][0] if name in model.outline else ""
    if found == "F32" and stored in ("BF16", "F16") and prod(tensor.shape) <= _LOOKED_AT:
        values = [np.asarray(value_of(placed), np.float32) for _, placed in tensor.parts]
        with np.errstate(all="ignore"):
            rounded = [value.astype(_DTYPES[stored]) for value in values]
        if all(np.array_equal(r, v) for r, v in zip(rounded, values, strict=True)):
            return stored
    return found


def _arrays(
    tensors: Mapping[str, Tensor],
    matrices: Mapping[str, GptqMatrix],
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
    done: Callable[[int], None],
) -> Iterator[tuple[str, Array]]:
    for name in tensors:
        dtype, shape = specs[name]
        yield name, assembled(tensors[name], _DTYPES[dtype])
        done(prod(shape))
    for matrix in matrices.values():
        for name, array in matrix.arrays():
            yield name, array
            done(array.size)


def _small_files(
    model: "Model",
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
    extra: Mapping[str, object],
) -> dict[str, str]:
    config = {k: v for k, v in model.config.items() if k not in _LEFT_OUT}
    config.update(extra)
    sizes: dict[str, int] = {}
    for dtype, shape in specs.values():
        if not dtype.startswith("I"):
            sizes[dtype] = sizes.get(dtype, 0) + prod(shape)
    common = max(sizes, key=sizes.__getitem__)
    config["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[common]
    files = {"config.json": _json(config)}
    if model.end_ids:
        files["generation_config.json"] = _json({"eos_token_id": list(model.end_ids)})
    tokenizer = model.tokenizer
    if tokenizer is None:
        return files
    files["tokenizer.json"] = tokenizer.backend.to_str(pretty=True)
    fields: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.special,
        "clean_up_tokenization_spaces": False,
    }
    others = {k: v for k, v in tokenizer.chat_templates.items() if k != "default"}
    if others:
        fields["chat_template"] = [
            {"name": name, "template": text} for name, text in tokenizer.chat_templates.items()
        ]
    elif "default" in tokenizer.chat_templates:
        files["chat_template.jinja"] = tokenizer.chat_templates["default"]
    files["tokenizer_config.json"] = _json(fields)
    return files


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"[save] config.json cannot hold a {type(value).__name__}")
