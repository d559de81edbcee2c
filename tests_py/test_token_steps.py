"""A decoded token's halves of a block in one call of the core: the bytes of the plain way, whatever
is set, recorded or counted meanwhile."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit import nn
from moekit.nn.block import Block
from moekit.nn.parts import rebuilt

pytest.importorskip("torch")
pytest.importorskip("transformers")

Maker = Callable[..., tuple[Any, Path]]
# family -> has its attention a step, and have its experts one?
STEPS = {
    "olmoe": (True, True),  # norms of whole projections
    "qwen3_moe": (True, True),  # norms of heads
    "mixtral": (True, True),
    "gpt_oss": (True, True),  # biases, sinks, windows
    "dots1": (True, True),  # an ungated shared expert, groups
    "minimax_m2": (True, True),  # a bias that selects, a part of a head rotated
    "qwen2_moe": (True, True),  # a gated shared expert
    "qwen3_next": (False, True),  # gated queries, recurrent layers
    "granitemoe": (True, False),  # a residual factor
    "deepseek_v3": (True, True),  # latent attention with compressed queries
    "deepseek_v2": (True, True),
    "deepseek_v32": (False, True),  # an indexer
    "dbrx": (False, False),  # clamped projections, LayerNorm
}


def decoded(model: nn.Model, ids: list[int], cache: Any = None, start: int = 0) -> np.ndarray:
    """Logits of ids from `start` on, one token after the other."""
    cache = model.new_cache() if cache is None else cache
    if start:
        model.forward(ids[:start], cache)
    return np.concatenate([model.forward([token], cache) for token in ids[start:]])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Call as a context: blocks ask their parts."""

    def way() -> Any:
        context = monkeypatch.context()

        class Plain:
            def __enter__(self) -> None:
                patch = context.__enter__()
                patch.setattr(
                    Block,
                    "_step",
                    lambda self, x, batch, n: self._fed(x, self._mixed(x, batch, n), batch, n),
                )

            def __exit__(self, *error: Any) -> None:
                context.__exit__(*error)

        return Plain()

    return way


def ids_of(seed: int, count: int = 11) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, count).tolist()


@pytest.mark.parametrize("family", STEPS)
def test_the_bytes_are_those_of_the_plain_way(
    family: str, checkpoint_maker: Maker, plain: Any
) -> None:
    _, path = checkpoint_maker(family)
    for kv_format in ("f32", "int8"):
        model = mk.load(path, kv_format=kv_format)
        ids = ids_of(3)
        got = decoded(model, ids, start=4)
        steps = model.layers[-1]._steps
        assert (steps.attention is not None, steps.experts is not None) == STEPS[family]
        with plain():
            expected = decoded(model, ids, start=4)
        assert got.tobytes() == expected.tobytes()


@pytest.fixture
def model(checkpoint_maker: Maker) -> nn.Model:
    return mk.load(checkpoint_maker("qwen3_moe")[1])


