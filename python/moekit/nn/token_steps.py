"""A decoded token's way through half a block in one call of the core.

Around the products of a token stand a dozen small operations, and the weights drive their code and
data out of the caches in every layer: called one by one they cost a tenth of the token. The core
runs them in the same order, with the same bytes. It holds what the parts were made of until a
setting of one of them changes; a part that does more than its plain class is asked itself.
"""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING

from .. import _core
from ..ops import Assignment, Experts
from ..ops.arrays import as_float32
from ..ops.watched import settings
from .attention import Attention
from .linear import Linear
from .mla import MLA
from .moe import MoE
from .norm import Norm, RMSNorm
from .router import Router
from .types import Floats

if TYPE_CHECKING:
    from .batch import Batch
    from .block import Block


class TokenSteps:
    """The halves of a block that the core can run for a token; None for those that it cannot."""

    __slots__ = ("_parts", "_seen", "attention", "experts")

    def __init__(self) -> None:
        self._parts: tuple[object, ...] = ()  # and not the block, which would live in a circle
        self._seen = -1
        self.attention: AttentionStep | LatentStep | None = None
        self.experts: ExpertsStep | None = None

    def of(self, block: Block) -> TokenSteps:
        """Those of the block as it is now; a copy of a block with other parts gets its own."""
        parts = (block.attention_norm, block.attention, block.ffn_norm, block.ffn)
        if self._seen == settings.changes and all(map(is_, parts, self._parts)):
            return self
        steps = TokenSteps()
        steps._parts, steps._seen = parts, settings.changes
        try:
            steps.attention = AttentionStep.of(block) or LatentStep.of(block)
            steps.experts = ExpertsStep.of(block)
        except (TypeError, ValueError):
            pass  # arrays of another kind, sizes that do not fit: the operations convert or tell
        object.__setattr__(block, "_steps", steps)  # no setting
        return steps


class AttentionStep:
    """What attention adds to a token's row [1, H], its norm included."""

    __slots__ = ("_attention", "_run")

    def __init__(self, attention: Attention, core: _core.AttentionStep) -> None:
        self._attention = attention
        self._run = core.run

    @classmethod
    def of(cls, block: Block) -> AttentionStep | None:
        """None where a part of the attention, or its norm, is none that the core knows."""
        attention = block.attention
        if type(attention) is not Attention or not attention.is_plain:
            return None
        limits = (attention.softcap, attention.window, attention.chunk)
        if any(limit is not None and not limit > 0 for limit in limits):
            return None  # the operation says what is wrong
        norm = block.attention_norm
        if not _are(Linear, attention.q, attention.k, attention.v, attention.o) or norm is None:
            return None
        if not _are(RMSNorm, norm, attention.q_norm, attention.k_norm):
            return None
        core = _core.AttentionStep(
            _norm(norm),
            _linear(attention.q),
            _linear(attention.k),
            _linear(attention.v),
            _linear(attention.o),
            None if attention.q_norm is None else _norm(attention.q_norm),
            None if attention.k_norm is None else _norm(attention.k_norm),
            attention.heads,
            attention.kv_heads,
            attention.interleaved,
            attention.scale,
            attention.softcap or 0.0,
            attention.window or 0,
            attention.chunk or 0,
            attention.sinks,
        )
        return cls(attention, core)

    def __call__(self, x: Floats, batch: Batch, layer: int) -> Floats:
        angles = _angles(self._attention, batch)
        row = as_float32(x, "attention", "x", 2)
        keys, values = batch.sequences[0].room(layer)
        return self._run(
            row,
            angles,
            keys.flat,
            values.flat,
            keys.flat_scales,
            values.flat_scales,
            keys.length - 1,
        )


class LatentStep:
    """The same where it is latent."""

    __slots__ = ("_attention", "_run")

    def __init__(self, attention: MLA, core: _core.LatentStep) -> None:
        self._attention = attention
        self._run = core.run

    @classmethod
    def of(cls, block: Block) -> LatentStep | None:
        """None where a part of the attention, or its norm, is none that the core knows."""
        attention, norm = block.attention, block.attention_norm
        if type(attention) is not MLA or not attention.is_plain or type(norm) is not RMSNorm:
            return None
        if not _are(Linear, attention.q, attention.q_a, attention.kv_a, attention.o):
            return None
        if not _are(RMSNorm, attention.kv_norm, attention.q_norm):
            return None
        core = _core.LatentStep(
            _norm(norm),
            _linear(attention.q),
            _linear(attention.kv_a),
            _norm(attention.kv_norm),
            attention.key_up.core,
            attention.value_up.core,
            _linear(attention.o),
            None if attention.q_a is None else _linear(attention.q_a),
            None if attention.q_norm is None else _norm(attention.q_norm),
            attention.interleaved,
            attention.scale,
        )
        return cls(attention, core)

    def __call__(self, x: Floats, batch: Batch, layer: int) -> Floats:
        angles = _angles(self._attention, batch)
        row = as_float32(x, "mla_attention", "x", 2)
        (entries,) = batch.sequences[0].room(layer)
        return self._run(row, angles, entries.flat, entries.flat_scales, entries.length - 1)


class ExpertsStep:
    """x [1, H] + added [1, H] and what the experts add to that, their norm and router included."""

    __slots__ = ("_router", "_run")

    def __init__(self, router: Router, core: _core.ExpertsStep) -> None:
        self._router = router
        self._run = core.run

    @classmethod
    def of(cls, block: Block) -> ExpertsStep | None:
        """None where a part of the feed-forward half is none that the core knows."""
        moe, norm = block.ffn, block.ffn_norm
        if type(moe) is not MoE or type(norm) is not RMSNorm or not moe.is_plain:
            return None
        if block.parallel or block.ffn_post_norm is not None or block.residual != 1.0:
            return None
        router = moe.router
        if type(router) is not Router or router.softcap is not None:
            return None
        shared, gate = moe.shared, moe.shared_gate
        if not _are(Experts, moe.experts, shared) or not _are(Linear, router.linear, gate):
            return None
        core = _core.ExpertsStep(
            _norm(norm),
            _linear(router.linear),
            *router.core_rule,
            _bank(moe.experts),
            None if shared is None else _bank(shared),
            None if gate is None else _linear(gate),
            moe.compute,
        )
        return cls(router, core)

    def __call__(self, x: Floats, added: Floats, batch: Batch, layer: int) -> Floats:
        row, other = as_float32(x, "moe_ffn", "x", 2), as_float32(added, "moe_ffn", "added", 2)
        out, experts, weights = self._run(row, other, batch.tally, layer)
        if batch.choices is not None:
            router = self._router
            rule, _ = router.core_rule
            batch.choices[layer] = Assignment.trusted(experts, weights, router.count, rule)
        return out


def _angles(attention: Attention | MLA, batch: Batch) -> tuple[Floats, Floats] | None:
    if attention.frequencies is None:
        return None
    return batch.angles(attention.frequencies, attention.rope_factor)


def _are(kind: type, *parts: object) -> bool:
    """Is what there is of the parts of this very class?"""
    return all(part is None or type(part) is kind for part in parts)


def _norm(norm: Norm) -> _core.RmsNormView:
    assert isinstance(norm, RMSNorm)
    return _core.RmsNormView(norm.weight, norm.eps, norm.offset)


def _linear(linear: Linear) -> _core.LinearView:
    return _core.LinearView(linear.weight.core, linear.bias)


def _bank(experts: Experts) -> _core.ExpertBank:
    return experts.bank(experts.activation)
