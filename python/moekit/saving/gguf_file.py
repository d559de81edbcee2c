"""A model as one GGUF file that llama.cpp opens."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from .. import ops
from ..checkpoint import write_gguf
from ..checkpoint.ggml_types import QUANTISED
from ..checkpoint.gguf_architectures import Architecture
from ..checkpoint.gguf_weights import gguf_names, halves_from_pairs
from ..config import Config
from ..models.rope import read_rope
from ..ops import PackedWeight
from .bar import Bar
from .block_bytes import file_blocks
from .gguf_families import gemma4_factors, row_of
from .gguf_limits import require_opened, with_head
from .gguf_metadata import architecture_of, hyperparameters
from .gguf_states import in_file_form
from .gguf_vocabulary import vocabulary
from .placing import Array, Tensor, assembled, in_banks, require_complete
from .readback import require_sayable

if TYPE_CHECKING:
    from ..nn import Model

_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,  # tables of experts by token
}
_BY_FORMAT = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_BY_DTYPE = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I32",
    "int32": "I32",
}


def save_gguf(model: "Model", path: str, progress: bool | None = None) -> None:
    """Write `model` as the GGUF file `path`; whole or not at all.

    Weights in ggml's types keep their bytes, 16- and 32-bit ones their type; others are written
    as float16. ValueError for a model that GGUF has no architecture for, or a setting that it
    cannot say. A tokenizer that llama.cpp has no rules for is kept for moekit alone, with a
    UserWarning.
    """
    if not model.placed:
        raise ValueError(
            "[save] the model was put together by hand; one that mk.load has read is required"
        )
    row = row_of(architecture_of(model.config), model)
    tensors = in_banks(row, model.placed, model.outline)
    require_complete(tensors)
    tensors = with_head(row, in_file_form(row, tensors, model.config))
    names = gguf_names(row, tensors)
    keys = hyperparameters(row, model, tensors)
    metadata = {
        "general.architecture": row.name,
        "general.type": "model",
        "general.quantization_version": 2,
        **{f"{row.name}.{key}": value for key, value in sorted(keys.items())},
        **vocabulary(model.tokenizer, model.vocab_size, model.end_ids),
    }
    plans = {names[name]: _Plan(row, model, name, tensor) for name, tensor in tensors.items()}
    specs = {name: (plan.type, plan.shape) for name, plan in plans.items()}
    extra = _rotary(row, model)
    require_opened(row, model, [*plans, *extra], keys)
    specs |= {name: ("F32", array.shape) for name, array in extra.items()}
    values: dict[str, Callable[[], Array]] = {
        name: plan.array for name, plan in plans.items() if not plan.is_matrix
    }
    values |= {name: partial(np.asarray, array) for name, array in extra.items()}
    require_sayable(model, path, metadata, specs, values)
    with Bar("saving", sum(prod(shape) for _, shape in specs.values()), progress) as bar:
        write_gguf(path, metadata, specs, _arrays(plans, extra, bar.advance))


class _Plan:
    """How one tensor is written."""

    def __init__(self, row: Architecture, model: "Model", name: str, tensor: Tensor) -> None:
        self.tensor = tensor
        self.shape = tensor.shape
        self.order: Any = tensor.order
        if tensor.order is not None:
            self.shape = (len(tensor.order), *tensor.shape[1:])
        inner = name.removeprefix(row.prefix).partition(".")[2]
        short = {v: k for k, v in row.layer_names.items()}
        known = short.get(inner) or short.get(inner.rpartition(".")[0], "")
        if known in row.rows:
            self.shape = tensor.shape[1:]
        if known in row.middles:
            self.shape = (tensor.shape[0], tensor.shape[2])
        if row.paired and known in ("attn_q", "attn_k"):
            heads = "num_attention_heads" if known == "attn_q" else "num_key_value_heads"
            count = model.config.get(heads) or model.config["num_attention_heads"]
            assert isinstance(count, int)
            self.order = np.argsort(halves_from_pairs(tensor.shape[0], count))
        first = tensor.parts[0][1].weight
        # Embeddings, too, are too large to be looked at.
        self.is_matrix = isinstance(first, PackedWeight) or first.shape == model.embedding.shape
        self.blocks = self._blocks_fit()
        self.type = self._type()

    def _blocks_fit(self) -> bool:
        storage = QUANTISED.get(self.tensor.format.upper())
        if storage is None or len(self.tensor.shape) < 2 or self.tensor.shape[-1] % storage.block:
            return False
        columns = self.tensor.columns
        if columns is not None:  # blocks move as they are, where they move whole
            runs = columns.reshape(-1, storage.block)
            if (runs != runs[:, :1] + np.arange(storage.block)).any() or (
                runs[:, 0] % storage.block
            ).any():
                return False
        whole = all(
            piece.cols == slice(None) and not piece.transposed for piece, _ in self.tensor.parts
        )
        first = self.tensor.parts[0][1]
        assert isinstance(first.weight, PackedWeight)
        return whole and file_blocks(_sample(first.weight), 0) is not None

    def _type(self) -> str:
        first = self.tensor.parts[0][1].weight
        if len(self.shape) == 1:
            return "F32"
        if not isinstance(first, PackedWeight):
            return _BY_DTYPE[first.dtype.name]
        if self.blocks:
            return self.tensor.format.upper()
        return _BY_FORMAT.get(self.tensor.format, "F16")

    def array(self) -> Array:
        """What the file holds: values, or blocks as bytes."""
        if not self.blocks:
            values = assembled(self.tensor, _DTYPES[self.type])
            if self.type == "F16" and not np.isfinite(values).all():
                raise ValueError(
                    "[save] a weight does not fit float16; load with format='bf16' to write it"
                )
            values = values if self.order is None else values[self.order]
            if self.tensor.columns is not None:
                values = values[:, self.tensor.columns]
            return values.reshape(self.shape)
        storage = QUANTISED[self.type]
        row_bytes = self.shape[-1] // storage.block * storage.block_bytes
        out = np.empty((*self.tensor.shape[:-1], row_bytes), np.uint8)
        for piece, placed in self.tensor.parts:
            assert isinstance(placed.weight, PackedWeight)
            found = file_blocks(placed.weight, placed.slot)
            if found is None:
                raise ValueError(f"[save] {piece.name}: blocks of {self.type} cannot be written")
            target = out if piece.expert is None else out[piece.expert]
            target[piece.rows] = found
        if self.tensor.columns is not None:
            places = self.tensor.columns[:: storage.block] // storage.block
            apart = out.reshape(*out.shape[:-1], -1, storage.block_bytes)[..., places, :]
            out = np.ascontiguousarray(apart).reshape(out.shape)
        return out if self.order is None else np.ascontiguousarray(out[self.order])


def _sample(weight: PackedWeight) -> PackedWeight:
    """A small matrix of the same format and width: whether its bytes can be had at all."""
    formats = weight.format
    sample = ops.PackedWeight.empty(
        formats if isinstance(formats, str) else formats[0], (16, weight.shape[-1])
    )
    sample.fill(0, np.zeros((16, weight.shape[-1]), np.float32))
    return sample


def _arrays(
    plans: Mapping[str, _Plan], extra: Mapping[str, Array], done: Callable[[int], None]
) -> Iterator[tuple[str, Array]]:
    for name, plan in plans.items():
        yield name, plan.array()
        done(prod(plan.shape))
    yield from extra.items()


def _rotary(row: Architecture, model: "Model") -> dict[str, Array]:
    """Tables of factors that GGUF has for Llama 3's scaling and LongRoPE."""
    if row.latent:
        return {}
    if row.family == "gemma4_text":
        return gemma4_factors(model)
    settings = read_rope(Config(model.config), default_partial=1.0 if row.partial else None)
    width = model.config.get("head_dim")
    if not isinstance(width, int):
        hidden, heads = model.config.get("hidden_size"), model.config.get("num_attention_heads")
        if not isinstance(hidden, int) or not isinstance(heads, int):
            return {}
        width = hidden // heads
    dim = int(width * settings.partial)
    if settings.kind == "llama3":
        plain, _ = ops.rope_frequencies(dim, settings.theta)
        scaled, _ = ops.rope_frequencies(dim, settings.theta, settings.scaling)
        return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    if settings.kind == "longrope":
        found: dict[str, Array] = {}
        for end in ("short", "long"):
            values: Any = settings.scaling[f"{end}_factor"]
            found[f"rope_factors_{end}.weight"] = np.asarray(values, np.float32)
        return found
    return {}
