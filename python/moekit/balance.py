"""Keeping experts busy: the auxiliary losses of the field, and the controller that needs none.

The losses are values for looking at a router, in float64; they have no gradients.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import ops
from .ops import Assignment
from .ops.arrays import Float32, as_float32, as_integers, to_numpy

Doubles = npt.NDArray[np.float64]


def _layers(logits: Any, op: str) -> list[Float32]:
    """One layer's logits [T, E] or several layers': a sequence of such, or [layers, T, E]."""
    many = logits if isinstance(logits, list | tuple) else None
    if many is None or np.ndim(many[0] if many else 0) < 2:
        array = as_float32(logits, op, "logits", (2, 3))
        many = [array] if array.ndim == 2 else list(array)
    layers = [as_float32(layer, op, "logits", 2) for layer in many]
    if len({layer.shape for layer in layers}) > 1:
        shapes = ", ".join(str(list(layer.shape)) for layer in layers)
        raise ValueError(f"[{op}] layers have shapes {shapes}; one shape is required")
    if layers[0].shape[1] == 0:
        raise ValueError(f"[{op}] there are no experts")
    return layers


def _token_weights(mask: Any, tokens: int, op: str) -> Doubles:
    """Float64 [T]: 1 for a token that counts. The mask may be [T] or [batch, length]."""
    if mask is None:
        return np.ones(tokens)
    weights = to_numpy(mask, op, "attention_mask").reshape(-1).astype(np.float64)
    if weights.size != tokens:
        raise ValueError(
            f"[{op}] attention_mask has {weights.size} entries; {tokens} tokens are there"
        )
    return weights


def _softmax(logits: Float32) -> Doubles:
    x = logits.astype(np.float64)
    e = np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf))
    shares: Doubles = e / e.sum(axis=1, keepdims=True)
    return shares


def _balance(logits: Any, k: int, attention_mask: Any, op: str) -> float:
    """E · Σ_e (choices of e per token) · (mean probability of e)."""
    layers = _layers(logits, op)
    tokens, count = layers[0].shape
    weights = _token_weights(attention_mask, tokens, op)
    chosen, probability = np.zeros(count), np.zeros(count)
    for layer in layers:
        experts = ops.route(layer, k).experts
        chosen += np.bincount(experts.ravel(), np.repeat(weights, k), minlength=count)
        probability += weights @ _softmax(layer)
    total = len(layers) * weights.sum()
    if total == 0:
        raise ValueError(f"[{op}] there are no tokens to average over")
    return float(count * (chosen * probability).sum() / total**2)


def switch_loss(logits: Any, k: int, attention_mask: Any = None) -> float:
    """E · Σ_e f_e · P_e: 1 for a uniform router, E where one expert gets all (k = 1).

    Fedus et al. 2021, Switch Transformers, equation 4. f_e is expert e's share of the choices, P_e
    its mean probability (softmax over all experts).

    Args:
        logits: [T, E]; several layers ([layers, T, E] or a sequence) are averaged together.
        k: experts per token, the k most probable.
        attention_mask: [T] or [batch, length]; tokens with 0 (padding) do not count.
    """
    return _balance(logits, k, attention_mask, "switch_loss") / k


def hf_loss(logits: Any, k: int, attention_mask: Any = None) -> float:
    """The ``load_balancing_loss_func`` of Hugging Face's models: K for a uniform router.

    It is :func:`switch_loss` without the division by K (GShard: Lepikhin et al. 2020, section
    2.2, up to constants). Arguments as there.
    """
    return _balance(logits, k, attention_mask, "hf_loss")


def z_loss(logits: Any, attention_mask: Any = None) -> float:
    """mean over tokens of log(Σ_e e^logit)²: keeps logits small.

    Zoph et al. 2022, ST-MoE, equation 5. logits and attention_mask as in :func:`switch_loss`.
    """
    layers = _layers(logits, "z_loss")
    weights = _token_weights(attention_mask, len(layers[0]), "z_loss")
    if weights.sum() == 0:
        raise ValueError("[z_loss] there are no tokens to average over")
    squares = 0.0
    for layer in layers:
        x = layer.astype(np.float64)
        top = x.max(axis=1)
        z = top + np.log(np.exp(x - top[:, None]).sum(axis=1))
        squares += float(weights @ (z * z))
    return squares / (len(layers) * float(weights.sum()))


def _squared_cv(x: Doubles) -> float:
    """(deviation / mean)², 0 where nothing was routed."""
    mean = float(x.mean())
    return float(x.var()) / (mean * mean) if mean > 0 else 0.0


def importance_loss(logits: Any, k: int, *, noise: Any = None) -> float:
    """CV² of the experts' importance, the sum of the weights that tokens give them.

    Shazeer et al. 2017, Outrageously Large Neural Networks, equations 6 and 7. 0 for a balanced
    router, E - 1 where one expert gets everything.

    Args:
        logits: [T, E].
        k: experts per token; their weights are the softmax over the k chosen (KeepTopK).
        noise: [T, E], added to the logits.
    """
    rows = as_float32(logits, "importance_loss", "logits", 2)
    gates = ops.route(rows, k, score="softmax_topk", noise=noise)
    importance: Doubles = np.bincount(
        gates.experts.ravel(), gates.weights.ravel(), minlength=rows.shape[1]
    ).astype(np.float64)
    return _squared_cv(importance)


def load_loss(logits: Any, k: int, *, noise: Any = None, noise_scale: Any = None) -> float:
    """CV² of the experts' load.

    Without noise the load is the number of tokens. With it, it is the smooth estimate of Shazeer
    et al. 2017, appendix A, equations 8 to 11: the sum over tokens of the probability that an
    expert is chosen when its own noise is drawn anew,
    P = Φ((logit_e - kth_excluding(noisy, k, e)) / noise_scale_e).

    Args:
        logits: [T, E], without noise.
        k: experts per token.
        noise: [T, E], what was added: standard normal times ``noise_scale``.
        noise_scale: [T, E] (or a number), softplus(x · W_noise) there.
    """
    op = "load_loss"
    rows = as_float32(logits, op, "logits", 2)
    if (noise is None) != (noise_scale is None):
        raise ValueError(f"[{op}] of noise and noise_scale one was given; both or none is required")
    if noise is None:
        return _squared_cv(ops.route(rows, k).counts.astype(np.float64))
    tokens, count = rows.shape
    drawn = as_float32(noise, op, "noise", 2)
    noisy = (rows + drawn).astype(np.float64)
    scale = np.broadcast_to(np.asarray(noise_scale, dtype=np.float64), rows.shape)
    if not 1 <= k < count:
        raise ValueError(f"[{op}] k is {k}; 1 to {count - 1} is required: one expert must be left")
    if not (scale > 0).all():
        raise ValueError(f"[{op}] noise_scale has values that are not positive")
    descending = -np.sort(-noisy, axis=1)
    # Without expert e the k-th largest is the (k+1)-th of all if e is among the first k.
    kth, next_one = descending[:, k - 1 : k], descending[:, k : k + 1]
    threshold = np.where(noisy >= kth, next_one, kth)
    z = (rows - threshold) / scale
    chances = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.ravel()])
    return _squared_cv(chances.reshape(tokens, count).sum(axis=0))


class BiasController:
    """Balance without an auxiliary loss: a bias per expert, nudged towards the mean load.

    Wang et al. 2024 (Auxiliary-Loss-Free Load Balancing, algorithm 1), used by DeepSeek-V3:
    ``b_e += gamma · sign(mean load - load_e)`` after every batch. The bias selects and never
    weighs: give it to :func:`moekit.ops.route` as ``select_bias``.

    >>> controller = BiasController(64, gamma=0.001)
    >>> a = ops.route(logits, 6, score="sigmoid", select_bias=controller.bias)   # doctest: +SKIP
    >>> controller.update(a)                                                     # doctest: +SKIP

    Args:
        E: number of experts.
        gamma: the step; 0.001 in both papers.
        bias: [E], where to start; zeros by default.
    """

    __slots__ = ("_bias", "gamma", "steps")

    def __init__(self, E: int, gamma: float = 0.001, bias: Any = None) -> None:
        if E < 1 or not gamma >= 0:
            raise ValueError(
                f"[BiasController] E is {E}, gamma {gamma}; E >= 1 and gamma >= 0 are required"
            )
        self.gamma = gamma
        #: Updates so far.
        self.steps = 0
        self._bias: Float32 = np.zeros(E, np.float32)
        if bias is not None:
            self._bias = as_float32(bias, "BiasController", "bias", 1).copy()
            if len(self._bias) != E:
                raise ValueError(
                    f"[BiasController] bias has {len(self._bias)} entries; {E} are required"
                )

    @property
    def bias(self) -> Float32:
        """float32 [E]; a copy."""
        return self._bias.copy()

    def update(self, load: Assignment | Sequence[int] | npt.ArrayLike) -> Float32:
        """Moves the bias by one batch's load and returns it.

        Args:
            load: the batch's assignment, or how many tokens each expert got, [E].
        """
        if isinstance(load, Assignment):
            ids = load.experts[load.experts >= 0]
            if ids.max(initial=-1) >= len(self._bias):
                raise ValueError(
                    f"[BiasController] the assignment has expert {ids.max()}; "
                    f"there are {len(self._bias)}"
                )
            counts = np.bincount(ids, minlength=len(self._bias))
        else:
            counts = as_integers(load, "BiasController", "load", ndim=1)
            if len(counts) != len(self._bias):
                raise ValueError(
                    f"[BiasController] load has {len(counts)} entries; "
                    f"{len(self._bias)} are required"
                )
        step = self.gamma * np.sign(counts.mean() - counts)
        self._bias = (self._bias + step).astype(np.float32)
        self.steps += 1
        return self.bias

    def __repr__(self) -> str:
        return (
            f"BiasController({len(self._bias)} experts, gamma={self.gamma}, {self.steps} steps, "
            f"bias {self._bias.min():.4g} to {self._bias.max():.4g})"
        )
