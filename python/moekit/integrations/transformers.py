"""moekit under Hugging Face transformers: our kernels run the experts of its models.

    import moekit.integrations.transformers as moekit_transformers

    moekit_transformers.register()
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    model.set_experts_implementation("moekit")  # or "moekit_int8", "moekit_int4"

A module's weights are packed at its first token, and again when they have changed; the packed copy
lives as long as the module, or until :func:`forget`. Changes past torch's count of versions
(through ``.data`` or NumPy) are noticed by a number in each expert: call :func:`forget` after finer
ones. The originals stay beside it, so that other
implementations, training and adapters go on; for inference alone :func:`release` frees them. Needs
``moekit[transformers]``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

try:
    import torch
    from transformers import PreTrainedModel
    from transformers.integrations.finegrained_fp8 import FP8ExpertsInterface
    from transformers.integrations.moe import ExpertsInterface
except ImportError as error:
    raise ImportError(f"{error}; moekit[transformers] installs what this needs") from error

from . import hf_modules, hf_replaced, released
from .torch_experts import NotRunnable
from .torch_run import forget, run

__all__ = ["NotRunnable", "forget", "register", "release", "restore"]

#: The experts implementations and the format that each packs into; None keeps the weights' own.
IMPLEMENTATIONS: dict[str, str | None] = {
    "moekit": None,
    "moekit_int8": "int8",
    "moekit_int4": "int4",
}

_ExpertsForward = Callable[..., torch.Tensor]


def register(*, fallback: str = "error") -> None:
    """Makes ``"moekit"``, ``"moekit_int8"`` and ``"moekit_int4"`` experts implementations.

    ``model.set_experts_implementation("moekit")`` or ``from_pretrained(…,
    experts_implementation="moekit")`` then runs the experts of every model that uses transformers'
    experts interface, FP8 ones included. Llama 4, DBRX, Switch, NLLB-MoE, JetMoE, LongCat and
    Step 3.7 do not use it: ``set_experts_implementation`` gives their modules our forward pass
    instead, and their own back.

    ``"moekit"`` keeps the weights' own numbers (float32, bfloat16, float16, packed FP4; FP8 as
    ``q8_0``); ``"moekit_int8"`` and ``"moekit_int4"`` quantise the packed copy. Where a
    gradient is needed ``"moekit"`` computes the model's own; the quantised ones raise RuntimeError
    in the backward pass. ``torch.compile`` leaves the experts out of its graphs (so ``fullgraph``
    is not possible); tracing and exporting raise :class:`NotRunnable`.

    Experts run on as many threads as torch does (``torch.set_num_threads``), and no more than
    ``mk.set_num_threads`` allows.

    Args:
        fallback: what happens to experts that cannot run here (on another device, sharded, in a
            dtype that the core does not read): ``"error"`` raises :class:`NotRunnable`, ``"eager"``
            warns and runs the model's own code.

    Registering again changes ``fallback``. Raises ValueError for another ``fallback``.
    """
    if fallback not in ("error", "eager"):
        raise ValueError(f"[register] fallback is {fallback!r}; 'error' or 'eager' is required")
    for name, format in IMPLEMENTATIONS.items():
        forward = _experts_forward(format, fallback == "eager")
        ExpertsInterface.register(name, forward)
        FP8ExpertsInterface.register(name, forward)
    _extend_set_experts_implementation()


def release(model: torch.nn.Module) -> int:
    """Frees the original weights of all experts of ``model`` that run here; how many bytes.

    Module by module: what is not packed yet is packed first, so at most one module stands twice.
    Parameters keep name, shape and dtype, on device ``meta``, and need no gradient. Under
    ``"moekit"`` the packed copy has the same numbers: ``state_dict()`` and ``save_pretrained``
    give them, and :func:`restore`, or another implementation, brings them back. Under
    ``"moekit_int8"`` and ``"moekit_int4"`` the originals are gone: saving and other
    implementations raise RuntimeError.

    Weights in float8 or float4 stay, and so do those of families outside transformers' experts
    interface (see :func:`register`). Raises ValueError where another implementation is set.
    """
    freed = 0
    module: Any
    for module in model.modules():
        if released.is_interface(module):
            name = module.config._experts_implementation
            if name not in IMPLEMENTATIONS:
                known = ", ".join(IMPLEMENTATIONS)
                raise ValueError(
                    f"[release] experts implementation is {name!r}; one of {known} is required"
                )
            freed += released.release_module(module, IMPLEMENTATIONS[name])
    return freed


def restore(model: torch.nn.Module, *, rounded: bool = False) -> int:
    """Gives released experts of ``model`` their weights back; how many bytes they have.

    Exactly those that :func:`release` freed under ``"moekit"``; ``rounded`` accepts the numbers of
    a quantised copy instead, for which it raises RuntimeError otherwise.
    """
    return sum(released.restore_module(module, rounded) for module in model.modules())


def _experts_forward(format: str | None, fall_back: bool) -> _ExpertsForward:
    kind = hf_modules.INTERFACE

    def moekit_experts_forward(
        self: torch.nn.Module,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        try:
            return run(self, kind, format, hidden_states, top_k_index, top_k_weights)
        except NotRunnable as reason:
            if not fall_back:
                raise
            warnings.warn(f"{reason}; {type(self).__name__} runs eagerly", stacklevel=2)
            return kind.eager(self, hidden_states, top_k_index, top_k_weights)

    return moekit_experts_forward


def _extend_set_experts_implementation() -> None:
    """Lets it reach the families that have no experts interface; it would pass them over."""
    original = PreTrainedModel.set_experts_implementation
    if hasattr(original, "_moekit"):
        return

    @wraps(original)
    def set_experts_implementation(self: Any, experts_implementation: str | dict[str, str]) -> None:
        given = experts_implementation
        names = [given] if isinstance(given, str) else list(given.values())
        for module in self.modules():
            kept = released.released_format(module)
            # Exactly, or RuntimeError.
            if kept is not None and any(IMPLEMENTATIONS.get(n, n) != kept[0] for n in names):
                released.restore_module(module, rounded=False)
        original(self, experts_implementation)
        ours = [name for name in names if name in IMPLEMENTATIONS]
        if ours:
            hf_replaced.replace(self, IMPLEMENTATIONS[ours[0]])
        else:
            hf_replaced.restore(self)

    set_experts_implementation._moekit = True  # type: ignore[attr-defined]
    PreTrainedModel.set_experts_implementation = (  # type: ignore[method-assign]
        set_experts_implementation
    )
