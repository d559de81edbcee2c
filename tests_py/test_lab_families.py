"""The routing laboratory on every family: empty blocks, replays, bias, mask, requests."""

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

import moekit as mk
from moekit import analysis

FAMILIES = sorted({family for table in checkpoints.TABLES for family in table})
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17, 33]
OTHER = [8, 8, 60]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint_maker: Any) -> Any:
    return mk.load(checkpoint_maker(request.param, 3)[1])


def test_looking_changes_no_byte_and_replays(model: Any, tmp_path: Path) -> None:
    batch = [IDS, OTHER]
    plain = model.forward(batch)
    assert model.moe_layers
    with model.intervene(), model.record(logits=True, margins=True) as record:
        seen = model.forward(batch)
    with model.record(counters=True) as counters:
        counted = model.forward(batch)
    record.save(tmp_path / "r.npz")
    replayed = model.forward(batch, routing=mk.Record.load(tmp_path / "r.npz"))
    parts = [record.experts[record.sequences == i] for i in range(2)]
    trace = mk.Record.from_routed_experts(parts, record.layers)
    traced = model.forward(batch, routing=trace)
    for a, *others in zip(plain, seen, counted, replayed, traced, strict=True):
        assert {a.tobytes()} == {b.tobytes() for b in others}
    np.testing.assert_array_equal(counters.counts, record.counts)
    assert record.margins is not None and not np.isnan(record.margins).any()


def test_a_bias_is_the_same_bias_from_a_function(model: Any) -> None:
    layer = model.moe_layers[-1]
    count = model.layers[layer].moe.count
    amounts = np.random.default_rng(0).normal(0, 2, count).astype(np.float32)
    with model.intervene(bias={layer: amounts}):
        declared = model.forward(IDS)
    with model.intervene(router={layer: lambda x, logits: logits + amounts}):
        own = model.forward(IDS)
    assert declared.tobytes() == own.tobytes()
    assert declared.tobytes() != model.forward(IDS).tobytes()


def test_a_function_works_in_any_layer(model: Any) -> None:
    """In the router's place, with its rule: the same bytes; with its own: another text."""
    plain = model.forward(IDS)
    for layer in model.moe_layers:
        moe = model.layers[layer].moe
        gate = moe.router
        if gate.needs_ids:
            continue
        try:
            moe.router = lambda x, logits, gate=gate: gate.route(logits)
            assert model.forward(IDS).tobytes() == plain.tobytes()
            moe.router = lambda x, logits: mk.ops.route(-logits, 1)
            assert model.forward(IDS).tobytes() != plain.tobytes()
        finally:
            moe.router = gate
    assert model.forward(IDS).tobytes() == plain.tobytes()


def test_masks_and_requests(model: Any) -> None:
    layer = model.moe_layers[0]
    with model.record() as record:
        plain = model.forward(IDS)
    expert = int(record.counts[0].argmax())
    settings: list[dict[str, Any]] = [{"mask": {(layer, expert)}}, {}]
    with model.intervene(**settings[0]), model.record() as record:
        masked = model.forward(IDS)
    assert not (record.experts[:, 0] == expert).any()
    assert masked.tobytes() != plain.tobytes()
    with model.intervene(requests=settings):
        both = model.forward([IDS, IDS])
        text = model.generate([IDS, IDS], max_new_tokens=4)
    assert both[0].tobytes() == masked.tobytes()
    assert both[1].tobytes() == plain.tobytes()
    with model.intervene(**settings[0]):
        assert model.generate(IDS, max_new_tokens=4) == text[0]
    assert model.generate(IDS, max_new_tokens=4) == text[1]


def test_a_mask_is_the_model_without_the_expert(model: Any) -> None:
    """To the byte, the softmax over all experts included."""
    layer = model.moe_layers[-1]
    moe = model.layers[layer].moe
    k = moe.gate.k
    if type(moe.gate) is not mk.nn.Router or moe.gate.rule.get("groups", 1) > 1 or moe.count <= k:
        pytest.skip("mk.edit.prune leaves tables and groups of one size whole")
    with model.record() as record:
        plain = model.forward([IDS, OTHER])
    expert = int(record.counts[-1, : moe.experts.count].argmax())
    kept = [e for e in range(moe.experts.count) if e != expert]
    without = mk.edit.prune(model, {layer: kept})
    with model.intervene(mask={(layer, expert)}):
        masked = model.forward([IDS, OTHER])
    for a, b in zip(masked, without.forward([IDS, OTHER]), strict=True):
        assert a.tobytes() == b.tobytes()
    assert masked[0].tobytes() != plain[0].tobytes()


def test_an_ablation_is_the_masked_model(model: Any) -> None:
    layer = model.moe_layers[-1]
    with model.record() as record:
        plain = model.forward(IDS)
    expert = int(record.counts[-1].argmax())
    found = analysis.ablate(model, IDS, layers=[layer], experts=[expert], progress=False)
    with model.intervene(mask={(layer, expert)}):
        masked = model.forward(IDS)
    following = np.array(IDS[1:])
    before, after = (
        analysis.reading.token_losses(logits[:-1], following) for logits in (plain, masked)
    )
    assert found.change[0, expert] == pytest.approx((after - before).mean(), rel=1e-3, abs=2e-6)
