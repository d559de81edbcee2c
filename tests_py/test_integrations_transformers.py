"""transformers' experts modules on our kernels, against their own eager code."""

import copy
import gc
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hf_experts  # noqa: E402
from hf_experts import draw, error, experts_module, run_as  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402
from torch.utils.dlpack import to_dlpack  # noqa: E402

import moekit.integrations.transformers as moekit_transformers  # noqa: E402
from moekit import _core  # noqa: E402
from moekit.integrations import torch_experts, torch_run  # noqa: E402

CLASSES = hf_experts.interface_classes()
# Relative errors: two float32 programs; one rounding per value and two of its sums in bfloat16.
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    torch.set_num_threads(1)
    moekit_transformers.register()


@pytest.fixture
def mixtral() -> Any:
    return experts_module("mixtral", "MixtralExperts")


def test_the_classes_are_found() -> None:
    assert len(CLASSES) >= 60
    assert {"mixtral", "gpt_oss", "deepseek_v4", "nemotron_h", "aria"} <= {f for f, _ in CLASSES}


@pytest.mark.parametrize(("folder", "name"), CLASSES)
def test_every_class_gives_what_its_eager_code_gives(folder: str, name: str) -> None:
    module = experts_module(folder, name)
    for dtype, tolerance in TOLERANCES.items():
        module = module.to(dtype)
        for tokens, k in ((11, 2), (1, 1), (3, 5)):
            hidden, ids, weights = draw(module, tokens, k, seed=tokens)
            with torch.no_grad():
                expected = run_as(module, "eager", hidden, ids, weights)
                got = run_as(module, "moekit", hidden, ids, weights)
            assert got.dtype == expected.dtype and got.shape == expected.shape
            assert error(got, expected) < tolerance
    # Far enough outside that clamps and caps decide, which ordinary activations never reach.
    hidden, ids, weights = draw(module.float(), 7, 2, seed=5)
    with torch.no_grad():
        expected = run_as(module, "eager", 40 * hidden, ids, weights)
        assert error(run_as(module, "moekit", 40 * hidden, ids, weights), expected) < 1e-5


@pytest.mark.parametrize("name", ["moekit_int8", "moekit_int4"])
@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("mixtral", "MixtralExperts"),
        ("gpt_oss", "GptOssExperts"),
        ("nemotron_h", "NemotronHExperts"),
        ("inkling2", "Inkling2Experts"),
    ],
)
def test_quantised_experts_are_as_near_as_their_format(folder: str, kind: str, name: str) -> None:
    module = experts_module(folder, kind)
    hidden, ids, weights = draw(module, 33, 2)
    with torch.no_grad():
        expected = run_as(module, "eager", hidden, ids, weights)
        got = run_as(module, name, hidden, ids, weights)
    # Three matrices of NMSE 1.2e-4 and 1.6e-2, and activations of 8 bits.
    low, high = {"moekit_int8": (1e-4, 0.05), "moekit_int4": (1e-2, 0.4)}[name]
    assert low < error(got, expected) < high


@pytest.mark.parametrize(
    ("folder", "kind"), [("qwen3_moe", "Qwen3MoeExperts"), ("inkling2", "Inkling2Experts")]
)
def test_an_id_beyond_the_last_expert_is_skipped(folder: str, kind: str) -> None:
    module = experts_module(folder, kind)
    hidden, ids, weights = draw(module, 9, 3)
    ids[::2, 1] = 5
    ids[4] = 5
    with torch.no_grad():
        expected = run_as(module, "eager", hidden, ids, weights)
        got = run_as(module, "moekit", hidden, ids, weights)
    assert error(got, expected) < 3e-6
    assert not got[4].any()
    for wrong in (-1, 6, 2**32 + 1):
        ids[3, 0] = wrong
        with torch.no_grad(), pytest.raises(ValueError, match=f"expert id is {wrong}; 0 to 5"):
            run_as(module, "moekit", hidden, ids, weights)


def test_no_token_and_other_shapes(mixtral: Any) -> None:
    hidden, ids, weights = draw(mixtral, 6, 2)
    with torch.no_grad():
        assert run_as(mixtral, "moekit", hidden[:0], ids[:0], weights[:0]).shape == (0, 72)
        flat = run_as(mixtral, "moekit", hidden, ids, weights)
        # not contiguous, as slices of a larger activation are
        wide = torch.cat((hidden, hidden), dim=1)[:, :72]
        assert not wide.is_contiguous()
        assert torch.equal(run_as(mixtral, "moekit", wide, ids, weights), flat)
        int32 = run_as(mixtral, "moekit", hidden, ids.int(), weights.double())
        assert torch.equal(int32, flat)
        # the sign stands beside the numbers
        negative = torch.complex(torch.zeros_like(hidden), -hidden).conj().imag
        assert negative.is_neg() and torch.equal(negative, hidden)
        assert torch.equal(run_as(mixtral, "moekit", negative, ids, weights), flat)
        # rows of tokens, as attention leaves them
        out = run_as(mixtral, "moekit", hidden.view(2, 3, 72), ids, weights)
        assert out.shape == (2, 3, 72) and torch.equal(out.view(6, 72), flat)


