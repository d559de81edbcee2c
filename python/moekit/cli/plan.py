"""`moekit plan`: what a model costs, before it is loaded."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import resources
from typing import Any

_EXAMPLES = """\
examples:
  moekit plan deepseek-v3 --format fp8 --context 8192 --batch 16
  moekit plan ./my-model --format int4 --machine workstation-64
  moekit plan mixtral-8x7b --vs llama-2-70b --machine h100-80
  moekit plan qwen3-30b-a3b --machine h200 --price 3.59 --utilisation 0.3 --api-price 1.10
  moekit plan deepseek-v3 --machine h200 --batch 64 --api-price deepseek-v3
  moekit plan deepseek-v3 --train 14.8e12 --machine h800
  moekit plan gpt-oss-20b --json
  moekit plan glm-4.5-air --format int4 --kv-format int8 --memory 64
  moekit plan olmoe --format all
  moekit plan qwen3-30b-a3b --format int8 --verify
  moekit plan demo --format all --verify --threads 1 --clock cpu
  moekit plan --list
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the `moekit` parser."""
    parser = subparsers.add_parser(
        "plan",
        help="parameters, memory, speed and cost of a model, from its configuration",
        description="What a model costs before it is loaded: active and total parameters to the "
        "integer, bytes in any format, cache, devices, roofline speed, money. Speeds are upper "
        "bounds. No weight is read.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="NAME|PATH",
        help="a built-in name, a directory, a config.json or a .gguf file",
    )
    add("--vs", action="append", default=[], metavar="B", help="compare with another model")
    add(
        "--format",
        default="bf16",
        help="of the weights: bf16 fp8 int8 int4 mxfp4 q4_k … (bf16); all: a table, or with "
        "--verify each that has kernels",
    )
    add(
        "--recipe",
        action="append",
        default=[],
        metavar="PART=FORMAT",
        help="another format for one component, e.g. embedding=bf16",
    )
    add("--kv-format", default="bf16", help="of the cache: bf16 fp8 int8 int4 or bits (bf16)")
    add("--context", type=int, default=4096, help="tokens in each sequence's cache (4096)")
    add("--batch", type=int, default=1, help="sequences decoded together (1)")
    add(
        "--machine",
        action="append",
        default=[],
        metavar="M",
        help="a machine of --list; with one, its step is shown term by term",
    )
    add("--memory", type=float, metavar="GB", help="devices, context and batch in so much memory")
    add("--devices", type=int, help="devices of the machine (as many as the model needs)")
    add("--price", type=float, help="dollars an hour and device, instead of the machine's")
    add("--power-price", type=float, default=0.0, help="dollars a kWh on top (0)")
    add("--utilisation", type=float, default=1.0, help="share of the time that is used (1)")
    add(
        "--api-price",
        metavar="PRICE",
        help="dollars a million tokens to break even with, or a name of --list",
    )
    add("--train", type=float, metavar="TOKENS", help="training compute and cost for that many")
    add("--mfu", type=float, default=0.4, help="share of the peak reached in training (0.4)")
    add("--plot", metavar="OUT.png", help="draw memory, speed, experts and cost")
    add(
        "--verify",
        action="store_true",
        help="measure this machine, predict, run the model's shape, and print the ratios",
    )
    add("--prompt", type=int, default=512, help="tokens of the prefill that --verify runs (512)")
    add("--threads", type=int, metavar="N", help="of --verify (MOEKIT_NUM_THREADS, else all)")
    add(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="of --verify; cpu: processor time per thread, where other programs run (wall)",
    )
    add("--list", action="store_true", help="list built-in models and machines")
    add("--json", action="store_true", help="print every figure as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; 2 and one line on stderr for bad input."""
    try:
        return _run(args)
    except (ValueError, RuntimeError, ImportError) as error:
        print(f"moekit plan: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from moekit import planner

    if args.list:
        return _list(args.json)
    if args.model is None:
        raise ValueError("[plan] no model given; a name, a path or --list is required")
    every = args.format.strip().lower() == "all"
    options = {
        "format": "bf16" if every else args.format,
        "context": args.context,
        "batch": args.batch,
        "kv_format": _cache_format(args.kv_format),
        "recipe": _recipe(args.recipe),
    }
    plans = [planner.plan_model(model, **options) for model in (args.model, *args.vs)]
    chosen = [planner.find_machine(name) for name in args.machine]
    machines = chosen or list(planner.machines().values())
    if args.devices is not None:
        machines = [machine.times(args.devices) for machine in machines]
    if args.verify:
        return _verify(args, plans, every=every)
    if args.plot:
        _plot(args, plans, machines)
    if every:
        return _formats(args, plans)
    if args.json:
        print(json.dumps(_as_json(args, plans, machines), indent=2))
        return 0
    _print(args, plans, machines, detailed=len(chosen) == 1)
    return 0


def _cache_format(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _recipe(pairs: list[str]) -> dict[str, str]:
    recipe = {}
    for pair in pairs:
        part, equals, format = pair.partition("=")
        if not equals:
            raise ValueError(f"[plan] --recipe is {pair[:40]!r}; PART=FORMAT is required")
        recipe[part] = format
    return recipe


def _placement(plan: Any, args: argparse.Namespace) -> Any:
    """What --memory holds, or None."""
    from moekit.planner.fields import check_number

    if args.memory is None:
        return None
    size = check_number("--memory", args.memory, most=1e9) * 1e9
    return plan.placement(size, args.devices)


def _placed(plan: Any, machine: Any, devices: int | None) -> Any:
    """The machine with as many devices as asked for, else as the model needs."""
    return machine if devices else machine.times(plan.devices(machine.usable_bytes))


def _cost_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "utilisation": args.utilisation,
        "price_per_hour": args.price,
        "power_price": args.power_price,
    }


def _as_json(args: argparse.Namespace, plans: list[Any], machines: list[Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from moekit import planner

    api = None if args.api_price is None else planner.find_api_price(args.api_price)
    out = []
    for plan in plans:
        figures = plan.to_dict()
        placement = _placement(plan, args)
        if placement is not None:
            figures["placement"] = asdict(placement)
        figures["machines"] = {}
        for machine in machines:
            placed = _placed(plan, machine, args.devices)
            figures["machines"][machine.name] = {
                **asdict(plan.placement(machine.usable_bytes, placed.devices)),
                **asdict(plan.roofline(placed)),
                "dollars_per_million_tokens": plan.cost(placed, **_cost_options(args)).dollars,
            }
            if api is not None:
                full = plan.cost(placed, **{**_cost_options(args), "utilisation": 1.0}).dollars
                figures["machines"][machine.name]["break_even_utilisation"] = (
                    planner.break_even_utilisation(full, api.output)
                )
            if args.train is not None:
                cost = plan.training(
                    args.train, machine, utilisation=args.mfu, price_per_hour=args.price
                )
                figures["machines"][machine.name]["training"] = asdict(cost)
        out.append(figures)
    return out[0] if len(out) == 1 else {"plans": out}


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width of its own; tables must not break
        console = Console(highlight=False, width=140)
    return console


def _print(
    args: argparse.Namespace, plans: list[Any], machines: list[Any], *, detailed: bool
) -> None:
    from moekit import planner
    from moekit.planner import report

    console = _console()
    api = None if args.api_price is None else planner.find_api_price(args.api_price)
    plan = plans[0]
    if len(plans) > 1:
        report.show(
            console, [report.compare_table(plans, machines, _cost_options(args), args.devices)]
        )
        return
    parts: list[Any] = [
        report.headline(plan),
        report.component_table(plan),
        report.arithmetic_table(plan),
        report.memory_table(plan, _placement(plan, args)),
        report.machine_table(plan, machines, args.devices),
    ]
    if detailed:
        machine = _placed(plan, machines[0], args.devices)
        parts.append(report.work_lines(plan, machine, plan.roofline(machine)))
        parts.append(report.cost_lines(plan, machine, _cost_options(args), api))
    if args.train is not None:
        for machine in machines:
            if "bf16" in machine.peak:
                parts.append(report.training_line(plan, args.train, machine, args.mfu, args.price))
    report.show(console, parts)


def _plot(args: argparse.Namespace, plans: list[Any], machines: list[Any]) -> None:
    from moekit.analysis import plan_plots, plots

    figure = plan_plots.plan_figure(plans, machines, price=args.price)
    plots.save(figure, args.plot)


def _formats(args: argparse.Namespace, plans: list[Any]) -> int:
    """Bytes of every format."""
    from moekit.planner import FORMATS, report

    if args.json:
        sizes = {
            plan.name or plan.inventory.model_type: {
                name: {
                    "bits": format.bits,
                    "bits_with_scales": format.bits_with_scales,
                    "weight_bytes": plan.at(format=name).weight_bytes,
                    "memory_bytes": plan.at(format=name).memory_bytes,
                }
                for name, format in FORMATS.items()
            }
            for plan in plans
        }
        print(json.dumps(sizes, indent=2))
        return 0
    for plan in plans:
        report.show(_console(), [report.headline(plan), report.format_table(plan)])
    return 0


def _verify(args: argparse.Namespace, plans: list[Any], *, every: bool) -> int:
    from tqdm import tqdm

    from moekit import ops
    from moekit.planner import report_verify
    from moekit.planner.verify import verify

    formats = ops.format_names() if every else [plans[0].format.name]
    wanted = [plan.at(format=name) for plan in plans for name in formats]
    found = []
    with tqdm(wanted, unit="format", file=sys.stderr, disable=len(wanted) < 2) as bar:
        for plan in bar:
            bar.set_description(f"{plan.name or plan.inventory.model_type} {plan.format.name}")
            options = {"prompt": args.prompt, "threads": args.threads, "clock": args.clock}
            found.append(verify(plan, **options))
    if args.json:
        lines = [one.to_dict() for one in found]
        print(json.dumps(lines[0] if len(lines) == 1 else {"verified": lines}, indent=2))
    elif len(found) == 1:
        report_verify.show(_console(), found[0])
    else:
        report_verify.show_all(_console(), found)
    return 0


def _list(as_json: bool) -> int:
    from moekit import planner

    models = planner.catalog()
    machines = planner.machines()
    if as_json:
        listed = {
            "models": {name: entry["title"] for name, entry in models.items()},
            "machines": {name: machine.to_dict() for name, machine in machines.items()},
            "prices": planner.api_prices(),
            "model_types": planner.known_types(),
        }
        print(json.dumps(listed, indent=2))
        return 0
    for name, entry in models.items():
        print(f"{name:22}{entry['title']:28}{entry['published']}")
    print()
    for name, machine in machines.items():
        print(f"{name:22}{machine.title}")
    print(f"{'this':22}this machine, measured")
    print()
    for name, price in planner.api_prices().items():
        dates = f"{price.get('since', '')} to {price.get('until', 'now')}"
        print(
            f"{name:22}${price['input']:g} in, ${price['output']:g} out a million tokens; {dates}"
        )
    print()
    for name, variable in (("machines.toml", "MOEKIT_MACHINES"), ("prices.toml", "MOEKIT_PRICES")):
        path = resources.files("moekit.planner").joinpath("data", name)
        print(f"{path}: {variable} names a copy of yours")
    return 0
