"""Machines a model might run on: memory, bandwidth, multiply peaks, power and price.

Presets live in data/machines.toml; a file of the same shape, named by the environment variable
MOEKIT_MACHINES or given by path, adds to them or overrides them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from .fields import check_count, check_number, short
from .formats import Format

_REQUIRED = ("memory_bytes", "bandwidth")
_OPTIONAL = (
    "title",
    "peak",
    "power_watts",
    "price_per_hour",
    "usable",
    "low_bit",
    "devices",
    "call_seconds",
    "block_seconds",
    "source",
)
_KINDS = ("f32", "bf16", "f16", "fp8", "int8", "fp4", "int4")  # of arithmetic


@dataclass(frozen=True)
class Machine:
    """One device, or `devices` of them working as one.

    `bandwidth` in bytes/s and `peak` in FLOP/s are of one device. `usable` is the share of memory
    left to weights and cache. `low_bit` names the peak that formats below 8 bits compute at:
    accelerators widen them to bf16, this package's kernels use int8 dot instructions.
    `call_seconds` is the fixed cost of a dense kernel call, one for each matrix of a step, and
    `block_seconds` that of the call for the experts of a layer.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    peak: Mapping[str, float]
    title: str = ""
    power_watts: float = 0.0
    price_per_hour: float = 0.0
    usable: float = 1.0
    low_bit: str = "bf16"
    devices: int = 1
    call_seconds: float = 0.0
    block_seconds: float = 0.0
    source: str = ""

    @property
    def total_bandwidth(self) -> float:
        return self.bandwidth * self.devices

    @property
    def usable_bytes(self) -> int:
        """Bytes of one device that weights and cache may fill."""
        return int(self.memory_bytes * self.usable)

    def peak_flops(self, format: Format) -> float:
        """FLOP/s of all devices for weights of this format."""
        wanted = format.name
        if wanted not in ("f32", "bf16", "f16"):
            wanted = "fp8" if wanted == "fp8" else "int8" if wanted == "int8" else self.low_bit
        for kind in (wanted, "bf16", "f16", "f32"):
            if kind in self.peak:
                return self.peak[kind] * self.devices
        return max(self.peak.values()) * self.devices

    def times(self, devices: int) -> Machine:
        """The same machine with this many devices."""
        return replace(self, devices=check_count("devices", devices, low=1, high=1_000_000))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine_from(table: Mapping[str, Any], name: str = "machine") -> Machine:
    """A machine from a table of its numbers; a ValueError names what is missing or absurd."""
    for key in _REQUIRED:
        if key not in table:
            raise ValueError(f"[machine {name}] {key} is missing; bytes and bytes/s are required")
    unknown = set(table) - set(_REQUIRED) - set(_OPTIONAL) - {"name"}
    if unknown:
        raise ValueError(f"[machine {name}] {min(unknown)} is no field of a machine")
    peak = table.get("peak", {})
    if not isinstance(peak, Mapping):
        raise ValueError(f"[machine {name}] peak is {short(peak)}; a table of FLOP/s is required")
    peaks = {str(k): check_number(f"{name}.peak.{k}", v) for k, v in peak.items()}
    if not peaks:
        raise ValueError(f"[machine {name}] peak is missing; FLOP/s for at least f32 is required")
    low_bit = table.get("low_bit", "bf16")
    if low_bit not in _KINDS:
        raise ValueError(
            f"[machine {name}] low_bit is {short(low_bit)}; one of {', '.join(_KINDS)} is required"
        )
    memory = check_number(f"{name}.memory_bytes", table["memory_bytes"], most=1e18)
    return Machine(
        name=str(table.get("name", name)),
        memory_bytes=int(memory),
        bandwidth=check_number(f"{name}.bandwidth", table["bandwidth"], most=1e18),
        peak=peaks,
        title=str(table.get("title", name)),
        power_watts=check_number(f"{name}.power_watts", table.get("power_watts", 0.0), above=-1e-9),
        price_per_hour=check_number(
            f"{name}.price_per_hour", table.get("price_per_hour", 0.0), above=-1e-9
        ),
        usable=check_number(f"{name}.usable", table.get("usable", 1.0), most=1.0),
        low_bit=str(low_bit),
        devices=check_count(f"{name}.devices", table.get("devices", 1), low=1, high=1_000_000),
        call_seconds=check_number(
            f"{name}.call_seconds", table.get("call_seconds", 0.0), above=-1e-12
        ),
        block_seconds=check_number(
            f"{name}.block_seconds", table.get("block_seconds", 0.0), above=-1e-12
        ),
        source=str(table.get("source", "")),
    )


def load_machines(path: str | Path) -> dict[str, Machine]:
    """The machines of a TOML file with a table [machines.NAME] each."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"[machines] {short(path)} is no path")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"[machines] {path} cannot be read: {error}") from None
    return _parse(text, str(path))


def _parse(text: str, where: str) -> dict[str, Machine]:
    try:
        tables = tomllib.loads(text).get("machines", {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"[machines] {where} is no TOML: {error}") from None
    if not isinstance(tables, Mapping) or not all(isinstance(t, Mapping) for t in tables.values()):
        raise ValueError(f"[machines] {where} holds no [machines.NAME] tables")
    return {str(name): machine_from(table, str(name)) for name, table in tables.items()}


@cache
def _presets() -> dict[str, Machine]:
    text = resources.files(__package__).joinpath("data/machines.toml").read_text(encoding="utf-8")
    return _parse(text, "data/machines.toml")


def machines() -> dict[str, Machine]:
    """The presets, with what the file in MOEKIT_MACHINES adds or overrides."""
    known = dict(_presets())
    extra = os.environ.get("MOEKIT_MACHINES")
    if extra:
        known.update(load_machines(extra))
    return known


def find_machine(machine: object) -> Machine:
    """A preset by name (any case), "this" (measured now), a table of numbers, or a Machine."""
    if isinstance(machine, Machine):
        return machine
    if isinstance(machine, Mapping):
        return machine_from(machine)
    if not isinstance(machine, str):
        raise ValueError(f"[machine] {short(machine)} is no machine; a name or a table is required")
    known = machines()
    key = machine.strip().lower().replace("_", "-").replace(" ", "-")
    if key in known:
        return known[key]
    if key in ("this", "this-machine"):
        from .probe import this_machine

        return this_machine()
    near = get_close_matches(key[:40], known, 3, 0.4)
    hint = f" (near: {', '.join(near)})" if near else ""
    raise ValueError(
        f"[machine] {machine[:40]!r} is unknown{hint}; known are {', '.join([*known, 'this'])}"
    )
