"""Work of a token and the bound that bandwidth and arithmetic put on its speed.

Roofline (Williams, Waterman, Patterson, CACM 2009): a step takes at least the longer of reading
its bytes and doing its FLOPs. What is left out (latency, launch costs, links between devices)
makes real machines slower, never faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, log1p
from typing import TYPE_CHECKING

from .fields import check_count
from .formats import cache_bits

if TYPE_CHECKING:
    from .machines import Machine
    from .plan import ModelPlan

DEFAULT_PROMPT = 512  # tokens of a prefill when the plan has no context of its own
_STATE_FLOPS = 4  # decay, update and read-out of a recurrent state, per element and token


@dataclass(frozen=True)
class Roofline:
    """Bounds on one machine; tokens/s are over all sequences of the batch."""

    machine: str
    decode: float
    prefill: float
    decode_bound: str  # "bandwidth" or "compute"
    prefill_bound: str
    decode_bytes: float  # read in one step
    decode_flops: float
    prefill_bytes: float
    prefill_flops: float
    bandwidth: float
    peak: float
    compute_bound_batch: int | None  # None: the cache grows faster than the work
    fits: bool


def distinct_experts(experts: int, top_k: int, tokens: int) -> float:
    """E * (1 - (1 - K/E)^B): experts woken when each token picks K of E, all alike.

    Real routers are uneven, so the true number is at most this. Raises ValueError for counts that
    are none, or K above E.
    """
    check_count("tokens", tokens)
    check_count("experts", experts)
    check_count("top_k", top_k, high=experts)
    if not experts:
        return 0.0
    if top_k >= experts or tokens == 1:
        return float(top_k)
    # expm1 and log1p keep the digits when K/E is small
    return -experts * expm1(tokens * log1p(-top_k / experts))


def flops_per_token(plan: ModelPlan, context: int, *, prefill: bool = False) -> int:
    """2 FLOPs for each weight of a matrix that the token meets, plus attention and states."""
    total = 0
    for block, count in plan.inventory.blocks():
        work = sum(2 * w.used for w in block.weights if w.is_matrix)
        work += sum(attend.flops(context, prefill=prefill) for attend in block.attends)
        total += (work + _STATE_FLOPS * block.state) * count
    return total


def prefill_flops(plan: ModelPlan, prompt: int) -> float:
    """FLOPs of a whole prompt; attention is summed over its positions by the midpoint rule.

    The sum over positions is piecewise linear (windows) and monotone, so a rule over a few dozen
    points is within a fraction of a percent; the weights' part is exact.
    """
    fixed = flops_per_token(plan, 0)
    points = 64 if prompt > 64 else prompt
    steps = [(2 * i + 1) * prompt // (2 * points) for i in range(points)]
    attention = sum(flops_per_token(plan, c, prefill=True) - fixed for c in steps) / max(points, 1)
    return prompt * (fixed + attention)


def step_bytes(plan: ModelPlan, context: int, batch: int, tokens: int | None = None) -> float:
    """Bytes read by one step: the sum of `step_terms`."""
    return sum(step_terms(plan, context, batch, tokens))


def step_terms(
    plan: ModelPlan, context: int, batch: int, tokens: int | None = None
) -> tuple[float, float, float]:
    """Bytes of a step: weights read once, expected distinct experts, each sequence's cache.

    `tokens` are the tokens that pass through the experts (`batch` in decode, more in prefill).
    """
    tokens = batch if tokens is None else tokens
    dense = routed = cached = 0.0
    bits = cache_bits(plan.kv_format)
    layers = [
        (layer.block, layer.count, layer.experts, layer.top_k)
        for layer in plan.inventory.layers
        if not layer.mtp
    ]
    for block, count, experts, top_k in [(plan.inventory.outside, 1, 0, 0), *layers]:
        woken = distinct_experts(experts, top_k, tokens)
        for weight in block.weights:
            size = plan.nbytes(weight)
            if weight.lookup:
                dense += count * min(tokens, weight.shape[0]) * size / weight.shape[0]
            elif weight.active is not None:
                routed += count * size * woken
            else:
                dense += count * size * weight.copies
        elements = sum(cache.read(context) for cache in block.caches)
        cached += count * batch * (elements * bits / 8 + 4 * block.state)
    return dense, routed, cached


def call_time(plan: ModelPlan, machine: Machine) -> float:
    """Seconds that the calls of a step cost by themselves, one a dense matrix and expert block."""
    seconds = 0.0
    for block, count in plan.inventory.blocks():
        dense = sum(1 for w in block.weights if w.is_matrix and w.active is None)
        routed = any(w.active is not None for w in block.weights)
        seconds += count * (dense * machine.call_seconds + routed * machine.block_seconds)
    return seconds


def bound(plan: ModelPlan, machine: Machine, prompt: int | None = None) -> Roofline:
    """The roofline of decode at the plan's batch, and of prefilling one prompt.

    `prompt` defaults to the plan's context, else to DEFAULT_PROMPT.
    """
    peak, bandwidth = machine.peak_flops(plan.format), machine.total_bandwidth
    read = step_bytes(plan, plan.context, plan.batch)
    work = float(plan.flops_per_token * plan.batch)
    prompt = prompt or plan.context or DEFAULT_PROMPT
    fixed = call_time(plan, machine)
    prompt_read = step_bytes(plan, 0, 1, prompt)
    prompt_work = prefill_flops(plan, prompt)
    decode_time = max(read / bandwidth, work / peak) + fixed
    prefill_time = max(prompt_read / bandwidth, prompt_work / peak) + fixed
    return Roofline(
        machine=machine.name,
        decode=plan.batch / decode_time,
        prefill=prompt / prefill_time,
        decode_bound="bandwidth" if read / bandwidth >= work / peak else "compute",
        prefill_bound="bandwidth" if prompt_read / bandwidth >= prompt_work / peak else "compute",
        decode_bytes=read,
        decode_flops=work,
        prefill_bytes=prompt_read,
        prefill_flops=prompt_work,
        bandwidth=bandwidth,
        peak=peak,
        compute_bound_batch=compute_bound_batch(plan, peak, bandwidth),
        fits=plan.memory_bytes <= machine.usable_bytes * machine.devices,
    )


def compute_bound_batch(plan: ModelPlan, peak: float, bandwidth: float) -> int | None:
    """The smallest batch whose decode step takes longer to compute than to read.

    Work grows with the batch; the weights read grow more and more slowly (an expert is read once
    however many tokens want it), so there is one crossing, unless each sequence's cache alone
    takes longer to read than its token takes to compute.
    """
    work = plan.flops_per_token / peak

    def computes(batch: int) -> bool:
        return batch * work >= step_bytes(plan, plan.context, batch) / bandwidth

    low, high = 0, 1 << 30
    if not computes(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computes(middle) else (middle, high)
    return high
