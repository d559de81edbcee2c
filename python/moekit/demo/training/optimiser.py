"""Muon for matrices, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by the nearest semi-orthogonal matrix. Expert banks [E, out, in] are orthogonalised as a
batch, one matrix per expert. It learns about 1.5 times as much per token as AdamW here, and tokens
are what a CPU is short of.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on [B, m, n] with Jordan's quintic coefficients, in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if transposed else x).float()


class Optimiser:
    """One object for both rules; ``rate`` in ``step`` multiplies both peak learning rates."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float, decay: float) -> None:
        self.muon_rate, self.decay = muon_rate, decay
        matrices: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        others, routers = [], []
        for name, p in model.named_parameters():
            if name.endswith("mlp.gate"):
                routers.append(p)
            elif p.dim() < 2 or name == "embed_tokens":
                others.append(p)
            else:
                matrices[(p.shape[-2], p.shape[-1])].append(p)
        # Equal shapes are stacked: one batched iteration instead of dozens of small ones.
        self.groups = list(matrices.values())
        self.momentum = [torch.zeros(self._stacked(g).shape) for g in self.groups]
        self.adam = torch.optim.AdamW(
            [{"params": others, "share": 1.0}, {"params": routers, "share": 0.2}],
            lr=adam_rate,
            betas=(0.9, 0.98),
            eps=1e-10,
            weight_decay=0.0,
            foreach=True,
        )
        self.adam_rate = adam_rate

    @staticmethod
    def _stacked(group: list[nn.Parameter]) -> Tensor:
        return torch.cat([p.detach().reshape(-1, *p.shape[-2:]) for p in group])

    @torch.no_grad()
    def step(self, rate: float, momentum: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * rate * group["share"]
        self.adam.step()
        for parameters, buffer in zip(self.groups, self.momentum, strict=True):
            grads = []
            for p in parameters:
                assert p.grad is not None
                grads.append(p.grad.reshape(-1, *p.shape[-2:]))
            grad = torch.cat(grads)
            buffer.lerp_(grad, 1 - momentum)
            update = orthogonalise(torch.lerp(grad, buffer, momentum))
            rows, columns = update.shape[-2:]
            size = rate * self.muon_rate * max(1.0, rows / columns) ** 0.5
            at = 0
            for p in parameters:
                n = p.numel() // (rows * columns)
                p.mul_(1 - rate * self.muon_rate * self.decay)
                p.add_(update[at : at + n].view_as(p), alpha=-size)
                at += n
        for parameters in self.groups:
            for p in parameters:
                p.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.momentum = state["momentum"]  # type: ignore[assignment]
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
