"""The block that drafts: its gain against published runs, its cost with experts in RAM, and what binds a token."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log
from typing import Any

import pytest
from scripts.speed_cases import DATA
from tests.unit.speed.test_speed_estimate import DESKTOP, SETTINGS, offloaded

from plan_llama import catalog
from plan_llama.hardware.overrides import HardwareChoice
from plan_llama.hardware.overrides import resolve as machine_of
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.catalog_models import resolve
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import judged
from plan_llama.solver.types import Candidate, Wishes
from plan_llama.speed.estimate import estimate
from plan_llama.speed.types import Request, SpeedEstimate

ROWS = [json.loads(line) for line in (DATA / "drafting.jsonl").read_text("utf-8").splitlines()]


def plans(model: str, quant: str, machine: Machine, draft_tokens: int = 3) -> tuple[Candidate, Candidate]:
    """The plan without and with the block that drafts."""
    table, found = ModelTable(resolve(model, quant)), []
    for pin in ("off", "on"):
        wishes = Wishes(workload=workload("chat"), context=8192, pins={"draft_layers": pin})
        task = make_task(table, machine, wishes, beyond())
        plan = solve(task, ladder=False)
        assert plan is not None
        settings = replace(plan.chosen.settings, draft_tokens=draft_tokens)
        found.append(judged(task, settings, plan.chosen.footprint))
    return found[0], found[1]


def gain(pair: tuple[Candidate, Candidate]) -> float:
    """How much faster drafting decodes."""
    plain, drafting = (item.speed.decode_tok_s.expected for item in pair)
    return drafting / plain


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['gpu']}-{row['quant']}")
def test_the_gain_is_near_the_published_one(row: dict[str, Any]) -> None:
    known = row["gpu"] in catalog.files("hardware")
    choice = HardwareChoice(hardware=row["gpu"]) if known else HardwareChoice(gpu=(row["gpu"],), ram="64GiB")
    pair = plans(row["model"], row["quant"], machine_of(choice), row["draft_tokens"])
    assert pair[1].settings.draft_layers
    assert pair[1].footprint.devices[0].total_bytes > pair[0].footprint.devices[0].total_bytes
    assert any("drafted tokens assumed" in text for text in pair[1].speed.assumptions)
    measured = row["drafting_tok_s"] / row["plain_tok_s"]
    assert abs(log(gain(pair) / measured)) <= log(1.25)


@pytest.mark.slow
def test_drafting_gains_on_a_card_and_loses_with_experts_in_ram() -> None:
    card = machine_of(HardwareChoice(gpu=("RTX 3090",), ram="256GiB", cpu_cores=16))
    cards = machine_of(HardwareChoice(hardware="8xh100-2tb"))
    assert gain(plans("glm-4.5-air", "Q4_K_M", cards)) > 1.2
    pair = plans("glm-4.5-air", "Q4_K_M", card)
    assert pair[0].cpu_moe_layers > 20
    assert gain(pair) < 0.95


def test_what_binds_has_its_share_and_moves_the_speed() -> None:
    def with_ram(bytes_per_s: float) -> SpeedEstimate:
        ram = replace(DESKTOP.ram, bandwidth_bytes_per_s=bytes_per_s)
        return estimate(replace(DESKTOP, ram=ram), offloaded(), SETTINGS, Request())

    speed = with_ram(60e9)
    assert "RAM bandwidth: 6.9 GB of experts" in speed.bound_by
    assert "memory channels" in speed.moved_by
    faster = with_ram(60e9 * 1.01)
    gain = faster.decode_tok_s.expected / speed.decode_tok_s.expected - 1
    assert gain == pytest.approx(0.01 * speed.bound_share, rel=0.02)
    assert speed.prefill_bound_by == "PCIe link"
