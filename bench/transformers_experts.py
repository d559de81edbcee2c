#!/usr/bin/env python3
"""moekit under transformers beside transformers' own experts implementations for a CPU.

One experts module of transformers (bfloat16, sizes of a real model) runs under `eager`,
`batched_mm`, `grouped_mm` and ours, in one process, on the same tokens, taking turns. The call is
what a model makes: torch tensors in, a torch tensor out. A ratio above 1 means that ours is faster:
`moekit` against the best of theirs, the quantised ones against the best and against `moekit`.

    PYTHONPATH=python python bench/transformers_experts.py
    ... --shape qwen3-30b-a3b --tokens 1,32 --rounds 15 --json > ratios.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import AutoConfig

import moekit.integrations.transformers as moekit_transformers
from moekit import _core
from moekit.bench import SHAPES, Shape, choose_experts

FAMILIES = {
    "olmoe-1b-7b": ("olmoe", "OlmoeExperts"),
    "qwen3-30b-a3b": ("qwen3_moe", "Qwen3MoeExperts"),
}
THEIRS = ("eager", "batched_mm", "grouped_mm")
OURS = tuple(moekit_transformers.IMPLEMENTATIONS)
LARGEST_COPY = 4 << 30  # batched_mm gathers the weights of every slot
ROUTINGS = 8


@dataclass
class Line:
    shape: str
    tokens: int
    implementation: str
    error: float = 0.0  # NMSE against eager in float32
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    _core.set_num_threads(args.threads)
    moekit_transformers.register()
    lines: list[Line] = []
    for name in args.shape:
        module = experts_of(SHAPES[name], *FAMILIES[name])
        for tokens in args.tokens:
            turns = take_turns(module, SHAPES[name], tokens, args.rounds)
            report(turns)
            lines += turns
        moekit_transformers.forget(module)
    if args.json:
        print(json.dumps([asdict(line) | {"median": line.median} for line in lines], indent=2))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", action="append", choices=tuple(FAMILIES), help="both unless given")
    add("--tokens", default="1,32,512", help="with commas (1,32,512)")
    add("--rounds", type=int, default=9, help="turns for each line (9)")
    add("--threads", type=int, default=_core.num_threads())
    add("--json", action="store_true")
    args = parser.parse_args()
    args.shape = args.shape or list(FAMILIES)
    args.tokens = [int(tokens) for tokens in args.tokens.split(",")]
    return args


def experts_of(shape: Shape, folder: str, name: str) -> Any:
    """The model's own module with random bfloat16 weights."""
    config = AutoConfig.for_model(
        folder,
        hidden_size=shape.hidden,
        intermediate_size=shape.inter,
        moe_intermediate_size=shape.inter,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
    )
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    with torch.device("meta"):
        module = getattr(modeling, name)(config)
    module = module.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False).eval()
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        for matrix in parameter:  # no copy of the whole in float32
            matrix.copy_(torch.randn(matrix.shape, generator=random) / matrix.shape[1] ** 0.5)
    return module


def take_turns(module: Any, shape: Shape, tokens: int, rounds: int) -> list[Line]:
    random = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, shape.hidden, generator=random).bfloat16()
    inputs = [
        (hidden, torch.from_numpy(r.experts).long(), torch.from_numpy(r.weights).bfloat16())
        for r in choose_experts(shape, tokens, ROUTINGS)
    ]
    slot_bytes = sum(parameter[0].nbytes for parameter in module.parameters())
    names = [*THEIRS, *OURS]
    if tokens * shape.top_k * slot_bytes > LARGEST_COPY:
        names.remove("batched_mm")
    expected = run(module, "eager", inputs[0])
    lines = {name: Line(shape.name, tokens, name) for name in names}
    for name, line in lines.items():  # packs as well
        out = run(module, name, inputs[0])
        line.error = float(
            (out - expected).float().square().sum() / expected.float().square().sum()
        )
    for turn in range(rounds):
        # Everybody is first as often as last.
        for name in names if turn % 2 == 0 else reversed(names):
            time.sleep(0.01)  # the last one's threads may still be spinning
            for at in range(turn, turn + (3 if tokens <= 32 else 1)):
                start = time.perf_counter()
                run(module, name, inputs[at % ROUTINGS])
                lines[name].times.append(time.perf_counter() - start)
    return list(lines.values())


def run(module: Any, implementation: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    module.config._experts_implementation = implementation
    with torch.inference_mode():
        out: torch.Tensor = module(*inputs)
        return out


def report(lines: list[Line]) -> None:
    best = min(line.median for line in lines if line.implementation in THEIRS)
    own = next(line.median for line in lines if line.implementation == "moekit")
    say(f"\n{lines[0].shape}, {lines[0].tokens} tokens")
    for line in lines:
        text = f"  {line.implementation:12}{line.median * 1e3:10.3f} ms"
        text += f"  (min {min(line.times) * 1e3:9.3f})  NMSE {line.error:.1e}"
        if line.implementation in OURS:
            text += f"  {best / line.median:6.2f} x the best of theirs"
        if line.implementation in OURS[1:]:
            text += f", {own / line.median:5.2f} x moekit"
        say(text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
