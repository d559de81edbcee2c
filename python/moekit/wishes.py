"""What a caller of `model.intervene` asks for, checked against the model's layers."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .balance import BiasController
from .intervention import Change, Changes, Floats, Intervention, RouterFunction

if TYPE_CHECKING:
    from .nn.moe import MoE

Layer: TypeAlias = int | str
# (layer, expert) -> amount, or layer -> amounts [E].
Amounts: TypeAlias = Mapping[Any, Any]
# What changes in each layer, field by field, before it becomes a Change.
_Fields: TypeAlias = dict[int, dict[str, Any]]


def intervention(
    moes: Mapping[int, "MoE"],
    *,
    bias: Amounts | None = None,
    strength: float = 1.0,
    mask: Iterable[tuple[Layer, int]] = (),
    force: Iterable[tuple[Layer, int]] = (),
    substitute: Mapping[tuple[Layer, int], int] | None = None,
    k: int | Mapping[Layer, int] | None = None,
    threshold: float | Mapping[Layer, float] | None = None,
    temperature: float | Mapping[Layer, float] | None = None,
    balance: float | Mapping[Layer, float | BiasController] | None = None,
    router: RouterFunction | Mapping[Layer, RouterFunction] | None = None,
    requests: Sequence[Mapping[str, Any]] = (),
) -> Intervention:
    """The intervention that `Model.intervene` describes, for the layers {number: mixture}.

    ValueError for a layer without experts, an expert that is not there, and absurd values.
    """
    found: _Fields = {}
    for name, wish in (("bias", bias), ("substitute", substitute)):
        if wish is not None and not isinstance(wish, Mapping):
            raise TypeError(
                f"[intervene] {name} is {type(wish).__name__}; "
                "a mapping {(layer, expert): value} is required"
            )
    _read_bias(moes, bias or {}, strength, found)
    for name, pairs in (("mask", mask), ("force", force)):
        for pair in pairs:
            for n, expert in _places(moes, pair, name):
                flags = found.setdefault(n, {}).setdefault(name, np.zeros(moes[n].count, np.bool_))
                flags[expert] = True
    for pair, to in (substitute or {}).items():
        for n, expert in _places(moes, pair, "substitute"):
            own = np.arange(moes[n].count, dtype=np.int32)
            found.setdefault(n, {}).setdefault("substitute", own)[expert] = _expert(moes, n, to)
    for n, count in _by_layer(moes, k, "k"):
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(f"[intervene] k {count!r} in layer {n}; a number is required")
        if not 1 <= count <= moes[n].count:
            raise ValueError(
                f"[intervene] k {count} in layer {n}; 1 to {moes[n].count} is required"
            )
        found.setdefault(n, {})["k"] = int(count)
    for n, value in _by_layer(moes, threshold, "threshold"):
        if not 0 <= _number(value, "threshold", n) <= 1:
            raise ValueError(f"[intervene] threshold {value} in layer {n}; 0 to 1 is required")
        found.setdefault(n, {})["threshold"] = float(value)
    for n, value in _by_layer(moes, temperature, "temperature"):
        if not _number(value, "temperature", n) > 0:
            raise ValueError(f"[intervene] temperature {value} in layer {n}; above 0 is required")
        if float(value) != 1:
            found.setdefault(n, {})["temperature"] = float(value)
    for n, given in _by_layer(moes, balance, "balance"):
        found.setdefault(n, {})["controller"] = _controller(given, n, moes[n].count)
    for n, function in _by_layer(moes, router, "router"):
        if not callable(function):
            raise TypeError(f"[intervene] router {function!r}; a function is required")
        found.setdefault(n, {})["router"] = function
    layers = {n: Change(**values) for n, values in found.items()}
    return Intervention(layers, _read_requests(moes, requests))


# What the keywords of `intervention` may say of one request.
_OF_A_REQUEST = set(signature(intervention).parameters) - {"moes", "requests", "balance"}


def _read_requests(
    moes: Mapping[int, "MoE"], requests: Sequence[Mapping[str, Any]]
) -> tuple[Changes, ...]:
    settings = []
    for i, wishes in enumerate(requests):
        if not isinstance(wishes, Mapping):
            raise TypeError(f"[intervene] requests[{i}] is {wishes!r}; a mapping is required")
        wrong = wishes.keys() & {"requests", "balance"}
        if wrong:
            raise ValueError(f"[intervene] requests[{i}] has {min(wrong)}; it is for all requests")
        unknown = wishes.keys() - _OF_A_REQUEST
        if unknown:
            raise TypeError(
                f"[intervene] requests[{i}] has {min(map(str, unknown))}; of "
                f"{', '.join(sorted(_OF_A_REQUEST))} is required"
            )
        settings.append(intervention(moes, **wishes).layers)
    return tuple(settings)


def _read_bias(moes: Mapping[int, "MoE"], bias: Amounts, strength: float, found: _Fields) -> None:
    factor = _number(strength, "strength", None)
    for key, value in bias.items():
        if isinstance(key, tuple):
            for n, expert in _places(moes, key, "bias"):
                amounts = np.zeros(moes[n].count, np.float32)
                amounts[expert] = _finite(value, n, expert)
                _add_bias(found, n, amounts * np.float32(factor))
            continue
        for n in _layers(moes, key):
            amounts = np.asarray(value, np.float32)
            if amounts.shape != (moes[n].count,):
                raise ValueError(
                    f"[intervene] bias of layer {n} has shape {amounts.shape}; "
                    f"[{moes[n].count}] is required"
                )
            for place in np.flatnonzero(~np.isfinite(amounts)):
                _finite(float(amounts[place]), n, int(place))
            _add_bias(found, n, amounts * np.float32(factor))


def _add_bias(found: _Fields, layer: int, amounts: Floats) -> None:
    fields = found.setdefault(layer, {})
    fields["bias"] = amounts + fields["bias"] if "bias" in fields else amounts


def check_feasible(wanted: Intervention, moes: Mapping[int, "MoE"]) -> None:
    """ValueError where the changes of a layer contradict each other or its router."""
    for i in range(max(1, len(wanted.requests))):
        for n, change in wanted.of_request(i).items():
            _check_layer(n, change, moes[n])


def _check_layer(n: int, change: Change, moe: "MoE") -> None:
    gate = moe.gate
    assert gate is not None
    mine = {"force": change.force, "k": change.k, "balance": change.controller}
    unfit = [name for name, value in mine.items() if value is not None]
    if unfit and change.router is None:
        if moe.router is not gate:
            raise ValueError(
                f"[intervene] {unfit[0]} in layer {n}, where a function of your own chooses; "
                "bias, mask, temperature, substitute, threshold and router are possible"
            )
        if gate.needs_ids and (change.force is not None or change.controller is not None):
            raise ValueError(
                f"[intervene] {unfit[0]} in layer {n}, where a table chooses by token id; "
                "substitute changes the choice there"
            )
    k = gate.k if change.k is None else change.k
    if gate.needs_ids and k > gate.k:
        raise ValueError(f"[intervene] k {k} in layer {n}; its table names {gate.k} experts")
    mask = np.zeros(moe.count, np.bool_) if change.mask is None else change.mask
    force = np.zeros(moe.count, np.bool_) if change.force is None else change.force
    if (mask & force).any():
        expert = int(np.flatnonzero(mask & force)[0])
        raise ValueError(f"[intervene] expert {expert} of layer {n} is masked and forced")
    if int(force.sum()) > k:
        raise ValueError(f"[intervene] {force.sum()} experts are forced in layer {n}; K is {k}")
    if mask.any() and moe.count - int(mask.sum()) < k:
        raise ValueError(
            f"[intervene] the mask leaves {moe.count - int(mask.sum())} experts in layer {n}; "
            f"K is {k}"
        )
    if change.substitute is not None:
        own = change.substitute == np.arange(moe.count)
        gone = np.flatnonzero(~own & mask[change.substitute])
        if len(gone):
            raise ValueError(
                f"[intervene] expert {change.substitute[gone[0]]} of layer {n} is masked and "
                f"takes the place of {gone[0]}"
            )
    _check_groups(n, gate.rule, k, force)


def _check_groups(n: int, rule: Mapping[str, Any], k: int, force: Any) -> None:
    groups, kept = rule.get("groups", 1), rule.get("top_groups", 1)
    if groups == 1:
        return
    used = int(force.reshape(groups, -1).any(axis=1).sum())
    if used > kept:
        raise ValueError(
            f"[intervene] forced experts of layer {n} lie in {used} groups; {kept} are chosen from"
        )
    reachable = len(force) // groups * kept
    if k > reachable and rule.get("group_fill", "-inf") == "-inf":
        raise ValueError(
            f"[intervene] k {k} in layer {n}; {kept} of {groups} groups are chosen from, which "
            f"have {reachable} experts"
        )


def _by_layer(moes: Mapping[int, "MoE"], wish: Any, name: str) -> Iterable[tuple[int, Any]]:
    """(layer, value) of a wish that is one value for all layers, or {layer: value}; "*" first,
    so that a layer's own value wins."""
    if wish is None:
        return
    if not isinstance(wish, Mapping):
        wish = {"*": wish}
    for layer, value in sorted(wish.items(), key=lambda item: item[0] != "*"):
        for n in _layers(moes, layer, name):
            yield n, value


