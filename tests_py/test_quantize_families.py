"""Every family goes through quantisation, moekit's own layout and the report."""

from pathlib import Path
from typing import Any

import checkpoints
import grouped_families
import latent_families
import numpy as np
import pytest
import recurrent_families

import moekit as mk
from moekit.contents import read_contents

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17, 44, 8, 61]
TEXTS = [IDS, IDS[::-1], [i + 1 for i in IDS]]
_MODULES = (grouped_families, latent_families, recurrent_families)
EVERY = sorted({*checkpoints.FAMILIES, *(family for m in _MODULES for family in m.FIELDS)})


@pytest.mark.parametrize("family", EVERY)
def test_a_packed_directory_is_the_same_model(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    _, source = checkpoint_maker(family, 4)
    full = mk.load(source)
    if not isinstance(full, mk.nn.Model):
        with pytest.raises(TypeError, match="decoder"):
            mk.quantize(source, "int8", out=tmp_path / "q")
        assert not list(tmp_path.iterdir())
        return
    recipe = {"default": "int8", "gate_up": "int4_g32", "head": "f32"}
    made = mk.quantize(source, recipe, TEXTS, "gptq", out=tmp_path / "q", min_tokens=3)
    read = mk.load(tmp_path / "q")
    assert read.forward(IDS).tobytes() == made.forward(IDS).tobytes()
    assert sum(read.memory().values()) < 0.6 * sum(full.memory().values())
    told, of_source = read_contents(tmp_path / "q"), read_contents(source)
    assert (told.total, told.active) == (of_source.total, of_source.active)
    other = sum(row.parameters for row in told.classes if row.name == "other")
    assert told.runs and other <= 0.2 * told.total  # of DeepSeek-V4: what mixes its streams
    sizes = [file.stat().st_size for file in (tmp_path / "q").glob("*.safetensors")]
    assert 0.9 * sum(sizes) < sum(row.nbytes for row in told.classes) < sum(sizes)
    report = mk.quant_report(full, read, TEXTS)
    assert np.isfinite(report.kl) and report.tokens == 39
    held = mk.quant_report(full, read, TEXTS, hold_routing=True)
    assert held.kl_routing == 0.0
    if full.moe_layers:
        assert {row.layer for row in report.layers} == set(full.moe_layers)
        assert set(made.quantization.tokens) == set(full.moe_layers)
        # Gemma 4's experts read another norm than the layer's: they are listed as uncalibrated.
        own_kind = type(full.layers[full.moe_layers[0]].moe) is not mk.nn.MoE
        assert own_kind == (family == "gemma4_text")
        assert own_kind or any(row.error for row in report.experts)
        listed = {(n, e) for n, e, _ in made.quantization.fallbacks}
        assert not own_kind or listed == {(row.layer, row.expert) for row in report.experts}


@pytest.mark.parametrize("family", EVERY)
def test_the_two_parts_vanish_where_they_have_to(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    """Only routers rounded: no error of the experts. Routing held: none of the routing."""
    _, source = checkpoint_maker(family, 4)
    full = mk.load(source)
    if not isinstance(full, mk.nn.Model) or not full.moe_layers:
        return
    routers = mk.quantize(full, {"router": "int4", "force": True})
    found = mk.quant_report(full, routers, TEXTS)
    assert found.kl_experts == 0.0 and not found.token_kl[:, 1].any()
    assert found.kl == found.kl_routing
    assert {row.error for row in found.experts} <= {0.0, None}
    both = mk.quantize(full, {"default": "int4_g32", "router": "int4", "force": True})
    found = mk.quant_report(full, both, TEXTS, hold_routing=True)
    assert found.kl_routing == 0.0 and not found.token_kl[:, 2].any()
    assert found.kl == found.kl_experts > 0.0
    assert found.agreement == 1.0 and {row.same_set for row in found.layers} == {1.0}
