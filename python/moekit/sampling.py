"""How the next token is chosen: the settings, and random numbers that each sequence owns."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from . import ops

# 2^64 divided by the golden ratio: successive multiples never come near each other.
_STRIDE = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of a generation; `temperature` 0 takes the likeliest token.

    Otherwise logits are divided by the temperature; `top_k` keeps that many tokens (0: all),
    `top_p` the likeliest ones that together reach that probability (1: all), `min_p` those with
    at least that share of the likeliest one's probability (0: all). Out of range: ValueError.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"[generate] temperature {self.temperature}; 0 or more is required")
        if isinstance(self.top_k, bool) or self.top_k != int(self.top_k) or self.top_k < 0:
            raise ValueError(f"[generate] top_k {self.top_k}; 0 (all) or more is required")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"[generate] top_p {self.top_p}; above 0 up to 1 is required")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"[generate] min_p {self.min_p}; 0 to 1 is required")


class Sampler:
    """Chooses tokens for several sequences, each by random numbers of its own.

    A number is a function of the sequence's seed and the count of its tokens so far: neither the
    other sequences nor the moment when one ends changes it.
    """

    def __init__(self, settings: Sampling, count: int, seed: int | Sequence[int] | None) -> None:
        self.settings = settings
        self._seeds: list[int]
        if isinstance(seed, Sequence) and not isinstance(seed, str):
            if len(seed) != count:
                raise ValueError(f"[generate] {len(seed)} seeds; {count} prompts are given")
            self._seeds = [_checked(own) for own in seed]
        else:
            base = secrets.randbits(64) if seed is None else _checked(seed)
            # Far apart, so that sequence 1 of seed 5 is not sequence 0 of seed 6.
            self._seeds = [(base + i * _STRIDE) % 2**64 for i in range(count)]

    def choose(
        self, logits: npt.NDArray[np.float32], sequences: Sequence[int], step: int
    ) -> list[int]:
        """The token after `step` others for each row of `logits` [B, V]; row r belongs to
        sequence sequences[r]."""
        settings = self.settings
        chosen = ops.sample(
            logits,
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.min_p,
            seed=[self._seeds[i] for i in sequences],
            step=step,
        )
        return [int(token) for token in chosen]


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ValueError(f"[generate] seed {seed!r}; a whole number is required")
    if not 0 <= seed < 2**64:
        raise ValueError(f"[generate] seed {seed}; 0 to 2**64 - 1 is required")
    return int(seed)
