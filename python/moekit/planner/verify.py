"""`moekit plan --verify`: measure this machine, predict, run, and compare.

The prediction is the planner's roofline on a machine whose bandwidth, multiply peak and cost of a
call have just been measured in the plan's format. What is run is a model of the plan's shape.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from . import probe as probes
from .roofline import bound
from .synthetic import SyntheticModel, shrink

if TYPE_CHECKING:
    from .plan import ModelPlan
    from .tensors import Weight

PROMPT = 512
_ROUNDS = 3  # probe and run take turns, so that both see what else the machine does


@dataclass(frozen=True)
class Check:
    """One line of the comparison, in tokens a second."""

    phase: str
    format: str
    predicted: float
    measured: float
    bound: str

    @property
    def ratio(self) -> float:
        """Measured over predicted: 1 is a prediction that held."""
        return self.measured / self.predicted


@dataclass(frozen=True)
class Verification:
    """Two checks and what they rest on."""

    name: str
    weights: int
    nbytes: int
    calls: int
    probe: probes.Probe
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.weights,
            "bytes": self.nbytes,
            "probe": asdict(self.probe),
            "checks": [{**asdict(check), "ratio": check.ratio} for check in self.checks],
        }


def verify(plan: ModelPlan, *, budget: int | None = None, prompt: int = PROMPT) -> Verification:
    """Predict and run decode (one sequence) and prefill of a model of this plan's shape.

    Raises RuntimeError where the compiled core is missing, lacks the format, or the model's
    smallest part is too large.
    """
    try:
        from moekit import ops
    except ImportError as error:
        raise RuntimeError(f"[verify] the compiled core is needed: {error}") from None
    known = ops.format_names()
    if plan.format.name not in known:
        raise RuntimeError(
            f"[verify] this build has no kernels for {plan.format.name}; it has {', '.join(known)}"
        )
    small = (shrink(plan) if budget is None else shrink(plan, budget)).at(batch=1)
    model = SyntheticModel(small)
    decode, prefill, rates = [], [], []
    for _ in range(_ROUNDS):
        rates.append(measure(small, prompt))
        decode.append(probes.best_each(model.step(1), 5))
        prefill.append(probes.best_each(model.step(prompt), 2))
    found = probes.Probe(
        plan.format.name,
        max(r.read for r in rates),
        max(r.multiply for r in rates),
        min(r.call for r in rates),
        min(r.block for r in rates),
        rates[0].stream_bytes,
    )
    line = bound(small, found.machine(probes.memory_bytes()), prompt=prompt)
    name = plan.format.name
    checks = (
        Check("decode", name, line.decode, 1 / min(decode), line.decode_bound),
        Check("prefill", name, line.prefill, prompt / min(prefill), line.prefill_bound),
    )
    return Verification(
        plan.name or plan.inventory.model_type,
        small.total_params,
        small.weight_bytes,
        len(model.step(1)),
        found,
        checks,
    )


def measure(plan: ModelPlan, prompt: int) -> probes.Probe:
    """The machine's rates for matrices of the sizes that do this plan's work.

    An expert of a prompt sees prompt * K / E rows and a dense matrix all of them; the multiply
    rate is the mean of the two, weighted by the time that each takes.
    """
    name = plan.format.name
    # tokens wander over all experts, so the whole model is what a cache would have to hold
    stream = max(1 << 20, min(plan.weight_bytes, probes.STREAM_BYTES))
    works: dict[bool, dict[tuple[int, int], int]] = {True: {}, False: {}}
    for block, count in plan.blocks():
        for weight in block.weights:
            sizes = works[weight.active is not None]
            shape = _shape(weight)
            sizes[shape] = sizes.get(shape, 0) + weight.used * count
    seconds = work = 0.0
    for routed, sizes in works.items():
        if not sizes:
            continue
        share = plan.top_k / plan.num_experts if routed else 1.0
        tokens = max(1, round(prompt * share))
        main = max(sizes, key=lambda shape: sizes[shape])
        total = float(sum(sizes.values()))
        work += total
        seconds += total / probes.multiply_rate(name, tokens, main, repeats=3)
    main = max(works[bool(works[True])].items(), key=lambda item: item[1])[0]
    call, block_call = probes.call_seconds()
    read = probes.read_rate(name, stream, main, repeats=5)
    return probes.Probe(name, read, work / seconds, call, block_call, stream)


def _shape(weight: Weight) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]
