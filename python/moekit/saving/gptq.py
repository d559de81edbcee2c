"""Matrices in GPTQ's layout, as GPTQModel writes and transformers and vLLM read it.

A linear layer [N, K] becomes `qweight` int32 [K / 8, N] (eight consecutive inputs of an output in a
word, the first in the lowest bits), `qzeros` int32 [groups, N / 8] (zero points minus one, packed
along N), `scales` float16 [groups, N] and `g_idx` int32 [K], with w = scale · (q - zero). moekit's
symmetric integers have the zero point 8, so nothing is rounded on the way.

GPTQModel loads such a mixture into transformers' modules, experts included. transformers 5 by
itself (with optimum) has no place for single experts: it keeps each bank in one tensor.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ops import PackedWeight
from .placing import Array, Tensor

# Symmetric formats of four bits with float16 scales, and the inputs that share one.
GROUPS = {"int4": 128, "int4_g64": 64, "int4_g32": 32, "q4_0": 32}
_BITS = 4
_ZERO = 8
_PER_WORD = 32 // _BITS
# Routers are linear layers too, but no engine reads them quantised.
_LINEAR = re.compile(r"\.(?!gate\.|router\.)[^.]+\.weight$")
_IN_BLOCK = re.compile(r"^.*?\.layers\.\d+\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class GptqMatrix:
    """A matrix that goes into the file in GPTQ's layout."""

    base: str
    weight: PackedWeight
    slot: int
    group: int

    @property
    def specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of its four tensors."""
        rows, cols = self.weight.shape[-2:]
        groups = -(-cols // self.group)
        return {
            f"{self.base}.qweight": ("I32", (cols // _PER_WORD, rows)),
            f"{self.base}.qzeros": ("I32", (groups, rows // _PER_WORD)),
            f"{self.base}.scales": ("F16", (groups, rows)),
            f"{self.base}.g_idx": ("I32", (cols,)),
        }

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """The four tensors, in the order of `specs`."""
        codes, scales = codes_of(self.weight.unpack_expert(self.slot), self.group)
        rows, cols = codes.shape
        shifts = np.arange(_PER_WORD, dtype=np.uint32) * _BITS
        words = codes.T.reshape(cols // _PER_WORD, _PER_WORD, rows).astype(np.uint32)
        packed = np.bitwise_or.reduce(words << shifts[None, :, None], axis=1)
        zeros = np.bitwise_or.reduce(np.full(_PER_WORD, _ZERO - 1, np.uint32) << shifts)
        yield f"{self.base}.qweight", packed.view(np.int32)
        shape = self.specs[f"{self.base}.qzeros"][1]
        yield f"{self.base}.qzeros", np.full(shape, zeros, np.uint32).view(np.int32)
        yield f"{self.base}.scales", np.ascontiguousarray(scales.T)
        yield f"{self.base}.g_idx", (np.arange(cols) // self.group).astype(np.int32)


def gptq_matrices(tensors: Mapping[str, Tensor]) -> dict[str, GptqMatrix]:
    """The tensors that can go into the file so, by name; the others stay in 16 bits.

    All of them share one group size, that of most; ValueError if there is none.
    """
    found: dict[str, GptqMatrix] = {}
    for name, tensor in tensors.items():
        if len(tensor.parts) != 1 or not _LINEAR.search(name):
            continue
        piece, placed = tensor.parts[0]
        weight = placed.weight
        if not isinstance(weight, PackedWeight) or not piece.whole or piece.expert is not None:
            continue
        group = GROUPS.get(weight.expert_format(placed.slot), 0)
        rows, cols = weight.shape[-2:]
        if group and not rows % _PER_WORD and not cols % _PER_WORD:
            found[name] = GptqMatrix(name.removesuffix(".weight"), weight, placed.slot, group)
    if not found:
        raise ValueError(
            f"[save] no linear layer is in one of {', '.join(GROUPS)}, which GPTQ's layout can hold"
        )
    groups = [matrix.group for matrix in found.values()]
    common = max(set(groups), key=groups.count)
    return {name: matrix for name, matrix in found.items() if matrix.group == common}


def quantization_config(
    matrices: Mapping[str, GptqMatrix], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What config.json says of them, and of the linear layers that stay plain.

    Readers take every linear layer of a block for quantised unless told: GPTQModel and vLLM by
    negative rules in `dynamic`, optimum (for transformers) by `modules_in_block_to_quantize`.
    """
    linears = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if _IN_BLOCK.match(name) and name.endswith(".weight") and len(tensor.shape) == 2
    ]
    packed = {matrix.base for matrix in matrices.values()}
    plain = [name for name in linears if name not in packed]
    return {
        "quant_method": "gptq",
        "bits": _BITS,
        "group_size": next(iter(matrices.values())).group,
        "desc_act": False,
        "sym": True,
        "lm_head": any(matrix.base == "lm_head" for matrix in matrices.values()),
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "dynamic": {rule: {} for rule in _rules(plain, packed)},
        "modules_in_block_to_quantize": [_suffixes(plain, packed)],
    }


def _rules(plain: Sequence[str], packed: Set[str]) -> list[str]:
    """Negative rules for the plain layers: one for all layers and experts where that is true."""
    mixed = {_NUMBER.sub("#", name) for name in packed}
    rules: dict[str, None] = {}
    for name in plain:
        form = _NUMBER.sub("#", name)
        exact = re.escape(name if form in mixed else form).replace(r"\#", r"\d+")
        rules[f"-:^{exact}$"] = None
    return list(rules)


def _suffixes(plain: Sequence[str], packed: Set[str]) -> list[str]:
    """Endings by which the packed layers are known: without the layer's number where all agree."""
    found: dict[str, None] = {}
    for name in sorted(packed):
        short = _IN_BLOCK.sub("", name)
        clash = any(other.endswith(short) for other in plain)
        found[name if clash else short] = None
    return list(found)


def codes_of(
    values: npt.NDArray[np.float32], group: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Codes [N, K] and scales [N, groups] with values = scale · (code - 8), to the bit.

    The largest value of a group is its scale times one of sixteen integers; whichever explains all
    others is as good as the one that was used. ValueError if none does.
    """
    rows, cols = values.shape
    groups = -(-cols // group)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :cols] = values
    blocks = padded.reshape(-1, group)
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    codes = np.full(blocks.shape, _ZERO, np.uint8)
    scales = np.ones(len(blocks), np.float16)
    open_rows = np.flatnonzero(largest != 0)
    for step in (*range(-_ZERO, 0), *range(1, _ZERO)):
        if not len(open_rows):
            break
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            scale = (largest[open_rows] / np.float32(step)).astype(np.float16)
            wide = scale.astype(np.float32)[:, None]
            whole = np.rint(blocks[open_rows] / wide)
            fits = (whole * wide == blocks[open_rows]) & (whole >= -_ZERO) & (whole < _ZERO)
        good = fits.all(axis=1)
        done = open_rows[good]
        codes[done] = (whole[good] + _ZERO).astype(np.uint8)
        scales[done] = scale[good]
        open_rows = open_rows[~good]
    if len(open_rows):
        raise ValueError("[save] a group of weights is no multiple of a float16 scale")
    codes = codes.reshape(rows, -1)[:, :cols]
    return np.ascontiguousarray(codes), scales.reshape(rows, groups)
