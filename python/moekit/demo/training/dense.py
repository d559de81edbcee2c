"""The beginning of a dense model of the demo model's active size, cut out of the demo model.

    python dense.py WORKDIR             # -> WORKDIR/dense.pt
    python train.py WORKDIR --name dense --resume --dense 280 --tokens 5e5 --processes 1
    python evaluate.py export WORKDIR NOTEBOOKS/dense --name dense

Attention, norms and embedding are the demo model's. A mixture becomes one feed-forward part: the
shared expert and the experts that were chosen most often, at the weight that the router gave them
on average. The first layer, which is dense and wider, keeps its largest channels. Training then
mends what the cut has broken.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from evaluate import load
from model import MLP, DeepseekV3, MoE
from optimiser import Optimiser
from torch import Tensor
from train import Stream

INNER = 280


def parts(mlp: MLP | MoE, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up [n, H] and down [H, n] with the first ``INNER`` channels, best first."""
    if isinstance(mlp, MLP):
        gate, up, down = (p.weight for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        order = (up.norm(dim=1) * down.norm(dim=0)).argsort(descending=True)
        return gate[order], up[order], down[:, order]
    _, chosen, weights = mlp.route(seen)
    counts = torch.bincount(chosen.reshape(-1), minlength=mlp.c.n_routed_experts)
    best = counts.argsort(descending=True).tolist()
    shared = mlp.shared_experts
    scale = float(weights.mean())
    gates = [shared.gate_proj.weight, *(mlp.gate_proj[e] for e in best)]
    ups = [shared.up_proj.weight, *(mlp.up_proj[e] for e in best)]
    downs = [shared.down_proj.weight, *(scale * mlp.down_proj[e] for e in best)]
    return torch.cat(gates), torch.cat(ups), torch.cat(downs, dim=1)


@torch.no_grad()
def main() -> None:
    work = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    mixture = load(Path(__file__).parents[1])
    layers = mixture.c.num_hidden_layers
    config = replace(mixture.c, intermediate_size=INNER, first_k_dense_replace=layers)
    seen: list[Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
        for layer in mixture.layers
    ]
    mixture.hidden(Stream(work, 512, 1).batch(8)[:, :-1], torch.float32)
    for hook in hooks:
        hook.remove()
    model = DeepseekV3(config)
    kept = {k: v for k, v in mixture.state_dict().items() if ".mlp." not in k}
    model.load_state_dict(kept, strict=False)
    for dense, old, x in zip(model.layers, mixture.layers, seen, strict=True):
        gate, up, down = parts(old.mlp, x)
        dense.mlp.gate_proj.weight.copy_(gate[:INNER])
        dense.mlp.up_proj.weight.copy_(up[:INNER])
        dense.mlp.down_proj.weight.copy_(down[:, :INNER])
    torch.save(
        {
            "model": model.state_dict(),
            "optimiser": Optimiser(model, 0.0, 0.0, 0.0).state_dict(),
            "config": config.__dict__,
            "step": 0,
            "tokens": 0,
            "minutes": 0.0,
        },
        work / "dense.pt",
    )


if __name__ == "__main__":
    main()
