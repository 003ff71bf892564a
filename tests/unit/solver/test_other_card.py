"""Experts on another card than their layer: which plans have them, and plans against the best that they can bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from plan_llama.hardware.types import Machine
from plan_llama.memory.estimate import buffers
from plan_llama.memory.types import HOST, Override
from plan_llama.memory.weights import place
from plan_llama.solver.apart import lenders
from plan_llama.solver.place import Filled
from plan_llama.solver.plan import solve
from plan_llama.solver.search import Task, base_settings, evaluate, score
from plan_llama.speed.constants import shipped
from tests import fit_cases
from tests.oracle_cases import machine_with

MODELS = ("gpt-oss-120b", "glm-4.5-air", "qwen3-235b-a22b", "glm-5.1")
MACHINES = ("24 + 12 GB, x4 link", "2 x 24 GB")
FAST = (1008, 165, 16)  # bandwidth (GB/s), arithmetic (TFLOPS) and lanes
SLOW = (250, 25, 4)


def machine_of(*cards: tuple[int, tuple[int, int, int]]) -> Machine:
    """Cards of so many MiB and such a kind."""
    machine = machine_with(tuple((mib, 0) for mib, _ in cards), ram_bytes=256 << 30)
    return replace(
        machine,
        gpus=tuple(
            replace(gpu, bandwidth_bytes_per_s=rate * 1e9, fp16_flops_per_s=flops * 1e12, pcie_width=lanes)
            for gpu, (_, (rate, flops, lanes)) in zip(machine.gpus, cards, strict=True)
        ),
    )


def test_a_slow_card_holds_experts_of_a_fast_one() -> None:
    task = fit_cases.task("gpt-oss-120b", MACHINES[0]).pinned(ubatch="2048")
    plan = solve(task, ladder=False)
    assert plan is not None
    table, chosen = task.table, plan.chosen
    placed = place(table, chosen.settings, [gpu.free_bytes for gpu in task.machine.gpus])
    assert set(placed.layer_device[: table.layers]) == {0}
    lent = [il for il in range(table.layers) if placed.device_of[table.expert_indices[il][0]] == 1]
    assert len(lent) >= 4
    for device, pool in zip(chosen.footprint.devices, chosen.footprint.pools[1:], strict=True):
        assert device.peak_bytes + pool.margin_bytes <= pool.available_bytes
    (said,) = (f for f in plan.findings if f.id == "experts-on-another-card")
    assert f"gpu1 (NVIDIA GeForce RTX 3060) has experts of {len(lent)} layers" in said.text
    # two hand-overs a layer: f32 rows of the model's width (2,880), over the slower link
    k, speed = shipped(), chosen.speed
    carried = 2 * 4 * 2880 * fit_cases.PROMPT_TOKENS * len(lent)
    rate = 4 * k.link_bytes_per_s["4"] * k.link_pinned
    assert speed.prefill_parts["PCIe between cards"] == pytest.approx(carried / rate, rel=1e-6)
    assert speed.parts["crossings"] == pytest.approx((chosen.cpu_moe_layers + len(lent)) * k.crossing_s)


def test_equal_cards_lend_nothing() -> None:
    for cards in ([(2700, FAST)], [(2700, FAST), (2600, FAST)], [(2700, SLOW)] * 3):
        assert not lenders(machine_of(*cards))
    assert lenders(machine_of((2700, SLOW), (2600, FAST), (2700, SLOW))) == [(0, 2)]


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
def test_no_card_for_experts_alone_is_faster(model: str, machine: str) -> None:
    task, plan = fit_cases.task(model, machine), fit_cases.plan(model, machine).chosen
    ubatch, layers = plan.settings.ubatch, task.table.layers
    most = largest(lambda own: apart(task, ubatch, own, 1) is not None, layers)
    times = []
    for own in {most, max(0, most - 1)}:
        others = largest(lambda n, own=own: apart(task, ubatch, own, n) is not None, layers)  # type: ignore[misc]
        if (filled := apart(task, ubatch, own, others)) is not None:
            times.append(score(task, evaluate(task, filled))[-1])
    assert times
    assert score(task, plan)[-1] <= min(times) * 1.002
