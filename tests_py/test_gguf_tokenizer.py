"""Tokenizers inside GGUF files, against transformers' and, where it is there, llama.cpp's own."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import llama_cpp_oracle
import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

import moekit as mk
from moekit.gguf_splitting import SPLITTING, WHOLE_PIECES, name_of
from moekit.gguf_tokenizer import load_gguf_tokenizer

CORPUS = [
    "The cat's hat isn't 12345678 long; we'll see, they've gone. CamelCase and snake_case!",
    "Übergänge, äußere Größe, naïve façade, 你好世界, ひらがな カタカナ, 한국어 텍스트",
    "def f(x):\n    return x**2  # 3.14159\n\n\n\tif x != 0:\r\n        pass   ",
    "emoji 🙂🙃 and ½ ² symbols <|end|> $100 + 5% = ~^| ``code``",
]
TEXTS = [*CORPUS, "", " ", "a", "  leading", "tabs\t\tand  two  spaces", "I'LL DON'T", "x" * 40]
CONTROL = ["<|end|>", "<|begin|>"]


def trained(rules: tuple[str, ...], whole: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=whole))
    steps: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in rules]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend


def write(path: Path, keys: dict[str, Any]) -> Path:
    """A GGUF file with nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bpe_keys(backend: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": tokens,
        "token_types": [3 if token in CONTROL else 1 for token in tokens],
        "token_merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "chat_template": "{{ messages }}",
    }


def opened(path: Path) -> Any:
    with mk.checkpoint.open(path) as file:
        return load_gguf_tokenizer(file)


@pytest.mark.parametrize("pre", list(SPLITTING))
def test_byte_level_bpe(tmp_path: Path, pre: str) -> None:
    theirs = trained(SPLITTING[pre], pre in WHOLE_PIECES)
    found = opened(write(tmp_path / "v.gguf", bpe_keys(theirs, pre)))
    for text in TEXTS:
        ids = found.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert found.decode(ids, skip_special_tokens=False) == text
    assert found.special["bos_token"] == "<|begin|>"
    assert found.chat_templates == {"default": "{{ messages }}"}
    begins = found.encode("a")[0] == 1
    assert begins == (pre in WHOLE_PIECES)
    assert SPLITTING[name_of(SPLITTING[pre], pre in WHOLE_PIECES)] == SPLITTING[pre]


def spm_tokens() -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece BPE vocabulary: bytes, pieces that grow pair by pair, single letters."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    pieces: list[str] = []
    for word in " ".join(CORPUS).replace(" ", " \u2581").split():
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces and end < 6:
                pieces.append(word[:end])
    letters = sorted({letter for piece in pieces for letter in piece})
    scores = [0.0] * len(tokens) + [-float(n + 1) for n in range(len(pieces) + len(letters))]
    tokens += pieces + letters
    return tokens, scores, kinds + [1] * (len(pieces) + len(letters))


def naive_spm(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """Merge the neighbours whose union has the highest score, the leftmost first."""
    ids = {token: n for n, token in enumerate(tokens)}
    symbols = list("\u2581" + text.replace(" ", "\u2581")) if text else []
    while True:
        best: tuple[float, int] | None = None
        for n, (left, right) in enumerate(pairwise(symbols)):
            joined = ids.get(left + right)
            if joined is not None and (best is None or scores[joined] > -best[0]):
                best = (-scores[joined], n)
        if best is None:
            break
        n = best[1]
        symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]
    out = []
    for symbol in symbols:
        if symbol in ids:
            out.append(ids[symbol])
        else:
            out += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out


def spm_file(path: Path) -> Path:
    tokens, scores, kinds = spm_tokens()
    keys = {
        "tokenizer_model": "llama",
        "token_list": tokens,
        "token_scores": scores,
        "token_types": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
    }
    return write(path, keys)


def test_sentencepiece_bpe(tmp_path: Path) -> None:
    tokens, scores, _ = spm_tokens()
    found = opened(spm_file(tmp_path / "v.gguf"))
    for text in TEXTS:
        ids = found.encode(text)
        assert ids == [1, *naive_spm(text, tokens, scores)], text
        assert found.decode(ids) == text


