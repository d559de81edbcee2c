"""Experts under transformers without their original weights: freed, saved, given back."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402
import hf_experts  # noqa: E402
from hf_experts import draw, experts_module, run_as  # noqa: E402

import moekit.integrations.transformers as moekit_transformers  # noqa: E402

CLASSES = hf_experts.interface_classes()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    torch.set_num_threads(1)
    moekit_transformers.register()


def model(family: str = "mixtral", dtype: Any = torch.bfloat16, **changes: Any) -> Any:
    made = checkpoints.tiny_model(family, 3, **changes).to(dtype)
    made.set_experts_implementation("moekit")
    return made


def logits(module: Any) -> Any:
    with torch.no_grad():
        return module(torch.tensor([[3, 1, 4, 1, 5, 9]])).logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("folder", "name"), CLASSES)
def test_every_class_gets_the_same_bits_back(folder: str, name: str, dtype: Any) -> None:
    module = experts_module(folder, name).to(dtype)
    module.config._experts_implementation = "moekit"
    before = {key: value.clone() for key, value in module.state_dict().items()}
    flags = {key: value.requires_grad for key, value in module.named_parameters()}
    hidden, ids, weights = draw(module, 7, 2, seed=1)
    with torch.no_grad():
        expected = run_as(module, "moekit", hidden, ids, weights)
        freed = moekit_transformers.release(module)
        assert freed > 0
        assert moekit_transformers.release(module) == 0
        assert torch.equal(run_as(module, "moekit", hidden, ids, weights), expected)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert value.dtype == before[key].dtype
    assert moekit_transformers.restore(module) == freed
    assert moekit_transformers.restore(module) == 0
    for key, value in module.named_parameters():
        assert torch.equal(value, before[key]), key
        assert value.requires_grad == flags[key]
    with torch.no_grad():
        assert torch.equal(run_as(module, "moekit", hidden, ids, weights), expected)


def test_the_memory_is_freed() -> None:
    theirs = model()
    storages = [
        weakref.ref(parameter.untyped_storage())
        for name, parameter in theirs.named_parameters()
        if ".experts." in name
    ]
    wanted = logits(theirs)
    size = sum(p.nbytes for n, p in theirs.named_parameters() if ".experts." in n)
    assert moekit_transformers.release(theirs) == size
    gc.collect()
    assert not any(ref() is not None for ref in storages)
    assert all(p.device.type == "meta" for n, p in theirs.named_parameters() if ".experts." in n)
    assert torch.equal(logits(theirs), wanted)
    assert theirs.dtype == torch.bfloat16


def test_what_was_never_run_is_packed_first() -> None:
    theirs = model(dtype=torch.float32)
    wanted = logits(copy.deepcopy(theirs))
    moekit_transformers.release(theirs)
    assert torch.equal(logits(theirs), wanted)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe", "nemotron_h"])
def test_a_saved_model_is_whole(tmp_path: Path, family: str) -> None:
    theirs = model(family, torch.float32)
    wanted = logits(theirs)
    moekit_transformers.release(theirs)
    theirs.save_pretrained(tmp_path / "out")
    again = type(theirs).from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    again.set_experts_implementation("moekit")
    assert torch.equal(logits(again), wanted)


def test_another_implementation_brings_exact_weights_back() -> None:
    theirs = model(dtype=torch.float32)
    theirs.set_experts_implementation("eager")
    wanted = logits(theirs)
    theirs.set_experts_implementation("moekit")
    moekit_transformers.release(theirs)
    theirs.set_experts_implementation("moekit")
    assert moekit_transformers.restore(theirs) > 0
    moekit_transformers.release(theirs)
    theirs.set_experts_implementation("eager")
    assert torch.equal(logits(theirs), wanted)
    assert not any(p.device.type == "meta" for p in theirs.parameters())
    theirs.set_experts_implementation("moekit")
    moekit_transformers.release(theirs)
    theirs.set_experts_implementation("moekit_int8")
    assert torch.isfinite(logits(theirs)).all()


def test_quantised_copies_do_not_pass_for_the_weights(tmp_path: Path) -> None:
    theirs = model(dtype=torch.float32)
    theirs.set_experts_implementation("moekit_int8")
    wanted = logits(theirs)
    assert moekit_transformers.release(theirs) > 0
    assert torch.equal(logits(theirs), wanted)
    for action in (
        theirs.state_dict,
        lambda: theirs.save_pretrained(tmp_path / "out"),
        lambda: theirs.set_experts_implementation("eager"),
        lambda: theirs.set_experts_implementation("moekit"),
        lambda: moekit_transformers.restore(theirs),
    ):
        with pytest.raises(RuntimeError, match="were released and are kept as int8"):
            action()
    assert torch.equal(logits(theirs), wanted)
    assert moekit_transformers.restore(theirs, rounded=True) > 0
    theirs.set_experts_implementation("eager")
    near = logits(theirs)
    assert torch.linalg.norm(near - wanted) < 0.1 * torch.linalg.norm(wanted)


def test_what_needs_the_weights_says_so() -> None:
    theirs = model(dtype=torch.float32)
    state = copy.deepcopy(theirs.state_dict())
    moekit_transformers.release(theirs)
    with pytest.raises(RuntimeError, match="restore"):
        theirs.load_state_dict(state)
    with pytest.raises(RuntimeError, match="restore"):
        moekit_transformers.forget(theirs)
    out = theirs(torch.tensor([[3, 1, 4]])).logits
    with pytest.raises(RuntimeError, match="no gradient"):
        out.sum().backward()
    with pytest.raises(moekit_transformers.NotRunnable, match="meta"):
        logits(copy.deepcopy(theirs))
    with pytest.raises(RuntimeError, match="is a copy of one whose weights were released"):
        copy.deepcopy(theirs).state_dict()
    moekit_transformers.restore(theirs)
    theirs.load_state_dict(state)
    theirs(torch.tensor([[3, 1, 4]])).logits.sum().backward()
    assert moekit_transformers.forget(theirs) > 0


def test_only_where_moekit_runs() -> None:
    theirs = model()
    theirs.set_experts_implementation("eager")
    with pytest.raises(ValueError, match=r"\[release\] experts implementation is 'eager'"):
        moekit_transformers.release(theirs)


def test_families_without_the_interface_keep_theirs() -> None:
    theirs = checkpoints.tiny_model("dbrx", 1)
    theirs.set_experts_implementation("moekit")
    wanted = logits(theirs)
    assert moekit_transformers.release(theirs) == 0
    assert torch.equal(logits(theirs), wanted)
