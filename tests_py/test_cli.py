"""The `moekit` command: what it prints, its exit status, its one line for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_families

import moekit as mk
from moekit.cli.main import COMMANDS, main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of one command in this process."""
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"moekit {command}" in out
    assert "examples:" in out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        status, out, _ = run(capsys, *arguments)
        assert status == 0
        for command, text in COMMANDS.items():
            assert command in out
            assert text.split(",")[0] in out.replace("\n" + " " * 24, " ")


def test_generate_writes_the_text_the_speed_and_the_experts(
    capsys: pytest.CaptureFixture[str], talker: Any, talker_path: Path
) -> None:
    arguments = ["generate", "the cat", "--model", str(talker_path), "--max-new-tokens", "9"]
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert out == "the cat" + talker.generate("the cat", max_new_tokens=9) + "\n"
    assert "prompt:" in err
    assert "decode: 9 tokens at" in err
    for layer in talker.moe_layers:
        assert f"layer {layer:>3}" in err
    status, out, err = run(capsys, *arguments, "--quiet")
    assert out == talker.generate("the cat", max_new_tokens=9) + "\n"
    assert err == ""


def test_generate_as_json(
    capsys: pytest.CaptureFixture[str], talker: Any, talker_path: Path
) -> None:
    options = {"max_new_tokens": 7, "temperature": 0.8, "seed": 3}
    status, out, _ = run(
        capsys,
        *["generate", "the cat", "--model", str(talker_path), "--json", "--seed", "3"],
        *["--max-new-tokens", "7", "--temperature", "0.8"],
    )
    assert status == 0
    figures = json.loads(out)
    assert figures["text"] == talker.generate("the cat", **options)
    assert figures["new_tokens"] == 7
    assert figures["decode_tokens_per_second"] > 0
    assert [row["layer"] for row in figures["experts"]] == talker.moe_layers
    read = figures["prompt_tokens"] + 6
    assert all(sum(row["counts"]) == 2 * read for row in figures["experts"])


