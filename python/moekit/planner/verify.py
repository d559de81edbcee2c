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
    small = shrink(plan) if budget is None else shrink(plan, budget)
    model = SyntheticModel(small)
    stream = int(min(small.bytes_per_token, probes.STREAM_BYTES))
    times: dict[str, list[float]] = {"decode": [], "prefill": []}
    rates: list[probes.Probe] = []
    for _ in range(_ROUNDS):
        rates.append(probes.probe(plan.format.name, max(stream, 1 << 20), repeats=5))
        times["decode"].append(probes.best_each(model.step(1), 5))
        times["prefill"].append(probes.best_each(model.step(prompt), 2))
    measured = probes.Probe(
        plan.format.name,
        max(r.read for r in rates),
        max(r.multiply for r in rates),
        min(r.call for r in rates),
        rates[0].stream_bytes,
    )
    machine = measured.machine(probes.memory_bytes())
    line = bound(small.at(batch=1), machine, prompt=prompt)
    checks = (
        Check("decode", plan.format.name, line.decode, 1 / min(times["decode"]), line.decode_bound),
        Check(
            "prefill",
            plan.format.name,
            line.prefill,
            prompt / min(times["prefill"]),
            line.prefill_bound,
        ),
    )
    return Verification(
        plan.name or plan.inventory.model_type,
        small.total_params,
        small.weight_bytes,
        len(model.step(1)),
        measured,
        checks,
    )
