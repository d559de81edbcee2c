"""THE table of ggml's tensor types: number, name, elements and bytes of a block.

The numbers are `enum ggml_type` of ggml.h; sizes are those of the block structs in ggml-common.h.
"""

import ml_dtypes
import numpy as np

from .storage import SAFETENSORS, Storage

# number, name, block, bytes
_QUANTISED = (
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
)
_PLAIN = (
    (0, "F32", "<f4"),
    (1, "F16", "<f2"),
    (24, "I8", "i1"),
    (25, "I16", "<i2"),
    (26, "I32", "<i4"),
    (27, "I64", "<i8"),
    (28, "F64", "<f8"),
    (30, "BF16", ml_dtypes.bfloat16),
)
# Numbers that ggml once used or uses in memory only; a file with them needs converting again.
NOT_IN_FILES = {
    4: "Q4_2, removed in 2023",
    5: "Q4_3, removed in 2023",
    9: "Q8_1, a type of activations",
    15: "Q8_K, a type of activations",
    31: "Q4_0_4_4, removed in 2024",
    32: "Q4_0_4_8, removed in 2024",
    33: "Q4_0_8_8, removed in 2024",
    36: "IQ4_NL_4_4, removed in 2024",
    37: "IQ4_NL_4_8, removed in 2024",
    38: "IQ4_NL_8_8, removed in 2024",
}

QUANTISED = {name: Storage(name, block, nbytes, None) for _, name, block, nbytes in _QUANTISED}
GGML: dict[int, Storage] = {number: QUANTISED[name] for number, name, _, _ in _QUANTISED} | {
    number: Storage(name, 1, np.dtype(dtype).itemsize, np.dtype(dtype))
    for number, name, dtype in _PLAIN
}
# Every type of every format by its name: the two formats agree where they share one.
STORAGE: dict[str, Storage] = SAFETENSORS | {row.name: row for row in GGML.values()}
