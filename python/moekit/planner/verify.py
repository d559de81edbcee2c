"""`moekit plan --verify`: measure this machine, predict, run, and compare.

Measured are the machine's bandwidth at the size of the model, its multiply peaks, and the rate of
every shape of product by itself; predicted is the sum over the calls of a step; run is a model of
the plan's shape. Rates and runs take turns, so that both see what else the machine does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from .fields import check_count, check_number, short
from .kernel_calls import Call
from .probe import free_bytes
from .product_rates import ProductRates, Term, low_time, timed
from .synthetic import WEIGHT_BUDGET, SyntheticModel, resident_share, shrink

if TYPE_CHECKING:
    from .plan import ModelPlan

PROMPT = 512
STREAM_BYTES = 1 << 30  # of the matrices that rates are measured on: larger than a cache
_LEAST_ROUNDS = 5
_PATIENCE = 4  # times as long where other programs keep most steps from their low time
_LEAST_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Check:
    """One line of the comparison, in tokens a second."""

    phase: str
    format: str
    predicted: float
    measured: float  # every call at its low time, as the rates are taken
    as_run: float  # the median of whole steps, with whatever else the machine did
    limit: float  # the roofline of the machine's bandwidth and multiply peaks
    bound: str
    terms: tuple[Term, ...]

    @property
    def ratio(self) -> float:
        """Measured over predicted: 1 is a prediction that held."""
        return self.measured / self.predicted

    @property
    def disturbed(self) -> bool:
        """Whether most steps ran far from their best: the machine was doing other things."""
        return self.as_run < 0.5 * self.measured


@dataclass(frozen=True)
class Verification:
    """Two checks and what they rest on."""

    name: str
    format: str
    weights: int
    nbytes: int
    resident_share: float  # of the experts, with memory of their own
    calls: int
    threads: int
    clock: str
    isa: str
    read_bandwidth: float  # bytes/s at the model's size
    multiply_peak: dict[str, float]  # FLOP/s of each dot product
    prompt: int
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        figures = {k: v for k, v in asdict(self).items() if k != "checks"}
        figures["checks"] = []
        for check in self.checks:
            line = {k: getattr(check, k) for k in ("phase", "format", "predicted", "measured")}
            line |= {"ratio": check.ratio, "as_run": check.as_run, "limit": check.limit}
            line |= {"bound": check.bound, "disturbed": check.disturbed}
            line["terms"] = [term.to_dict() for term in check.terms]
            figures["checks"].append(line)
        return figures


def verify(
    plan: ModelPlan,
    *,
    budget: int = WEIGHT_BUDGET,
    prompt: int = PROMPT,
    threads: int | None = None,
    clock: str = "wall",
    seconds: float = 1.0,
) -> Verification:
    """Predict and run decode (one sequence) and prefill of a model of this plan's shape.

    budget: weights that are made for it; more layers than fit are left out.
    prompt: tokens of the prefill.
    threads: of the kernels; None leaves what is set.
    clock: "wall", or "cpu": the process's processor time divided by its threads, for a machine that
        runs other programs meanwhile.
    seconds: that rates and runs take for each phase, at least five turns of each, and up to four
        times as long while other programs disturb them.

    Raises RuntimeError where the compiled core is missing or lacks a format, or the model is larger
    than the free memory; ValueError for arguments out of range.
    """
    try:
        from moekit import ops
        from moekit.ops.limits import threads_set_to
    except ImportError as error:
        raise RuntimeError(f"[verify] the compiled core is needed: {error}") from None
    check_count("budget", budget, low=1)
    check_count("prompt", prompt, low=1, high=1 << 20)
    check_number("seconds", seconds, most=3600.0)
    if clock not in ("wall", "cpu"):
        raise ValueError(f"[verify] clock is {short(clock)}; wall or cpu is required")
    if threads is not None:
        check_count("threads", threads, low=1, high=4096)
    small = shrink(plan, budget).at(batch=1)
    _check_formats(small, ops.format_names())
    _check_memory(small, budget)
    with threads_set_to(threads):
        return _verify(plan, small, budget, prompt, clock, seconds)


def _verify(
    plan: ModelPlan, small: ModelPlan, budget: int, prompt: int, clock: str, seconds: float
) -> Verification:
    from moekit import ops
    from moekit.ops.limits import LimitProbe

    model = SyntheticModel(small, budget)
    stream = min(1.0, STREAM_BYTES / model.nbytes)
    limits = ops.machine_limits(
        read_bytes=max(_LEAST_LIMIT_BYTES, min(model.nbytes, STREAM_BYTES)), clock=clock
    )
    now = LimitProbe(_LEAST_LIMIT_BYTES, clock).now
    rates = ProductRates(model.kinds, stream, model.share, now, model.matrices)
    checks = []
    for phase, tokens in (("decode", 1), ("prefill", prompt)):
        low, as_run = _take_turns(model, rates, tokens, now, seconds)
        terms = tuple(rates.terms(tokens))
        read, work = _limits(terms, limits)
        checks.append(
            Check(
                phase,
                plan.format.name,
                tokens / sum(term.total for term in terms),
                tokens / low,
                tokens / as_run,
                tokens / max(read, work),
                "bandwidth" if read >= work else "compute",
                terms,
            )
        )
    return Verification(
        plan.name or plan.inventory.model_type,
        plan.format.name,
        small.total_params,
        model.nbytes,
        model.share,
        len(model.calls),
        limits.threads,
        clock,
        limits.isa,
        limits.best_read_bandwidth,
        dict(limits.best_multiply_peak),
        prompt,
        tuple(checks),
    )


def _take_turns(
    model: SyntheticModel,
    rates: ProductRates,
    tokens: int,
    now: Callable[[], float],
    seconds: float,
) -> tuple[float, float]:
    """Seconds of a step: every kind of call at its low time, and the median of whole steps."""
    import time

    times: dict[Call, list[float]] = {kind.call: [] for kind in model.kinds}
    steps: list[float] = []
    model.step(tokens)
    rates.measure(tokens)
    rates.forget(tokens)  # the first pass made inputs and touched memory
    start = time.perf_counter()

    def wanted() -> bool:
        passed = time.perf_counter() - start
        disturbed = len(steps) < _LEAST_ROUNDS or median(steps) > 1.5 * low_time(steps)
        return disturbed if passed < seconds * _PATIENCE else len(steps) < _LEAST_ROUNDS

    while time.perf_counter() < start + seconds or wanted():
        rates.measure(tokens)
        step = 0.0
        for call, run in model.calls:
            one = timed(now, partial(run, tokens))
            times[call].append(one)
            step += one
        steps.append(step)
    return sum(kind.count * low_time(times[kind.call]) for kind in model.kinds), median(steps)


def _limits(terms: tuple[Term, ...], limits: Any) -> tuple[float, float]:
    """Seconds of reading at the machine's bandwidth, and of multiplying at its peaks."""
    from moekit.ops.limits import dot_of

    read = work = 0.0
    for term in terms:
        if term.product is not None:
            kind = term.product
            peak = limits.best_multiply_peak[dot_of(kind.format, kind.rows, kind.cols)]
            read += term.calls * term.nbytes / limits.best_read_bandwidth
            work += term.calls * term.flops / peak
    return read, work


def _check_formats(plan: ModelPlan, known: list[str]) -> None:
    for block, _ in plan.blocks():
        for weight in block.weights:
            name = plan.format_of(weight).name
            if name not in known:
                raise RuntimeError(
                    f"[verify] this build has no kernels for {name}; it has {', '.join(known)}"
                )


def _check_memory(plan: ModelPlan, budget: int) -> None:
    share = resident_share(plan, budget)
    sizes = plan.component_bytes
    model = sum(sizes.values()) - (1 - share) * sizes["routed"]
    needed, free = model + min(model, STREAM_BYTES), free_bytes()
    if needed > free:
        raise RuntimeError(
            f"[verify] {plan.name or plan.inventory.model_type} in {plan.format.name}: one layer "
            f"of each kind and its probes take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free"
        )
