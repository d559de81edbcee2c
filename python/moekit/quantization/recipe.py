"""Which format each weight of a model gets: by role, by pattern, by single expert."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from .. import ops
from ..nn import Model
from ..nn.parts import held
from ..ops import PackedWeight

# What a part calls its weights (`Part.weights`) -> the role that a recipe names.
_ROLES = {
    "router": "router",
    "experts": "experts",
    "shared experts": "shared",
    "dense feed-forward": "dense",
    "attention": "attention",
    "head": "head",
    "embedding": "embedding",
}
ROLES = ("router", "experts", "gate_up", "down", "shared", "dense", "attention", "head")
_TABLES = ("f32", "bf16", "f16")
_SINGLE = re.compile(r"(\d+)/(\d+)")
_LAYER = re.compile(r"layers\.(\d+)\.")
# What chooses experts. The gate on a shared expert chooses nobody, and JetMoe's router of attention
# heads is in no recorded routing: both stay as they are unless a pattern names them.
_ROUTER = re.compile(r"^layers\.\d+\.(?!attention\.).*\brouter\.")

RecipeLike: TypeAlias = "str | Mapping[Any, Any] | Recipe"


@cache
def bits_of(format: str) -> float:
    """Bits per weight of a wide matrix, scales included."""
    return ops.packed_bytes(format, 16, 4096) / (16 * 4096) * 8


@dataclass(frozen=True, slots=True)
class Place:
    """A packed weight of a model: its path, its role, its layer (-1: none) and the weight."""

    path: str
    role: str
    layer: int
    weight: PackedWeight

    @property
    def experts(self) -> int:
        """Matrices in it."""
        return self.weight.core.experts

    @property
    def routed(self) -> bool:
        """True for a bank that a router chooses from."""
        return self.role in ("gate_up", "down")


def places_of(model: Model) -> list[Place]:
    """Every packed weight once, with its role; those without a known role have ""."""
    kinds = {id(weight): (name, kind) for name, kind, weight in model.weights()}
    places = []
    for path, value in held(model):
        if not isinstance(value, PackedWeight):
            continue
        name, kind = kinds.get(id(value), (path, ""))
        role = _ROLES.get(kind, "")
        if role == "router" and not _ROUTER.search(path):
            role = ""
        if role == "experts":
            role = "down" if name.endswith("down") else "gate_up"
        layer = _LAYER.match(path)
        places.append(Place(path, role, int(layer[1]) if layer else -1, value))
    return places


@dataclass(frozen=True)
class Recipe:
    """What `mk.quantize` makes of a model.

    `format` is for all matrices but the router (float32) and, below 8 bits, the head (int8);
    None keeps each as it is. `roles` changes that for `router`, `experts` (or only their
    `gate_up` or `down`), `shared`, `dense`, `attention`, `head` and `embedding` (bf16, f16, f32);
    `patterns` for paths such as `layers.3.*`, of which the last that fits decides; `experts` for
    single ones, (layer, expert) by the model's own numbers, both of their banks. A router below 8
    bits needs `force`: it then chooses other experts.

    With `budget`, formats of the experts and of other matrices without a role of their own are
    chosen from `candidates` so that the packed weights fit: a number of bytes, or below 32 the
    average of bits per weight, of all matrices but router, head and embedding. See `budget.py`.
    """

    format: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    patterns: Sequence[tuple[str, str]] = ()
    experts: Mapping[tuple[int, int], str] = field(default_factory=dict)
    budget: float | None = None
    candidates: Sequence[str] = ()
    force: bool = False

    def __post_init__(self) -> None:
        known = ops.format_names()
        named = [self.format, *self.roles.values(), *(f for _, f in self.patterns)]
        for name in [*named, *self.experts.values(), *self.candidates]:
            if name is not None and name not in known and name != "int4_g128":
                raise ValueError(f"[recipe] format {name!r}; one of {', '.join(known)} is required")
        for role, name in self.roles.items():
            if role not in (*ROLES, "embedding"):
                raise ValueError(
                    f"[recipe] role {role!r}; one of {', '.join(ROLES)}, embedding or a pattern "
                    "with a dot or a star is required"
                )
            if role == "embedding" and name not in _TABLES:
                raise ValueError(f"[recipe] embedding {name!r}; one of {', '.join(_TABLES)}")
        router = self.roles.get("router", "f32")
        if bits_of(router) < 8 and not self.force:
            raise ValueError(
                f"[recipe] router {router!r} has {bits_of(router):.3g} bits; 8 at least, or "
                "force, is required: a rounded score chooses other experts"
            )
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"[recipe] budget {self.budget}; a positive number is required")

    @classmethod
    def of(cls, recipe: RecipeLike) -> "Recipe":
        """A format's name, a mapping, or a recipe.

        Keys of the mapping: `default`, roles, patterns, (layer, expert) or "layer/expert",
        `budget`, `candidates`, `force`.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, str):
            return cls(recipe)
        if not isinstance(recipe, Mapping):
            raise TypeError(f"[recipe] {type(recipe).__name__}; a format, a mapping or a Recipe")
        values: dict[str, Any] = {"roles": {}, "experts": {}}
        patterns = []
        for key, value in recipe.items():
            single = _SINGLE.fullmatch(key) if isinstance(key, str) else None
            if key == "default":
                values["format"] = value
            elif key in ("budget", "candidates", "force"):
                values[key] = value
            elif single:
                values["experts"][int(single[1]), int(single[2])] = value
            elif isinstance(key, tuple) and len(key) == 2:
                values["experts"][int(key[0]), int(key[1])] = value
            elif isinstance(key, str) and ("*" in key or "." in key):
                patterns.append((key, value))
            else:
                values["roles"][key] = value
        return cls(patterns=tuple(patterns), **values)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `of` reads, with names as keys."""
        found: dict[str, Any] = {} if self.format is None else {"default": self.format}
        found.update(self.roles)
        found.update(self.patterns)
        found.update({f"{layer}/{expert}": name for (layer, expert), name in self.experts.items()})
        if self.budget is not None:
            found.update(budget=self.budget, candidates=list(self.candidates))
        return {**found, "force": True} if self.force else found

    def formats(self, place: Place) -> list[str]:
        """The format of each matrix of a weight."""
        kept = [place.weight.expert_format(e) for e in range(place.experts)]
        formats = kept
        if place.role == "router":
            formats = [self.roles.get("router", "f32")] * place.experts
        elif place.role:
            name = self._by_role(place.role)
            formats = kept if name is None else [name] * place.experts
        for pattern, name in self.patterns:
            for e in range(place.experts):
                if fnmatchcase(place.path, pattern) or fnmatchcase(f"{place.path}.{e}", pattern):
                    formats = [*formats[:e], name, *formats[e + 1 :]]
        if place.routed:
            for (layer, expert), name in self.experts.items():
                if layer == place.layer and expert < place.experts:
                    formats = [*formats[:expert], name, *formats[expert + 1 :]]
        if place.role == "router" and min(map(bits_of, formats)) < 8 and not self.force:
            raise ValueError(f"[recipe] {place.path} would have {min(formats, key=bits_of)}; force")
        return formats

    def _by_role(self, role: str) -> str | None:
        if role in self.roles:
            return self.roles[role]
        if role in ("gate_up", "down") and "experts" in self.roles:
            return self.roles["experts"]
        if role == "head" and self.format is not None and bits_of(self.format) < 8:
            return "int8"
        return self.format

    def check(self, model: Model) -> None:
        """ValueError for single experts or patterns that the model has no place for."""
        places = places_of(model)
        counts = {place.layer: place.experts for place in places if place.routed}
        for layer, expert in self.experts:
            if not 0 <= expert < counts.get(layer, 0):
                raise ValueError(
                    f"[recipe] expert {expert} of layer {layer}; layers with experts are "
                    f"{sorted(counts)}, with {max(counts.values(), default=0)} each"
                )
        for pattern, _ in self.patterns:
            if not any(_fits(pattern, place) for place in places):
                raise ValueError(
                    f"[recipe] no weight fits {pattern!r}; they are named like {places[0].path!r}"
                )

    def table_dtype(self) -> str | None:
        """The embedding's dtype, None for its own."""
        return self.roles.get("embedding")


def _fits(pattern: str, place: Place) -> bool:
    names = (place.path, *(f"{place.path}.{e}" for e in range(place.experts)))
    return any(fnmatchcase(name, pattern) for name in names)


def packed_size(place: Place, formats: Sequence[str]) -> int:
    """Bytes of a weight in these formats."""
    rows, cols = place.weight.shape[-2:]
    return sum(ops.packed_bytes(name, rows, cols) for name in formats)


def elements(place: Place) -> int:
    """Weights in a place."""
    return int(np.prod(place.weight.shape))