def test_unigram(tmp_path: Path) -> None:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581the", "\u2581", "cat", "t", "h", "e", "c", "a"]
    scores = [0.0, 0.0, 0.0, -2.0, -2.5, -3.0] + [-6.0] * 5
    keys = {
        "tokenizer_model": "t5",
        "token_list": pieces,
        "token_scores": scores,
        "token_types": [3, 3, 2] + [1] * 8,
        "unk_token_id": 2,
        "eos_token_id": 1,
    }
    found = opened(write(tmp_path / "v.gguf", keys))
    theirs = tokenizers.Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=2))
    theirs.normalizer = normalizers.Sequence([])
    theirs.pre_tokenizer = pre_tokenizers.Metaspace()
    assert found.encode("the cat") == [*theirs.encode("the cat").ids, 1]
    assert found.decode(found.encode("the cat")) == "the cat"


FAULTS: dict[str, dict[str, Any]] = {
    "unknown pre": {"tokenizer_pre": "nobody"},
    "merge of nothing": {"token_merges": ["a"]},
    "merge of strangers": {"token_merges": ["zz qq"]},
    "types that do not fit": {"token_types": [1, 2]},
    "end beyond": {"eos_token_id": 9999},
    "twice": {"token_list": ["a", "a"], "token_types": [1, 1], "token_merges": ["a a"]},
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_broken_vocabularies(tmp_path: Path, fault: str) -> None:
    keys = bpe_keys(trained(SPLITTING["gpt-2"], False), "gpt-2") | FAULTS[fault]
    with pytest.raises(mk.FileError, match=r"tokenizer\.ggml"):
        opened(write(tmp_path / "v.gguf", keys))


@pytest.mark.skipif(llama_cpp_oracle.find() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("pre", [*SPLITTING, "spm"])
def test_llama_cpp_cuts_alike(tmp_path: Path, pre: str) -> None:
    if pre == "spm":
        path = spm_file(tmp_path / "v.gguf")
    else:
        path = write(tmp_path / "v.gguf", bpe_keys(trained(SPLITTING[pre], False), pre))
    found = opened(path)
    texts = [text for text in TEXTS if text]
    theirs = llama_cpp_oracle.ask(path, texts=texts)["texts"]
    for text, wanted in zip(texts, theirs, strict=True):
        assert found.encode(text) == wanted, text
    assert np.array(theirs[0]).size


def test_a_tokenizer_without_rules_goes_along_whole(tmp_path: Path) -> None:
    model = mk.demo_model()
    with pytest.warns(UserWarning, match="ids alone"):
        model.save(tmp_path / "x.gguf")
    again = mk.load(tmp_path / "x.gguf")
    text = "Sort 12345 items,\n\n\tnäive 🙂 " + mk.tokenizer.__doc__
    assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert again.tokenizer.special.items() <= model.tokenizer.special.items()
    assert again.tokenizer.special["eos_token"] == model.tokenizer.special["eos_token"]
    assert again.generate("def main", max_new_tokens=12) == model.generate(
        "def main", max_new_tokens=12
    )


@pytest.mark.parametrize("document", ["", "{}", "[" * 100_000, '{"model": 1}', 7])
def test_a_broken_whole_tokenizer_is_an_error(tmp_path: Path, document: Any) -> None:
    with mk.checkpoint.open(_demo_file(tmp_path)) as file:
        metadata = {**file.metadata, "tokenizer.huggingface.json": document}
        specs = {name: (file.info(name).dtype, file.info(name).shape) for name in file}
        arrays = [(name, file[name]) for name in file]
        mk.checkpoint.write_gguf(tmp_path / "y.gguf", metadata, specs, arrays)
    with pytest.raises(mk.FileError, match="tokenizer"):
        mk.load(tmp_path / "y.gguf")


def _demo_file(folder: Path) -> Path:
    model = mk.load(mk.demo_path(), format="f32")
    model.tokenizer = None
    model.save(folder / "x.gguf")
    return folder / "x.gguf"