def test_a_token_gives_the_same_bytes_in_any_batch(mixtral: Any) -> None:
    for dtype in TOLERANCES:
        hidden, ids, weights = draw(mixtral.to(dtype), 19, 2)
        with torch.no_grad():
            whole = run_as(mixtral, "moekit", hidden, ids, weights)
            for t in range(19):
                row = slice(t, t + 1)
                alone = run_as(mixtral, "moekit", hidden[row], ids[row], weights[row])
                assert torch.equal(alone, whole[row])


# --- what stands packed ---


def _packed_bytes(module: Any) -> int:
    packed = torch_run._modules.get(module)
    return 0 if packed is None else sum(runner.nbytes for runner in packed.runners.values())


def _changes() -> dict[str, Any]:
    def through_data(module: Any) -> None:
        module.down_proj.data.mul_(2)  # counts no version

    def one_by_one(module: Any) -> None:
        for expert in module.down_proj.data:
            expert.mul_(2)

    def through_numpy(module: Any) -> None:
        array = module.down_proj.detach().numpy()
        array *= 2

    def in_place(module: Any) -> None:
        with torch.no_grad():
            module.down_proj.mul_(2)

    def assigned(module: Any) -> None:
        module.down_proj.data = module.down_proj.data * 2

    def new_parameter(module: Any) -> None:
        module.down_proj = torch.nn.Parameter(module.down_proj.data * 2)

    def loaded(module: Any) -> None:
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        state["down_proj"] *= 2
        module.load_state_dict(state)

    changes = (through_data, one_by_one, through_numpy, in_place, assigned, new_parameter, loaded)
    return {change.__name__: change for change in changes}


@pytest.mark.parametrize("change", _changes())
def test_changed_weights_are_packed_again(mixtral: Any, change: str) -> None:
    hidden, ids, weights = draw(mixtral, 4, 2)
    with torch.no_grad():
        before = run_as(mixtral, "moekit", hidden, ids, weights)
        _changes()[change](mixtral)
        after = run_as(mixtral, "moekit", hidden, ids, weights)
    torch.testing.assert_close(after, 2 * before)


@pytest.mark.parametrize("count", [1, 3, 40, 100])
def test_a_write_into_one_expert_is_noticed(count: int) -> None:
    for layout in ("[E, N, K]", "[E, K, N]"):
        weight = torch.randn(count, 7, 9)
        weight = weight.transpose(1, 2) if layout == "[E, K, N]" else weight
        watched = torch_experts.Watched(weight)
        for expert in range(count):
            assert watched.same(weight)
            kept = weight.data[expert].clone()
            weight.data[expert] += 1
            assert not watched.same(weight)
            weight.data[expert] = kept


def test_weights_are_packed_once(mixtral: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    original = torch_run.pack
    monkeypatch.setattr(torch_run, "pack", lambda *a: counted.append(a[2]) or original(*a))
    hidden, ids, weights = draw(mixtral, 4, 2)
    with torch.no_grad():
        for _ in range(3):
            for name in ("moekit", "moekit_int8"):
                run_as(mixtral, name, hidden, ids, weights)
    assert counted == [None, "int8"]


def test_a_weight_made_in_inference_mode_is_watched() -> None:
    with torch.inference_mode():
        module = experts_module("mixtral", "MixtralExperts")
        assert module.down_proj.is_inference()
        hidden, ids, weights = draw(module, 4, 2)
        before = run_as(module, "moekit", hidden, ids, weights)
        module.down_proj.mul_(2)
        after = run_as(module, "moekit", hidden, ids, weights)
    torch.testing.assert_close(after, 2 * before)


@pytest.mark.parametrize(
    ("folder", "kind"), [("mixtral", "MixtralExperts"), ("muse_spark", "MuseSparkExperts")]
)
def test_packed_weights_go_with_their_module(folder: str, kind: str) -> None:
    module = experts_module(folder, kind)
    with torch.no_grad():
        run_as(module, "moekit", *draw(module, 4, 2))
    packed = weakref.ref(torch_run._modules[module])
    assert packed() is not None
    del module
    gc.collect()
    assert packed() is None


def test_forget_frees_them_at_once(mixtral: Any) -> None:
    inputs = draw(mixtral, 4, 2)
    outer = torch.nn.Sequential(mixtral)
    with torch.no_grad():
        before = run_as(mixtral, "moekit", *inputs)
        held = _packed_bytes(mixtral)
        assert held >= sum(p.nbytes for p in mixtral.parameters())
        assert moekit_transformers.forget(outer) == held
        assert _packed_bytes(mixtral) == 0 and moekit_transformers.forget(outer) == 0
        assert torch.equal(run_as(mixtral, "moekit", *inputs), before)


def test_a_copy_has_weights_of_its_own(mixtral: Any) -> None:
    inputs = draw(mixtral, 4, 2)
    with torch.no_grad():
        before = run_as(mixtral, "moekit", *inputs)
        twin = copy.deepcopy(mixtral)
        twin.down_proj.zero_()
        assert not run_as(twin, "moekit", *inputs).any()
        assert torch.equal(run_as(mixtral, "moekit", *inputs), before)


def test_several_threads_share_one_packed_copy(mixtral: Any) -> None:
    inputs = [draw(mixtral, 5, 2, seed=seed) for seed in range(8)]
    mixtral.config._experts_implementation = "moekit"

    def run(which: int) -> torch.Tensor:
        with torch.inference_mode():
            return mixtral(*inputs[which % 8])

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(64)))
    for which, got in enumerate(together):
        assert torch.equal(got, run(which))


