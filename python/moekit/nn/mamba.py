"""State-space mixers: Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060)."""

import numpy as np
import numpy.typing as npt

from .. import ops
from .batch import Batch
from .linear import Linear
from .norm import Norm
from .short_conv import ShortConvolution, columns, through_time
from .types import Floats, Weights


class Mamba:
    """Mamba's mixer over D channels with N states each, and a time step of rank R.

    `into` [2D, H] gives values and gates; `select` [R + 2N, D] the time step, B and C, which
    `step_norm`, `in_norm` and `out_norm` normalise where there are any (Jamba); `step` [D, R] with
    `step_bias` [D] widens the time step. `rate` [N, D] is -A, `skip` [D] is D. `out` is [H, D].
    """

    __slots__ = (
        "conv",
        "in_norm",
        "into",
        "out",
        "out_norm",
        "rate",
        "select",
        "skip",
        "step",
        "step_bias",
        "step_norm",
    )

    def __init__(
        self,
        into: Linear,
        conv: ShortConvolution,
        select: Linear,
        step: Linear,
        out: Linear,
        *,
        step_bias: npt.ArrayLike,
        rate: npt.ArrayLike,
        skip: npt.ArrayLike,
        step_norm: Norm | None = None,
        in_norm: Norm | None = None,
        out_norm: Norm | None = None,
    ) -> None:
        self.rate: Floats = np.ascontiguousarray(rate, np.float32)
        self.skip: Floats = np.ascontiguousarray(skip, np.float32)
        self.step_bias: Floats = np.ascontiguousarray(step_bias, np.float32)
        states, channels = self.rate.shape
        wanted = (2 * channels, channels, step.cols + 2 * states, channels, channels)
        found = (into.rows, conv.channels, select.rows, step.rows, out.cols)
        if found != wanted:
            raise ValueError(
                f"[Mamba] into, conv, select, step and out have {found} rows, channels or columns; "
                f"{wanted} are required"
            )
        self.into, self.conv, self.select, self.step, self.out = into, conv, select, step, out
        self.step_norm, self.in_norm, self.out_norm = step_norm, in_norm, out_norm

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """No rows: a token leaves a state."""
        return ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, ()), 0
        values, gate = columns(self.into(x), self.out.cols)

        def step(
            rows: slice, state: tuple[Floats | None, ...]
        ) -> tuple[Floats, tuple[Floats, ...]]:
            mixed, inputs = self.conv(values[rows], state[0])
            y, after = self._scan(mixed, state[1])
            return y, (inputs, after)

        y = through_time(batch, layer, 2, step)
        return self.out(ops.gate(y, gate, "silu"))

    def _scan(self, x: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        rank, states = self.step.cols, len(self.rate)
        step, b, c = columns(self.select(x), rank, states)
        step = step if self.step_norm is None else self.step_norm(step)
        b = b if self.in_norm is None else self.in_norm(b)
        c = c if self.out_norm is None else self.out_norm(c)
        step = ops.time_step(self.step(step), self.step_bias)
        return ops.selective_scan(x, step, self.rate, b, c, self.skip, state)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("into", "conv", "select", "step", "out", "step_norm", "in_norm", "out_norm"):
            module = getattr(self, part)
            if module is not None:
                for name, kind, weight in module.weights():
                    yield f"{part}.{name}", kind, weight
        for part in ("step_bias", "rate", "skip"):
            yield part, "attention", getattr(self, part)


class Mamba2:
    """Mamba-2's mixer: heads of P channels, G groups of heads that share B and C of N states.

    `into` [2 heads P + 2 G N + heads, H] gives gates, then (values, B, C) for the convolution, then
    the time step of each head. `rate` [heads] is -A, `skip` [heads] is D; the time step is
    softplus(· + step_bias) within `step_limits`. `norm` [heads P] is the weight of an RMS norm in
    `groups` parts, after the gate. `out` is [H, heads P].
    """

    __slots__ = (
        "conv",
        "eps",
        "groups",
        "heads",
        "into",
        "norm",
        "out",
        "rate",
        "skip",
        "states",
        "step_bias",
        "step_limits",
    )

    def __init__(
        self,
        into: Linear,
        conv: ShortConvolution,
        out: Linear,
        *,
        groups: int,
        states: int,
        rate: npt.ArrayLike,
        skip: npt.ArrayLike,
        step_bias: npt.ArrayLike,
        norm: npt.ArrayLike,
        eps: float = 1e-5,
        step_limits: tuple[float, float] = (0.0, float("inf")),
    ) -> None:
        self.rate: Floats = np.ascontiguousarray(rate, np.float32)
        self.skip: Floats = np.ascontiguousarray(skip, np.float32)
        self.step_bias: Floats = np.ascontiguousarray(step_bias, np.float32)
        self.norm: Floats = np.ascontiguousarray(norm, np.float32)
        self.heads, self.groups, self.states = len(self.rate), groups, states
        if self.heads % groups or out.cols % self.heads:
            raise ValueError(
                f"[Mamba2] {self.heads} heads, {groups} groups, {out.cols} channels; "
                "each must divide the next"
            )
        channels = out.cols + 2 * groups * states
        if conv.channels != channels or into.rows != out.cols + channels + self.heads:
            raise ValueError(
                f"[Mamba2] the convolution has {conv.channels} channels, into {into.rows} rows; "
                f"{channels} and {out.cols + channels + self.heads} are required"
            )
        self.into, self.conv, self.out = into, conv, out
        self.eps, self.step_limits = eps, step_limits

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """No rows: a token leaves a state."""
        return ()

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        if batch is None:
            batch, layer = Batch.alone(x, ()), 0
        inner, shared = self.out.cols, self.groups * self.states
        gate, joint, time = columns(self.into(x), inner, self.conv.channels)
        decay, times = ops.decay_factors(time, self.rate, self.step_bias, limits=self.step_limits)

        def step(
            rows: slice, state: tuple[Floats | None, ...]
        ) -> tuple[Floats, tuple[Floats, ...]]:
            mixed, inputs = self.conv(joint[rows], state[0])
            values, b, c = columns(mixed, inner, shared)
            tokens = len(mixed)
            y, after = ops.linear_attention(
                c.reshape(tokens, self.groups, self.states),
                b.reshape(tokens, self.groups, self.states),
                values.reshape(tokens, self.heads, -1),
                decay[rows],
                times[rows],
                self.skip,
                state[1],
            )
            return y, (inputs, after)

        y = through_time(batch, layer, 2, step).reshape(len(x), inner)
        y = ops.gated_rms_norm(y, gate, self.norm, self.eps, gate_first=True, groups=self.groups)
        return self.out(y)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("into", "conv", "out"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
        for part in ("rate", "skip", "step_bias"):
            yield part, "attention", getattr(self, part)
        yield "norm", "norm", self.norm