def test_record_writes_what_the_api_records(
    capsys: pytest.CaptureFixture[str], talker: Any, talker_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "t.npz"
    arguments = ["record", "the cat sat", "--model", str(talker_path), "--out", str(file)]
    status, out, _ = run(capsys, *arguments, "--logits")
    assert status == 0
    assert "layer   1" in out
    with talker.record() as expected:
        talker.forward(talker.tokenizer.encode("the cat sat"))
    found = mk.Record.load(file)
    assert found == expected
    assert found.logits is not None
    status, out, _ = run(capsys, *arguments, "--max-new-tokens", "3", "--json")
    assert json.loads(out)["tokens"] == len(expected) + 2
    assert len(np.load(file)["experts"]) == len(expected) + 2


def test_plot_draws_a_recorded_routing(
    capsys: pytest.CaptureFixture[str], talker: Any, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    with talker.record() as record:
        talker.forward([1, 2, 3])
    record.save(tmp_path / "t.npz")
    picture = tmp_path / "p.png"
    status, out, _ = run(capsys, "plot", str(tmp_path / "t.npz"), "--out", str(picture))
    assert (status, out) == (0, f"{picture}\n")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    status, _, err = run(capsys, "plot", str(tmp_path / "t.npz"), "--out", str(tmp_path / "p.xyz"))
    assert status == 2
    assert "p.xyz" in err
    for kind in ("coactivation", "time"):
        options = ["--kind", kind, "--layer", "2", "--out", str(picture)]
        assert run(capsys, "plot", str(tmp_path / "t.npz"), *options)[0] == 0
    status, _, err = run(capsys, "plot", str(tmp_path / "t.npz"), *options[:3], "9", *options[4:])
    assert status == 2 and "layer 9; recorded are [1, 2]" in err
    status, _, err = run(capsys, "plot", str(tmp_path / "t.npz"))
    assert status == 2 and "--out" in err


def test_plot_measures_specialisation_of_files(
    capsys: pytest.CaptureFixture[str], talker: Any, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = []
    for i, name in enumerate(("code", "prose")):
        ids = np.random.default_rng(i).integers(100 * i, 100 * i + 100, 90)
        with talker.record() as record:
            talker.forward(ids)
        record.save(tmp_path / f"{name}.npz")
        files.append(str(tmp_path / f"{name}.npz"))
    picture = tmp_path / "p.png"
    options = ["--kind", "specialisation"]
    status, out, _ = run(capsys, "plot", *files, *options, "--out", str(picture))
    assert status == 0 and "2 domains explain beyond chance" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert run(capsys, "plot", *files, *options)[1] + f"{picture}\n" == out
    status, _, err = run(capsys, "plot", files[0], *options)
    assert status == 2 and "two or more" in err
    status, _, err = run(capsys, "plot", files[0], files[0], *options)
    assert status == 2 and "called code.npz" in err
    status, _, err = run(capsys, "plot", *files, "--out", str(picture))
    assert status == 2 and "2 files" in err


def test_plot_shows_the_text_in_colours(
    capsys: pytest.CaptureFixture[str], talker_path: Path, tmp_path: Path
) -> None:
    file, page = str(tmp_path / "t.npz"), tmp_path / "t.html"
    options = ["--model", str(talker_path), "--margins", "--out", file]
    assert run(capsys, "record", "the cat sat", *options)[0] == 0
    status, out, _ = run(capsys, "plot", file, "--kind", "text")
    assert status == 0 and "the cat sat" in out
    options = ["--kind", "text", "--by", "margin", "--out"]
    assert run(capsys, "plot", file, *options, str(page))[0] == 0
    assert "margin" in page.read_text(encoding="utf-8")
    status, _, err = run(capsys, "plot", file, *options, str(tmp_path / "t.png"))
    assert status == 2 and ".html" in err
    assert run(capsys, "record", "the cat sat", "--out", file, "--model", str(talker_path))[0] == 0
    status, _, err = run(capsys, "plot", file, *options, str(page))
    assert status == 2 and "no margins" in err


def test_inspect_counts_what_the_file_holds(
    capsys: pytest.CaptureFixture[str], talker_path: Path
) -> None:
    import transformers

    status, out, _ = run(capsys, "inspect", str(talker_path), "--json", "--tensors")
    assert status == 0
    figures = json.loads(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(talker_path)
    total = sum(p.numel() for p in theirs.parameters())
    # transformers counts correction biases as buffers.
    biases = sum(b.numel() for n, b in theirs.named_buffers() if n.endswith("correction_bias"))
    assert figures["total_params"] == total + biases
    routed = sum(p.numel() for n, p in theirs.named_parameters() if ".mlp.experts." in n)
    assert figures["active_params"] == total + biases - routed * 5 // 7
    assert figures["architecture"] == "deepseek_v3"
    assert figures["experts"] == 7
    assert figures["classes"]["experts"]["parameters"] == routed
    assert figures["classes"]["router"]["tensors"] == 4
    assert "other" not in figures["classes"]
    assert sum(row["bytes"] for row in figures["classes"].values()) == 4 * (total + biases)
    assert len(figures["tensors"]) == sum(r["tensors"] for r in figures["classes"].values())
    status, out, _ = run(capsys, "inspect", str(talker_path))
    assert status == 0
    assert f"{total + biases:,}" in out


@pytest.mark.parametrize(
    "family",
    [
        *("mixtral", "granitemoe", "deepseek_v3", "qwen2_moe", "hunyuan_v1_moe", "dbrx"),
        *("ernie4_5_moe", "gemma4_text"),
    ],
)
def test_inspect_reads_gguf_files(
    capsys: pytest.CaptureFixture[str], checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    _, source = checkpoint_maker(family, 4, **saved_families.CHANGES.get(family, {}))
    mk.load(source).save(tmp_path / "x.gguf")
    found = {}
    for path in (source, tmp_path / "x.gguf"):
        capsys.readouterr()
        status, out, _ = run(capsys, "inspect", str(path), "--json")
        assert status == 0
        found[path.suffix] = json.loads(out)
    assert found[".gguf"]["runs"] is True
    for figure in ("layers", "experts", "experts_per_token", "hidden_size", "total_params"):
        assert found[".gguf"][figure] == found[""][figure]
    assert found[".gguf"]["active_params"] == found[""]["active_params"]


def test_inspect_tells_of_a_gguf_file_that_moekit_does_not_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = np.zeros((4, 32), np.float32)
    tensors = {"token_embd.weight": ("F32", (4, 32)), "blk.0.ffn_up.weight": ("F32", (4, 32))}
    mk.checkpoint.write_gguf(
        tmp_path / "x.gguf",
        {"general.architecture": "grok", "grok.block_count": 1},
        tensors,
        ((name, values) for name in tensors),
    )
    status, out, _ = run(capsys, "inspect", str(tmp_path / "x.gguf"), "--json")
    assert status == 0
    figures = json.loads(out)
    assert (figures["architecture"], figures["runs"], figures["total_params"]) == (
        "grok",
        False,
        256,
    )


def test_chat_answers_each_line(talker: Any, talker_path: Path) -> None:
    command = [sys.executable, "-m", "moekit", "chat", "--model", str(talker_path)]
    done = subprocess.run(
        [*command, "--max-new-tokens", "6"],
        input="hello\n/new\nhello\n",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    answer = talker.chat([{"role": "user", "content": "hello"}], max_new_tokens=6)
    assert done.stdout == (answer + "\n") * 2


BAD = [
    (["generate", "x", "--model", "/nowhere"], "/nowhere"),
    (["generate", "", "--model", "TALKER"], "prompt is empty"),
    (["generate", "x", "--model", "TALKER", "--top-p", "2"], "top_p 2"),
    (["generate", "x", "--model", "TALKER", "--format", "int9"], "int9"),
    (["record", "", "--model", "TALKER", "--out", "OUT"], "empty"),
    (["inspect", "/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[b[1] for b in BAD])
def test_bad_input_is_one_line_and_status_two(
    capsys: pytest.CaptureFixture[str],
    talker_path: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    places = {"TALKER": str(talker_path), "OUT": str(tmp_path / "t.npz")}
    status, out, err = run(capsys, *(places.get(word, word) for word in arguments))
    assert status == 2
    assert out == ""
    assert err.startswith("moekit: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    command = [sys.executable, "-m", "moekit", "generate", "Größe", "--max-new-tokens", "2"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout


def test_unknown_commands_and_options_are_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fly"], ["generate"], ["generate", "x", "--speed", "9"]):
        status, _, err = run(capsys, *arguments)
        assert status == 2
        assert "moekit" in err


def test_importing_moekit_loads_nothing_heavy() -> None:
    code = "import sys, moekit; print([m for m in ('numpy', 'moekit._core') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_every_public_name_is_found() -> None:
    for name in mk.__all__:
        assert getattr(mk, name) is not None
        assert name in dir(mk)
    assert mk.Assignment is mk.ops.Assignment
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mk.nothing
