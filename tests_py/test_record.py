"""Records of routing: what they hold, files, edits, replay to the byte."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moekit as mk

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3"]
IDS = [5, 17, 3, 90, 41, 41, 8]


def record_of(model: Any, ids: Any, **options: Any) -> tuple[Any, mk.Record]:
    with model.record(**options) as record:
        logits = model.forward(ids)
    return logits, record


@pytest.mark.parametrize("family", FAMILIES)
def test_a_record_replays_to_the_byte(checkpoint_maker: Any, family: str) -> None:
    model = mk.load(checkpoint_maker(family, 0)[1])
    logits, record = record_of(model, IDS, logits=True)
    assert record.experts.dtype == np.int32
    assert record.weights.dtype == np.float32
    assert record.experts.shape == (7, len(model.moe_layers), 2)
    assert record.layers.tolist() == model.moe_layers
    assert record.positions.tolist() == list(range(7))
    assert record.ids.tolist() == IDS
    assert record.logits is not None
    assert record.logits.shape == (7, len(model.moe_layers), 5)
    with model.record() as replayed:
        again = model.forward(IDS, routing=record)
    assert again.tobytes() == logits.tobytes()
    assert replayed == record
    # Recording itself changes nothing.
    assert model.forward(IDS).tobytes() == logits.tobytes()


def test_the_recorded_choice_is_what_the_logits_say(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("mixtral", 0)[1])
    _, record = record_of(model, IDS, logits=True)
    assert record.logits is not None
    best = np.argsort(-record.logits, axis=-1, kind="stable")[..., :2]
    np.testing.assert_array_equal(record.experts, best)
    np.testing.assert_allclose(record.weights.sum(-1), 1, atol=1e-6)


def test_counts_are_tokens_per_expert(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("deepseek_v3", 0)[1])
    _, record = record_of(model, IDS)
    counts = record.counts
    assert counts.dtype == np.int64
    assert counts.shape == (2, 5)
    for layer in range(2):
        expected = np.bincount(record.experts[:, layer].ravel(), minlength=5)
        np.testing.assert_array_equal(counts[layer], expected)


def test_a_batch_is_told_apart_and_replays(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("qwen3_moe", 0)[1])
    batch = [IDS, IDS[:2], [1, 2, 3]]
    logits, record = record_of(model, batch)
    assert record.sequences.tolist() == [0] * 7 + [1] * 2 + [2] * 3
    for ours, theirs in zip(model.forward(batch, routing=record), logits, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_generation_is_recorded_token_by_token_and_replays_as_one_pass(talker: Any) -> None:
    ids = talker.tokenizer.encode("the cat sat")
    with talker.record() as record:
        new = talker.generate(ids, max_new_tokens=6)
    # The last new token is never read by the model.
    read = ids + new[:-1]
    assert record.ids.tolist() == read
    assert record.positions.tolist() == list(range(len(read)))
    assert record.texts == [talker.tokenizer.token_text(token) for token in read]
    whole = talker.forward(read)
    assert talker.forward(read, routing=record).tobytes() == whole.tobytes()


def test_batched_generation_keeps_sequences_apart(talker: Any) -> None:
    prompts = [[5, 6, 7], [9]]
    with talker.record() as record:
        new = talker.generate(prompts, max_new_tokens=5)
    for i, prompt in enumerate(prompts):
        own = record.sequences == i
        assert record.ids[own].tolist() == prompt + new[i][:-1]
        assert record.positions[own].tolist() == list(range(len(prompt) + 4))
    read = [prompt + tokens[:-1] for prompt, tokens in zip(prompts, new, strict=True)]
    for ours, theirs in zip(
        talker.forward(read, routing=record), talker.forward(read), strict=True
    ):
        assert ours.tobytes() == theirs.tobytes()


def test_files_need_numpy_alone_and_come_back_equal(talker: Any, tmp_path: Path) -> None:
    ids = talker.tokenizer.encode("the cat\x00 你好")
    _, record = record_of(talker, ids, logits=True)
    record.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["experts"], record.experts)
        np.testing.assert_array_equal(file["weights"], record.weights)
        assert all(file[name].dtype != object for name in file.files)
    loaded = mk.Record.load(tmp_path / "t.npz")
    assert loaded == record
    assert loaded.texts == record.texts
    np.testing.assert_array_equal(loaded.logits, record.logits)
    np.testing.assert_array_equal(loaded.counts, record.counts)
    assert talker.forward(ids, routing=loaded).tobytes() == talker.forward(ids).tobytes()


def test_files_that_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    for content in (b"", b"PK\x03\x04 not a zip", b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(mk.FileError, match=r"t\.npz"):
            mk.Record.load(path)
    np.savez(path, weights=np.zeros((1, 1, 1), np.float32))
    with pytest.raises(mk.FileError, match="experts"):
        mk.Record.load(path)
    np.savez(path, experts=np.array([{}], dtype=object), weights=np.zeros(1))
    with pytest.raises(mk.FileError, match=r"t\.npz"):
        mk.Record.load(path)
    with pytest.raises(mk.FileError, match="missing"):
        mk.Record.load(tmp_path / "missing.npz")


def small() -> mk.Record:
    experts = [[[0, 1], [2, 0]], [[1, 2], [1, 2]], [[2, 0], [0, 1]]]
    weights = [[[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.25], [1, 0.5]], [[0.25, 0.5], [0.125, 1]]]
    return mk.Record(experts, weights, [3, 5], num_experts=[3, 3])


def test_swap_sends_tokens_elsewhere_and_joins_weights() -> None:
    record = small()
    edited = record.edit(layer=3, swap={0: 2})
    assert edited.experts[:, 0].tolist() == [[2, 1], [1, 2], [2, -1]]
    assert edited.weights[:, 0].tolist() == [[0.75, 0.25], [0.5, 0.25], [0.75, 0]]
    np.testing.assert_array_equal(edited.experts[:, 1], record.experts[:, 1])
    exchanged = record.edit(layer=3, swap={0: 2, 2: 0})
    assert exchanged.experts[:, 0].tolist() == [[2, 1], [1, 0], [0, 2]]
    np.testing.assert_array_equal(exchanged.weights, record.weights)
    assert record == small()


def test_drop_reweight_and_a_choice_of_tokens() -> None:
    record = small()
    dropped = record.edit(drop=[1], tokens=slice(0, 2))
    assert dropped.experts.tolist() == [[[0, -1], [2, 0]], [[-1, 2], [-1, 2]], [[2, 0], [0, 1]]]
    assert dropped.weights[0, 0].tolist() == [0.75, 0]
    lighter = record.edit(layer=[5], reweight={2: 0.5})
    assert lighter.weights[:, 1].tolist() == [[0.25, 0.5], [1, 0.25], [0.125, 1]]


def test_an_edited_record_is_another_text(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("mixtral", 0)[1])
    logits, record = record_of(model, IDS)
    first = int(record.experts[0, 1, 0])
    other = next(e for e in range(5) if e not in record.experts[0, 1])
    edited = record.edit(layer=1, swap={first: other}, tokens=[0])
    changed = model.forward(IDS, routing=edited)
    assert changed.tobytes() != logits.tobytes()
    # Both slots dropped: the layer adds nothing for these tokens, and everything stays finite.
    none = record.edit(layer=1, drop=range(5))
    assert np.isfinite(model.forward(IDS, routing=none)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, r"layer 4; recorded are \[3, 5\]"),
        ({"layer": 3, "swap": {0: 3}}, "expert 3 of layer 3"),
        ({"drop": [-1]}, "expert -1"),
        ({"reweight": {9: 1.0}}, "expert 9"),
    ],
)
def test_impossible_edits_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().edit(**options)


def test_records_of_other_tokens_or_layers_do_not_replay(checkpoint_maker: Any) -> None:
    model = mk.load(checkpoint_maker("mixtral", 0)[1])
    _, record = record_of(model, IDS)
    with pytest.raises(ValueError, match="no token 7 of sequence 0"):
        model.forward([*IDS, 1], routing=record)
    other = mk.Record(record.experts, record.weights, [7, 8, 9], num_experts=[5, 5, 5])
    with pytest.raises(ValueError, match="layer 0; recorded are"):
        model.forward(IDS, routing=other)
    large = mk.Record(record.experts + 4, record.weights, record.layers, num_experts=[9, 9, 9])
    with pytest.raises(ValueError, match="expert"):
        model.forward(IDS, routing=large)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], [[1.0]]), "tokens, layers, K"),
        (([[[1]]], [[[1.0, 2.0]]]), "weights has shape"),
        (([[[1]]], [[[1.0]]], [0, 1]), "layers has shape"),
        (([[[-2]]], [[[1.0]]]), "experts are -2"),
    ],
)
def test_tables_that_do_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mk.Record(*arguments)


def test_an_interrupted_pass_leaves_no_rows(talker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with talker.record() as record:
        talker.forward([1, 2])
        monkeypatch.setattr(
            type(talker.norm), "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            talker.forward([3, 4, 5])
        monkeypatch.undo()
        talker.forward([6])
    assert record.ids.tolist() == [1, 2, 6]


def test_nested_records_and_other_models_keep_to_themselves(
    talker: Any, checkpoint_maker: Any
) -> None:
    other = mk.load(checkpoint_maker("mixtral", 0)[1])
    with talker.record() as outer:
        talker.forward([1])
        other.forward([1, 2, 3])
        with talker.record() as inner:
            talker.forward([2])
    talker.forward([3])
    assert outer.ids.tolist() == [1, 2]
    assert inner.ids.tolist() == [2]


def test_another_thread_is_not_recorded(talker: Any) -> None:
    from threading import Thread

    with talker.record() as record:
        thread = Thread(target=talker.forward, args=([1, 2, 3],))
        thread.start()
        thread.join()
        talker.forward([4])
    assert record.ids.tolist() == [4]


def test_a_heatmap_shows_the_load_of_each_layer() -> None:
    pytest.importorskip("matplotlib")
    figure = small().plot()
    axis = figure.axes[0]
    load, unused = axis.images
    # Layer 3: experts 0, 1, 2 serve 2, 2, 2 tokens; layer 5: 2, 2, 2.
    np.testing.assert_allclose(load.get_array(), np.ones((2, 3)))
    assert unused.get_array().mask.all()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["3", "5"]
    axis = small().edit(layer=3, drop=[1]).plot().axes[0]
    np.testing.assert_allclose(axis.images[0].get_array()[0].compressed(), [1.5, 1.5])


def test_a_dataframe_has_a_row_for_each_choice() -> None:
    pandas = pytest.importorskip("pandas")
    frame = small().edit(layer=3, drop=[1]).to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 10
    assert set(frame["layer"]) == {3, 5}


@pytest.mark.parametrize(
    ("wish", "error", "text"),
    [
        ({"layer": "x", "drop": 1}, ValueError, "layer 'x'; recorded are"),
        ({"layer": [2, "*"], "drop": 1}, ValueError, r"layer '\*'"),
        ({"layer": True, "drop": 1}, ValueError, "layer True"),
        ({"drop": 1, "tokens": [99]}, ValueError, "99 is out of bounds.*rows of 4"),
        ({"drop": 1, "tokens": "abc"}, ValueError, "rows of 4 are required"),
        ({"drop": 1, "tokens": [True, False]}, ValueError, "rows of 4 are required"),
        ({"drop": 1.5}, TypeError, "drop has 1.5"),
        ({"drop": None}, TypeError, "drop has None"),
        ({"drop": -1}, ValueError, "expert -1 of layer 2"),
        ({"swap": {0: 99}}, ValueError, "expert 99 of layer 2; it has 3"),
        ({"swap": {0.5: 1}}, TypeError, "swap has 0.5"),
        ({"swap": [1, 2]}, TypeError, "swap is list; a mapping"),
        ({"reweight": {1: float("nan")}}, ValueError, "reweight has nan for expert 1"),
        ({"reweight": {1: "a"}}, ValueError, "reweight has 'a'"),
    ],
)
def test_an_edit_names_what_is_not_there(
    wish: dict[str, Any], error: type[Exception], text: str
) -> None:
    experts = np.arange(8).reshape(4, 1, 2) % 3
    record = mk.Record(experts, np.ones((4, 1, 2)), [2])
    with pytest.raises(error, match=text):
        record.edit(**wish)
    edited = record.edit(layer=np.int32(2), drop=np.int64(1), tokens=np.array([-1]))
    assert (edited.experts != record.experts).any(axis=(1, 2)).tolist() == [False] * 3 + [True]
    assert record.edit(drop=0, tokens=[]) == record.edit(tokens=slice(0, 0))


def test_a_replay_wants_a_record_and_columns_want_their_shapes(talker: Any) -> None:
    with pytest.raises(TypeError, match="routing is str; a Record"):
        talker.forward([1, 2], routing="r.npz")
    experts = np.zeros((3, 2, 2), int)
    with pytest.raises(ValueError, match="logits has shape"):
        mk.Record(experts, logits=np.zeros((3, 2)))
    with pytest.raises(TypeError, match="experts has dtype complex128"):
        mk.Record(experts.astype(complex))


def test_wishes_of_a_request_are_named(talker: Any) -> None:
    layer = talker.moe_layers[0]
    for requests, error, text in (
        ([{}, {"foo": 1}], TypeError, r"requests\[1\] has foo; of bias, force"),
        ([{"balance": 1}], ValueError, "balance; it is for all"),
        ([{"bias": {(layer, 0): "x"}}], ValueError, "bias 'x' of expert 0"),
        ([{"bias": {(layer, 0): 1e300}}], ValueError, "a finite number is required"),
    ):
        with pytest.raises(error, match=text), talker.intervene(requests=requests):
            pass


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    record = mk.Record(np.zeros((1, 1, 1), int), np.ones((1, 1, 1)))
    with pytest.raises(mk.FileError, match=r"nowhere.*cannot be written: No such file"):
        record.save(tmp_path / "nowhere" / "r.npz")
