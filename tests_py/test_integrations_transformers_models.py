"""Whole models of transformers on our kernels: their logits, their tokens, FP8, other modules."""

import copy
import importlib
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402
import hf_experts  # noqa: E402
from drawn_configs import DRAWS, Draw  # noqa: E402
from planner_models import model_of  # noqa: E402

import moekit.integrations.transformers as moekit_transformers  # noqa: E402
from moekit.integrations import hf_replaced, torch_run  # noqa: E402

# Every family with experts; the sizes that a count takes and a forward pass does not are mended.
MENDED: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": {"qk_nope_head_dim": 14, "kv_lora_rank": 22, "v_head_dim": 18},
    "gemma4_text": {"enable_moe_block": True, "num_kv_shared_layers": 0},
    "longcat_flash": {"head_dim": 6, "qk_rope_head_dim": 6, "zero_expert_num": 3},
}
DENSE = {"llama", "mistral", "qwen2", "qwen3"}
TYPES = sorted(set(DRAWS) - DENSE)
WITHOUT_INTERFACE = (
    "dbrx",
    "jetmoe",
    "llama4_text",
    "longcat_flash",
    "nllb-moe",
    "switch_transformers",
)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    torch.set_num_threads(1)
    moekit_transformers.register()


def tiny_model(model_type: str, seed: int) -> Any:
    """A random float32 model with experts; None where the draw has none."""
    config = DRAWS[model_type](Draw(seed)) | MENDED.get(model_type, {})
    model = model_of(model_type, config, "cpu")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(start + 0.2 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def logits(model: Any, seed: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 30, (2, 9), generator=random)
    more: dict[str, Any] = {"use_cache": False}
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = ids.flip(1)
    with torch.inference_mode():
        return model(input_ids=ids, **more).logits


def packed_modules(model: Any) -> int:
    return sum(module in torch_run._modules for module in model.modules())


@pytest.mark.parametrize("model_type", TYPES)
def test_a_whole_model_gives_its_own_logits(model_type: str) -> None:
    compared = 0
    for seed in range(4):
        model = tiny_model(model_type, seed)
        model.set_experts_implementation("eager")
        expected = logits(model)
        assert torch.isfinite(expected).all()
        model.set_experts_implementation("moekit")
        got = logits(model)
        if not packed_modules(model):  # a draw without a sparse layer
            continue
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
        # The experts matter: without them the logits are others.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "expert" in name or "_linear" in name:
                    parameter.mul_(-1.5)
        assert not torch.allclose(logits(model), expected, atol=1e-3)
        # And back: transformers' own code runs again.
        moekit_transformers.forget(model)
        model.set_experts_implementation("eager")
        logits(model)
        assert packed_modules(model) == 0
        compared += 1
        if compared == 2:
            return
    assert compared


def greedy(model: Any, length: int = 7, count: int = 9) -> list[int]:
    ids = torch.arange(3, 3 + length)[None]
    mask = torch.ones_like(ids)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[0, length:].tolist()


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3", "granitemoe"])
def test_generate_writes_the_same_tokens(model_type: str) -> None:
    model = tiny_model(model_type, 1)
    model.set_experts_implementation("eager")
    expected = greedy(model)
    model.set_experts_implementation("moekit")
    assert greedy(model) == expected and packed_modules(model) > 0
    for name in ("moekit_int8", "moekit_int4"):
        model.set_experts_implementation(name)
        assert len(greedy(model)) == len(expected)


def test_loaded_with_the_implementation_by_name(tmp_path: Path) -> None:

    path = checkpoints.save(checkpoints.tiny_model("qwen3_moe"), tmp_path, torch.bfloat16)
    load = transformers.AutoModelForCausalLM.from_pretrained
    expected = logits(load(path, dtype="auto", experts_implementation="eager"))
    model = load(path, dtype="auto", experts_implementation="moekit")
    got = logits(model)
    assert packed_modules(model) == 3 and got.dtype == torch.bfloat16
    assert hf_experts.error(got, expected) < 2e-2


# --- families without the interface ---


@pytest.mark.parametrize("model_type", WITHOUT_INTERFACE)
def test_modules_get_their_own_forward_back(model_type: str) -> None:
    model = tiny_model(model_type, 1)
    model.set_experts_implementation("moekit_int8")
    changed = [module for module in model.modules() if "forward" in vars(module)]
    assert changed
    quantised = logits(model)
    model.set_experts_implementation("eager")
    assert not any("forward" in vars(module) for module in model.modules())
    # Small models of coarse weights: near, and not the same.
    assert 1e-6 < hf_experts.error(quantised, logits(model)) < 0.3


@pytest.mark.parametrize("model_type", [*WITHOUT_INTERFACE, "mixtral"])
def test_copies_of_a_model_run_here_as_well(model_type: str) -> None:
    model = tiny_model(model_type, 1)
    model.set_experts_implementation("moekit")
    expected = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), expected)
        assert packed_modules(twin) == packed_modules(model) > 0
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.1)
        assert not torch.equal(logits(twin), expected)
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("model_type", [*WITHOUT_INTERFACE, "mixtral"])
def test_writes_that_torch_does_not_count_are_noticed(model_type: str) -> None:
    model = tiny_model(model_type, 1)
    model.set_experts_implementation("moekit")
    before = logits(model)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    got = logits(model)
    model.set_experts_implementation("eager")
    expected = logits(model)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert not torch.allclose(got, before)


