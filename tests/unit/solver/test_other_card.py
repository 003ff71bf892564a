"""Experts on another card than their layer, which the search leaves out, against its plans: real models, two cards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from plan_llama.memory.estimate import buffers
from plan_llama.memory.types import HOST, Override
from plan_llama.solver.place import Filled
from plan_llama.solver.search import Task, base_settings, evaluate, score
from tests import fit_cases

MODELS = ("gpt-oss-120b", "glm-4.5-air", "qwen3-235b-a22b", "glm-5.1")
MACHINES = {"24 + 12 GB, x4 link": 1.06, "2 x 24 GB": 1.001}  # times as fast as the plan that it may be


def experts_of(layers: list[int], device: int) -> list[Override]:
    """The override for the experts of some layers, none for none."""
    names = "|".join(map(str, layers))
    return [Override(rf"blk\.({names})\.ffn_(up|down|gate|gate_up)_exps\.", device)] if layers else []


def apart(task: Task, ubatch: int, own: int, others: int) -> Filled | None:
    """Every layer on the first card with the experts of the last `own`, those of `others` before on the second card,
    the rest on the host; None where a card's margin is not kept."""
    layers = [il for il in range(task.table.layers) if task.table.expert_bytes[il]]
    if own + others > len(layers):
        return None
    there = len(layers) - own
    base = base_settings(task, fit_cases.CONTEXT, ubatch, "f16")
    settings = replace(
        base,
        gpu_layers=task.filler.everything,
        tensor_split=(1.0, 0.0),
        overrides=(
            *experts_of(layers[there - others : there], 1),
            *experts_of(layers[: there - others], HOST),
        ),
    )
    made = buffers(task.table, settings, task.filler.devices, task.filler.isa)
    limits = task.filler.budgets(settings)
    parts = zip(made.devices, limits, strict=True)
    kept = all(not part.total_bytes or part.peak_bytes <= limit for part, limit in parts)
    return Filled(settings, made) if kept else None


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number for which it holds, 0 where it holds for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", MODELS)
def test_a_card_for_experts_alone_gains_little(model: str, machine: str) -> None:
    task, plan = fit_cases.task(model, machine), fit_cases.plan(model, machine).chosen
    ubatch, layers = plan.settings.ubatch, task.table.layers
    most = largest(lambda own: apart(task, ubatch, own, 1) is not None, layers)
    times = []
    for own in {most, max(0, most - 1)}:
        others = largest(lambda n, own=own: apart(task, ubatch, own, n) is not None, layers)  # type: ignore[misc]
        if (filled := apart(task, ubatch, own, others)) is not None:
            times.append(score(task, evaluate(task, filled))[-1])
    assert times
    assert score(task, plan)[-1] <= min(times) * MACHINES[machine]
