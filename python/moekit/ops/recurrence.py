"""Mixers that carry a state from token to token: short convolutions, gates, decaying states.

Functions with a state take the one before the first token (None: zeros) and return a new one; the
old one is never written into. A token's bytes do not depend on how many are given at once: a
sequence fed one by one, with the state handed on, is the sequence fed whole.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from moekit import _core
from moekit.ops.arrays import Float32, as_float32

GateActivation = Literal["identity", "silu", "sigmoid"]


def _optional(x: Any, op: str, name: str, ndim: int) -> Float32 | None:
    return None if x is None else as_float32(x, op, name, ndim)


def _rows(x: Any, op: str) -> Float32:
    rows = as_float32(x, op, "x")
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise ValueError(f"[{op}] x has shape {list(rows.shape)}; [..., n] is required")
    return rows


def causal_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    state: Any = None,
    *,
    activation: GateActivation = "identity",
) -> tuple[Float32, Float32]:
    """act(bias + Σ_w weight[w] · x[t - W + 1 + w]), every channel with W taps of its own.

    Gu & Dao 2023 (arXiv 2312.00752), section 3.4.

    Args:
        x: [T, C].
        weight: [W, C], the newest token's tap last (a checkpoint's [C, 1, W], transposed).
        bias: [C] or None.
        state: [W - 1, C], the inputs before x.

    Returns (float32 [T, C], new state [W - 1, C]). ValueError for shapes that do not fit.
    """
    op = "causal_conv"
    y, after = _core.causal_conv(
        as_float32(x, op, "x", 2),
        as_float32(weight, op, "weight", 2),
        _optional(bias, op, "bias", 1),
        _optional(state, op, "state", 2),
        activation,
    )
    return y, after


def gate(x: Any, gate: Any, activation: str = "sigmoid") -> Float32:
    """x · act(gate), element by element; act(gate) alone where x is None. Both [..., n].

    Activations: ``identity``, ``silu``, ``sigmoid``, and those of experts: ``gelu``,
    ``gelu_tanh``, ``relu``, ``relu2``.
    """
    by = as_float32(gate, "gate", "gate")
    if by.ndim and by.shape[-1] == 0:
        raise ValueError(f"[gate] gate has shape {list(by.shape)}; [..., n] is required")
    rows = by.reshape(-1, by.shape[-1]) if by.ndim else by.reshape(1, 1)
    given = None
    if x is not None:
        values = as_float32(x, "gate", "x")
        if values.shape != by.shape:
            raise ValueError(
                f"[gate] x has shape {list(values.shape)}; gate has {list(by.shape)}, "
                "the same is required"
            )
        given = values.reshape(rows.shape)
    return _core.gate(given, rows, activation).reshape(by.shape)


def gated_rms_norm(
    x: Any,
    gate: Any,
    weight: Any,
    eps: float = 1e-6,
    *,
    activation: GateActivation = "silu",
    gate_first: bool = False,
    groups: int = 1,
) -> Float32:
    """RMS norm with a gate, over the last dimension: float32 of x's shape.

    norm(x) · weight · act(gate) (Yang et al. 2024, arXiv 2412.06464) or, with ``gate_first``,
    norm(x · act(gate)) · weight (Mamba-2: Dao & Gu 2024, arXiv 2405.21060).

    Args:
        x, gate: [..., n].
        weight: [n].
        groups: parts of a row that are normed apart; divides n.
    """
    op = "gated_rms_norm"
    rows, by = as_float32(x, op, "x"), as_float32(gate, op, "gate")
    if rows.ndim == 0 or rows.shape[-1] == 0 or rows.shape != by.shape:
        raise ValueError(
            f"[{op}] x has shape {list(rows.shape)}, gate {list(by.shape)}; "
            "the same [..., n] is required"
        )
    flat = rows.reshape(-1, rows.shape[-1])
    y = _core.gated_rms_norm(
        flat,
        by.reshape(flat.shape),
        as_float32(weight, op, "weight", 1),
        eps,
        activation,
        gate_first,
        groups,
    )
    return y.reshape(rows.shape)


def _checked(limits: tuple[float, float], op: str) -> tuple[float, float]:
    low, high = limits
    if not 0 <= low <= high:
        raise ValueError(f"[{op}] limits are {limits}; 0 <= low <= high is required")
    return low, high


def time_step(
    x: Any, bias: Any = None, *, limits: tuple[float, float] = (0.0, float("inf"))
) -> Float32:
    """clamp(softplus(x + bias), limits): float32 of x's shape [..., n], bias [n] or None.

    Mamba's time step (arXiv 2312.00752, section 3.6)."""
    op = "time_step"
    values = _rows(x, op)
    low, high = _checked(limits, op)
    step: Float32 = _core.time_step(
        values.reshape(-1, values.shape[-1]), _optional(bias, op, "bias", 1), low, high
    )
    return step.reshape(values.shape)


