"""Replay, empty interventions, masks and counters in every kind of weight format."""

from typing import Any

import numpy as np
import pytest

import moekit as mk

FORMATS = ["bf16", "int8", "int4", "int4_g32", "int3", "int2", "fp8", "mxfp4"]
FORMATS += ["q4_0", "q6_k", "iq2_xs"]
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17, 33]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_of_looking_replay_and_mask(format: str, family: str, checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker(family, 2)[1], format=format)
    batch = [IDS, IDS[:4], [7]]
    plain = model.forward(batch)
    with model.intervene(), model.record() as record:
        seen = model.forward(batch)
    with model.record(counters=True) as counters:
        counted = model.forward(batch)
    replayed = model.forward(batch, routing=record)
    for a, *others in zip(plain, seen, counted, replayed, strict=True):
        assert {a.tobytes()} == {b.tobytes() for b in others}
    np.testing.assert_array_equal(counters.counts, record.counts)
    layer = model.moe_layers[-1]
    moe = model.layers[layer].moe
    expert = int(record.counts[-1].argmax())
    amounts = np.zeros(moe.count, np.float32)
    amounts[expert] = -1.5
    with model.intervene(bias={(layer, expert): -1.5}):
        declared = model.forward(IDS)
    with model.intervene(router={layer: lambda x, logits: logits + amounts}):
        assert model.forward(IDS).tobytes() == declared.tobytes()
    if moe.gate.rule.get("groups", 1) > 1:
        return
    without = mk.edit.prune(model, {layer: [e for e in range(moe.count) if e != expert]})
    with model.intervene(mask={(layer, expert)}):
        masked = model.forward(IDS)
    assert masked.tobytes() == without.forward(IDS).tobytes() != plain[0].tobytes()
