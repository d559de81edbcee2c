#!/usr/bin/env python3
"""moekit under transformers beside transformers' own experts implementations for a CPU.

One experts module of transformers (bfloat16, sizes of a real model) runs under `eager`,
`batched_mm`, `grouped_mm` and ours, in one process, on the same tokens, taking turns. The call is
what a model makes: torch tensors in, a torch tensor out. A ratio above 1 means that ours is faster:
against the best of theirs, the quantised ones against `moekit` as well. "read" is the bytes of the
chosen experts' weights by the time, and its share of the bandwidth that the same turns measured;
"bound" is what the ratio to `moekit` could be if both did nothing but read.

    PYTHONPATH=python python bench/transformers_experts.py
    ... --shape qwen3-30b-a3b --tokens 1,32 --rounds 15 --json > ratios.json
    ... --threads 1 --clock cpu     beside other work
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
from moekit.integrations.hf_modules import INTERFACE
from moekit.integrations.torch_run import runner_of
from moekit.ops.limits import LimitProbe

FAMILIES = {
    "olmoe-1b-7b": ("olmoe", "OlmoeExperts"),
    "qwen3-30b-a3b": ("qwen3_moe", "Qwen3MoeExperts"),
}
THEIRS = ("eager", "batched_mm", "grouped_mm")
OURS = tuple(moekit_transformers.IMPLEMENTATIONS)
LARGEST_COPY = 4 << 30  # batched_mm gathers the weights of every slot
PROBE_BYTES = 1 << 30
ROUTINGS = 8


@dataclass
class Line:
    shape: str
    tokens: int
    implementation: str
    error: float = 0.0  # NMSE against eager in float32
    read_bytes: float = 0.0  # of the chosen experts, mean of the routings
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    _core.set_num_threads(args.threads)
    moekit_transformers.register()
    probe = LimitProbe(PROBE_BYTES, args.clock)
    lines: list[Line] = []
    for name in args.shape:
        module = experts_of(SHAPES[name], *FAMILIES[name])
        for tokens in args.tokens:
            turns, bandwidth = take_turns(module, SHAPES[name], tokens, args.rounds, probe)
            report(turns, SHAPES[name], bandwidth)
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
    add("--clock", choices=("wall", "cpu"), default="wall", help="as in `moekit bench`")
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


def take_turns(
    module: Any, shape: Shape, tokens: int, rounds: int, probe: LimitProbe
) -> tuple[list[Line], float]:
    """The lines, and the bandwidth measured between their turns."""
    random = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, shape.hidden, generator=random).bfloat16()
    routings = list(choose_experts(shape, tokens, ROUTINGS))
    inputs = [
        (hidden, torch.from_numpy(r.experts).long(), torch.from_numpy(r.weights).bfloat16())
        for r in routings
    ]
    slot_bytes = sum(parameter[0].nbytes for parameter in module.parameters())
    chosen = statistics.mean(len(set(r.experts.ravel().tolist())) for r in routings)
    names = [*THEIRS, *OURS]
    if tokens * shape.top_k * slot_bytes > LARGEST_COPY:
        names.remove("batched_mm")
    expected = run(module, "eager", inputs[0])
    lines = {name: Line(shape.name, tokens, name) for name in names}
    for name, line in lines.items():
        out = run(module, name, inputs[0])
        error = (out - expected).float().square().sum() / expected.float().square().sum()
        line.error = float(error)
        line.read_bytes = chosen * (
            packed_bytes(module, name) / shape.experts if name in OURS else slot_bytes
        )
    bandwidths = []
    for turn in range(rounds):
        bandwidths.append(probe.read_bandwidth())
        # Everybody is first as often as last.
        for name in names if turn % 2 == 0 else reversed(names):
            module.config._experts_implementation = name
            time.sleep(0.01)  # the last one's threads may still be spinning
            with torch.inference_mode():  # as around a whole model
                for at in range(turn, turn + (3 if tokens <= 32 else 1)):
                    start = probe.now()
                    module(*inputs[at % ROUTINGS])
                    lines[name].times.append(probe.now() - start)
    return list(lines.values()), statistics.median(bandwidths)


def packed_bytes(module: Any, name: str) -> int:
    format = moekit_transformers.IMPLEMENTATIONS[name]
    return runner_of(module, INTERFACE, INTERFACE.tensors(module), format).nbytes


def run(module: Any, implementation: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    module.config._experts_implementation = implementation
    with torch.inference_mode():
        out: torch.Tensor = module(*inputs)
        return out


def report(lines: list[Line], shape: Shape, bandwidth: float) -> None:
    best = min(line.median for line in lines if line.implementation in THEIRS)
    own = next(line for line in lines if line.implementation == "moekit")
    say(
        f"\n{shape.name}: {shape.top_k} of {shape.experts} experts, {shape.hidden} x "
        f"{shape.inter}, bfloat16; {lines[0].tokens} tokens, medians of {len(own.times)} calls, "
        f"reading at {bandwidth / 1e9:.1f} GB/s\n"
        f"  {'':12}{'ms':>10}{'min':>10}{'read GB/s':>11}{'%':>5}{'NMSE':>9}"
        f"{'x best of theirs':>18}{'x moekit':>10}{'bound':>7}"
    )
    for line in lines:
        read = line.read_bytes / line.median
        text = f"  {line.implementation:12}{line.median * 1e3:10.3f}{min(line.times) * 1e3:10.3f}"
        text += f"{read / 1e9:11.1f}{100 * read / bandwidth:5.0f}{line.error:9.1e}"
        if line.implementation in OURS:
            text += f"{best / line.median:18.2f}"
        if line.implementation in OURS[1:]:
            text += f"{own.median / line.median:10.2f}{own.read_bytes / line.read_bytes:7.2f}"
        say(text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
