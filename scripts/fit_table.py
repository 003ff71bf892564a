#!/usr/bin/env python3
"""Writes docs/reference/placements.md: plans against llama.cpp's own --fit, by the same models.

usage: python -m scripts.fit_table [--out FILE]     (a minute; needs no engine: what --fit chose is in tests/data/fit)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests import fit_cases

from plan_llama.solver.whatif import most_gained

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "placements.md"
_HEAD = """# Plans against llama.cpp's own placement

Written by `scripts/fit_table.py`. Six models on nine machines, {context:,} tokens of context, a prompt of
{prompt:,} tokens and {output} tokens out: seconds of the request by plan-llama's memory and speed models, for
the plan and for what `--fit` of llama.cpp b11434 chose for the same cards (`tests/data/fit`). llama-server then
has a micro-batch of 512 and maps the file. Machines are the described ones of these names with 512 GiB of
memory, so that every model stays in it; these are predictions on both sides, not measurements. The last column
says which of the plan's choices makes most of the difference.

With experts on the CPU the median is {median:.2f} of the time, in all others {others:.2f}; no plan is slower.
"""


def rows() -> Iterator[tuple[str, str, float, float, bool, str]]:
    """Model, machine, seconds of the plan and of --fit, experts on the CPU, what did it."""
    for choice in fit_cases.choices():
        mine = fit_cases.plan(choice.model, choice.machine).chosen
        theirs = fit_cases.theirs(choice)
        a, b = mine.speed.request_s, theirs.speed.request_s
        why = most_gained(fit_cases.task(choice.model, choice.machine), mine, theirs) if a < 0.97 * b else "–"
        yield choice.model, choice.machine, a, b, mine.cpu_moe_layers > 0, why


def page() -> str:
    """The whole page."""
    found = list(rows())
    moe = median(a / b for _, _, a, b, offloaded, _ in found if offloaded)
    others = median(a / b for _, _, a, b, offloaded, _ in found if not offloaded)
    text = _HEAD.format(
        context=fit_cases.CONTEXT,
        prompt=fit_cases.PROMPT_TOKENS,
        output=fit_cases.OUTPUT_TOKENS,
        median=moe,
        others=others,
    )
    for model, quant in fit_cases.MODELS.items():
        text += f"\n## {model} {quant}\n\n| machine | plan, s | `--fit`, s | ratio | most of it by |\n"
        text += "|---|---|---|---|---|\n"
        for name, machine, a, b, _, why in found:
            if name == model:
                text += f"| {machine} | {a:.0f} | {b:.0f} | {a / b:.2f} | {why} |\n"
    return text


def main() -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(description="Write the table of plans against --fit.")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
