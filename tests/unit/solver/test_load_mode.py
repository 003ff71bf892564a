"""Pinned or mapped: by what pinning gains, and by what it leaves to others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plan_llama.memory.footprint import host_margin_bytes
from plan_llama.memory.table import ModelTable
from plan_llama.models.catalog_models import resolve as model_of
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import PINNED_GAIN, Task, judged, pinned_spare_bytes
from plan_llama.solver.types import Plan, Wishes
from plan_llama.units import GIB
from tests.oracle_cases import machine_with

MODEL = ModelTable(model_of("qwen3-30b-a3b", "Q4_K_M"))


def task_of(ram_gib: float, *, total_gib: float = 0, **wishes: Any) -> Task:
    """Qwen3-30B-A3B on a card of 12 GiB, with so much memory available."""
    machine = machine_with(((12288, 512),), ram_bytes=round((total_gib or ram_gib) * GIB))
    machine = replace(machine, ram=replace(machine.ram, available_bytes=round(ram_gib * GIB)))
    asked = {"prompt_tokens": 16384, "reuse": 0.0, "pins": {"ubatch": "2048", "cache_ram": "0"}, **wishes}
    return make_task(MODEL, machine, Wishes(workload=workload("chat"), **asked), beyond())


def plan_of(task: Task) -> Plan:
    plan = solve(task, ladder=False)
    assert plan is not None
    return plan


def left(plan: Plan) -> int:
    ram = plan.chosen.footprint.pools[0]
    return ram.available_bytes - ram.used_bytes


def test_a_long_prompt_is_worth_pinning_with_less_than_16_gib_left() -> None:
    """Mapped pages reach a card at 9 GB/s however fast the link (tests/data/cuda)."""
    task = task_of(26, total_gib=32)
    plan = plan_of(task)
    assert plan.chosen.settings.load_mode == "none"
    assert 12 * GIB <= left(plan) < 16 * GIB
    assert plan.chosen.footprint.verdict == "fits"
    mapped = judged(task, replace(plan.chosen.settings, load_mode="mmap"), plan.chosen.footprint)
    assert plan.chosen.speed.request_s * PINNED_GAIN <= mapped.speed.request_s


def test_what_gains_little_leaves_16_gib() -> None:
    plan = plan_of(task_of(26, total_gib=32, prompt_tokens=64, output_tokens=2000))
    assert plan.chosen.settings.load_mode == "mmap"
    assert 12 * GIB <= left(plan) < 16 * GIB


def test_what_mapping_costs_is_a_warning_with_the_way_out() -> None:
    plan = plan_of(task_of(22, total_gib=32))
    assert plan.chosen.settings.load_mode == "mmap"
    (said,) = (item for item in plan.findings if item.id == "mmap-with-cpu-override-slow")
    assert said.severity == "warning"
    assert "less than 12.0 GiB of memory" in said.text
    assert "the request takes" in said.text
    assert "--pin load-mode=none" in said.fix
    pinned = plan_of(task_of(22, total_gib=32, pins={"ubatch": "2048", "load_mode": "none"}))
    assert pinned.chosen.settings.load_mode == "none"


@pytest.mark.parametrize(("total_gib", "spare_gib"), [(16, 12), (64, 12), (128, 12), (256, 16), (512, 16)])
def test_the_margin_of_the_host_stays(total_gib: int, spare_gib: int) -> None:
    task = task_of(total_gib)
    spare = pinned_spare_bytes(task, clear=True)
    assert spare == pytest.approx(spare_gib * GIB, rel=0.01)
    if total_gib <= 128:
        assert spare > host_margin_bytes(task.machine, task.beyond)
    assert pinned_spare_bytes(task, clear=False) == 16 * GIB
