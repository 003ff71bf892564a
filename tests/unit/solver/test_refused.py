"""Products that the cards' backend refuses are priced where they are made, and the plan places around them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Override
from plan_llama.memory.weights import place
from plan_llama.models.resolve import resolve_model
from plan_llama.solver.place import Filled
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task, base_settings, evaluate
from plan_llama.solver.types import Candidate, Wishes

CONTEXT = 8192
DOWN = "PCIe copy of refused weights"


@cache
def table() -> ModelTable:
    """Mistral Small 4, whose down matrices b11434 multiplies with f32 precision: no kernel of CUDA's does that."""
    return ModelTable(resolve_model("mistral-small-4", "Q4_K_M"))


def task_on(machine: Machine) -> Task:
    return make_task(table(), machine, Wishes(workload=workload("chat"), context=CONTEXT), beyond())


@pytest.fixture
def machine() -> Machine:
    """One card of 96 GB, which all of the model fits on, over PCIe 5.0 x16 at 50 GB/s as measured."""
    found = resolve(HardwareChoice(hardware="rtx-pro-6000-512"))
    return replace(found, gpus=(replace(found.gpus[0], link_bytes_per_s=50e9),))


def evaluated(task: Task, *overrides: Override) -> Candidate:
    base = replace(base_settings(task, CONTEXT, 512, "f16"), gpu_layers=99, overrides=overrides)
    return evaluate(task, Filled(base, task.filler.made(base).made))


def down_bytes() -> int:
    return sum(t.nbytes for t in table().spec.tensors if t.name.endswith("ffn_down_exps.weight"))


def test_what_is_copied_back_is_paid_for_by_every_batch(machine: Machine) -> None:
    on_card = evaluated(task_on(machine))
    apart = evaluated(task_on(machine), Override("ffn_down_exps", HOST))
    assert on_card.speed.parts[DOWN] == pytest.approx(down_bytes() / 50e9)
    assert on_card.speed.prefill_parts[DOWN] == pytest.approx(2 * down_bytes() / 50e9), "1,024 tokens"
    assert DOWN not in apart.speed.parts
    assert apart.speed.parts["CPU experts"] == pytest.approx(on_card.speed.parts["CPU experts"])
    assert not any("host weights" in name for name in apart.speed.prefill_parts), (
        "not copied to the card either"
    )


def test_the_plan_keeps_them_in_system_memory(machine: Machine) -> None:
    task = task_on(machine)
    plan = solve(task, ladder=False)
    assert plan is not None
    placed = place(table(), plan.chosen.settings, [gpu.free_bytes for gpu in machine.gpus])
    assert {placed.device_of[i] for i in task.layers.refused} == {HOST}
    others = task.layers.routed - task.layers.refused
    assert {placed.device_of[i] for i in others} == {0}
    assert [o.pattern for o in plan.chosen.settings.overrides] == ["ffn_down_exps"]
    assert (plan.chosen.cpu_moe_layers, plan.chosen.cpu_moe_parts) == (36, 36)
    found = [finding for finding in plan.findings if finding.id == "gpu-lacks-an-operation"]
    assert [finding.severity for finding in found] == ["note"]


def test_a_backend_that_has_the_operation_gets_everything(machine: Machine) -> None:
    other = replace(machine, gpus=(replace(machine.gpus[0], backend="vulkan"),))
    plan = solve(task_on(other), ladder=False)
    assert plan is not None
    assert not plan.chosen.settings.overrides
    assert DOWN not in plan.chosen.speed.parts
    assert not any(finding.id == "gpu-lacks-an-operation" for finding in plan.findings)
