"""When a plan drafts with the model's own block: it gains on cards, and costs with experts in system memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.catalog_models import resolve as model_of
from plan_llama.solver import choice
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task
from plan_llama.solver.types import Plan, Wishes
from plan_llama.solver.whatif import what_ifs

CHAT = Wishes(workload=workload("chat"), can_draft=True)


@cache
def table() -> ModelTable:
    """GLM-4.5-Air, whose file has one block for drafting."""
    return ModelTable(model_of("glm-4.5-air", "Q4_K_M"))


@cache
def cards(count: int) -> Machine:
    """So many RTX 3090 in a desktop."""
    return resolve(HardwareChoice(gpu=(f"RTX 3090*{count}",), ram="128GiB", cpu_cores=16))


def task_of(count: int, wishes: Wishes = CHAT) -> Task:
    """The model on these cards."""
    return make_task(table(), cards(count), wishes, beyond())


def plan_of(task: Task, *, ladder: bool = False) -> Plan:
    """Its plan."""
    plan = solve(task, ladder=ladder)
    assert plan is not None
    return plan


def said(plan: Plan, which: str) -> str:
    """The text of a finding."""
    return next(item.text for item in plan.findings if item.id == which)


def test_it_drafts_where_all_layers_are_on_cards_and_not_with_experts_in_ram() -> None:
    resident, offloaded = plan_of(task_of(4)), plan_of(task_of(1))
    assert resident.chosen.settings.draft_layers
    assert resident.chosen.footprint.verdict == "fits"
    assert "if 80 % of them are right" in said(resident, "draft-block-used")
    assert offloaded.chosen.cpu_moe_layers > 20
    assert not offloaded.chosen.settings.draft_layers
    assert "is not loaded" in said(offloaded, "draft-block-unused")


def test_it_is_faster_than_the_plan_without_by_what_it_has_to_gain() -> None:
    off = replace(CHAT, pins={"draft_layers": "off"})
    drafting, plain = plan_of(task_of(4)).chosen, plan_of(task_of(4, off)).chosen
    assert not plain.settings.draft_layers
    assert drafting.speed.request_s * choice.DRAFT_GAIN <= plain.speed.request_s
    used = [sum(pool.used_bytes for pool in item.footprint.pools) for item in (drafting, plain)]
    assert used[0] > used[1] + 2**30  # a layer's experts, its cache, and buffers of a second context


@pytest.mark.slow
def test_not_by_a_build_that_cannot_and_not_against_a_pin() -> None:
    unable = replace(CHAT, can_draft=False)
    assert not plan_of(task_of(4, unable)).chosen.settings.draft_layers
    off = replace(CHAT, pins={"draft_layers": "off"})
    assert not plan_of(task_of(4, off)).chosen.settings.draft_layers
    on = plan_of(task_of(1, replace(CHAT, pins={"draft_layers": "on"})))
    assert on.chosen.settings.draft_layers
    (warning,) = (item for item in on.findings if item.id == "draft-block-used")
    assert warning.severity == "warning"  # it was asked for, and costs


def test_a_small_gain_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "DRAFT_GAIN", 2.0)
    plan = plan_of(task_of(4))
    assert not plan.chosen.settings.draft_layers


@pytest.mark.slow
def test_not_with_many_answers_at_once() -> None:
    # four answers and their drafts are more tokens than the kernels for vectors take: tiles of experts eat the gain
    for users, drafts in ((2, True), (4, False), (8, False)):
        plan = plan_of(task_of(8, replace(CHAT, users=users, context=8192)))
        assert plan.chosen.cpu_moe_layers == 0
        assert plan.chosen.settings.draft_layers == drafts
    assert "more than 4 answers" in said(plan, "draft-block-unused")


@pytest.mark.slow
def test_rows_of_the_ladder_choose_for_themselves() -> None:
    steps = {rung.context: rung.candidate for rung in plan_of(task_of(4), ladder=True).ladder}
    for context, item in steps.items():
        if item is None or item.footprint.verdict == "does-not-fit":
            continue
        assert item.settings.draft_layers == (item.cpu_moe_layers == 0), context
    assert {item.settings.draft_layers for item in steps.values() if item} == {True, False}


@pytest.mark.slow
def test_the_other_choice_is_told_with_its_numbers() -> None:
    for count, pin in ((4, "off"), (1, "on")):
        task = task_of(count)
        told = {item.what: item.effect for item in what_ifs(task, plan_of(task).chosen)}
        effect = told[f"--pin draft-layers={pin}"]
        assert "decode" in effect
        assert "the request" in effect
