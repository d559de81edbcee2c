"""GGUF files as whole models: the same answers as the Hugging Face checkpoint they came from."""

from pathlib import Path
from typing import Any

import gguf
import gguf_converter
import llama_cpp_oracle
import numpy as np
import pytest

import moekit as mk
from moekit import models

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 90, 17]
Q = gguf.GGMLQuantizationType
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 64,
}
# What GGUF cannot say has to be as llama.cpp takes it for granted.
CHANGES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_key_value_heads": 3},
    "deepseek_v3": {"n_group": 1, "rope_parameters": YARN, "rms_norm_eps": 1e-6},
    "glm4_moe": {"use_qk_norm": True, "attention_bias": True, "n_shared_experts": 1},
    # llama.cpp rounds the bounds of yarn, gpt-oss does not.
    "gpt_oss": {"swiglu_limit": 7.0, "rope_parameters": {"rope_type": "default"}},
    "dots1": {"num_key_value_heads": 3},
    "olmoe": {"num_key_value_heads": 3},
    "phimoe": {"router_jitter_noise": 0.01},
    "llama4_text": {"floor_scale": 8192, "attn_scale": 0.1},
}
FAMILIES = [family for family in gguf_converter.ARCHES if family in models.FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float32_file_gives_the_bytes_of_its_source(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    _, source = checkpoint_maker(family, 2, **CHANGES.get(family, {}))
    gguf_converter.convert(source, tmp_path / "x.gguf")
    wanted = mk.load(source)
    found = mk.load(tmp_path / "x.gguf")
    assert found.forward(IDS).tobytes() == wanted.forward(IDS).tobytes()
    assert found.config["model_type"] == wanted.config["model_type"]
    assert found.end_ids == ()


def vocabulary(writer: Any) -> None:
    """Letters that nobody reads: llama.cpp opens no file without."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*(chr(33 + n) for n in range(90)), '!"', *(f"t{n}" for n in range(6))])
    writer.add_token_types([1] * 97)
    writer.add_token_merges(['! "'])


# Where llama.cpp computes something else than the model, or opens no file this small.
LLAMA_CPP_DIFFERS = {"phimoe", "llama4_text"}


@pytest.mark.skipif(llama_cpp_oracle.find() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in LLAMA_CPP_DIFFERS])
def test_llama_cpp_agrees_about_a_file(checkpoint_maker: Any, tmp_path: Path, family: str) -> None:
    _, source = checkpoint_maker(family, 2, **CHANGES.get(family, {}))
    gguf_converter.convert(source, tmp_path / "x.gguf", add=vocabulary)
    answer = llama_cpp_oracle.ask(tmp_path / "x.gguf", ids=IDS, count=6)
    model = mk.load(tmp_path / "x.gguf")
    np.testing.assert_allclose(model.forward(IDS), answer["logits"], rtol=0, atol=2e-3)
    assert model.generate(IDS, max_new_tokens=6) == answer["greedy"]


TYPES = {"q8_0": Q.Q8_0, "q4_0": Q.Q4_0, "q4_1": Q.Q4_1, "q5_0": Q.Q5_0, "q5_1": Q.Q5_1}


@pytest.mark.parametrize("name", [*TYPES, "bf16", "f16"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_stored_types_are_kept_or_come_nearest(
    checkpoint_maker: Any, tmp_path: Path, family: str, name: str
) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 32, "num_key_value_heads": 3}
    if family == "deepseek_v3":
        sizes = {
            "hidden_size": 96,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "kv_lora_rank": 32,
            "q_lora_rank": 64,
        }
    _, source = checkpoint_maker(family, 2, **sizes)
    kind = {**TYPES, "bf16": Q.BF16, "f16": Q.F16}[name]
    gguf_converter.convert(source, tmp_path / "x.gguf", quantise=lambda *_: kind)
    model = mk.load(tmp_path / "x.gguf")
    kept = name if name in mk.ops.format_names() else "q8_0"
    assert {w.weight.format for w in model.placed if w.slot >= 0} == {"f32", kept}
    with mk.checkpoint.open(tmp_path / "x.gguf") as file:
        config = mk.checkpoint.read_gguf_config(file)
        weights = mk.checkpoint.open_weights(file, config)
        for placed in model.placed:
            if placed.slot < 0:
                continue
            wanted = weights.take(placed.piece).astype(np.float32)
            found = placed.weight.unpack_expert(placed.slot)
            if placed.weight.format in ("f32", name):
                np.testing.assert_array_equal(found, wanted)
            else:
                assert np.square(found - wanted).mean() < 6e-5 * np.square(wanted).mean()
    exact = mk.load(tmp_path / "x.gguf", format="f32").forward(IDS)
    # The values that the file means, as an ordinary checkpoint.
    assert np.isfinite(exact).all()
    found = model.forward(IDS)
    assert np.vdot(found, exact) > 0.8 * np.linalg.norm(found) * np.linalg.norm(exact)


def test_rows_are_put_back_from_pairs_to_halves(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, source = checkpoint_maker("mixtral", 2, hidden_size=96, head_dim=32)
    gguf_converter.convert(source, tmp_path / "x.gguf", quantise=lambda *_: Q.BF16)
    plain, file = mk.load(source), mk.load(tmp_path / "x.gguf")
    for part in "qkv":
        wanted = getattr(plain.layers[1].attention, part).weight.unpack()
        found = getattr(file.layers[1].attention, part).weight.unpack()
        np.testing.assert_allclose(found, wanted, rtol=4e-3, atol=1e-8)


def test_split_files_and_version_2(checkpoint_maker: Any, tmp_path: Path) -> None:
    _, source = checkpoint_maker("qwen3_moe", 2)
    gguf_converter.convert(source, tmp_path / "x.gguf")
    wanted = mk.load(tmp_path / "x.gguf").forward(IDS)
    raw = bytearray((tmp_path / "x.gguf").read_bytes())
    raw[4:8] = (2).to_bytes(4, "little")
    (tmp_path / "old.gguf").write_bytes(raw)
    assert mk.load(tmp_path / "old.gguf").forward(IDS).tobytes() == wanted.tobytes()
    with mk.checkpoint.open(tmp_path / "x.gguf") as file:
        names = list(file)
        for part, chosen in enumerate((names[::2], names[1::2])):
            metadata = dict(file.metadata) if part == 0 else {}
            metadata |= {"split.no": np.uint16(part), "split.count": np.uint16(2)}
            metadata["split.tensors.count"] = np.int32(len(names))
            mk.checkpoint.write_gguf(
                tmp_path / f"s-{part + 1:05}-of-00002.gguf",
                metadata,
                {name: ("F32", file.info(name).shape) for name in chosen},
                ((name, file[name]) for name in chosen),
            )
    found = mk.load(tmp_path / "s-00001-of-00002.gguf").forward(IDS)
    assert found.tobytes() == wanted.tobytes()


def rewrite(source: Path, target: Path, drop: str = "", **changes: Any) -> Path:
    """A GGUF file with other metadata (None removes a key), without the tensor `drop`."""
    with mk.checkpoint.open(source) as file:
        metadata = {**file.metadata, **{k.replace("__", "."): v for k, v in changes.items()}}
        names = [name for name in file if name != drop]
        mk.checkpoint.write_gguf(
            target,
            {key: value for key, value in metadata.items() if value is not None},
            {name: (file.info(name).dtype, file.info(name).shape) for name in names},
            ((name, file[name]) for name in names),
        )
    return target


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"general__architecture": "mamba"}, "mamba"),
    "no architecture": ({"general__architecture": None}, "general.architecture"),
    "no heads": ({"llama__attention__head_count": 0}, "0 heads"),
    "heads that do not divide": ({"llama__attention__head_count": 5}, "head"),
    "nan": ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon"),
    "too many layers": ({"llama__block_count": 4}, "layers.3"),
    "too few layers": ({"llama__block_count": 2}, "blk.2"),
    "more experts": ({"llama__expert_count": 6}, "shape"),
    "huge": ({"llama__expert_count": 1 << 31}, "num_local_experts"),
    "a text for a number": ({"llama__embedding_length": "many"}, "hidden_size"),
    "missing tensor": ({"drop": "blk.1.ffn_down_exps.weight"}, "down_exps"),
    "unknown tokenizer": ({"tokenizer__ggml__model": "rwkv"}, "rwkv"),
    "tokenizer without tokens": ({"tokenizer__ggml__model": "llama"}, "tokens"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_files_that_contradict_themselves(
    checkpoint_maker: Any, tmp_path: Path, fault: str
) -> None:
    _, source = checkpoint_maker("mixtral", 2)
    gguf_converter.convert(source, tmp_path / "x.gguf")
    changes, named = FAULTS[fault]
    bad = rewrite(tmp_path / "x.gguf", tmp_path / "bad.gguf", **changes)
    with pytest.raises(mk.FileError, match=named):
        mk.load(bad)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "glm4_moe"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gate_and_up_may_be_one_bank(
    checkpoint_maker: Any, tmp_path: Path, family: str, kind: str
) -> None:
    _, source = checkpoint_maker(family, 2, hidden_size=96, **CHANGES.get(family, {}))
    gguf_converter.convert(
        source,
        tmp_path / "x.gguf",
        quantise=lambda _, value: Q.F32 if value.shape[-1] % 32 else Q[kind],
    )
    specs, arrays = {}, {}
    with mk.checkpoint.open(tmp_path / "x.gguf") as file:
        for name in file:
            if "ffn_up_exps" in name:
                continue
            parts = [name]
            if "ffn_gate_exps" in name:
                parts.append(name.replace("ffn_gate", "ffn_up"))
            info = file.info(name)
            packed = info.dtype not in ("F32", "F16", "BF16")
            values = [file.blocks(part) if packed else file[part] for part in parts]
            values = [v.reshape(*info.shape[:-1], -1) if packed else v for v in values]
            new = name.replace("ffn_gate_exps", "ffn_gate_up_exps")
            arrays[new] = np.concatenate(values, axis=-2) if len(parts) > 1 else values[0]
            shape = list(info.shape)
            if len(parts) > 1:
                shape[1] *= 2
            specs[new] = (info.dtype, shape)
        metadata = dict(file.metadata)
    mk.checkpoint.write_gguf(tmp_path / "y.gguf", metadata, specs, arrays.items())
    wanted, found = mk.load(tmp_path / "x.gguf"), mk.load(tmp_path / "y.gguf")
    assert found.forward(IDS).tobytes() == wanted.forward(IDS).tobytes()
    # Written again the two are apart, as every reader knows them.
    found.save(tmp_path / "z.gguf")
    with mk.checkpoint.open(tmp_path / "z.gguf") as file:
        assert any("ffn_up_exps" in name for name in file)
    assert mk.load(tmp_path / "z.gguf").forward(IDS).tobytes() == wanted.forward(IDS).tobytes()


@pytest.mark.parametrize(
    ("family", "name", "changes"),
    [
        ("kimi_linear", "kimi-linear", {"routed_scaling_factor": 1.0, "linear_num_heads": 3}),
        ("hy_v3", "hy_v3", {"router_scaling_factor": 1.0}),
    ],
)
def test_a_factor_that_a_file_leaves_out_is_one(
    checkpoint_maker: Any, tmp_path: Path, family: str, name: str, changes: dict[str, Any]
) -> None:
    # A config.json without it means the family's own.
    _, path = checkpoint_maker(family, 5, **changes)
    whole = tmp_path / "whole.gguf"
    mk.load(path).save(whole)
    gone = {f"{name}__expert_weights_scale": None}
    without = rewrite(whole, tmp_path / "without.gguf", **gone)
    assert mk.load(without).forward(IDS).tobytes() == mk.load(whole).forward(IDS).tobytes()