@pytest.mark.parametrize(
    ("folder", "kind"), [("mixtral", "MixtralExperts"), ("inkling2", "Inkling2Experts")]
)
def test_experts_share_the_threads_of_torch(folder: str, kind: str) -> None:
    module = experts_module(folder, kind)
    inputs, numbers = draw(module, 400, 2), torch.ones(1 << 20)
    before = torch.get_num_threads(), _core.num_threads()
    try:
        # A team of another size than torch's would end threads and create them, at every layer.
        torch.set_num_threads(3)
        _core.set_num_threads(5)
        with torch.no_grad():
            run_as(module, "moekit", *inputs)  # packs, with all of ours
            numbers.mul(2)
            expected = run_as(module, "moekit", *inputs)
            # Threads that packing used and torch's team left out may still be ending: none is new.
            threads = set(os.listdir("/proc/self/task"))
            for _ in range(3):
                numbers.mul(2)
                assert set(os.listdir("/proc/self/task")) <= threads
                assert torch.equal(run_as(module, "moekit", *inputs), expected)
                assert set(os.listdir("/proc/self/task")) <= threads
        assert _core.num_threads() == 5
    finally:
        torch.set_num_threads(before[0])
        _core.set_num_threads(before[1])


# --- gradients, modes, what cannot be run ---


