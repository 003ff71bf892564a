"""Fit the speed model's constants to published runs, and say how well it predicts runs it has not seen.

    python scripts/fit_speed.py            writes profiles/speed/constants.toml and docs/reference/speed.md
    python scripts/fit_speed.py --report   prints the table for the shipped constants, and writes the page's section
                                           on runs that are in no fit

Needs numpy. The constants are found in log space by iteratively reweighted least squares: a robust loss (a
run that contradicts the others does not pull), each group of dependent runs counted once, and a pull
towards scripts/speed_priors.toml where few runs decide. Cross-validation leaves out one group after another.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import speed_cpu, speed_cuda, speed_fresh, speed_report  # noqa: E402  (the repository root is put on the path above)
from scripts.speed_cases import Case, read  # noqa: E402

from plan_llama.speed.constants import Constants, parse, shipped  # noqa: E402

CONSTANTS = ROOT / "profiles" / "speed" / "constants.toml"
REPORT = ROOT / "docs" / "reference" / "speed.md"
PULL = 0.10  # weight of the priors against one run
SOFT = 0.12  # residuals (log) beyond this count linearly
CONTROLLED = 3.0
COVERED = 0.80
MIN_ROWS = 8  # classes with fewer runs borrow from all

_OWN = ("fixed", "bounds")  # what the priors say to the fit itself

Profile = dict[str, Any]


def leaves(profile: Profile) -> dict[str, tuple[Any, Any]]:
    """Every number by its path, as (container, key); tables of an array go by their name or flag."""
    found: dict[str, tuple[Any, Any]] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            for item in node:
                if isinstance(item, dict):
                    walk(item, f"{path}.{item.get('name', item.get('flag'))}")
            return
        for key, value in node.items():
            here = f"{path}.{key}" if path else key
            if isinstance(value, dict | list):
                walk(value, here)
            elif isinstance(value, float):
                found[here] = (node, key)

    walk(profile, "")
    return found


def fitted_paths(priors: Profile) -> list[str]:
    """The paths of the constants that the fit may move."""
    fixed = priors["fixed"]["paths"]

    def is_fixed(path: str) -> bool:
        return any(path == f or (f.endswith("*") and path.startswith(f[:-1])) for f in fixed)

    return [path for path in leaves({k: v for k, v in priors.items() if k not in _OWN}) if not is_fixed(path)]


def with_values(priors: Profile, paths: Sequence[str], values: Sequence[float]) -> Profile:
    """A copy of the priors with other values at the paths."""
    profile = copy.deepcopy({k: v for k, v in priors.items() if k not in _OWN})
    places = leaves(profile)
    for path, value in zip(paths, values, strict=True):
        node, key = places[path]
        node[key] = float(value)
    for name in ("spread_decode", "spread_prefill"):
        profile.setdefault(name, {})
    return profile


def residuals(cases: Sequence[Case], constants: Constants) -> np.ndarray:
    """log(predicted / measured), decode and prefill of each case where measured, in order."""
    out = []
    for case in cases:
        decode, prefill = speed_report.predict(case, constants)
        if case.decode_tok_s:
            out.append(math.log(decode / case.decode_tok_s))
        if case.prefill_tok_s:
            out.append(math.log(prefill / case.prefill_tok_s))
    return np.array(out)


def weights(cases: Sequence[Case]) -> np.ndarray:
    """One per group of dependent runs, shared as a square root; prompt speeds, which scatter more, count half, and
    our own runs on a CPU, of which every type and setting is known, CONTROLLED times."""
    size = Counter(case.group for case in cases)
    out = []
    for case in cases:
        w = size[case.group] ** -0.5
        w *= CONTROLLED if case.data_class == speed_cpu.DATA_CLASS else 1.0
        out += [w] * bool(case.decode_tok_s) + [0.5 * w] * bool(case.prefill_tok_s)
    return np.array(out)


def reach(cases: Sequence[Case], priors: Profile) -> list[frozenset[str]]:
    """Per constant the cases whose prediction it moves: most belong to one kind of device."""
    paths, places = fitted_paths(priors), leaves(priors)
    values = [float(places[p][0][places[p][1]]) for p in paths]
    base = [speed_report.predict(case, parse(with_values(priors, paths, values))) for case in cases]
    found = []
    for i in range(len(paths)):
        moved = [v * (1.1 if i == n else 1.0) for n, v in enumerate(values)]
        constants = parse(with_values(priors, paths, moved))
        found.append(
            frozenset(
                case.id
                for case, before in zip(cases, base, strict=True)
                if speed_report.predict(case, constants) != before
            )
        )
    return found


def fit(
    cases: Sequence[Case],
    priors: Profile,
    reached: Sequence[frozenset[str]],
    start: Sequence[float] | None = None,
    steps: int = 12,
) -> list[float]:
    """The constants that predict the cases best, in the order of `fitted_paths`."""
    paths = fitted_paths(priors)
    places, bounds = leaves(priors), priors["bounds"]
    prior = np.log([places[p][0][places[p][1]] for p in paths])
    most = np.log(
        [next((limit for name, limit in bounds.items() if p.endswith(name)), math.inf) for p in paths]
    )
    x = np.log(start) if start is not None else prior.copy()

    def at(point: np.ndarray, some: Sequence[Case] = cases) -> np.ndarray:
        return residuals(some, parse(with_values(priors, paths, np.exp(point).tolist())))

    rows = [case for case in cases for _ in range(bool(case.decode_tok_s) + bool(case.prefill_tok_s))]
    moves = [
        ([case for case in cases if case.id in ids], np.array([row.id in ids for row in rows]))
        for ids in reached
    ]
    w = weights(cases)
    cost: Callable[[np.ndarray, np.ndarray], float] = lambda r, p: float(  # noqa: E731 - one line of algebra
        (w * SOFT**2 * (np.sqrt(1 + (r / SOFT) ** 2) - 1)).sum() + 0.5 * PULL * ((p - prior) ** 2).sum()
    )
    r = at(x)
    damping = 1e-4
    for _ in range(steps):
        jacobian = np.zeros((len(r), len(x)))
        for i, (some, here) in enumerate(moves):
            moved = x.copy()
            moved[i] += 1e-3
            jacobian[here, i] = (at(moved, some) - r[here]) / 1e-3
        robust = w / np.sqrt(1 + (r / SOFT) ** 2)
        pull = PULL * np.eye(len(x))
        normal = jacobian.T @ (robust[:, None] * jacobian) + pull
        gradient = jacobian.T @ (robust * r) + pull @ (x - prior)
        for _ in range(8):
            step = np.linalg.solve(normal + damping * np.eye(len(x)), gradient)
            trial = np.minimum(x - np.clip(step, -0.7, 0.7), most)
            trial_r = at(trial)
            if cost(trial_r, trial) < cost(r, x):
                x, r, damping = trial, trial_r, damping / 4
                break
            damping *= 8
        else:
            break
        if np.abs(step).max() < 3e-3:
            break
    return [float(v) for v in np.exp(x)]


_shared: tuple[Sequence[Case], Profile, Sequence[frozenset[str]], Sequence[float]]


def _share(all_of: tuple[Sequence[Case], Profile, Sequence[frozenset[str]], Sequence[float]]) -> None:
    """Runs in each process: what every group's fit starts from, too large to be sent with each."""
    global _shared
    _shared = all_of


