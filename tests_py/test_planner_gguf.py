"""Plans from GGUF headers: the parameters planned are those of the tensors in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_converter
import numpy as np
import pytest
import test_models_gguf as gguf_models
import test_models_gguf_hybrids as hybrids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moekit.checkpoint.gguf_config import gguf_architecture_names
from moekit.planner import plan_model

gguf = pytest.importorskip("gguf")

H, V, L, E, K, F, HEADS, KV, DIM = 24, 40, 3, 6, 2, 10, 4, 2, 8
Shapes = dict[str, tuple[int, ...]]


def _write(
    path: Path, arch: str, numbers: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> int:
    """A GGUF file of zeros; returns the number of elements written."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_uint32(f"{arch}.block_count", numbers.pop("block_count", L))
    for key, value in {
        "embedding_length": H,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV,
        "expert_count": E,
        "expert_used_count": K,
        **numbers,
    }.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_token_list([f"t{i}" for i in range(V)])
    total = 0
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
        total += int(np.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def _experts(i: int, width: int) -> Shapes:
    return {
        f"blk.{i}.ffn_gate_inp.weight": (E, H),
        f"blk.{i}.ffn_gate_exps.weight": (E, width, H),
        f"blk.{i}.ffn_up_exps.weight": (E, width, H),
        f"blk.{i}.ffn_down_exps.weight": (E, H, width),
    }


def _gqa(i: int, dim: int) -> Shapes:
    return {
        f"blk.{i}.attn_q.weight": (HEADS * dim, H),
        f"blk.{i}.attn_k.weight": (KV * dim, H),
        f"blk.{i}.attn_v.weight": (KV * dim, H),
        f"blk.{i}.attn_output.weight": (H, HEADS * dim),
        f"blk.{i}.attn_norm.weight": (H,),
        f"blk.{i}.ffn_norm.weight": (H,),
    }


def _around(tied: bool) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (V, H), "output_norm.weight": (H,)}
    return shapes if tied else {**shapes, "output.weight": (V, H)}


@pytest.mark.parametrize("tied", [True, False])
def test_mixtral(tmp_path: Path, tied: bool) -> None:
    shapes = _around(tied)
    for i in range(L):
        shapes |= _gqa(i, H // HEADS) | _experts(i, F)
    path = tmp_path / "m.gguf"
    total = _write(path, "llama", {"feed_forward_length": F}, shapes)
    plan = plan_model(path)
    assert plan.total_params == total
    assert (plan.num_experts, plan.top_k) == (E, K)


def test_qwen3_moe(tmp_path: Path) -> None:
    shapes = _around(False)
    for i in range(L):
        shapes |= _gqa(i, DIM) | _experts(i, F)
        shapes |= {f"blk.{i}.attn_q_norm.weight": (DIM,), f"blk.{i}.attn_k_norm.weight": (DIM,)}
    path = tmp_path / "q.gguf"
    numbers = {
        "feed_forward_length": 99,
        "expert_feed_forward_length": F,
        "attention.key_length": DIM,
    }
    assert plan_model(
        path if _write(path, "qwen3moe", numbers, shapes) else ""
    ).total_params == sum(int(np.prod(s)) for s in shapes.values())


@pytest.mark.parametrize("q_rank", [0, 7])
def test_deepseek2(tmp_path: Path, q_rank: int) -> None:
    nope, rope, v, rank = 6, 4, 5, 9
    shapes = _around(False)
    for i in range(L):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (H,),
            f"blk.{i}.ffn_norm.weight": (H,),
            f"blk.{i}.attn_kv_a_mqa.weight": (rank + rope, H),
            f"blk.{i}.attn_kv_a_norm.weight": (rank,),
            f"blk.{i}.attn_k_b.weight": (HEADS, rank, nope),
            f"blk.{i}.attn_v_b.weight": (HEADS, v, rank),
            f"blk.{i}.attn_output.weight": (H, HEADS * v),
        }
        if q_rank:
            shapes |= {
                f"blk.{i}.attn_q_a.weight": (q_rank, H),
                f"blk.{i}.attn_q_a_norm.weight": (q_rank,),
                f"blk.{i}.attn_q_b.weight": (HEADS * (nope + rope), q_rank),
            }
        else:
            shapes |= {f"blk.{i}.attn_q.weight": (HEADS * (nope + rope), H)}
        if i:
            shapes |= _experts(i, F)
            for part in ("gate", "up"):
                shapes[f"blk.{i}.ffn_{part}_shexp.weight"] = (2 * F, H)
            shapes[f"blk.{i}.ffn_down_shexp.weight"] = (H, 2 * F)
        else:
            shapes |= {
                "blk.0.ffn_gate.weight": (33, H),
                "blk.0.ffn_up.weight": (33, H),
                "blk.0.ffn_down.weight": (H, 33),
            }
    numbers = {
        "feed_forward_length": 33,
        "expert_feed_forward_length": F,
        "expert_shared_count": 2,
        "leading_dense_block_count": 1,
        "attention.kv_lora_rank": rank,
        "rope.dimension_count": rope,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": v,
        "attention.head_count_kv": 1,
    }
    if q_rank:
        numbers["attention.q_lora_rank"] = q_rank
    path = tmp_path / "d.gguf"
    total = _write(path, "deepseek2", numbers, shapes)
    plan = plan_model(str(path))
    assert plan.total_params == total
    assert plan.kv_elements_per_token == L * (rank + rope)


