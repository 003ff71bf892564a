"""Older builds of llama.cpp: what they were measured to reserve, beside what is predicted for such a build.

tests/data/older_builds has the cases and scripts/older_builds.py makes them again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines import memory_rules
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.hardware.types import Cpu, Machine, Ram
from plan_llama.memory.estimate import buffers
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import DeviceBytes, Settings
from plan_llama.models.resolve import resolve_model
from plan_llama.units import GIB, MIB
from tests import oracle_cases

CASES = Path(__file__).parents[1] / "data" / "older_builds" / "cases.jsonl"
# 7841fc7 is of March 2025: a tree without its number, older than every change that is known here.
TREES = {"7841fc7": min(rule.since for rule in memory_rules.rules()) - 1}
MACHINE = Machine(
    name="host",
    ram=Ram(total_bytes=1024 * GIB, available_bytes=1000 * GIB),
    cpu=Cpu(physical_cores=8, logical_cores=8),
)


def cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


# Measured when the catalog had llama-quantize's own mix under this name; the stored header has it.
STORED = {"glm-4.5-air:Q4_K_M": "glm-4.5-air-q4_k_m"}


@cache
def table(name: str) -> ModelTable:
    if name in STORED:
        return oracle_cases.table(STORED[name])
    model, _, quant = name.partition(":")
    return ModelTable(resolve_model(model, quant))


def meant(case: dict[str, Any]) -> Settings:
    """The settings of a case, as its build reads them."""
    build = case["build"] or TREES[case["tree"]]
    parsed = parse((case["program"], *case["flags"]), table=FlagTable.load(build))
    assert parsed.accepted, parsed.refused
    settings = to_settings(parsed, model=table(case["model"]).spec, machine=MACHINE).settings
    assert settings.older == memory_rules.older(build)
    return replace(settings, repack=False)


def host(case: dict[str, Any], settings: Settings) -> DeviceBytes:
    return buffers(table(case["model"]), settings, ()).host


def label(case: dict[str, Any]) -> str:
    return f"{case['tree']} {case['model']} {' '.join(case['flags'])}"


CARD = next(case for case in cases() if case["flags"] == ["-c", "8192", "-np", "1", "-fa"])


def test_what_was_measured_is_all_read() -> None:
    wanted = json.loads((CASES.parent / "wanted.json").read_text(encoding="utf-8"))
    asked = [
        (tree, model, line)
        for tree, rows in wanted.items()
        for model, lines in rows.items()
        for line in lines
    ]
    assert [(case["tree"], case["model"], " ".join(case["flags"])) for case in cases()] == asked
    assert len(asked) >= 21


@pytest.mark.parametrize("case", cases(), ids=label)
def test_an_older_build_is_predicted(case: dict[str, Any]) -> None:
    """Compute to 5 %, and never lower than real by more than 2 %. What a rule says is not counted may only be above."""
    settings = meant(case)
    said, real = host(case, settings), case["bytes"]
    build = case["build"] or TREES[case["tree"]]
    more = memory_rules.findings(build, table(case["model"]).spec, settings)
    above = any("less than shown" in item.text for item in more) and "glm-5.1" in case["model"]
    assert said.weights_bytes == pytest.approx(real["model"], rel=1e-3, abs=MIB)
    assert said.context_bytes >= real["context"] * 0.999
    assert said.compute_bytes >= real["compute"] * 0.98
    if not above:
        assert said.context_bytes == pytest.approx(real["context"], rel=1e-3, abs=MIB)
        assert said.compute_bytes <= real["compute"] * 1.05 + MIB


@pytest.mark.slow
def test_today_s_rules_would_be_far_too_low_for_them() -> None:
    """What the rules are for: each counted one that a case has moves its buffer by more than 2 %."""
    moved: set[str] = set()
    for case in cases():
        settings = meant(case)
        for rule in settings.older:
            without = host(case, replace(settings, older=settings.older - {rule}))
            said = host(case, settings)
            if (
                max(said.context_bytes, without.context_bytes)
                > 1.02 * min(said.context_bytes, without.context_bytes)
                or not 0.98 <= said.compute_bytes / without.compute_bytes <= 1.02
            ):
                moved.add(rule)
    assert moved >= {"outputs-per-token", "mask-f32", "no-mixed-batch", "no-window-cache", "one-pool"}
    card = host(CARD, meant(CARD))
    assert host(CARD, replace(meant(CARD), older=frozenset())).compute_bytes < 0.6 * card.compute_bytes