@pytest.mark.parametrize(
    ("folder", "kind"), [("gpt_oss", "GptOssExperts"), ("muse_spark", "MuseSparkExperts")]
)
def test_gradients_are_those_of_the_eager_code(folder: str, kind: str) -> None:
    module = experts_module(folder, kind)
    found = {}
    for name in ("eager", "moekit"):
        hidden, ids, weights = draw(module, 6, 2)
        leaves = hidden.requires_grad_(), weights.requires_grad_()
        module.zero_grad()
        run_as(module, name, hidden, ids, weights).square().sum().backward()
        found[name] = [t.grad for t in (*leaves, *module.parameters())]
    assert len(found["moekit"]) >= 4
    for ours, theirs in zip(found["moekit"], found["eager"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_frozen_weights_pass_the_gradient_on(mixtral: Any) -> None:
    mixtral.requires_grad_(False)
    found = []
    for name in ("eager", "moekit"):
        hidden, ids, weights = draw(mixtral, 6, 2)
        run_as(mixtral, name, hidden.requires_grad_(), ids, weights).sum().backward()
        found.append(hidden.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_quantised_experts_have_no_gradient(mixtral: Any) -> None:
    # The forward pass works: parameters want gradients unless a caller says otherwise.
    out = run_as(mixtral, "moekit_int8", *draw(mixtral, 6, 2))
    with pytest.raises(RuntimeError, match=r"moekit_int8.*no gradient"):
        out.sum().backward()


def test_what_cannot_be_run_says_why(mixtral: Any) -> None:
    hidden, ids, weights = draw(mixtral, 4, 2)
    run = moekit_transformers.NotRunnable
    with torch.no_grad():
        assert run_as(mixtral, "moekit", hidden.to("meta"), ids, weights).device.type == "meta"
        with pytest.raises(run, match=r"hidden_states are torch\.float64"):
            run_as(mixtral, "moekit", hidden.double(), ids, weights)
        with pytest.raises(run, match=r"gate_up_proj is torch\.float64"):
            run_as(mixtral.double(), "moekit", hidden, ids, weights)
        with pytest.raises(run, match="is on device meta"):
            run_as(mixtral.to("meta"), "moekit", hidden, ids, weights)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_what_a_tracer_gives_has_no_memory(mixtral: Any) -> None:
    inputs = draw(mixtral, 4, 2)
    with torch.no_grad():
        run_as(mixtral, "moekit", *inputs)  # packed
        with fake_tensor.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(tensor) for tensor in inputs]
            with pytest.raises(TypeError, match="x has no memory"):
                run_as(mixtral, "moekit", *fakes)


def test_the_core_refuses_memory_that_does_not_fit(mixtral: Any) -> None:
    inputs = draw(mixtral, 4, 2)
    with torch.no_grad():
        expected = run_as(mixtral, "moekit", *inputs)
    bank = torch_run._modules[mixtral].runners[None].experts.bank("silu")
    hidden, ids, weights = inputs
    out = torch.empty_like(hidden)

    def call(**other: Any) -> None:
        given = {"x": hidden, "experts": ids, "weights": weights, "out": out, **other}
        capsules = {
            name: to_dlpack(value) if isinstance(value, torch.Tensor) else value
            for name, value in given.items()
        }
        _core.moe_ffn_plain(weighs_input=False, bank=bank, threads=0, **capsules)

    call()
    assert torch.equal(out, expected)
    for wrong, kind, says in (
        ({"x": hidden.T.contiguous().T}, TypeError, "x is not C-contiguous"),
        ({"x": hidden.double()}, TypeError, "x is not float32, bfloat16 or float16"),
        ({"x": 5}, TypeError, "x is no DLPack capsule"),
        ({"x": hidden[:, :71].contiguous()}, ValueError, r"out is \[4, 72\]; x is \[4, 71\]"),
        ({"experts": ids.int()}, TypeError, "experts is not int64"),
        ({"experts": ids[:3]}, ValueError, r"experts are \[3, 2\], weights \[4, 2\]"),
        ({"weights": weights.bool()}, TypeError, "weights is not float32"),
        ({"out": out.bfloat16()}, TypeError, "out has another dtype than x"),
        ({"out": out[:3]}, ValueError, r"out is \[3, 72\]"),
    ):
        with pytest.raises(kind, match=says):
            call(**wrong)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_what_is_traced_is_refused(mixtral: Any) -> None:
    inputs = draw(mixtral.requires_grad_(False), 4, 2)
    mixtral.config._experts_implementation = "moekit"
    refused = moekit_transformers.NotRunnable
    with pytest.raises(refused, match=r"torch\.jit\.trace cannot record"):
        torch.jit.trace(mixtral, inputs)
    with pytest.raises(refused, match="FakeTensor"):
        torch.export.export(mixtral, inputs, strict=False)


@pytest.mark.parametrize(
    ("folder", "kind"), [("mixtral", "MixtralExperts"), ("inkling2", "Inkling2Experts")]
)
def test_expert_ids_are_integers(folder: str, kind: str) -> None:
    module = experts_module(folder, kind)
    hidden, ids, weights = draw(module, 4, 2)
    with torch.no_grad():
        expected = run_as(module, "moekit", hidden, ids, weights)
        for dtype in (torch.uint8, torch.int16, torch.int32):
            got = run_as(module, "moekit", hidden, ids.to(dtype), weights)
            assert torch.equal(got, expected)
        for dtype in (torch.float32, torch.bool):
            with pytest.raises(TypeError, match=f"expert ids are {dtype}; integers are required"):
                run_as(module, "moekit", hidden, ids.to(dtype), weights)


def test_falling_back_has_to_be_asked_for(mixtral: Any) -> None:
    hidden, ids, weights = draw(mixtral.double(), 4, 2)
    moekit_transformers.register(fallback="eager")
    try:
        with pytest.warns(UserWarning, match=r"float64.*MixtralExperts runs eager"):
            got = run_as(mixtral, "moekit", hidden, ids, weights)
        assert torch.equal(got, run_as(mixtral, "eager", hidden, ids, weights))
    finally:
        moekit_transformers.register()
    with torch.no_grad(), pytest.raises(moekit_transformers.NotRunnable):
        run_as(mixtral, "moekit", hidden, ids, weights)
    with pytest.raises(ValueError, match="fallback is 'silently'"):
        moekit_transformers.register(fallback="silently")


def test_under_torch_compile(mixtral: Any) -> None:
    inputs = draw(mixtral, 6, 2)
    mixtral.config._experts_implementation = "moekit"
    with torch.no_grad():
        expected = mixtral(*inputs)
        assert torch.equal(torch.compile(mixtral, backend="eager")(*inputs), expected)
