"""Generation: greedy and sampled, batches, streams, stops, Ctrl-C."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moekit as mk
from moekit.sampling import Sampler, Sampling

PROMPTS = ["the cat sat", "def sort(", "你好", "x"]


def test_text_in_gives_new_text_out(talker: Any) -> None:
    text = talker.generate("the cat", max_new_tokens=10)
    assert isinstance(text, str)
    ids = talker.tokenizer.encode("the cat")
    assert talker.tokenizer.decode(talker.generate(ids, max_new_tokens=10)) == text


def test_a_batch_is_each_prompt_alone_token_for_token(talker: Any) -> None:
    ids = [talker.tokenizer.encode(prompt) for prompt in PROMPTS]
    alone = [talker.generate(prompt, max_new_tokens=14) for prompt in ids]
    assert talker.generate(ids, max_new_tokens=14) == alone
    assert talker.generate(PROMPTS, max_new_tokens=14) == [
        talker.generate(prompt, max_new_tokens=14) for prompt in PROMPTS
    ]


def test_sequences_that_end_early_leave_the_others_alone(talker: Any) -> None:
    ids = [talker.tokenizer.encode(prompt) for prompt in PROMPTS]
    plain = talker.generate(ids, max_new_tokens=14)
    # Each sequence ends at another time: at its own third, fifth, ... new token.
    for i, place in enumerate((2, 4, 6, 8)):
        stop = plain[i][place]
        for tokens, whole in zip(
            talker.generate(ids, max_new_tokens=14, stop=[stop]), plain, strict=True
        ):
            end = whole.index(stop) + 1 if stop in whole else len(whole)
            assert tokens == whole[:end]


def test_a_seed_fixes_the_text_whatever_the_batch(talker: Any) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.3, "top_k": 40, "seed": 11}
    one = talker.generate(PROMPTS[0], **options)
    assert talker.generate(PROMPTS[0], **options) == one
    many = talker.generate(PROMPTS, **options)
    assert many[0] == one
    assert talker.generate(PROMPTS[:2], **options) == many[:2]
    assert talker.generate(PROMPTS[0], **{**options, "seed": 12}) != one
    own = talker.generate(PROMPTS[:2], **{**options, "seed": [11, 11]})
    assert own[0] == one
    assert own[1] == talker.generate(PROMPTS[1], **options)


def test_without_a_seed_texts_differ(talker: Any) -> None:
    texts = {talker.generate("the", max_new_tokens=12, temperature=2.0) for _ in range(4)}
    assert len(texts) > 1


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"temperature": 1.0, "top_k": 3}, {"temperature": 1.5, "top_p": 0.6}],
)
def test_samples_follow_the_distribution(settings: dict[str, float]) -> None:
    logits = np.array([[2.0, 1.0, 0.5, 0.0, -1.0, -2.0]], np.float32)
    sampler = Sampler(Sampling(**settings), 1, seed=3)  # type: ignore[arg-type]
    drawn = [sampler.choose(logits, [0], step)[0] for step in range(4000)]
    p = np.exp(logits[0].astype(np.float64) / settings["temperature"])
    p /= p.sum()
    if "top_k" in settings:
        p[int(settings["top_k"]) :] = 0
    if "top_p" in settings:
        p[np.cumsum(p) - p >= settings["top_p"]] = 0
    p /= p.sum()
    found = np.bincount(drawn, minlength=6) / len(drawn)
    # Five standard deviations of a frequency.
    assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / len(drawn)) + 1e-12).all()


def test_min_p_keeps_only_what_is_near_the_likeliest(talker: Any) -> None:
    greedy = talker.generate("the", max_new_tokens=8)
    assert talker.generate("the", max_new_tokens=8, temperature=5.0, min_p=1.0, seed=1) == greedy
    assert talker.generate("the", max_new_tokens=8, temperature=5.0, top_k=1, seed=1) == greedy
    assert talker.generate("the", max_new_tokens=8, temperature=5.0, top_p=1e-9, seed=1) == greedy


@pytest.mark.parametrize("temperature", [0.0, 2.5])
def test_a_stream_joined_is_the_text(talker: Any, temperature: float) -> None:
    # A random model writes bytes that are no text, split characters and whole ones.
    for seed in range(6):
        options = {"max_new_tokens": 30, "temperature": temperature, "seed": seed}
        pieces = list(talker.stream("你好, naïve", **options))
        assert "".join(pieces) == talker.generate("你好, naïve", **options)
        ids = talker.generate(talker.tokenizer.encode("你好, naïve"), **options)
        whole = talker.tokenizer.decode(talker.tokenizer.encode("你好, naïve") + ids)
        assert whole == "你好, naïve" + "".join(pieces)


class Scripted:
    """A model that writes what it is told: the logits of token i of the script are one-hot."""

    def __init__(self, tokenizer: Any, text: str, end_ids: tuple[int, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.script = tokenizer.encode(text)
        self.vocab_size = len(tokenizer)
        self.steps = 0
        self.row_work = 1

    def new_cache(self) -> Any:
        self.steps = 0
        return mk.nn.Cache([None])  # type: ignore[list-item]

    def logits(self, sequences: Any, cache: Any = None, *, last: bool = False) -> np.ndarray:
        row = np.zeros((1, self.vocab_size), np.float32)
        row[0, self.script[min(self.steps, len(self.script) - 1)]] = 1
        self.steps += 1
        return row


def streamed(model: Any, **options: Any) -> list[str]:
    from moekit.generate import stream

    options.setdefault("max_new_tokens", len(model.script))
    return list(stream(model, "x", **options))


def test_characters_split_over_tokens_come_whole(talker: Any) -> None:
    text = "añ 你好 🙂🙃👩‍👩‍👧 end"
    model = Scripted(talker.tokenizer, text)
    assert len(model.script) > len(text)
    pieces = streamed(model)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_at_the_end(talker: Any) -> None:
    model = Scripted(talker.tokenizer, "ab🙂")
    model.script = model.script[:-1]
    assert "".join(streamed(model)) == "ab\ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("cat", "the "),
        (["zebra", "sat on"], "the cat "),
        ("t on the m", "the cat sa"),
        ("the", ""),
        ("zebra", "the cat sat on the mat"),
        (["mat", "mat!"], "the cat sat on the "),
    ],
)
def test_stop_texts_that_span_tokens_are_cut_off(talker: Any, stop: Any, expected: str) -> None:
    model = Scripted(talker.tokenizer, "the cat sat on the mat")
    pieces = streamed(model, stop=stop)
    assert "".join(pieces) == expected
    # It ends as soon as the stop is written, and not before.
    if expected == "the cat ":
        assert model.steps < len(model.script)


def test_text_that_only_begins_like_a_stop_is_given_in_the_end(talker: Any) -> None:
    model = Scripted(talker.tokenizer, "the cat sat")
    assert "".join(streamed(model, stop="sat on")) == "the cat sat"


def test_the_end_token_ends_and_is_no_text(talker: Any) -> None:
    from moekit.generate import generate

    end = talker.tokenizer.id_of("<|end|>")
    model = Scripted(talker.tokenizer, "the cat<|end|>sat", end_ids=(end,))
    assert generate(model, "x", max_new_tokens=20) == "the cat"
    ids = generate(model, [1], max_new_tokens=20)
    assert ids == model.script[: model.script.index(end) + 1]


def test_end_tokens_come_from_the_generation_config(talker_path: Path, tmp_path: Path) -> None:
    import json
    import shutil

    path = Path(shutil.copytree(talker_path, tmp_path / "copy"))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7, 10**6]}))
    assert mk.load(path).end_ids == (3, 7)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": "x"}))
    with pytest.raises(mk.FileError, match="eos_token_id is 'x'"):
        mk.load(path)


def test_long_prompts_in_passes_give_the_same_tokens(
    talker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moekit.generate

    ids = np.random.default_rng(0).integers(0, 320, 50).tolist()
    prompts = [ids, ids[:7], ids[3:40]]
    whole = talker.generate(prompts, max_new_tokens=6)
    monkeypatch.setattr(moekit.generate, "PREFILL_ROWS", 8)
    assert talker.generate(prompts, max_new_tokens=6) == whole


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "prompt is empty"),
    ([], {}, "no prompt|empty"),
    (["a", [1]], {}, "one kind"),
    ([[1], []], {}, "prompt 1 is empty"),
    ([400], {}, "token 400"),
    (3.5, {}, "shape"),
    (b"bytes", {}, "dtype|shape"),
    ("\ud800", {}, "surrogate"),
    ("a", {"max_new_tokens": -1}, "max_new_tokens -1"),
    ("a", {"max_new_tokens": 1.5}, "max_new_tokens 1.5"),
    ("a", {"temperature": -0.1}, "temperature -0.1"),
    ("a", {"temperature": float("nan")}, "temperature nan"),
    ("a", {"top_k": -1}, "top_k -1"),
    ("a", {"top_p": 0.0}, "top_p 0"),
    ("a", {"top_p": 1.01}, "top_p 1.01"),
    ("a", {"min_p": 2.0}, "min_p 2"),
    ("a", {"seed": -1}, "seed -1"),
    ("a", {"seed": "x"}, "seed 'x'|seeds"),
    ("a", {"seed": [1, 2]}, "2 seeds; 1 prompts"),
    ("a", {"stop": ""}, "stop ''"),
    ("a", {"stop": [320]}, "stop 320"),
    ("a", {"stop": [None]}, "stop None"),
]


@pytest.mark.parametrize(("prompt", "options", "message"), BAD, ids=[b[2] for b in BAD])
def test_mistakes_are_named(talker: Any, prompt: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        talker.generate(prompt, **{"max_new_tokens": 2, **options})


def test_a_stream_raises_where_it_is_called(talker: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        talker.stream("")
    with pytest.raises(ValueError, match="2 prompts"):
        talker.stream(["a", "b"])


def test_no_new_tokens_are_none(talker: Any) -> None:
    assert talker.generate("a", max_new_tokens=0) == ""
    assert talker.generate([[1], [2]], max_new_tokens=0) == [[], []]


def test_text_needs_a_tokenizer(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    model = mk.load(path)
    for options in ({"prompt": "text"}, {"prompt": [1], "stop": "x"}):
        with pytest.raises(ValueError, match="tokenizer"):
            model.generate(**options)  # type: ignore[arg-type]


def test_ctrl_c_ends_a_generation(talker_path: Path) -> None:
    # The child says when it is in the middle; the signal then must come out as the exception,
    # with the model still good. A shell starts what runs in its background with the signal ignored.
    code = f"""
        import signal
        import moekit as mk
        signal.signal(signal.SIGINT, signal.default_int_handler)
        model = mk.load({str(talker_path)!r})
        try:
            for n, token in enumerate(model.stream([1, 2, 3], max_new_tokens=10**6)):
                if n == 5:
                    print("running", flush=True)
            print("ended by itself", flush=True)
        except KeyboardInterrupt:
            print("interrupted", len(model.generate([1, 2], max_new_tokens=3)), flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=120)
    finally:
        child.kill()
    assert out == "interrupted 3\n"


def test_an_interrupted_pass_leaves_the_cache_as_it_was(
    talker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = talker.new_cache()
    talker.forward([1, 2, 3], cache=cache)
    after = talker.forward([4], cache=cache.fork())
    block = type(talker.layers[2])
    original = block.__call__

    def interrupted(self: Any, x: Any, batch: Any = None, layer: int = 0) -> Any:
        if layer == 2:
            raise KeyboardInterrupt
        return original(self, x, batch, layer)

    monkeypatch.setattr(block, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talker.forward([9, 9], cache=cache)
    monkeypatch.undo()
    assert cache.lengths == [3]
    assert talker.forward([4], cache=cache).tobytes() == after.tobytes()


def test_threads_share_a_model(talker: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = [talker.generate(prompt, max_new_tokens=10) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: talker.generate(p, max_new_tokens=10), PROMPTS))
    assert together == alone