CHANGES: dict[str, Callable[[Any], None]] = {
    "attention.window": lambda b: setattr(b.attention, "window", 3),
    "attention.scale": lambda b: setattr(b.attention, "scale", 0.01),
    "attention.sinks": lambda b: setattr(
        b.attention, "sinks", np.ones(b.attention.heads, np.float32)
    ),
    "attention.q": lambda b: setattr(
        b.attention, "q", nn.Linear(-b.attention.q.weight.unpack(), b.attention.q.bias)
    ),
    "attention.o.weight": lambda b: setattr(
        b.attention.o, "weight", mk.ops.pack(-b.attention.o.weight.unpack(), "f32")
    ),
    "attention.k_norm": lambda b: setattr(b.attention, "k_norm", None),
    "attention.clip": lambda b: setattr(b.attention, "clip", 0.1),
    "attention_norm.eps": lambda b: setattr(b.attention_norm, "eps", 0.5),
    "attention_norm.weight in place": lambda b: b.attention_norm.weight.__imul__(np.float32(-2)),
    "attention_norm.weight in double": lambda b: setattr(
        b.attention_norm, "weight", b.attention_norm.weight.astype(np.float64) * 3
    ),
    "ffn_norm": lambda b: setattr(b, "ffn_norm", nn.RMSNorm(None, 1e-3)),
    "residual": lambda b: setattr(b, "residual", 0.5),
    "parallel": lambda b: (setattr(b, "ffn_norm", None), setattr(b, "parallel", True)),
    "moe.router": lambda b: setattr(
        b.ffn, "router", nn.Router(b.ffn.gate.linear.weight, 1, score="sigmoid")
    ),
    "a function as the router": lambda b: setattr(
        b.ffn, "router", lambda x, logits: mk.ops.route(-logits, 2)
    ),
    "experts.activation": lambda b: setattr(b.ffn.experts, "activation", "relu"),
    "moe.bias": lambda b: setattr(b.ffn, "bias", np.full(b.ffn.experts.hidden, 2, np.float32)),
    "moe.average": lambda b: setattr(b.ffn, "average", True),
    "ffn": lambda b: setattr(
        b,
        "ffn",
        nn.MLP(
            b.ffn.experts.__class__(
                *(
                    part.unpack()[:1]
                    for part in (b.ffn.experts.gate, b.ffn.experts.up, b.ffn.experts.down)
                ),
                "f32",
            )
        ),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_set_anew_holds_from_the_next_token_on(
    change: str, model: nn.Model, plain: Any
) -> None:
    ids = ids_of(5)
    cache = model.new_cache()
    before = decoded(model, ids, cache)  # the steps are made
    unchanged = decoded(model, ids_of(6), cache)
    cache.truncate(len(ids))
    CHANGES[change](model.layers[0])
    after = decoded(model, ids_of(6), cache)
    assert after.tobytes() != unchanged.tobytes()
    cache.truncate(len(ids))
    with plain():
        expected = decoded(model, ids_of(6), cache)
    assert after.tobytes() == expected.tobytes()
    assert before.shape == (len(ids), 97)


def test_a_subclass_is_asked_itself(model: nn.Model) -> None:
    class Doubling(nn.Linear):
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return 2 * super().__call__(x)

    ids = ids_of(1)
    once = decoded(model, ids)
    old = model.layers[1].attention.q
    model.layers[1].attention.q = Doubling(old.weight, old.bias)
    assert decoded(model, ids).tobytes() != once.tobytes()
    assert model.layers[1]._steps.attention is None
    assert model.layers[1]._steps.experts is not None
    model.layers[1].attention.q = old
    assert decoded(model, ids).tobytes() == once.tobytes()


def test_parts_of_the_callers_own_may_give_other_floats_and_keep_rows_themselves(
    model: nn.Model, plain: Any
) -> None:
    class Wide(nn.Attention):
        def __call__(self, *args: Any) -> np.ndarray:
            return super().__call__(*args).astype(np.float64)

    class Counting(nn.KVCache):
        appended = 0

        def append(self, layer: int, *rows: np.ndarray, first: int | None = None) -> Any:
            self.appended += 1
            return super().append(layer, *rows, first=first)

    ids = ids_of(8)
    expected = decoded(model, ids)
    own = model.new_cache()
    own.sequences = [Counting([block.cache_rows for block in model.layers])]
    assert decoded(model, ids, own).tobytes() == expected.tobytes()
    assert own.sequences[0].appended == len(ids) * len(model.layers)

    attention = model.layers[0].attention
    wide = object.__new__(Wide)
    for name in nn.Attention.__slots__:
        setattr(wide, name, getattr(attention, name))
    model.layers[0].attention = wide
    assert decoded(model, ids).tobytes() == expected.tobytes()
    with plain():
        assert decoded(model, ids).tobytes() == expected.tobytes()


def test_records_counters_and_interventions_see_every_token(model: nn.Model, plain: Any) -> None:
    ids = ids_of(2)

    def looked_at() -> tuple[Any, ...]:
        with model.record() as record, model.record(counters=True) as counters:
            logits = decoded(model, ids)
        with model.record(logits=True, margins=True) as more:
            assert decoded(model, ids).tobytes() == logits.tobytes()
        with model.intervene(mask=[("*", int(record.experts[0, 0, 0]))]):
            masked = decoded(model, ids)
        replayed = np.concatenate(
            [np.asarray(row) for row in model.forward(ids, routing=record)[None]]
        )
        return (
            logits,
            masked,
            replayed,
            record.experts,
            record.weights,
            counters.counts,
            more.experts,
            more.logits,
            more.margins,
        )

    got = looked_at()
    with plain():
        expected = looked_at()
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert got[5].sum() == len(ids) * got[3].shape[1] * got[3].shape[2]
    assert got[0].tobytes() != got[1].tobytes()


def test_a_copy_with_other_weights_has_steps_of_its_own(model: nn.Model) -> None:
    ids = ids_of(4)
    before = decoded(model, ids)

    def negated(path: str, value: Any) -> Any:
        if path.endswith("0.attention.v.weight"):
            return mk.ops.pack(-value.unpack(), "f32")
        return value

    twin = rebuilt(model, negated)
    for _ in range(2):
        other = decoded(twin, ids)
        assert other.tobytes() != before.tobytes()
        assert other.tobytes() == np.concatenate([twin.forward(ids)]).tobytes()
        assert decoded(model, ids).tobytes() == before.tobytes()


def test_a_model_is_freed_at_once(checkpoint_maker: Maker) -> None:
    model = mk.load(checkpoint_maker("olmoe")[1])
    decoded(model, ids_of(0))
    alive = [weakref.ref(block.attention_norm.weight) for block in model.layers]
    gc.disable()
    try:
        del model
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_threads_decode_one_model_side_by_side(model: nn.Model) -> None:
    prompts = [ids_of(seed, 30) for seed in range(3)]
    alone = [decoded(model, ids) for ids in prompts]
    together: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        together[i] = decoded(model, prompts[i])
        model.layers[0].attention.window = None  # as it was: steps are made anew meanwhile

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert together[i].tobytes() == expected.tobytes()


def test_a_wrong_setting_is_told_by_the_operation(model: nn.Model) -> None:
    model.layers[0].attention.window = 0
    with pytest.raises(ValueError, match=r"\[attention\] window is 0"):
        model.forward([3])