def decay_factors(
    x: Any,
    rate: Any,
    bias: Any = None,
    *,
    limits: tuple[float, float] = (0.0, float("inf")),
    lower_bound: float | None = None,
) -> tuple[Float32, Float32]:
    """How fast a state forgets: (decay, step), float32 of x's shape.

    step = clamp(softplus(x + bias), limits), decay = e^(-rate · step); with ``lower_bound`` (below
    0) step = sigmoid(rate · (x + bias)), decay = e^(lower_bound · step). Mamba (arXiv 2312.00752),
    gated DeltaNet (arXiv 2412.06464), Kimi Linear (arXiv 2510.26692).

    Args:
        x: [..., n].
        rate: [n], positive: e^A_log of the checkpoints.
        bias: [n] or None.
    """
    op = "decay_factors"
    values = _rows(x, op)
    if lower_bound is not None and not lower_bound < 0:
        raise ValueError(f"[{op}] lower_bound is {lower_bound}; a number below 0 is required")
    low, high = _checked(limits, op)
    decay, step = _core.decay_factors(
        values.reshape(-1, values.shape[-1]),
        as_float32(rate, op, "rate", 1),
        _optional(bias, op, "bias", 1),
        low,
        high,
        lower_bound or 0.0,
    )
    return decay.reshape(values.shape), step.reshape(values.shape)


def gated_delta_rule(
    q: Any, k: Any, v: Any, decay: Any, beta: Any, state: Any = None
) -> tuple[Float32, Float32]:
    """Linear attention that overwrites what it had under a key, head by head, token by token:

        S = decay · S;  S += k (beta · (v - Sᵀk))ᵀ;  y = Sᵀq

    Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464); with a decay per key channel Kimi Delta
    Attention (arXiv 2510.26692).

    Args:
        q, k: [T, Hk, K], already normalised and scaled.
        v: [T, H, V], H a multiple of Hk: consecutive heads share a key head.
        decay: [T, H], or [T, H, K] for one per key channel; factors, not logarithms.
        beta: [T, H].
        state: [H, K, V].

    Returns (y [T, H, V], new state [H, K, V]), float32.
    """
    op = "gated_delta_rule"
    y, after = _core.advance_states(
        op,
        as_float32(q, op, "query", 3),
        as_float32(k, op, "key", 3),
        as_float32(v, op, "value", 3),
        as_float32(decay, op, "decay", (2, 3)),
        as_float32(beta, op, "scale", 2),
        None,
        True,
        _optional(state, op, "state", 3),
    )
    return y, after


def linear_attention(
    q: Any,
    k: Any,
    v: Any,
    decay: Any,
    scale: Any = None,
    skip: Any = None,
    state: Any = None,
) -> tuple[Float32, Float32]:
    """Attention without a softmax, through a decaying state, head by head, token by token:

        S = decay · S + k (scale · v)ᵀ;  y = Sᵀq + skip · v

    Lightning attention (Qin et al. 2024, arXiv 2405.17381). It is Mamba-2's state space as well
    (Dao & Gu 2024, arXiv 2405.21060): q is C, k is B, v is x, scale the time step, skip D.

    Args:
        q, k: [T, Hk, K].
        v: [T, H, V], H a multiple of Hk: consecutive heads share a key head.
        decay: factors [T, H], [T, H, K], or [H] where they are the same for every token.
        scale: [T, H] or None.
        skip: [H] or None.
        state: [H, K, V].

    Returns (y [T, H, V], new state [H, K, V]), float32.
    """
    op = "linear_attention"
    y, after = _core.advance_states(
        op,
        as_float32(q, op, "query", 3),
        as_float32(k, op, "key", 3),
        as_float32(v, op, "value", 3),
        as_float32(decay, op, "decay", (1, 2, 3)),
        _optional(scale, op, "scale", 2),
        _optional(skip, op, "skip", 1),
        False,
        _optional(state, op, "state", 3),
    )
    return y, after


def selective_scan(
    x: Any, step: Any, rate: Any, b: Any, c: Any, skip: Any = None, state: Any = None
) -> tuple[Float32, Float32]:
    """Mamba-1's state space (Gu & Dao 2023, arXiv 2312.00752): N states for every channel.

        s = e^(-rate · step) · s + step · x · b;  y = Σ_n s · c + skip · x

    Args:
        x, step: [T, D]; the step is positive (`decay_factors` gives one).
        rate: [N, D], e^A_log transposed.
        b, c: [T, N].
        skip: [D] or None.
        state: [N, D].

    Returns (y [T, D], new state [N, D]), float32.
    """
    op = "selective_scan"
    y, after = _core.selective_scan(
        as_float32(x, op, "x", 2),
        as_float32(step, op, "step", 2),
        as_float32(rate, op, "rate", 2),
        as_float32(b, op, "b", 2),
        as_float32(c, op, "c", 2),
        _optional(skip, op, "skip", 1),
        _optional(state, op, "state", 2),
    )
    return y, after


def unit_length(x: Any, scale: float = 1.0, eps: float = 1e-6) -> Float32:
    """scale · x / sqrt(Σ x² + eps) over the last dimension: the keys and queries of delta rules."""
    op = "unit_length"
    rows = _rows(x, op)
    size = rows.shape[-1]
    # The same as an RMS norm: mean(x²) is Σ x² / n.
    weight = np.full(size, scale * size**-0.5, np.float32)
    flat = rows.reshape(-1, size)
    unit: Float32 = _core.rms_norm(flat, weight, eps / size, 0.0, None)
    return unit.reshape(rows.shape)
