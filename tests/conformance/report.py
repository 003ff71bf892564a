"""How far the predictions are from the measurements, by architecture and model.

usage: python -m tests.conformance.report [real|tiny] [--arch NAME]... [--model NAME]... [--all]
       python -m tests.conformance.report --lists

One line per model and kind of buffer: how many numbers, how many outside their limit, the worst below and above the
real one. With --arch or --model every number outside its limit is listed with its command (--all: every number).
`--lists` prints what not_met.toml would hold now.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache

from plan_llama.errors import PlanLlamaError
from plan_llama.memory.compute import is_described
from plan_llama.memory.types import DeviceBytes
from tests.conformance.limits import PARTS, Compared, compare, low, mostly_within
from tests.conformance_cases import SETS, Measured, Set, measured, models, predicted, spec, table


def compared(kind: Set, case: Measured) -> list[Compared]:
    """Every number of a measurement beside the prediction."""
    ours = predicted(case.asked, table(kind, case.model))
    found = []
    for place, part in ours.items():
        found += compare(case.label, place, part, case.places.get(place, DeviceBytes()))
    return found


@cache
def numbers(kind: Set, model: str) -> tuple[Compared, ...]:
    """Every number of a model's measurements."""
    return tuple(
        number for case in _by_model(kind)[model] if not case.refused for number in compared(kind, case)
    )


@cache
def _by_model(kind: Set) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = defaultdict(list)
    for case in measured(kind):
        found[case.model].append(case)
    return found


def write_lists() -> None:
    """What not_met.toml would hold now."""
    for kind in SETS:
        wrong = [model for model in models(kind) if not mostly_within(numbers(kind, model))]
        below = [model for model in models(kind) if low(numbers(kind, model))]
        sys.stdout.write(f"[{kind}]\n")
        for name, found in (("not_met", wrong), ("too_low", below)):
            names = sorted({spec(kind, model).architecture for model in found})
            sys.stdout.write(f"{name} = [\n" + "".join(f'    "{it}",\n' for it in names) + "]\n")


def _line(name: str, kind: str, numbers: Iterable[Compared]) -> str:
    listed = list(numbers)
    outside = [number for number in listed if not number.within]
    low = [number for number in listed if number.too_low]
    worst: dict[str, Compared] = {}
    for number in listed:
        if abs(number.ours - number.real) > min(64 << 10, number.slack_bytes):
            worst.setdefault("low", number)
            worst.setdefault("high", number)
            worst["low"] = min(worst["low"], number, key=lambda it: it.above)
            worst["high"] = max(worst["high"], number, key=lambda it: it.above)
    ends = "   exact to 64 KiB"
    if worst:
        ends = f"{100 * min(0.0, worst['low'].above):+9.1f} % {100 * max(0.0, worst['high'].above):+9.1f} %"
    counts = f"{len(listed):5} numbers {len(outside):4} outside {len(low):4} too low"
    return f"{name:44} {kind:12} {counts}  {ends}"


def main() -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(description="Predictions beside what llama.cpp reserves.")
    parser.add_argument("kind", nargs="?", choices=("real", "tiny"), default="real")
    parser.add_argument("--arch", action="append", default=[])
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--lists", action="store_true")
    args = parser.parse_args()
    if args.lists:
        write_lists()
        return 0
    kind: Set = args.kind
    by_model: dict[tuple[str, str], list[Compared]] = defaultdict(list)
    failed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in measured(kind):
        model = spec(kind, case.model)
        named = case.model in args.model or model.architecture in args.arch
        if case.refused or ((args.arch or args.model) and not named):
            continue
        key = model.architecture, case.model
        try:
            numbers = compared(kind, case)
        except PlanLlamaError as error:
            failed[key].append(f"{case.label}: {error}")
            continue
        by_model[key] += numbers
        if named:
            for number in numbers:
                if args.all or not number.within or number.too_low:
                    sys.stdout.write(f"{'  ' if number.within else '! '}{number}\n")
    for key, numbers in sorted(by_model.items()):
        architecture, name = key
        described = "" if is_described(spec(kind, name)) else " (not described: an upper bound)"
        sys.stdout.write(f"\n{architecture}{described}\n")
        for part in PARTS:
            for where in ("GPU", "Host"):
                of = [it for it in numbers if it.part == part and (" GPU" in it.label) == (where == "GPU")]
                if of:
                    sys.stdout.write(_line(name, f"{where} {part}", of) + "\n")
        for line in failed[key]:
            sys.stdout.write(f"! no prediction: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
