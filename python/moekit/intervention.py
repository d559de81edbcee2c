"""Changes to routing while a model runs: bias, mask, force, K, or a router of the caller's own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .ops import Assignment

if TYPE_CHECKING:
    from .nn.moe import MoE

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Layer: TypeAlias = int | str
# (x [T, H], logits [T, E]) -> an Assignment, or changed logits that the layer's rule then uses.
RouterFunction: TypeAlias = Callable[[Floats, Floats], Assignment | npt.NDArray[Any]]

# Added to the selection score of a forced expert: above every score, and two of them do not
# overflow where groups add their best two.
_FORCED = np.float32(1e30)


@dataclass(frozen=True)
class Intervention:
    """Per layer (by the model's own number): what changes. Build it with `intervention`."""

    bias: dict[int, Floats] = field(default_factory=dict)
    mask: dict[int, Flags] = field(default_factory=dict)
    force: dict[int, Flags] = field(default_factory=dict)
    k: dict[int, int] = field(default_factory=dict)
    router: dict[int, RouterFunction] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.bias or self.mask or self.force or self.k or self.router)

    def then(self, inner: "Intervention") -> "Intervention":
        """This one with an inner block's on top: biases add up, masks unite, K and routers win."""
        bias = dict(self.bias)
        for layer, values in inner.bias.items():
            bias[layer] = bias[layer] + values if layer in bias else values
        return Intervention(
            bias,
            _united(self.mask, inner.mask),
            _united(self.force, inner.force),
            {**self.k, **inner.k},
            {**self.router, **inner.router},
        )

    def route(
        self, moe: "MoE", x: Floats, logits: Floats | None, layer: int, ids: Ids
    ) -> Assignment:
        """The changed choice of one layer."""
        router: Any = moe.router
        own = self.router.get(layer)
        if own is not None:
            answer = own(x, None if logits is None else logits.copy())
            if isinstance(answer, Assignment):
                return answer
            changed = np.ascontiguousarray(answer, np.float32)
            if logits is None or changed.shape != logits.shape:
                wanted = "" if logits is None else f" or logits {logits.shape}"
                raise ValueError(
                    f"[intervene] the router of layer {layer} gave shape {changed.shape}; "
                    f"an Assignment{wanted} is required"
                )
            logits = changed
        if logits is not None and layer in self.bias:
            logits = logits + self.bias[layer]
        if router is not moe.gate:
            if logits is not None and layer in self.mask:
                logits = np.where(self.mask[layer], np.float32(-np.inf), logits)
            return moe.ask(router, x, logits)
        changes: dict[str, Any] = {}
        if layer in self.mask:
            changes["mask"] = self.mask[layer]
        if layer in self.k:
            changes["k"] = self.k[layer]
        if layer in self.force:
            lift = np.where(self.force[layer], _FORCED, np.float32(0))
            own_bias = router.rule.get("select_bias")
            changes["select_bias"] = lift if own_bias is None else lift + own_bias
        answer = router.route(logits, ids, **changes)
        assert isinstance(answer, Assignment)
        return answer


def _united(outer: dict[int, Flags], inner: dict[int, Flags]) -> dict[int, Flags]:
    both = dict(outer)
    for layer, flags in inner.items():
        both[layer] = both[layer] | flags if layer in both else flags
    return both


def intervention(
    routers: Mapping[int, Any],
    *,
    bias: Mapping[tuple[Layer, int], float] | None = None,
    mask: Iterable[tuple[Layer, int]] = (),
    force: Iterable[tuple[Layer, int]] = (),
    k: int | Mapping[Layer, int] | None = None,
    router: RouterFunction | Mapping[Layer, RouterFunction] | None = None,
) -> Intervention:
    """Check the caller's wishes against the model's routers {layer number: router}.

    A layer is the model's own number or "*" for every layer with experts. ValueError for a layer
    without experts, an expert that is not there, more forced experts than K, fewer left than K.
    """
    result = Intervention()
    for (layer, expert), value in (bias or {}).items():
        for n in _layers(routers, layer):
            row = result.bias.setdefault(n, np.zeros(routers[n].count, np.float32))
            row[_expert(routers, n, expert)] += _finite(value, n, expert)
    for name, pairs, table in (("mask", mask, result.mask), ("force", force, result.force)):
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"[intervene] {name} has {pair!r}; (layer, expert) is required")
            for n in _layers(routers, pair[0]):
                flags = table.setdefault(n, np.zeros(routers[n].count, np.bool_))
                flags[_expert(routers, n, pair[1])] = True
    for layer, count in ({"*": k} if isinstance(k, int) else dict(k or {})).items():
        for n in _layers(routers, layer):
            if isinstance(count, bool) or not 1 <= count <= routers[n].count:
                raise ValueError(
                    f"[intervene] k {count} in layer {n}; 1 to {routers[n].count} is required"
                )
            result.k[n] = int(count)
    chosen = dict(router) if isinstance(router, Mapping) else {"*": router} if router else {}
    for layer, function in chosen.items():
        if not callable(function):
            raise TypeError(f"[intervene] router {function!r}; a function is required")
        for n in _layers(routers, layer):
            result.router[n] = function
    return result


def check_feasible(wanted: Intervention, routers: Mapping[int, Any]) -> None:
    """ValueError where mask, force and K of a layer contradict each other."""
    none = np.zeros(0, np.bool_)
    for n in {*wanted.mask, *wanted.force, *wanted.k}:
        count = wanted.k.get(n, routers[n].k)
        mask, force = wanted.mask.get(n, none), wanted.force.get(n, none)
        if len(mask) and len(force) and (mask & force).any():
            expert = int(np.flatnonzero(mask & force)[0])
            raise ValueError(f"[intervene] expert {expert} of layer {n} is masked and forced")
        if int(force.sum()) > count:
            raise ValueError(
                f"[intervene] {force.sum()} experts are forced in layer {n}; K is {count}"
            )
        if routers[n].count - int(mask.sum()) < count:
            raise ValueError(
                f"[intervene] the mask leaves {routers[n].count - int(mask.sum())} experts in "
                f"layer {n}; K is {count}"
            )
        groups = routers[n].rule.get("groups", 1)
        if groups > 1 and len(force):
            used = int(force.reshape(groups, -1).any(axis=1).sum())
            if used > routers[n].rule.get("top_groups", 1):
                raise ValueError(
                    f"[intervene] forced experts of layer {n} lie in {used} groups; "
                    f"{routers[n].rule.get('top_groups', 1)} are chosen from"
                )


def _layers(routers: Mapping[int, Any], layer: Layer) -> list[int]:
    if layer == "*":
        return list(routers)
    if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or layer not in routers:
        raise ValueError(f"[intervene] layer {layer!r}; layers with experts are {list(routers)}")
    return [int(layer)]


def _expert(routers: Mapping[int, Any], layer: int, expert: int) -> int:
    count = routers[layer].count
    if isinstance(expert, bool) or not isinstance(expert, int | np.integer):
        raise ValueError(f"[intervene] expert {expert!r} of layer {layer}; a number is required")
    if not 0 <= expert < count:
        raise ValueError(f"[intervene] expert {expert} of layer {layer}; it has {count}")
    return int(expert)


def _finite(value: float, layer: int, expert: int) -> np.float32:
    number = np.float32(value)
    if not np.isfinite(number):
        raise ValueError(
            f"[intervene] bias {value} of expert {expert}, layer {layer}; "
            "a finite number is required (mask= forbids an expert)"
        )
    return number
