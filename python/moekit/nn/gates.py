"""Elementwise functions that gates are made of, in float32.

A value's bytes depend on that value alone, wherever it stands in the array.
"""

import numpy as np

from .types import Floats

_ONE = np.float32(1)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x)."""
    with np.errstate(over="ignore"):  # e^-x = inf gives the right 0
        y: Floats = _ONE / (_ONE + np.exp(-x))
    return y


def softplus(x: Floats) -> Floats:
    """ln(1 + e^x)."""
    y: Floats = np.logaddexp(x, np.float32(0))
    return y