@pytest.mark.parametrize("model_type", WITHOUT_INTERFACE)
def test_their_modules_under_torch_compile(model_type: str) -> None:
    model = tiny_model(model_type, 1)
    model.set_experts_implementation("moekit")
    module = next(filter(hf_replaced._is_replaceable, model.modules()))
    calls: list[Any] = []
    hook = module.register_forward_hook(lambda _, inputs, out: calls.append((inputs, out)))
    logits(model)
    hook.remove()
    inputs, expected = calls[0]
    with torch.inference_mode():
        got = torch.compile(module, backend="eager")(*inputs)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("model_type", WITHOUT_INTERFACE)
def test_their_gradients_are_the_eager_ones(model_type: str) -> None:
    model = tiny_model(model_type, 1)
    ids = torch.arange(3, 12)[None]
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    found = {}
    for name in ("eager", "moekit"):
        model.set_experts_implementation(name)
        model.zero_grad()
        model(input_ids=ids, use_cache=False, **more).logits.square().mean().backward()
        found[name] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    experts = [name for name in found["eager"] if "expert" in name or "_linear" in name]
    assert experts and set(experts) <= set(found["moekit"])
    # Of the largest gradient: those of key biases are zero but for rounding.
    most = max(float(grad.abs().max()) for grad in found["eager"].values())
    for name, expected in found["eager"].items():
        torch.testing.assert_close(found["moekit"][name], expected, rtol=0, atol=1e-5 * most)


@pytest.mark.parametrize("limit", [None, 0.4])
def test_step_3_7(limit: float | None) -> None:
    module = importlib.import_module("transformers.models.step3p7.modeling_step3p7")
    config = SimpleNamespace(
        num_local_experts=5, hidden_size=72, moe_intermediate_size=40, hidden_act="silu"
    )
    experts = hf_experts.randomise(module.Step3p7Experts(config, swiglu_limit=limit), 0)
    experts.is_transposed = False
    inputs = hf_experts.draw(experts, 9, 2)
    with torch.no_grad():
        expected = experts(*inputs)
        assert hf_replaced.replace(torch.nn.Sequential(experts), None) == 1
        assert hf_experts.error(experts(*inputs), expected) < 3e-6
    assert packed_modules(experts) == 1


# --- FP8 and FP4 ---


