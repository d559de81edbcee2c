"""Layouts and spellings that are read alike, and broken checkpoints that are refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import moekit as mk

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def copy_of(checkpoint_maker: Any, tmp_path: Path) -> Any:
    """A copy of a family's checkpoint that the test may damage."""

    def copy(family: str, **changes: Any) -> Path:
        _, path = checkpoint_maker(family, 0, **changes)
        return Path(shutil.copytree(path, tmp_path / "copy"))

    return copy


def edit_tensors(path: Path, change: Any) -> None:
    """Apply `change` to the dict of tensors of a single-file checkpoint."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pt"})


def logits_of(path: Path, **options: Any) -> np.ndarray:
    return mk.load(path, **options).forward(IDS)


@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
def test_shards_give_the_same_bytes_as_one_file(family: str, tmp_path: Path) -> None:
    model = checkpoints.tiny_model(family)
    one = checkpoints.save(model, tmp_path / "one")
    many = checkpoints.save(model, tmp_path / "many", max_shard_size="100KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    assert logits_of(one).tobytes() == logits_of(many).tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
def test_half_precision_files_unpacked_exactly(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    theirs = checkpoints.tiny_model(family)
    path = checkpoints.save(theirs, tmp_path / "half", dtype=dtype)
    logits = logits_of(path, format="f32")
    reference = checkpoints.their_logits(theirs, IDS)
    np.testing.assert_allclose(logits, reference, rtol=0, atol=2e-4)


def test_the_format_of_the_file_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    theirs = checkpoints.tiny_model("qwen3_moe")
    path = checkpoints.save(theirs, tmp_path / "bf16", dtype=torch.bfloat16)

    def formats(model: Any) -> set[str]:
        moe = model.layers[0].moe
        attention = model.layers[0].attention
        return {moe.experts.gate.format, attention.q.weight.format, model.head.weight.format}

    kept = mk.load(path)
    assert formats(kept) == {"bf16"}
    assert kept.embedding.dtype.name == "bfloat16"
    assert formats(mk.load(path, format="int8")) == {"int8"}
    assert mk.load(path, format="f32").embedding.dtype == np.float32
    assert kept.layers[0].moe.router.linear.weight.format == "f32"
    assert sum(kept.memory().values()) < sum(mk.load(path, format="f32").memory().values())


@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
def test_fused_experts_are_read_as_single_ones(copy_of: Any, family: str) -> None:
    path = copy_of(family)
    before = logits_of(path)

    def fuse(tensors: dict[str, torch.Tensor]) -> None:
        gates = [n for n in tensors if n.endswith((".0.w1.weight", "experts.0.gate_proj.weight"))]
        assert gates
        for first in gates:
            base = first[: first.index(".experts.0.")]
            names = ("w1", "w3", "w2") if ".w1." in first else ("gate_proj", "up_proj", "down_proj")
            parts = [
                torch.stack([tensors.pop(f"{base}.experts.{e}.{n}.weight") for e in range(5)])
                for n in names
            ]
            new = base.replace("block_sparse_moe", "mlp")
            tensors[f"{new}.experts.gate_up_proj"] = torch.cat(parts[:2], dim=1)
            tensors[f"{new}.experts.down_proj"] = parts[2]
            tensors[f"{new}.gate.weight"] = tensors.pop(f"{base}.gate.weight")

    edit_tensors(path, fuse)
    assert logits_of(path).tobytes() == before.tobytes()


def test_legacy_and_new_spellings_of_a_config_mean_the_same(copy_of: Any) -> None:
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 7000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    path = copy_of("deepseek_v3", rope_parameters=yarn)
    new = logits_of(path)
    old = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    checkpoints.rewrite_config(
        path,
        rope_parameters=None,
        rope_theta=7000.0,
        rope_scaling=old,
        dtype=None,
        torch_dtype="float32",
    )
    assert logits_of(path).tobytes() == new.tobytes()
    checkpoints.rewrite_config(path, rope_scaling={**old, "factor": 2.0})
    assert logits_of(path).tobytes() != new.tobytes()


def test_num_experts_has_two_spellings(copy_of: Any) -> None:
    path = copy_of("mixtral")
    checkpoints.rewrite_config(path, num_local_experts=None, num_experts=5)
    assert logits_of(path).shape == (8, 97)


def test_layers_for_further_tokens_and_derived_tables_are_passed_over(copy_of: Any) -> None:
    path = copy_of("deepseek_v3")
    before = logits_of(path)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.3.eh_proj.weight"] = torch.zeros(72, 144)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)

    edit_tensors(path, add)
    assert logits_of(path).tobytes() == before.tobytes()


MISSING = {
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w2.weight",
    "qwen3_moe": "model.layers.2.mlp.experts.4.up_proj.weight",
    "deepseek_v3": "model.layers.1.mlp.gate.e_score_correction_bias",
}


@pytest.mark.parametrize("family", list(MISSING))
def test_a_missing_tensor_is_named(copy_of: Any, family: str) -> None:
    path = copy_of(family)
    edit_tensors(path, lambda tensors: tensors.pop(MISSING[family]))
    with pytest.raises(mk.FileError, match=MISSING[family].replace(".", r"\.")):
        mk.load(path)


@pytest.mark.parametrize("family", list(MISSING))
def test_a_wrong_shape_is_named_with_both_shapes(copy_of: Any, family: str) -> None:
    path = copy_of(family)
    name = "model.layers.1.self_attn.o_proj.weight"

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][:-1]

    edit_tensors(path, cut)
    with pytest.raises(mk.FileError, match=r"layers\.1\.self_attn\.o_proj.*\[71, .*\[72, "):
        mk.load(path)


@pytest.mark.parametrize("format", [None, "int8"])
def test_a_tensor_of_whole_numbers_is_named(copy_of: Any, format: str | None) -> None:
    path = copy_of("mixtral")
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"

    def round_off(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.int32)

    edit_tensors(path, round_off)
    with pytest.raises(mk.FileError, match=r"experts\.0\.w1\.weight has dtype I32"):
        mk.load(path, format=format)


def test_an_unexpected_tensor_is_named(copy_of: Any) -> None:
    path = copy_of("qwen3_moe")
    edit_tensors(path, lambda t: t.update({"model.layers.0.extra.weight": torch.zeros(2)}))
    with pytest.raises(mk.FileError, match=r"unexpected.*model\.layers\.0\.extra\.weight"):
        mk.load(path)


def test_a_missing_head_is_an_error_unless_it_is_tied(copy_of: Any) -> None:
    path = copy_of("mixtral")
    edit_tensors(path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(mk.FileError, match=r"lm_head\.weight"):
        mk.load(path)
    checkpoints.rewrite_config(path, tie_word_embeddings=True)
    assert logits_of(path).shape == (8, 97)


def test_an_unknown_architecture_lists_the_known_ones(copy_of: Any) -> None:
    path = copy_of("mixtral")
    checkpoints.rewrite_config(path, model_type="perceptron")
    with pytest.raises(mk.FileError, match=r"model_type is 'perceptron'.*deepseek_v3.*mixtral"):
        mk.load(path)


ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok is 6"),
    ("mixtral", {"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
    ("mixtral", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    ("mixtral", {"num_attention_heads": True}, "num_attention_heads is True"),
    ("mixtral", {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    ("mixtral", {"hidden_size": None}, "hidden_size is missing"),
    ("mixtral", {"hidden_size": -72}, "hidden_size is -72"),
    ("mixtral", {"hidden_size": "72"}, "hidden_size is '72'"),
    ("mixtral", {"hidden_size": 1e300}, "hidden_size is 1e"),
    ("mixtral", {"vocab_size": 2**62}, "vocab_size is 46"),
    ("mixtral", {"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648"),
    ("mixtral", {"head_dim": 7}, "head_dim is 7"),
    ("mixtral", {"head_dim": 2**30}, "head_dim is 1073741824"),
    ("mixtral", {"num_local_experts": 2**30}, r"gate\.weight has shape \[5, 72\]"),
    ("mixtral", {"num_local_experts": 4}, r"\[4, 72\] is required"),
    ("mixtral", {"intermediate_size": 2**30}, r"w1\.weight has shape \[40, 72\]"),
    ("qwen3_moe", {"num_hidden_layers": 2**30}, "num_hidden_layers is 1073741824"),
    ("qwen3_moe", {"num_hidden_layers": 4096}, r"layers\.3\.input_layernorm"),
    ("deepseek_v3", {"qk_rope_head_dim": 2**30}, "qk_rope_head_dim is 1073741824"),
    ("mixtral", {"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
    ("mixtral", {"hidden_act": "mish"}, "hidden_act is 'mish'"),
    ("mixtral", {"sliding_window": 0}, "sliding_window is 0"),
    ("mixtral", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ("mixtral", {"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral'"),
    ("mixtral", {"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
    ("mixtral", {"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
    ("mixtral", {"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
    ("qwen3_moe", {"mlp_only_layers": [-1]}, r"mlp_only_layers is \[-1\]"),
    ("qwen3_moe", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types is"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ("qwen3_moe", {"model_type": None}, "model_type is missing"),
    ("deepseek_v3", {"n_group": 2}, "n_group is 2"),
    ("deepseek_v3", {"topk_group": 2}, "topk_group is 2"),
    ("deepseek_v3", {"qk_rope_head_dim": 5}, "qk_rope_head_dim is 5"),
    ("deepseek_v3", {"scoring_func": "tanh"}, "scoring_func is 'tanh'"),
]


@pytest.mark.parametrize(("family", "changes", "message"), ABSURD, ids=[a[2] for a in ABSURD])
def test_absurd_configs_name_the_field_and_its_value(
    copy_of: Any, family: str, changes: dict[str, Any], message: str
) -> None:
    path = copy_of(family)
    checkpoints.rewrite_config(path, **changes)
    with pytest.raises(ValueError, match=message):
        mk.load(path)


def test_files_that_are_missing_or_leave_the_directory(copy_of: Any, tmp_path: Path) -> None:
    with pytest.raises(mk.FileError, match="nowhere"):
        mk.load(tmp_path / "nowhere")
    path = copy_of("mixtral")
    (path / "config.json").write_text("[1]")
    with pytest.raises(mk.FileError, match=r"config\.json"):
        mk.load(path)


def test_a_shard_outside_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = checkpoints.save(
        checkpoints.tiny_model("mixtral"), tmp_path / "shards", max_shard_size="100KB"
    )
    index = path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    name = next(iter(fields["weight_map"]))
    fields["weight_map"][name] = "../outside.safetensors"
    index.write_text(json.dumps(fields))
    with pytest.raises(mk.FileError, match=r"\.\./outside\.safetensors"):
        mk.load(path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = checkpoints.save(
        checkpoints.tiny_model("mixtral"), tmp_path / "shards", max_shard_size="100KB"
    )
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(mk.FileError, match=shard.name):
        mk.load(path)


def test_unknown_formats_are_refused(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    with pytest.raises(ValueError, match="int9"):
        mk.load(path, format="int9")


BAD_IDS: list[tuple[Any, str]] = [
    ([], "empty"),
    ([[1], []], "empty"),
    (np.zeros((2, 0), np.int64), "shape"),
    ([1, 97], "token 97"),
    ([-1], "token -1"),
    ([1.5], "dtype"),
    ([True], "dtype"),
    ("text", "text"),
    ([[1], ["a"]], "dtype"),
    (np.zeros((1, 1, 1), np.int64), "shape"),
    ([2**40], "token 1099511627776"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS, ids=[repr(b[0])[:24] for b in BAD_IDS])
def test_bad_ids_are_refused_and_the_cache_stays(
    checkpoint_maker: Any, ids: Any, message: str
) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    model = mk.load(path)
    cache = model.new_cache()
    model.forward([1, 2], cache=cache)
    with pytest.raises(ValueError, match=message):
        model.forward(ids, cache=cache)
    assert cache.lengths == [2]


def test_a_cache_takes_only_its_own_number_of_sequences(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    model = mk.load(path)
    cache = model.new_cache()
    model.forward([[1], [2]], cache=cache)
    with pytest.raises(ValueError, match="1 sequences; the cache continues 2"):
        model.forward([1], cache=cache)


def test_tensors_of_torch_are_taken_as_they_are(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    model = mk.load(path)
    assert model.forward(torch.tensor([1, 2])).tobytes() == model.forward([1, 2]).tobytes()


def test_a_bar_is_shown_when_asked_for_and_never_on_a_short_load(
    checkpoint_maker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    mk.load(path)
    assert capsys.readouterr().err == ""
    mk.load(path, progress=True)
    assert "loading: 100%" in capsys.readouterr().err
    mk.load(path, progress=False)
    assert capsys.readouterr().err == ""


def test_threads_are_set_and_checked(checkpoint_maker: Any) -> None:
    _, path = checkpoint_maker("mixtral", 0)
    before = mk.ops.config()["threads"]
    try:
        mk.load(path, threads=1)
        assert mk.ops.config()["threads"] == 1
        with pytest.raises(ValueError, match="threads is 0"):
            mk.load(path, threads=0)
    finally:
        mk.ops.set_num_threads(int(before))  # type: ignore[arg-type]
