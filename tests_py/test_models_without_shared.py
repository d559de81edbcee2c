"""No shared experts: transformers writes matrices without a row, or without a column."""

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from family_checks import TOLERANCE, prompt_of

import moekit as mk

_SHARED, _SIZE = "n_shared_experts", "shared_expert_intermediate_size"
FIELDS = {
    **dict.fromkeys(["deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "glm4_moe"], _SHARED),
    **dict.fromkeys(["glm4_moe_lite", "glm_moe_dsa", "mistral4", "solar_open", "axk1"], _SHARED),
    **dict.fromkeys(["kimi_linear", "bailing_hybrid"], _SHARED),
    **dict.fromkeys(["afmoe", "exaone_moe"], "num_shared_experts"),
    **dict.fromkeys(["laguna", "qwen2_moe", "qwen3_next", "qwen3_5_moe_text"], _SIZE),
}


@pytest.mark.parametrize("family", FIELDS)
def test_logits(checkpoint_maker: Any, family: str) -> None:
    theirs, path = checkpoint_maker(family, 1, **{FIELDS[family]: 0})
    ids = prompt_of(3, 13)
    model = mk.load(path)
    expected = checkpoints.their_logits(theirs, ids)
    np.testing.assert_allclose(model.forward(ids), expected, rtol=0, atol=TOLERANCE)
    assert all(model.layers[n].moe.shared is None for n in model.moe_layers)


def test_saved_there_are_none_either(checkpoint_maker: Any, tmp_path: Path) -> None:
    model = mk.load(checkpoint_maker("deepseek_v3", 1, n_shared_experts=0)[1])
    model.save(tmp_path / "out")
    ids = prompt_of(3, 13)
    assert mk.load(tmp_path / "out").forward(ids).tobytes() == model.forward(ids).tobytes()
