"""mk.quantize: recipes, calibration, GPTQ, the packed layout, interruptions."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import moekit as mk
from moekit.checkpoint import packed
from moekit.cli.main import main
from moekit.nn.parts import held
from moekit.ops import PackedWeight
from moekit.quantization import awq, bits_of, places_of
from moekit.quantization.blocks import Inputs
from moekit.quantization.budget import choose
from moekit.quantization.layerwise import Stream, tapped, windows_of

TEXTS = {p.stem: p.read_text() for p in Path(mk.demo_path(), "texts").glob("*.txt")}
CALIBRATION = [text[:2500] for text in TEXTS.values()]
HELD_OUT = [text[4000:6000] for text in TEXTS.values()]
IDS = list(range(40, 100))


@pytest.fixture(scope="module")
def model():
    return mk.demo_model()


def logits_of(model):
    return model.forward(IDS)


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(model, other, texts):
    total = tokens = 0
    for ids in windows_of(model, texts, 256):
        a, b = log_softmax(model.forward(ids)), log_softmax(other.forward(ids))
        total += (np.exp(a) * (a - b)).sum()
        tokens += len(ids)
    return total / tokens


def formats(model):
    return {p.path: p.weight.format for p in places_of(model)}


# -- recipes -------------------------------------------------------------------------------


def test_round_to_nearest_is_what_loading_in_the_format_does(model):
    quantised = mk.quantize(model, "int4")
    np.testing.assert_array_equal(logits_of(quantised), logits_of(mk.demo_model("int4")))
    # The router stays in float32, the source as it was.
    assert {p.weight.format for p in places_of(quantised) if p.role == "router"} == {"f32"}
    assert {p.weight.format for p in places_of(model) if p.role == "down"} == {"bf16"}


def test_roles_patterns_and_single_experts(model):
    recipe = {
        "default": "int4",
        "down": "int8",
        "shared": "bf16",
        "attention": "int8",
        "router": "int8",
        "layers.2.ffn.experts.*": "int4_g32",
        "layers.4.ffn.experts.down.5": "f16",
        (3, 7): "f32",
        "3/9": "mxfp4",
    }
    found = formats(mk.quantize(model, recipe))
    assert found["layers.1.ffn.experts.up"] == "int4"
    assert found["layers.1.ffn.experts.down"] == "int8"
    assert found["layers.1.ffn.shared.down"] == "bf16"
    assert found["layers.1.ffn.router.linear.weight"] == "int8"
    assert found["layers.1.attention.q.weight"] == "int8"
    assert found["layers.0.ffn.experts.down"] == "int4"  # a dense layer is no expert
    assert found["layers.2.ffn.experts.down"] == found["layers.2.ffn.experts.gate"] == "int4_g32"
    assert found["layers.4.ffn.experts.down"] == ["int8"] * 5 + ["f16"] + ["int8"] * 26
    for bank, rest in (("gate", "int4"), ("up", "int4"), ("down", "int8")):
        wanted = [rest] * 32
        wanted[7], wanted[9] = "f32", "mxfp4"
        assert found[f"layers.3.ffn.experts.{bank}"] == wanted


def test_experts_in_their_own_formats_act_as_in_models_of_one_format(model):
    """The mixture runs each expert exactly as a model all in that expert's format does."""
    mixed = mk.quantize(model, {"default": "int8", (2, 3): "int4", (2, 4): "f32"})
    x = np.random.default_rng(0).normal(size=(9, 256)).astype(np.float32)
    for expert, format in ((3, "int4"), (4, "f32"), (5, "int8")):
        whole = mk.quantize(model, format)
        only = mk.Assignment(
            np.full((9, 1), expert, np.int32), np.ones((9, 1), np.float32), expert_count=32
        )
        got = mk.ops.moe_ffn(x, only, mixed.layers[2].moe.experts)
        want = mk.ops.moe_ffn(x, only, whole.layers[2].moe.experts)
        assert got.tobytes() == want.tobytes(), format


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("int9", "int9"),
        ({"default": "int4", "router": "int4"}, "router"),
        ({"layers.*router*": "int4"}, "router"),
        ({"rooter": "int8"}, "rooter"),
        ({"layers.9.*": "int8"}, "layers.9"),
        ({(0, 1): "int8"}, "layer 0"),
        ({(1, 32): "int8"}, "expert 32"),
        ({"embedding": "int4"}, "embedding"),
        ({"budget": -1.0}, "budget"),
        ({"gate_up": "int4", "*experts.gate": "int8"}, "gate is"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(recipe, named, tmp_path):
    with pytest.raises(ValueError, match=named.replace("*", r"\*")):
        mk.quantize(mk.demo_path(), recipe, out=tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_router_below_eight_bits_needs_force(model):
    forced = mk.quantize(model, {"router": "int4", "force": True})
    assert {p.weight.format for p in places_of(forced) if p.role == "router"} == {"int4"}


def test_bits_count_scales():
    assert bits_of("f32") == 32
    assert 4.0 < bits_of("int4") < bits_of("int4_g32") < 5


# -- calibration ---------------------------------------------------------------------------


def test_gptq_beats_round_to_nearest_on_text_it_has_not_seen(model):
    plain = divergence(model, mk.quantize(model, "int4"), HELD_OUT)
    tuned = mk.quantize(model, "int4", CALIBRATION, "gptq", window=256)
    assert divergence(model, tuned, HELD_OUT) < 0.85 * plain
    notes = tuned.quantization
    tokens = sum(len(ids) for ids in windows_of(model, CALIBRATION, 256))
    assert {sum(counts) for counts in notes.tokens.values()} == {4 * tokens}
    assert notes.nbytes == mk.quantize(model, "int4").quantization.nbytes


def test_gptq_from_left_to_right_with_scales_of_corrected_weights(model):
    tuned = mk.quantize(model, "int4", CALIBRATION, "gptq", window=256, act_order=False)
    plain = mk.quantize(model, "int4", CALIBRATION, window=256)
    errors = [n.quantization.by_role()["gate_up"]["mean_error"] for n in (tuned, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_experts_with_too_little_text_are_listed_and_rounded_by_their_weights(model):
    few = mk.quantize(model, "int4", [IDS, IDS[::-1]], "gptq", min_tokens=32)
    notes = few.quantization
    starved = {(n, e) for n, counts in notes.tokens.items() for e, c in enumerate(counts) if c < 32}
    assert starved and {(n, e) for n, e, _ in notes.fallbacks} == starved
    for matrix in notes.matrices:
        if matrix.role in ("gate_up", "down"):
            layer = int(matrix.path.split(".")[1])
            assert (matrix.tokens == 0) == ((layer, matrix.expert) in starved)
            assert matrix.tokens or matrix.method == "rtn"
    everyone = mk.quantize(model, "int4", [IDS, IDS[::-1]], "gptq", all_experts=True)
    assert everyone.quantization.fallbacks == []
    assert everyone.quantization.tokens[1] == notes.tokens[1]
    assert {m.tokens for m in everyone.quantization.matrices if m.role == "down"} == {120}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": "gptq"}, "calibration"),
        ({"method": "gptq", "calibration": []}, "no text"),
        ({"method": "gptq", "calibration": ""}, "no text"),
        ({"method": "awq"}, "calibration"),
        ({"method": "magic"}, "magic"),
        ({"method": "gptq", "calibration": [[1, 5000]]}, "4095"),
        ({"damp": 0.0}, "damp"),
        ({"min_tokens": -1}, "min_tokens"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(given, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        mk.quantize(mk.demo_path(), "int4", out=tmp_path / "out", **given)
    assert os.listdir(tmp_path) == []


# -- on disk -------------------------------------------------------------------------------

RECIPE = {"default": "int4", "down": "int8", (2, 5): "bf16", "embedding": "f32"}


def test_a_packed_directory_is_the_same_model(tmp_path):
    made = mk.quantize(mk.demo_path(), RECIPE, out=tmp_path / "q")
    read = mk.load(tmp_path / "q")
    assert formats(read) == formats(made)
    assert logits_of(read).tobytes() == logits_of(made).tobytes()
    for (path, a), (other, b) in zip(held(read), held(made), strict=True):
        assert path == other
        if not isinstance(a, PackedWeight):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    assert read.generate("def f(", max_new_tokens=4) == made.generate("def f(", max_new_tokens=4)
    assert read.end_ids == made.end_ids
    assert read.quantization["options"]["recipe"]["down"] == "int8"
    assert len(read.placed) == len(made.placed) == len(mk.demo_model().placed)
    # Saved in the usual layout, both say the same.
    made.save(tmp_path / "a")
    read.save(tmp_path / "b")
    same = [mk.load(tmp_path / name).forward(IDS).tobytes() for name in "ab"]
    assert same[0] == same[1]
    # It is a checkpoint like any other: quantised once more, it gives one again.
    again = mk.quantize(tmp_path / "q", {"attention": "int8"}, out=tmp_path / "again")
    assert logits_of(mk.load(tmp_path / "again")).tobytes() == logits_of(again).tobytes()
    with pytest.raises(ValueError, match="packed already"):
        mk.load(tmp_path / "q", format="int8")


def test_an_existing_directory_is_not_replaced_unasked(tmp_path):
    target = tmp_path / "q"
    target.mkdir()
    mk.quantize(mk.demo_path(), "int8", out=target)
    with pytest.raises(ValueError, match="there already"):
        mk.quantize(mk.demo_path(), "int8", out=target)
    mk.quantize(mk.demo_path(), "int4", out=target, overwrite=True)
    assert os.listdir(tmp_path) == ["q"]
    assert formats(mk.load(target))["layers.1.ffn.experts.up"] == "int4"
    strange = tmp_path / "mine"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="there already"):
        mk.quantize(mk.demo_path(), "int8", out=strange, overwrite=True)
    assert (strange / "thesis.txt").read_text() == "mine"


class Interrupted:
    """Raises in the place of writing the n-th file, and counts the layers that are worked on."""

    def __init__(self, monkeypatch, after, error):
        self.left, self.error, self.written = after, error, 0
        self._write = packed.PackedWriter.write
        monkeypatch.setattr(packed.PackedWriter, "write", lambda *a: self.write(*a))

    def write(self, *arguments):
        if self.left == 0:
            raise self.error
        self.left -= 1
        self.written += 1
        self._write(*arguments)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    def run(name):
        return mk.quantize(
            mk.demo_path(), RECIPE, CALIBRATION[:2], "gptq", window=128, out=tmp_path / name
        )

    whole = run("whole")
    cut = Interrupted(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    assert not (tmp_path / "cut").exists()
    cut.left, cut.written = 99, 0
    resumed = run("cut")
    assert cut.written == 3  # of the five layers and the rest
    assert sorted(os.listdir(tmp_path)) == ["cut", "whole"]
    assert logits_of(resumed).tobytes() == logits_of(whole).tobytes()
    assert resumed.quantization.matrices == whole.quantization.matrices
    assert resumed.quantization.tokens == whole.quantization.tokens
    for name in os.listdir(tmp_path / "whole"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_work_does_not_take_up_what_an_interruption_left(tmp_path, monkeypatch):
    cut = Interrupted(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mk.quantize(mk.demo_path(), "int8", out=tmp_path / "q")
    cut.left, cut.written = 99, 0
    mk.quantize(mk.demo_path(), "int4", out=tmp_path / "q")
    assert cut.written == 6
    assert set(os.listdir(tmp_path)) == {"q"}


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    Interrupted(monkeypatch, 3, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        mk.quantize(mk.demo_path(), "int8", out=tmp_path / "q")
    assert os.listdir(tmp_path) == []


def test_files_that_were_tampered_with_are_refused(tmp_path):
    mk.quantize(mk.demo_path(), "int4", out=tmp_path / "q")
    document = json.loads((tmp_path / "q" / "moekit.json").read_text())
    up = "layers.1.ffn.experts.up"

    def broken(change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "q", folder)
        copy = json.loads(json.dumps(document))
        change(copy)
        (folder / "moekit.json").write_text(json.dumps(copy))
        with pytest.raises(mk.FileError) as caught:
            mk.load(folder)
        return str(caught.value)

    assert "version" in broken(lambda d: d.update(version=1))
    assert up in broken(lambda d: d["weights"][up].update(format="int8"))
    assert up in broken(lambda d: d["weights"][up].update(format="int9"))
    assert up in broken(lambda d: d["weights"][up].update(shape=[1 << 30, 1 << 30, 1 << 30]))
    assert up in broken(lambda d: d["weights"][up].update(file="../q/packed-00001.safetensors"))
    assert up in broken(lambda d: d["weights"].pop(up))
    assert "extra" in broken(lambda d: d["weights"].update(extra=d["weights"][up]))
    assert "broken" in broken(lambda d: d["weights"][up].update(shape="wide"))
    assert "outline" in broken(lambda d: d.pop("outline"))
    gate = "model.layers.1.mlp.experts.0.gate_proj.weight"
    assert gate in broken(lambda d: d["outline"].pop(gate))


# -- the command ---------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(CALIBRATION[0])
    out = str(tmp_path / "q")
    arguments = ["quantize", "demo", "--format", "int4", "--set", "down=int8", "--out", out]
    more = ["--method", "gptq", "--calibration", str(texts), "--window", "128", "--json"]
    assert main([*arguments, *more]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["formats"]["int8"] == 129 and figures["methods"]["gptq"] > 100
    assert mk.load(out).layers[1].moe.experts.down.format == "int8"
    assert main(["quantize", "demo", "--format", "int8", "--out", str(tmp_path / "r")]) == 0
    assert "gate_up" in capsys.readouterr().out
    for wrong in (
        ["quantize", "demo", "--format", "int5", "--out", out + "2"],
        ["quantize", "demo", "--format", "int4", "--out", out],
        ["quantize", "demo", "--out", out + "2"],
        [*arguments[:-1], out + "2", "--method", "gptq"],
        [
            "quantize",
            "demo",
            "--format",
            "int4",
            "--calibration",
            str(tmp_path),
            "--out",
            out + "2",
        ],
        ["quantize", "demo", "--set", "down", "--out", out + "2"],
    ):
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["q", "r", "texts"]


# -- activation-aware scaling --------------------------------------------------------------


def test_texts_that_cannot_be_read_are_named(tmp_path, capsys):
    """Status 2: 1 would say of check-quant that a threshold was passed."""
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").write_text(" ")
    for name in ("bytes.txt", "empty.txt", "none.txt"):
        text = str(tmp_path / name)
        out = str(tmp_path / "q")
        for arguments in (
            ["check-quant", "demo", "int8", text],
            ["quantize", "demo", "--format", "int4", "--calibration", text, "--out", out],
        ):
            assert main(arguments) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert name in line
    assert not (tmp_path / "q").exists()


def with_outliers(model):
    """The same function, but some channels in front of the experts are 64 times larger."""
    from moekit.nn.parts import replaced

    factors = np.ones(256, np.float32)
    factors[::16] = 64
    changes = {}
    for block in model.layers:
        changes[id(block.ffn_norm.weight)] = block.ffn_norm.weight * factors
        weights = [block.ffn.experts.gate, block.ffn.experts.up]
        if block.moe is not None:
            weights += [block.moe.shared.gate, block.moe.shared.up, block.moe.gate.linear.weight]
        changes |= {id(w): mk.ops.pack(w.unpack() / factors, format="f32") for w in weights}
    return replaced(model, changes)


def test_scaling_alone_changes_no_byte_and_no_route():
    plain = mk.demo_model("f32")
    full = with_outliers(plain)
    assert logits_of(full).tobytes() == logits_of(plain).tobytes()
    recipe = {"default": "int4", "attention": "f32", "head": "f32"}
    stream = Stream(full, windows_of(full, CALIBRATION[:2], 128))
    moved = 0
    for n, block in enumerate(full.layers):
        tap, linears, feeds = tapped(block)
        states = stream.through(tap, n)
        places = [p for p in places_of(full) if p.layer == n]
        wide, _, _ = awq.scaled(block, Inputs(linears, feeds), places, mk.Recipe.of(recipe))
        moved += int((wide.ffn_norm.weight != block.ffn_norm.weight).sum())
        # In float32 the scaling is all that happens.
        for got, want in zip(stream.through(wide, n), states, strict=True):
            assert got.tobytes() == want.tobytes()
        stream.states = states
    assert moved > 100
    scaled = mk.quantize(full, recipe, CALIBRATION[:2], "awq", window=128)
    nearest = mk.quantize(full, recipe)
    assert divergence(full, scaled, HELD_OUT) < 0.5 * divergence(full, nearest, HELD_OUT)


# -- budgets -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_greedy_steps_are_never_worse_than_one_format_for_all(seed):
    rng = np.random.default_rng(seed)
    units, candidates = int(rng.integers(1, 12)), int(rng.integers(2, 6))
    nbytes = rng.integers(1, 40, (units, candidates)).tolist()
    costs = rng.random((units, candidates)).tolist()
    for index in range(candidates):
        budget = sum(row[index] for row in nbytes)
        chosen = choose(costs, nbytes, budget)
        assert sum(nbytes[u][i] for u, i in enumerate(chosen)) <= budget
        # The last step that did not fit is what greedy may lose against the best.
        step = max(max(row) for row in costs)
        total = sum(costs[u][i] for u, i in enumerate(chosen))
        assert total <= sum(row[index] for row in costs) + step


def test_a_budget_too_small_for_anything_is_refused():
    with pytest.raises(ValueError, match="smallest candidates take 7"):
        choose([[1.0, 0.5], [1.0, 0.1]], [[3, 6], [4, 9]], 6)
    assert choose([[1.0, 0.5], [1.0, 0.1]], [[3, 6], [4, 9]], 12) == [0, 1]


# At int8 there is little left to gain, and routing flips are most of what is measured.
@pytest.mark.parametrize(
    ("format", "factor"), [("int8", 1.0), ("int4", 0.5), ("int4_g32", 0.6), ("int3_g32", 0.6)]
)
def test_a_budget_is_no_worse_than_one_format_of_the_same_bytes(model, format, factor):
    def size(quantised):
        matrices = quantised.quantization.matrices
        return sum(m.nbytes for m in matrices if m.role not in ("router", "head"))

    uniform = mk.quantize(model, format)
    recipe = {"default": format, "budget": size(uniform)}
    fitted = mk.quantize(model, recipe, [text[:1200] for text in TEXTS.values()], window=256)
    assert size(fitted) <= size(uniform)
    assert divergence(model, fitted, HELD_OUT) < factor * divergence(model, uniform, HELD_OUT)
    assert {p.weight.format for p in places_of(fitted) if p.role == "router"} == {"f32"}


def test_a_budget_leaves_what_the_recipe_names(model):
    recipe = {"default": "int8", "attention": "bf16", (2, 3): "f32", "budget": 9.0}
    fitted = mk.quantize(model, {**recipe, "candidates": ["int4_g32", "int8"]}, [IDS], window=64)
    found = formats(fitted)
    assert found["layers.1.attention.q.weight"] == "bf16"
    assert found["layers.2.ffn.experts.down"][3] == "f32"
    with pytest.raises(ValueError, match="budget"):
        mk.quantize(model, {"budget": 1.0, "candidates": ["int4"]}, [IDS])
    with pytest.raises(ValueError, match="calibration"):
        mk.quantize(model, {"budget": 4.5})
