"""Money: what a million tokens cost on a machine, when renting beats an API, what training costs.

Prices are data (data/prices.toml, data/machines.toml), each with its source; nothing here knows
one. All amounts are US dollars.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fields import check_number, short

if TYPE_CHECKING:
    from .machines import Machine

SECONDS_PER_HOUR = 3600.0
HOURS_PER_MONTH = 730.0


@dataclass(frozen=True)
class Cost:
    """A cost and the figures it was made of."""

    dollars: float
    unit: str
    hours: float
    dollars_per_hour: float
    detail: Mapping[str, float]


def dollars_per_hour(
    machine: Machine, price_per_hour: float | None = None, power_price: float = 0.0
) -> float:
    """Rent (or write-off) plus power of all devices for an hour; `power_price` is per kWh."""
    price = machine.price_per_hour if price_per_hour is None else price_per_hour
    check_number("price_per_hour", price, above=-1e-12)
    check_number("power_price", power_price, above=-1e-12)
    return machine.devices * (price + machine.power_watts / 1000.0 * power_price)


def cost_per_million(
    machine: Machine,
    tokens_per_second: float,
    *,
    utilisation: float = 1.0,
    price_per_hour: float | None = None,
    power_price: float = 0.0,
) -> Cost:
    """Dollars for a million tokens when the machine is busy `utilisation` of the time."""
    rate = check_number("tokens_per_second", tokens_per_second)
    busy = check_number("utilisation", utilisation, most=1.0)
    hourly = dollars_per_hour(machine, price_per_hour, power_price)
    hours = 1e6 / (rate * busy * SECONDS_PER_HOUR)
    detail = {"tokens_per_second": rate, "utilisation": busy, "devices": float(machine.devices)}
    return Cost(hours * hourly, "1M tokens", hours, hourly, detail)


def break_even_utilisation(full_cost: float, api_price: float) -> float:
    """Utilisation at which a machine costs as much as the API; above 1.0 it never does."""
    cost = check_number("full_cost", full_cost, above=-1e-12)
    return cost / check_number("api_price", api_price)


def break_even_tokens(hourly: float, api_price: float) -> float:
    """Tokens a month that make an API as dear as a machine that runs all month."""
    price = check_number("api_price", api_price)
    check_number("hourly", hourly, above=-1e-12)
    return hourly * HOURS_PER_MONTH / price * 1e6


def monthly_saving(tokens: float, price_before: float, price_after: float) -> float:
    """Dollars saved on `tokens` when a million of them fall from one price to another."""
    before = check_number("price_before", price_before, above=-1e-12)
    after = check_number("price_after", price_after, above=-1e-12)
    return check_number("tokens", tokens) / 1e6 * (before - after)


def training_cost(
    active_params: int,
    tokens: float,
    machine: Machine,
    *,
    peak: str = "bf16",
    utilisation: float = 0.4,
    price_per_hour: float | None = None,
) -> Cost:
    """Training compute 6 N D (arXiv 2001.08361) as device hours and dollars.

    `utilisation` is the share of the peak that training reaches (MFU).
    """
    flops = 6.0 * active_params * check_number("tokens", tokens)
    busy = check_number("utilisation", utilisation, most=1.0)
    if peak not in machine.peak:
        raise ValueError(
            f"[training] {machine.name} has no {peak} peak; it has {', '.join(machine.peak)}"
        )
    hours = flops / (machine.peak[peak] * busy) / SECONDS_PER_HOUR
    price = machine.price_per_hour if price_per_hour is None else price_per_hour
    check_number("price_per_hour", price, above=-1e-12)
    return Cost(hours * price, "training", hours, price, {"flops": flops, "utilisation": busy})


@dataclass(frozen=True)
class ApiPrice:
    """Dollars a million tokens of an API, or a price given by number."""

    input: float
    output: float
    name: str = ""
    since: str = ""
    source: str = ""


@cache
def _presets() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("data/prices.toml").read_text(encoding="utf-8")
    return _parse(text, "data/prices.toml")


def _parse(text: str, where: str) -> Mapping[str, Any]:
    try:
        tables = tomllib.loads(text).get("api", {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"[prices] {where} is no TOML: {error}") from None
    if not isinstance(tables, Mapping) or not all(isinstance(t, Mapping) for t in tables.values()):
        raise ValueError(f"[prices] {where} holds no [api.NAME] tables")
    for name, entry in tables.items():
        for key in ("input", "output"):
            check_number(f"{name}.{key} of {where}", entry.get(key), above=-1e-12)
        if not entry.get("source"):
            raise ValueError(f"[prices] {name} of {where} has no source; a price needs one")
    return tables


def api_prices() -> dict[str, dict[str, Any]]:
    """Published API prices by name: dollars a million input and output tokens, date, source.

    A file of the same shape, named by the environment variable MOEKIT_PRICES, adds to them or
    overrides them. Raises ValueError naming what the file has wrong.
    """
    known = {name: dict(entry) for name, entry in _presets().items()}
    extra = os.environ.get("MOEKIT_PRICES")
    if extra:
        try:
            text = Path(extra).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"[prices] {extra} cannot be read: {error}") from None
        known.update({name: dict(entry) for name, entry in _parse(text, extra).items()})
    return known


def find_api_price(price: float | str) -> ApiPrice:
    """A price by its name in `api_prices`, or a number of dollars a million tokens."""
    try:
        number = float(price) if isinstance(price, str) else check_number("api_price", price)
    except ValueError:
        known = api_prices()
        if not isinstance(price, str) or price.strip().lower() not in known:
            raise ValueError(
                f"[prices] api_price is {short(price)}; a number of dollars or one of "
                f"{', '.join(known)} is required"
            ) from None
        entry = known[price.strip().lower()]
        return ApiPrice(
            float(entry["input"]),
            float(entry["output"]),
            price.strip().lower(),
            str(entry.get("since", "")),
            str(entry["source"]),
        )
    check_number("api_price", number)
    return ApiPrice(number, number)
