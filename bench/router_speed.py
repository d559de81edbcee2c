#!/usr/bin/env python3
"""The router beside the same rule in torch eager: transformers' own code of DeepSeek-V3's.

4096 tokens and 256 experts, sigmoid scores, a bias for the selection, four of eight groups, eight
experts; the logits are given, so neither side multiplies. Both take turns; the choices and weights
are compared first. Prints medians and the ratio, above 1 where moekit is faster.

    PYTHONPATH=python python bench/router_speed.py
    ... --threads 1 --clock cpu
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from moekit import _core, ops

EXPERTS, TOP_K, GROUPS, TOP_GROUPS, SCALE = 256, 8, 8, 4, 2.5


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    _core.set_num_threads(args.threads)
    lines = []
    for tokens in args.tokens:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal((tokens, EXPERTS), np.float32)
        bias = 0.1 * rng.standard_normal(EXPERTS, np.float32)
        eager, ours = transformers_rule(logits, bias), moekit_rule(logits, bias)
        check(*eager(), *ours())
        times: dict[str, list[float]] = {"transformers": [], "moekit": []}
        for turn in range(args.rounds):
            sides = [("transformers", eager, 1), ("moekit", ours, args.repeat)]
            for name, run, repeat in sides if turn % 2 else reversed(sides):
                run()  # the other side's threads come to rest, the data come near
                start = _core.clock_seconds(args.clock)
                for _ in range(repeat):
                    run()
                times[name].append((_core.clock_seconds(args.clock) - start) / repeat)
        medians = {name: statistics.median(those) for name, those in times.items()}
        ratio = medians["transformers"] / medians["moekit"]
        lines.append({"tokens": tokens, "threads": args.threads, **medians, "ratio": ratio})
        print(
            f"{tokens} tokens, {EXPERTS} experts, {args.threads} threads: transformers "
            f"{medians['transformers'] * 1e3:.3f} ms, moekit {medians['moekit'] * 1e3:.4f} ms "
            f"(min {min(times['moekit']) * 1e3:.4f}), {ratio:.1f} x",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps(lines, indent=2))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[4096])
    add("--threads", type=int, default=_core.num_threads())
    add("--rounds", type=int, default=21, help="turns (21)")
    add("--repeat", type=int, default=10, help="calls of ours in a turn (10)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="as in `moekit bench`")
    add("--json", action="store_true")
    return parser.parse_args()


def transformers_rule(
    logits: np.ndarray, bias: np.ndarray
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """`DeepseekV3TopkRouter.forward`, whose product is replaced by its result."""
    config = modeling_deepseek_v3.DeepseekV3Config(
        hidden_size=EXPERTS,
        n_routed_experts=EXPERTS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        n_group=GROUPS,
        topk_group=TOP_GROUPS,
        norm_topk_prob=True,
        routed_scaling_factor=SCALE,
    )
    product = SimpleNamespace(linear=lambda x, weight: x)
    router: Any = modeling_deepseek_v3.DeepseekV3TopkRouter(config)
    router.e_score_correction_bias.copy_(torch.from_numpy(bias))
    given = torch.from_numpy(logits)

    def run() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), patch.object(modeling_deepseek_v3, "F", product):
            _, weights, experts = router(given)
        return experts.numpy(), weights.numpy()

    return run


def moekit_rule(
    logits: np.ndarray, bias: np.ndarray
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def run() -> tuple[np.ndarray, np.ndarray]:
        assignment = ops.route(
            logits,
            TOP_K,
            score="sigmoid",
            select_bias=bias,
            groups=GROUPS,
            top_groups=TOP_GROUPS,
            normalize=True,
            scale=SCALE,
        )
        return assignment.experts, assignment.weights

    return run


def check(
    their_experts: np.ndarray, their_weights: np.ndarray, experts: np.ndarray, weights: np.ndarray
) -> None:
    """Sets are compared: transformers does not sort. Sums in another order may break a tie."""
    theirs, ours = np.argsort(their_experts, axis=1), np.argsort(experts, axis=1)
    same = (
        np.take_along_axis(their_experts, theirs, 1) == np.take_along_axis(experts, ours, 1)
    ).all(axis=1)
    assert same.mean() > 0.999, f"{(~same).sum()} of {len(same)} tokens chose other experts"
    expected = np.take_along_axis(their_weights, theirs, 1)[same]
    np.testing.assert_allclose(
        np.take_along_axis(weights, ours, 1)[same], expected, rtol=1e-5, atol=1e-7
    )


if __name__ == "__main__":
    sys.exit(main())