def fp8_experts(inter: int, hidden: int, block: tuple[int, int] | None, **options: Any) -> Any:
    """transformers' FP8 experts with random weights and scales."""
    fp8 = importlib.import_module("transformers.integrations.finegrained_fp8")
    moe = importlib.import_module("transformers.integrations.moe")
    config = transformers.MixtralConfig(
        hidden_size=hidden, intermediate_size=inter, num_local_experts=3
    )
    made = moe.use_experts_implementation(
        type("Fp8Experts", (fp8.FP8Experts,), {}),
        experts_interface=fp8.ALL_FP8_EXPERTS_FUNCTIONS,
    )(config, block_size=block, **options)
    random = torch.Generator().manual_seed(inter)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "scale_inv" in name and parameter.dtype != torch.float32:
                codes = torch.randint(118, 124, parameter.shape, generator=random)
                parameter.copy_(codes.to(torch.uint8).view(torch.float8_e8m0fnu))
            elif "scale_inv" in name:
                parameter.copy_(0.002 + 0.01 * torch.rand(parameter.shape, generator=random))
            elif parameter.dtype == torch.int8:
                codes = torch.randint(-128, 128, parameter.shape, generator=random)
                parameter.copy_(codes.to(torch.int8))
            else:
                parameter.copy_(40 * torch.randn(parameter.shape, generator=random))
    return made.eval()


def plain_experts(module: Any, dequantise: Any) -> Any:
    """The same experts in float32, run by transformers' own code."""
    experts = importlib.import_module("transformers.models.mixtral.modeling_mixtral").MixtralExperts
    with torch.no_grad():
        plain = experts(module.config)
        for name in ("gate_up_proj", "down_proj"):
            weight, scale = getattr(module, name), getattr(module, f"{name}_scale_inv")
            getattr(plain, name).copy_(dequantise(weight, scale))
    return plain.eval()


def _blockwise(high: int, wide: int) -> Any:
    def dequantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        each = scale.float().repeat_interleave(high, 1).repeat_interleave(wide, 2)
        return weight.float() * each[:, : weight.shape[1], : weight.shape[2]]

    return dequantise


def _by_halves(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows = weight.shape[1] // scale.shape[1]
    return weight.float() * scale.float().repeat_interleave(rows, 1)


_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _fp4(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    codes = weight.view(torch.uint8).long()
    values = _E2M1[torch.stack((codes & 15, codes >> 4), dim=-1)].flatten(-2)
    return values * scale.float().repeat_interleave(32, 2)[..., : values.shape[-1]]


@pytest.mark.parametrize("name", ["moekit", "moekit_int8"])
@pytest.mark.parametrize(
    ("inter", "hidden", "options", "dequantise"),
    [
        (192, 256, {"block": (128, 128)}, _blockwise(128, 128)),
        (144, 200, {"block": (32, 48)}, _blockwise(32, 48)),  # edge blocks are cut
        (64, 96, {"block": None}, _by_halves),
        (40, 72, {"block": (64, 64), "scale_fmt": "ue8m0"}, _blockwise(64, 64)),
        (64, 96, {"block": None, "expert_dtype": "fp4", "scale_fmt": "ue8m0"}, _fp4),
    ],
)
def test_fp8_experts(inter: int, hidden: int, options: Any, dequantise: Any, name: str) -> None:
    module = fp8_experts(inter, hidden, **options)
    plain = plain_experts(module, dequantise)
    inputs = hf_experts.draw(plain, 9, 2)
    module.config._experts_implementation = name
    with torch.no_grad():
        got = module(*inputs)
        expected = hf_experts.run_as(plain, "eager", *inputs)
    assert 1e-8 < hf_experts.error(got, expected) < {"moekit": 2e-2, "moekit_int8": 5e-2}[name]
    (runner,) = torch_run._modules[module].runners.values()
    if name == "moekit" and options["block"] == (128, 128):
        # As stored: what is left is the rounding of activations.
        assert runner.experts.up.format == runner.experts.down.format == "fp8"
        wanted = plain.gate_up_proj.detach().numpy()[:, inter:]
        np.testing.assert_array_equal(runner.experts.up.unpack(), wanted)
        np.testing.assert_array_equal(runner.experts.down.unpack(), plain.down_proj.detach())
    if name == "moekit":
        bits = 8 * runner.nbytes / sum(p.numel() for p in plain.parameters())
        # Rows are padded to sixteen, columns to a block.
        most = 6 if options.get("expert_dtype") == "fp4" else 20
        assert bits < most
