"""Broken config files and paths, for `malformed_files.CASES`."""

import json
from pathlib import Path
from typing import Any

from malformed_files import DEEP, ST, case


def config(name: str, **fields: Any) -> None:
    @case(f"config: {name}")
    def _(folder: Path) -> Path:
        value = json.loads((folder / "config.json").read_text())
        for key, field in fields.items():
            if field is ...:
                value.pop(key, None)
            else:
                value[key] = field
        (folder / "config.json").write_text(json.dumps(value))
        return folder


for _field in ("hidden_size", "num_hidden_layers", "vocab_size", "num_local_experts"):
    for _value in (..., 0, -1, 1.5, "8", True, [], 1 << 40, 1 << 63, 10**30, float("nan")):
        shown = "gone" if _value is ... else repr(_value)
        config(f"{_field} {shown}", **{_field: _value})
for _field, _value in {
    "num_attention_heads": 5,
    "num_key_value_heads": 2,
    "head_dim": 3,
    "intermediate_size": 41,
    "num_experts_per_tok": 6,
    "rms_norm_eps": 0,
    "rope_parameters": [1],
    "hidden_act": "sigmoid",
    "tie_word_embeddings": "no",
    "sliding_window": -4,
    "model_type": "../mixtral",
    "quantization_config": {"quant_method": "bitsandbytes"},
}.items():
    config(f"{_field} {_value}", **{_field: _value})
config("model_type gone", model_type=...)
config("model_type a list", model_type=["mixtral"])
config("model_type of another family", model_type="qwen3_moe")
config("rope of no kind", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
config("rope theta negative", rope_parameters={"rope_type": "default", "rope_theta": -1e4})
config("rope factor text", rope_parameters={"rope_type": "linear", "factor": "2"})
config("layers for years", num_hidden_layers=10**6)
config("gptq without tensors", quantization_config={"quant_method": "gptq", "bits": 5})
config("auto_map", auto_map={"AutoModel": "evil.Model"}, model_type="evil")


def raw_config(name: str, data: bytes, file: str = "config.json") -> None:
    @case(f"{file}: {name}")
    def _(folder: Path) -> Path:
        (folder / file).write_bytes(data)
        return folder


for _file in ("config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"):
    for _name, _raw in {
        "empty": b"",
        "an array": b"[]",
        "cut": b'{"model_type": "mixtral',
        "invalid utf-8": b'{"model_type": "\xff"}',
        "nested": b'{"a": ' + DEEP.encode() + b"}",
        "NaN": b'{"hidden_size": NaN}',
        "a key twice": b'{"model_type": "mixtral", "model_type": "mixtral"}',
    }.items():
        # A tokenizer's own parser takes NaN and keys twice for other faults.
        raw_config(_name, _raw, _file)
raw_config("nine megabytes", b'{"a": "' + b"x" * (9 << 20) + b'"}')
raw_config("an end that is text", b'{"eos_token_id": "end"}', "generation_config.json")


@case("config.json: gone")
def _(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


@case("weights: gone")
def _(folder: Path) -> Path:
    (folder / ST).unlink()
    (folder / "model.gguf").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


@case("path: nothing there")
def _(folder: Path) -> Path:
    return folder / "nowhere"


@case("path: a text file")
def _(folder: Path) -> Path:
    (folder / "x.txt").write_text("hello")
    return folder / "x.txt"