def _places(moes: Mapping[int, "MoE"], pair: Any, name: str) -> Iterable[tuple[int, int]]:
    """(layer, expert) of a pair whose layer may be "*"."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"[intervene] {name} has {pair!r}; (layer, expert) is required")
    for n in _layers(moes, pair[0]):
        yield n, _expert(moes, n, pair[1])


def _layers(moes: Mapping[int, "MoE"], layer: Any, name: str = "") -> list[int]:
    if isinstance(layer, str) and layer == "*":
        return list(moes)
    if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or layer not in moes:
        raise ValueError(f"[intervene] layer {layer!r}; layers with experts are {list(moes)}")
    return [int(layer)]


def _expert(moes: Mapping[int, "MoE"], layer: int, expert: Any) -> int:
    count = moes[layer].count
    if isinstance(expert, bool) or not isinstance(expert, int | np.integer):
        raise ValueError(f"[intervene] expert {expert!r} of layer {layer}; a number is required")
    if not 0 <= expert < count:
        raise ValueError(f"[intervene] expert {expert} of layer {layer}; it has {count}")
    return int(expert)


def _number(value: Any, name: str, layer: int | None) -> float:
    where = "" if layer is None else f" in layer {layer}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"[intervene] {name} {value!r}{where}; a number is required") from None
    if not np.isfinite(number):
        raise ValueError(f"[intervene] {name} {value}{where}; a finite number is required")
    return number


def _controller(given: Any, layer: int, count: int) -> BiasController:
    if not isinstance(given, BiasController):
        return BiasController(count, _number(given, "balance", layer))
    if len(given.bias) != count:
        raise ValueError(
            f"[intervene] the controller of layer {layer} has {len(given.bias)} experts; "
            f"{count} are required"
        )
    return given


def _finite(value: Any, layer: int, expert: int) -> np.float32:
    try:
        with np.errstate(over="ignore"):
            number = np.float32(value)
    except (TypeError, ValueError):
        number = np.float32(np.nan)
    if not np.isfinite(number):
        raise ValueError(
            f"[intervene] bias {value!r} of expert {expert}, layer {layer}; "
            "a finite number is required (mask= forbids an expert)"
        )
    return number
