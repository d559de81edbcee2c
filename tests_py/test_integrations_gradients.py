"""Gradients through transformers' experts on our kernels, where training does more than usual."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hf_experts import draw, error, experts_module, run_as  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

import moekit.integrations.transformers as moekit_transformers  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    torch.set_num_threads(1)
    moekit_transformers.register()


def _both() -> Iterator[tuple[str, Any, tuple[torch.Tensor, ...]]]:
    for name in ("eager", "moekit"):
        module = experts_module("mixtral", "MixtralExperts")
        hidden, ids, weights = draw(module, 6, 2)
        yield name, module, (hidden.requires_grad_(), ids, weights)


def test_a_gradient_of_a_gradient() -> None:
    found = []
    for name, module, (hidden, ids, _) in _both():
        weights = torch.softmax(hidden[:, :2], dim=-1)  # a router: on the way to hidden as well
        # Another path, beside which a missing one would go unnoticed.
        out = run_as(module, name, hidden, ids, weights) + hidden**3
        (first,) = torch.autograd.grad(out.sum(), hidden, create_graph=True)
        first.square().sum().backward()
        found.append([first.detach(), hidden.grad, *(p.grad for p in module.parameters())])
    assert len(found[0]) == 4
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert error(ours, theirs) < 1e-5


class _Delta(torch.nn.Module):
    """An adapter's addition, computed outside."""

    def __init__(self, delta: torch.Tensor) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.delta


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_an_adapter_that_is_there_for_the_forward_pass_alone(name: str) -> None:
    found = []
    for implementation, module, (hidden, ids, weights) in _both():
        module.requires_grad_(False)
        shape = getattr(module, name).shape
        random = torch.Generator().manual_seed(3)
        first = torch.randn(*shape[:2], 2, generator=random).requires_grad_()
        second = torch.randn(shape[0], 2, shape[2], generator=random).requires_grad_()
        parametrize.register_parametrization(module, name, _Delta(0.1 * first @ second))
        out = run_as(module, implementation, hidden, ids, weights)
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        out.square().sum().backward()
        found.append([hidden.grad, first.grad, second.grad])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert error(ours, theirs) < 1e-5


def test_a_weight_that_is_computed_once_for_both_passes() -> None:
    found = []
    for name, module, (hidden, ids, weights) in _both():
        delta = torch.full(module.down_proj.shape, 0.1)
        parametrize.register_parametrization(module, "down_proj", _Delta(delta))
        with parametrize.cached():
            run_as(module, name, hidden, ids, weights).square().sum().backward()
        found.append([hidden.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert error(ours, theirs) < 1e-5


def test_autocast() -> None:
    found = []
    for name, module, (hidden, ids, weights) in _both():
        half = hidden.detach().bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = run_as(module, name, half, ids, weights)
        out.float().sum().backward()
        found.append([half.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.dtype == theirs.dtype and error(ours, theirs) < 1e-2