def test_glm4_moe_leaves_the_last_block_out(tmp_path: Path) -> None:
    shapes = _around(False)
    for i in range(L):
        shapes |= _gqa(i, DIM) | _experts(i, F)
        shapes |= {f"blk.{i}.attn_{c}.bias": ((HEADS if c == "q" else KV) * DIM,) for c in "qkv"}
    path = tmp_path / "g.gguf"
    numbers = {
        "feed_forward_length": 99,
        "expert_feed_forward_length": F,
        "block_count": L + 1,
        "attention.key_length": DIM,
        "leading_dense_block_count": 0,
        "expert_shared_count": 0,
        "nextn_predict_layers": 1,
    }
    total = _write(path, "glm4moe", numbers, shapes)
    plan = plan_model(path)
    assert plan.total_params == total
    assert plan.mtp_params > 0


def test_unknown_architecture(tmp_path: Path) -> None:
    path = tmp_path / "u.gguf"
    _write(path, "mamba", {}, _around(True))
    with pytest.raises(ValueError, match=r"general\.architecture is 'mamba'"):
        plan_model(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"u\.gguf"):
        plan_model(path)


@pytest.mark.parametrize("family", [*gguf_models.FAMILIES, *hybrids.ARCHES])
def test_every_file_that_loads_is_planned(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    changes = gguf_models.CHANGES | hybrids.HYBRIDS
    _, source = checkpoint_maker(family, 2, **changes.get(family, {}))
    if family in hybrids.ARCHES:
        hybrids.convert(source, tmp_path / "x.gguf", family)
    else:
        gguf_converter.convert(source, tmp_path / "x.gguf")
    found, wanted = plan_model(tmp_path / "x.gguf"), plan_model(source)
    assert found.components == wanted.components
    assert found.active_components == wanted.active_components
    assert found.cache_bytes(77) == wanted.cache_bytes(77)
    assert found.flops_per_token == wanted.flops_per_token


_KEYS = (
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.key_length_mla",
    "attention.value_length",
    "attention.kv_lora_rank",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "leading_dense_block_count",
    "nextn_predict_layers",
    "rope.dimension_count",
    "ssm.inner_size",
    "ssm.time_step_rank",
)
_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 70),
    st.floats(width=32),
    st.text(alphabet="ab0\n", max_size=4),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arch=st.sampled_from([*gguf_architecture_names(), "qwen2", "qwen3"]),
    changes=st.dictionaries(st.sampled_from(_KEYS), _ODD, max_size=4),
    tensors=st.sets(st.sampled_from(["token_embd.weight", "output.weight", "blk.0.attn_q.bias"])),
)
def test_any_header_plans_or_explains(
    tmp_path_factory: pytest.TempPathFactory, arch: str, changes: dict[str, Any], tensors: set[str]
) -> None:
    path = tmp_path_factory.mktemp("headers") / "x.gguf"
    numbers = dict.fromkeys(_KEYS[:6], 8) | {"block_count": 3, "expert_count": 6} | changes
    writer = gguf.GGUFWriter(path, arch)
    for key, value in numbers.items():
        if value is None:
            continue
        kinds = {bool: writer.add_bool, float: writer.add_float32, str: writer.add_string}
        write = kinds.get(type(value), writer.add_int64 if isinstance(value, int) else None)
        (write or writer.add_array)(f"{arch}.{key}", value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((40, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        plan = plan_model(path, "int4", 100, 3)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
        return
    assert 0 < plan.active_params <= plan.total_params


def test_a_split_set_and_a_directory(tmp_path: Path) -> None:
    shapes = _around(False)
    for i in range(L):
        shapes |= _gqa(i, H // HEADS) | _experts(i, F)
    _write(tmp_path / "whole.gguf", "llama", {"feed_forward_length": F}, shapes)
    wanted = plan_model(tmp_path / "whole.gguf")
    assert plan_model(tmp_path).components == wanted.components
    folder = tmp_path / "parts"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "x.gguf", "llama", split_max_tensors=10)
    numbers = {"block_count": L, "embedding_length": H, "feed_forward_length": F}
    numbers |= {"attention.head_count": HEADS, "attention.head_count_kv": KV}
    for key, value in (numbers | {"expert_count": E, "expert_used_count": K}).items():
        writer.add_uint32(f"llama.{key}", value)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(folder.iterdir())
    assert len(parts) > 2
    assert plan_model(parts[0]).components == wanted.components  # the head is in another part
    assert plan_model(folder).components == wanted.components
    parts[-1].unlink()
    with pytest.raises(ValueError, match=r"\.gguf"):
        plan_model(parts[0])
