"""Tokenizers and chat templates against transformers; hostile templates."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import moekit as mk
from moekit import chat
from moekit.tokenizer import TextStream, Tokenizer, load_tokenizer

TEXTS = ["the cat", " leading", "naïve 你好 🙂", "<|user|>x<|end|>", "\n\n\ttabs", "a" * 300]
MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Wie geht's? 🙂"},
    {"role": "assistant", "content": "Gut."},
    {"role": "user", "content": "Schön!"},
]


@pytest.mark.parametrize(
    "config",
    [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}],
    ids=["plain", "bos", "bos-eos"],
)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    theirs = checkpoints.save_tokenizer(tmp_path, **config)
    ours = load_tokenizer(tmp_path)
    assert ours is not None
    assert len(ours) == len(theirs)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == plain
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def byte_level() -> Tokenizer:
    """A token for each byte; any sequence of bytes may come."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def byte_fallback() -> Tokenizer:
    """SentencePiece's kind: words with a mark for the space, bytes for everything else."""
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"▁the": 256, "▁": 257, "cat": 258}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


def streamed(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    stream = TextStream(tokenizer, prompt)
    return "".join(stream.push(token) for token in ids) + stream.finish()


def test_a_stream_of_any_bytes_is_their_text() -> None:
    tokenizer, chance = byte_level(), random.Random(4)
    for _ in range(300):
        prompt = [chance.randrange(256) for _ in range(chance.randrange(1, 7))]
        ids = [chance.randrange(256) for _ in range(chance.randrange(1, 12))]
        text = streamed(tokenizer, prompt, ids)
        # Where the prompt ends in a whole character, the pieces are exactly what follows it.
        before = tokenizer.decode(prompt)
        if not before.endswith("\ufffd"):
            assert before + text == tokenizer.decode(prompt + ids)


def test_a_stream_keeps_the_spaces_that_a_decoder_strips() -> None:
    tokenizer = byte_fallback()
    smile = list("🙂é".encode())
    ids = [256, 258, 256, *smile, 256, 257, 258]
    assert streamed(tokenizer, [256], ids) == " thecat the🙂é the cat"
    assert streamed(tokenizer, [], ids) == "thecat the🙂é the cat"


def test_a_conversation_is_laid_out_as_transformers_does(talker_path: Path) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(talker_path)
    ours = load_tokenizer(talker_path)
    assert ours is not None
    for ask in (True, False):
        text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=ask)
        assert chat.render(ours, MESSAGES, add_generation_prompt=ask) == text
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ours.encode(chat.render(ours, MESSAGES), add_special_tokens=False) == ids


TEMPLATES = {
    "tojson": "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}{{ bos_token }}{{ eos_token }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content | trim }}"
    "{% endgeneration %}\n{% endfor %}",
    "tools": "{% if tools %}{{ tools[0].function.name }}{% else %}none{% endif %}"
    "{{ tools is defined }}{{ documents is none }}{{ extra | default('-') }}",
    "macro": "{% macro show(m) %}[{{ m['role'] | upper }}: {{ m['content'][:5] }}]{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% endfor %}{{ 'x' * 3 }}{{ [1, 2] + [3] }}",
    "blocks": "{%- for m in messages %}\n    {%- if not loop.last %}\n  a\n    {% endif %}\n"
    "{% endfor %}\n{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_templates_mean_what_they_mean_in_transformers(talker_path: Path, name: str) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(talker_path)
    theirs.chat_template = TEMPLATES[name]
    ours = load_tokenizer(talker_path)
    assert ours is not None
    ours.chat_templates = {"default": TEMPLATES[name]}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    for variables in ({}, {"tools": tools}, {"extra": "more"}):
        text = theirs.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=True, **variables
        )
        assert chat.render(ours, MESSAGES, variables) == text


def with_template(path: Path, template: str) -> Tokenizer:
    ours = load_tokenizer(path)
    assert ours is not None
    ours.chat_templates = {"default": template}
    return ours


