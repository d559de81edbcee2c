"""Every experts class of transformers, found in the installed package, with random weights."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
import transformers

# What configurations call the sizes of experts. Odd ones, and more experts than are chosen.
SIZES: dict[str, Any] = {
    "hidden_size": 72,
    "moe_hidden_size": 72,
    "intermediate_size": 40,
    "moe_intermediate_size": 40,
    "num_experts": 5,
    "num_local_experts": 5,
    "moe_num_experts": 5,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
}


def interface_classes() -> list[tuple[str, str]]:
    """(model folder, class name) of each class under `use_experts_implementation`."""
    models = Path(transformers.__file__).parent / "models"
    pattern = re.compile(r"^@use_experts_implementation(?:\([^)]*\))?\nclass (\w+)", re.MULTILINE)
    return [
        (file.parent.name, name)
        for file in sorted(models.glob("*/modeling_*.py"))
        for name in pattern.findall(file.read_text())
    ]


def _configurations(folder: str) -> list[type]:
    module = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    classes = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and name.endswith("Config")
        and value.__module__ == module.__name__
    ]
    return sorted(classes, key=lambda c: ("Text" not in c.__name__, c.__name__))


def _tiny(config: Any) -> Any:
    for name, size in SIZES.items():
        if hasattr(config, name):
            value = getattr(config, name)
            # ERNIE's vision-language experts: a width for text, one for vision
            setattr(config, name, [size] * len(value) if isinstance(value, list) else size)
    return config


def experts_module(folder: str, name: str, seed: int = 0) -> Any:
    """A random float32 module of the class, of the first configuration that fits it."""
    found = getattr(
        importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name
    )
    extra = {}
    if "intermediate_size" in inspect.signature(found.__init__.__wrapped__).parameters:
        extra["intermediate_size"] = SIZES["intermediate_size"]
    for kind in _configurations(folder):
        try:
            module = found(_tiny(kind()), **extra)
        except AttributeError:  # a configuration of something else: vision, audio, the whole
            continue
        return randomise(module, seed)
    raise AssertionError(f"no configuration of {folder} makes {name}")


def randomise(module: Any, seed: int) -> Any:
    """The module in evaluation mode, every parameter drawn."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return module.eval()


def draw(module: Any, tokens: int, k: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """(hidden [T, H], ids [T, K] distinct in each row, weights [T, K]) for a module."""
    random = torch.Generator().manual_seed(seed)
    count, hidden = module.down_proj.shape[0], module.down_proj.shape[1]
    if module.is_transposed:
        hidden = module.down_proj.shape[2]
    dtype = module.down_proj.dtype
    ids = [torch.randperm(count, generator=random)[:k] for _ in range(tokens)]
    return (
        3 * torch.randn(tokens, hidden, generator=random).to(dtype),
        torch.stack(ids),
        torch.rand(tokens, k, generator=random).to(dtype),
    )


def run_as(module: Any, implementation: str, *inputs: torch.Tensor) -> torch.Tensor:
    """The module's output under one experts implementation."""
    before = module.config._experts_implementation
    module.config._experts_implementation = implementation
    try:
        return module(*inputs)
    finally:
        module.config._experts_implementation = before


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root of the normalised mean squared error."""
    got, expected = got.double(), expected.double()
    return float(((got - expected).square().mean() / expected.square().mean()).sqrt())