def _without(group: str) -> dict[str, tuple[float, float]]:
    """What a fit predicts of a group that it has not seen, by case."""
    cases, priors, reached, values = _shared
    seen = [case for case in cases if case.group != group]
    found = fit(seen, priors, reached, start=values, steps=4)
    constants = parse(with_values(priors, fitted_paths(priors), found))
    return {case.id: speed_report.predict(case, constants) for case in cases if case.group == group}


def spreads(errors: dict[str, list[float]]) -> dict[str, float]:
    """The factor that holds COVERED of each class's unseen runs; small classes are pooled with all runs."""
    everything = sorted(abs(e) for values in errors.values() for e in values)

    def quantile(values: Sequence[float]) -> float:
        return math.exp(
            float(
                np.quantile(np.array(values), min(1.0, math.ceil(COVERED * (len(values) + 1)) / len(values)))
            )
        )

    return {
        name: round(quantile([abs(e) for e in values] if len(values) >= MIN_ROWS else everything), 3)
        for name, values in sorted(errors.items())
    }


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main(arguments: Sequence[str]) -> int:
    """Fit, cross-validate and write; or only report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--report", action="store_true", help="no fit: the table and the fresh runs for the shipped constants"
    )
    options = parser.parse_args(arguments)
    published, left_out = read()
    cases = (*published, *speed_cuda.read(), *speed_cpu.read())
    unseen = tuple(speed_cuda.read(speed_cuda.H100))
    if options.report:
        sys.stdout.write(speed_report.table((*cases, *unseen), shipped()))
        write(
            REPORT, speed_fresh.replaced(REPORT.read_text(encoding="utf-8"), speed_fresh.section(shipped()))
        )
        return 0
    priors = tomllib.loads((Path(__file__).parent / "speed_priors.toml").read_text(encoding="utf-8"))
    paths = fitted_paths(priors)
    reached = reach(cases, priors)
    values = fit(cases, priors, reached)
    groups = sorted({case.group for case in cases})
    held: dict[str, tuple[float, float]] = {}
    with get_context("fork").Pool(initializer=_share, initargs=((cases, priors, reached, values),)) as pool:
        for found in pool.imap_unordered(_without, groups):
            held |= found
    profile = with_values(priors, paths, [float(f"{v:.4g}") for v in values])
    decode: dict[str, list[float]] = {name: [] for name in speed_report.CLASSES}
    prefill: dict[str, list[float]] = {name: [] for name in speed_report.CLASSES}
    for case in cases:
        name = speed_report.size_class(case)
        if case.data_class in speed_report.OWN:
            continue  # the many runs of one machine would narrow the range of all
        if case.decode_tok_s:
            decode[name].append(math.log(held[case.id][0] / case.decode_tok_s))
        if case.prefill_tok_s:
            prefill[name].append(math.log(held[case.id][1] / case.prefill_tok_s))
    profile["spread_decode"], profile["spread_prefill"] = spreads(decode), spreads(prefill)
    inside = {
        kind: [abs(e) <= math.log(profile[f"spread_{kind}"][name]) for name, es in errors.items() for e in es]
        for kind, errors in (("decode", decode), ("prefill", prefill))
    }
    profile["fitted"] = {
        "date": datetime.now(UTC).date().isoformat(),
        "decode_rows": sum(map(len, decode.values())),
        "prefill_rows": sum(map(len, prefill.values())),
        "held_out_decode_median_abs_error": round(speed_report.median_error(decode), 4),
        "held_out_prefill_median_abs_error": round(speed_report.median_error(prefill), 4),
        "held_out_decode_in_range": round(sum(inside["decode"]) / len(inside["decode"]), 4),
        "held_out_prefill_in_range": round(sum(inside["prefill"]) / len(inside["prefill"]), 4),
    }
    head = (
        "# Written by scripts/fit_speed.py from tests/data/throughput, tests/data/cuda and tests/data/cpu.\n"
        "# Do not edit: change scripts/speed_priors.toml and fit again.\n"
    )
    write(CONSTANTS, head + tomli_w.dumps(profile))
    held |= {case.id: speed_report.predict(case, parse(profile)) for case in unseen}
    section = speed_fresh.section(parse(profile))
    write(
        REPORT,
        speed_report.page((*cases, *unseen), left_out, parse(profile), held, profile["fitted"], section),
    )
    sys.stdout.write(speed_report.table(cases, parse(profile)))
    sys.stdout.write(f"held out: {profile['fitted']}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
