"""Keys and values in 16 and 8 bits: near the model in float32, and every promise kept."""

from typing import Any

import numpy as np
import pytest
from checkpoints import save, tiny_model

import moekit as mk
from moekit import ops

FAMILIES = ("qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v32", "qwen3_next")
# An indexer over rounded keys selects other tokens here and there.
SELECTING = ("deepseek_v32",)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_format", ["bf16", "f16", "int8"])
def test_a_kept_token_is_rounded_and_its_bytes_do_not_depend_on_the_cut(
    family: str, kv_format: str, tmp_path: Any
):
    path = save(tiny_model(family), tmp_path)
    exact, model = mk.load(path), mk.load(path, kv_format=kv_format)
    ids = np.random.default_rng(0).integers(0, 97, 40).tolist()
    whole = model.forward(ids)
    cache = model.new_cache()
    pieces = [model.forward(ids[a:b], cache=cache) for a, b in ((0, 1), (1, 30), (30, 40))]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    threads = ops.config()["threads"]
    try:
        ops.set_num_threads(1)
        assert model.forward(ids).tobytes() == whole.tobytes()
    finally:
        ops.set_num_threads(threads)
    reference = exact.forward(ids)
    assert not np.array_equal(whole, reference)
    error = np.linalg.norm(whole - reference) / np.linalg.norm(reference)
    if family not in SELECTING:
        assert error < {"bf16": 0.05, "f16": 0.02, "int8": 0.1}[kv_format]
    plain = exact.new_cache()
    exact.forward(ids, cache=plain)
    assert cache.nbytes < plain.nbytes


def test_other_formats_are_refused(tmp_path: Any):
    path = save(tiny_model("qwen3_moe"), tmp_path)
    with pytest.raises(ValueError, match=r"\[load\] kv_format 'int3'; one of f32, bf16"):
        mk.load(path, kv_format="int3")