HOSTILE = {
    "raises": "{{ raise_exception('only user and assistant') }}",
    "dunder": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "changes": "{{ messages.append(1) }}",
    "syntax": "{% for %}",
    "undefined": "{{ nothing.at.all }}",
    "repeats": "{{ 'x' * 10000000000 }}",
    "repeats-list": "{{ [0] * 10000000000 }}",
    "power": "{{ 10 ** 1000000000 }}",
    "widens": "{{ 'x'.ljust(10000000000) }}",
    "centers": "{{ 'x' | center(10000000000) }}",
    "formats": "{{ '%1000000000d' % 1 }}",
    "writes": "{% for i in range(90000) %}{{ 'xxxxxxxxxx' * 100 }}{% endfor %}",
    "range": "{% for i in range(1000000000) %}{% endfor %}",
    "divides": "{{ 1 / 0 }}",
    "imports": "{% include 'x' %}",
    "long": "{# " + "x" * (64 << 10) + " #}",
    "recurses": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loops in loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}"
    "{% endfor %}",
    "calls twice": "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}"
    "{% endif %}{% endmacro %}{{ f(99) }}",
    "calls its loop": "{% for x in [[0] * 9000] recursive %}{{ loop([[0] * 9000]) }}{% endfor %}",
    "doubles": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}",
    "adds": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}",
    "adds lists": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}",
    "captures": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set t %}{{ n.s }}"
    "{{ n.s }}{% endset %}{% set n.s = t %}{% endfor %}",
    "joins": "{{ ('x' * 90000) | list | join('y' * 90000) }}",
    "joins by method": "{{ ('y' * 90000).join(('x' * 90000) | list) }}",
    "replaces": "{{ ('x' * 90000) | replace('x', 'y' * 90000) }}",
    "replaces by method": "{{ ('x' * 90000).replace('x', 'y' * 90000) }}",
    "indents": "{{ ('x\n' * 9000) | indent(10000000) }}",
    "batches": "{{ 'x' | batch(10000000000, 'y') | list | length }}",
    "slices": "{{ 'x' | slice(10000000000) | list | length }}",
    "much ado": "{{ lipsum(n=100000) }}",
    "fields": "{{ '{:>10000000000}'.format(1) }}",
    "translates": "{{ ('x' * 9000).translate({120: 'y' * 9000}) | length }}",
    "bytes": "{{ ('x'.encode() * 9000000) | length }}",
    "bytes of a number": "{{ (1).to_bytes(9000000, 'big') | length }}",
    "lists of letters": "{{ (['x' * 4000000] * 8) | map('list') | list | length }}",
    "sums lists": "{{ ([[0] * 9] * 9) | sum(start=[]) | length }}",
    "one text many times": "{{ (['x' * 90000] * 900) | string | length }}",
    "one text many times in JSON": "{{ (['x' * 90000] * 900) | tojson | length }}",
    "wide separators": "{{ [0, 0] | tojson(separators=('x' * 90000, ':')) | length }}",
    "escapes": "{% set n = namespace(s='&' * 900000) %}{% for i in range(20) %}"
    "{% set n.s = n.s | forceescape %}{% endfor %}",
    "asserts": "{{ 'x' | truncate(-1) }}",
    "large numbers": "{% set n = namespace(s=9) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}"
    "{% endfor %}",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_templates_are_errors_and_nothing_else(talker_path: Path, name: str) -> None:
    with pytest.raises(mk.FileError, match=r"\[chat\].*tokenizer\.json"):
        chat.render(with_template(talker_path, HOSTILE[name]), MESSAGES)


@pytest.mark.parametrize(
    "messages",
    [[], [{"content": "x"}], ["x"], [{"role": 3}], [{"role": "user", "content": object()}]],
)
def test_messages_that_are_none(talker: Any, messages: Any) -> None:
    with pytest.raises(ValueError, match=r"\[chat\]"):
        talker.chat(messages)


def test_templates_by_name_and_from_their_own_file(talker_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(talker_path, tmp_path / "copy"))
    (path / "chat_template.jinja").unlink()
    with pytest.raises(mk.FileError, match="chat templates: none"):
        chat.render(load_tokenizer(path), MESSAGES)  # type: ignore[arg-type]
    file = path / "tokenizer_config.json"
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": named}))
    ours = load_tokenizer(path)
    assert ours is not None
    assert chat.render(ours, MESSAGES) == "D"
    assert chat.render(ours, MESSAGES, {"tools": [{"type": "function"}]}) == "T"
    (path / "chat_template.jinja").write_text("F")
    ours = load_tokenizer(path)
    assert ours is not None
    assert chat.render(ours, MESSAGES) == "F"


def test_chat_answers_what_the_template_asks(talker: Any) -> None:
    ids = talker.tokenizer.encode(chat.render(talker.tokenizer, MESSAGES), add_special_tokens=False)
    answer = talker.chat(MESSAGES, max_new_tokens=9)
    assert answer == talker.tokenizer.decode(talker.generate(ids, max_new_tokens=9))
    assert "".join(talker.stream_chat(MESSAGES, max_new_tokens=9)) == answer


def test_broken_tokenizer_files_are_named(talker_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(talker_path, tmp_path / "copy"))
    (path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(mk.FileError, match=r"tokenizer\.json"):
        mk.load(path)
    (path / "tokenizer.json").unlink()
    assert mk.load(path).tokenizer is None
