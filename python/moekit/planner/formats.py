"""What a weight costs in each format, scales included.

One table, in the words of `mk.ops.pack`: a block of `block` weights of a row takes `block_bytes`;
formats with a scale for a whole row or for a tile say so. `bits` is the number on the label ("4
bits"), `bits_with_scales` what the memory sees ("4.5 with scales").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from .fields import short

_PANEL_ROWS = 16  # csrc/moe/quant/format.h
_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format of matrices [rows, cols]."""

    name: str
    bits: float
    block: int = 1
    block_bytes: float = 0.0
    row_bytes: int = 0  # one scale a row
    tile: int = 0  # one float32 scale for each tile x tile weights
    source: str = "moekit"
    packed: tuple[int, float] | None = None  # block and its bytes in memory, where they differ

    @property
    def is_float(self) -> bool:
        """Plain floating point: no scales, and used for norms and routers as well."""
        return self.name in ("f32", "bf16", "f16")

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix; a row is padded to whole blocks."""
        data = rows * -(-cols // self.block) * self.block_bytes + rows * self.row_bytes
        if self.tile:
            data += -(-rows // self.tile) * -(-cols // self.tile) * 4
        return int(-(-data // 1))

    def packed_bytes(self, rows: int, cols: int) -> int:
        """Bytes that `mk.ops.pack` takes: panels of sixteen rows, each in whole cache lines."""
        block, size = self.packed or (self.block, self.block_bytes)
        panel = _PANEL_ROWS * (-(-cols // block) * size + self.row_bytes)
        return -(-rows // _PANEL_ROWS) * int(-(-panel // _LINE_BYTES)) * _LINE_BYTES

    @property
    def bits_with_scales(self) -> float:
        """Bits a weight in a large matrix: a row's own scale is spread over 4096 weights."""
        bits = 8.0 * self.block_bytes / self.block + 8.0 * self.row_bytes / 4096
        return bits + (32.0 / self.tile**2 if self.tile else 0.0)


# ggml's block layouts (ggml-common.h; the numbers of gguf.GGML_QUANT_SIZES): weights, bytes
_GGUF: dict[str, tuple[float, int, int]] = {
    "q1_0": (1, 128, 18),
    "q4_0": (4, 32, 18),
    "q4_1": (4, 32, 20),
    "q5_0": (5, 32, 22),
    "q5_1": (5, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (2, 256, 84),
    "q3_k": (3, 256, 110),
    "q4_k": (4, 256, 144),
    "q5_k": (5, 256, 176),
    "q6_k": (6, 256, 210),
    "q8_k": (8, 256, 292),
    "iq1_s": (1, 256, 50),
    "iq1_m": (1, 256, 56),
    "iq2_xxs": (2, 256, 66),
    "iq2_xs": (2, 256, 74),
    "iq2_s": (2, 256, 82),
    "iq3_xxs": (3, 256, 98),
    "iq3_s": (3, 256, 110),
    "iq4_nl": (4, 32, 18),
    "iq4_xs": (4, 256, 136),
    "tq1_0": (1.6, 256, 54),
    "tq2_0": (2, 256, 66),
    "mxfp4": (4, 32, 17),
    "nvfp4": (4, 64, 36),
}
# In memory six-bit scales take whole bytes, five ternary digits a byte become two bits each, and
# codes of a grid the values they stand for, with their signs, in two (IQ1), three or four bits.
_PACKED = {
    "q3_k": 114,
    "iq4_xs": 138,
    "tq1_0": 66,
    "iq1_s": 71,
    "iq1_m": 78,
    "iq2_xxs": 102,
    "iq2_xs": 106,
    "iq2_s": 106,
    "iq3_xxs": 134,
    "iq3_s": 134,
}
_GROUP_SCALE_BYTES = 2  # one float16 scale a group


def _table() -> dict[str, Format]:
    table = {
        "f32": Format("f32", 32, 1, 4),
        "bf16": Format("bf16", 16, 1, 2),
        "f16": Format("f16", 16, 1, 2),
        # in memory each row has its own copy of its tile's scale
        "fp8": Format("fp8", 8, 1, 1, tile=128, packed=(128, 132)),
        "int8": Format("int8", 8, 1, 1, row_bytes=4),
    }
    for bits in (4, 3, 2):
        for group in (128, 64, 32):
            size = group * bits / 8 + _GROUP_SCALE_BYTES
            table[f"int{bits}_g{group}"] = Format(f"int{bits}_g{group}", bits, group, size)
        table[f"int{bits}"] = Format(f"int{bits}", bits, 128, 16 * bits + _GROUP_SCALE_BYTES)
    for name, group in (("", 128), ("_g64", 64), ("_g32", 32)):  # a float16 scale, a byte of zero
        table[f"int4_zp{name}"] = Format(f"int4_zp{name}", 4, group, group / 2 + 3)
    for name, (label, block, size) in _GGUF.items():
        packed = (block, _PACKED[name]) if name in _PACKED else None
        table[name] = Format(name, label, block, size, source="ggml", packed=packed)
    return table


FORMATS = _table()
_SPELLINGS = {
    "fp16": "f16",
    "float16": "f16",
    "bfloat16": "bf16",
    "fp32": "f32",
    "float32": "f32",
}
# Bits of a cached element: int8 and int4 carry a float16 scale for 32 values, fp8 none.
CACHE_BITS = {"f32": 32.0, "bf16": 16.0, "f16": 16.0, "fp8": 8.0, "int8": 8.5, "int4": 4.5}


def find_format(name: object, where: str = "format") -> Format:
    """The format called `name` (GGUF names in any case), or a ValueError with near names."""
    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        raise ValueError(f"[plan_model] {where} is {short(name)}; a format's name is required")
    key = name.strip().lower().replace("-", "_")
    key = _SPELLINGS.get(key, key)
    key = re.sub(r"^(q\d_k)_[sml]$", r"\1", key)  # Q4_K_M is a mixture around Q4_K
    if key in FORMATS:
        return FORMATS[key]
    near = get_close_matches(key[:40], FORMATS, 3, 0.5)
    hint = f" (near: {', '.join(near)})" if near else ""
    raise ValueError(
        f"[plan_model] {where} {name[:40]!r} is unknown{hint}; known are {', '.join(FORMATS)}"
    )


def cache_bits(format: object) -> float:
    """Bits of one cached element: a name of CACHE_BITS or a number of bits."""
    if isinstance(format, int | float) and not isinstance(format, bool) and 0 < format <= 64:
        return float(format)
    if isinstance(format, str) and format.lower() in CACHE_BITS:
        return CACHE_BITS[format.lower()]
    raise ValueError(
        f"[plan_model] kv_format is {short(format)}; one of {', '.join(CACHE_BITS)} or a number of "
        "bits up to 64 is required"
    )
