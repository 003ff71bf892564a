"""More memory, bandwidth or cores never make a plan slower for the same request and context.

This holds of whole layers and whole layers' experts. Parts of one more layer's experts are put into what room a split
happens to leave, which more memory can take away: at most two thirds of one layer's experts, left out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.table import ModelTable
from plan_llama.solver import place
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import WORTH_MEMORY, candidates
from plan_llama.solver.types import Wishes
from plan_llama.units import GIB, MIB
from tests.oracle_cases import machine_with
from tests.small_models import llama_like, qwen3moe_like

QUICK = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
ROUNDING = 1e-4  # the prices of layers add up to the estimate of the whole but for its mean over tensor types
MODELS = (
    ModelTable(qwen3moe_like(layers=8, width=2048, experts=64, used=8, hidden=1024)),
    ModelTable(llama_like(layers=12, width=1024)),
)


@pytest.fixture(autouse=True, scope="module")
def _whole_layers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, "_WORTH", 1.0)
        yield


def seconds(model: ModelTable, machine: Machine, prompt: int) -> tuple[float, float] | None:
    """The request under the fastest candidate and under the plan; None where no plan keeps every margin."""
    wishes = Wishes(workload=workload("chat"), context=16384, prompt_tokens=prompt)
    found = candidates(make_task(model, machine, wishes, beyond()), 16384, "f16")
    times = [one.speed.request_s for one in found if one.footprint.verdict == "fits"]
    return (min(times), times[0]) if times and found[0].footprint.verdict == "fits" else None


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """One to three cards that hold a part of the models, with links and rates of all sorts."""
    sizes = draw(st.lists(st.integers(1850, 3600), min_size=1, max_size=3))
    made = machine_with(
        tuple((size, 0) for size in sizes), ram_bytes=draw(st.sampled_from([48, 64, 256])) * GIB
    )
    gpus = tuple(
        replace(
            gpu,
            bandwidth_bytes_per_s=draw(st.sampled_from([250e9, 900e9, 1800e9])),
            fp16_flops_per_s=draw(st.sampled_from([25e12, 70e12, 165e12])),
            pcie_width=draw(st.sampled_from([4, 16])),
        )
        for gpu in made.gpus
    )
    ram = replace(made.ram, bandwidth_bytes_per_s=draw(st.sampled_from([50e9, 90e9, 200e9])))
    return replace(made, gpus=gpus, ram=ram)


def never_slower(model: ModelTable, before: Machine, after: Machine, prompt: int) -> None:
    """The search's best is not slower at all; the plan may give up what it gives up for a GiB of memory."""
    first, then = seconds(model, before, prompt), seconds(model, after, prompt)
    if first is None:
        return
    assert then is not None
    assert then[0] <= first[0] * (1 + ROUNDING)
    assert then[1] <= first[1] * WORTH_MEMORY


CASES = (st.sampled_from(MODELS), machines(), st.sampled_from([200, 3000, 12000]))


@QUICK
@given(*CASES, st.integers(0, 2), st.integers(1, 2048))
def test_more_memory_of_a_card(
    model: ModelTable, machine: Machine, prompt: int, which: int, more: int
) -> None:
    never_slower(
        model,
        machine,
        _card(
            machine,
            which,
            lambda gpu: replace(
                gpu, total_bytes=gpu.total_bytes + more * MIB, free_bytes=gpu.free_bytes + more * MIB
            ),
        ),
        prompt,
    )


@QUICK
@given(
    *CASES, st.integers(0, 2), st.sampled_from(["bandwidth_bytes_per_s", "fp16_flops_per_s", "pcie_width"])
)
def test_a_faster_card(model: ModelTable, machine: Machine, prompt: int, which: int, what: str) -> None:
    after = _card(machine, which, lambda gpu: replace(gpu, **{what: getattr(gpu, what) * 2}))
    never_slower(model, machine, after, prompt)


@QUICK
@given(*CASES, st.sampled_from(["cores", "bandwidth", "memory"]))
def test_a_better_host(model: ModelTable, machine: Machine, prompt: int, what: str) -> None:
    cpu, ram = machine.cpu, machine.ram
    assert ram.bandwidth_bytes_per_s is not None
    if what == "cores":
        cpu = replace(cpu, physical_cores=2 * cpu.physical_cores, logical_cores=4 * cpu.physical_cores)
    elif what == "bandwidth":
        ram = replace(ram, bandwidth_bytes_per_s=1.5 * ram.bandwidth_bytes_per_s)
    else:
        ram = replace(ram, total_bytes=2 * ram.total_bytes, available_bytes=2 * ram.available_bytes)
    never_slower(model, machine, replace(machine, cpu=cpu, ram=ram), prompt)


@QUICK
@given(*CASES, st.integers(0, 2))
def test_one_more_card(model: ModelTable, machine: Machine, prompt: int, which: int) -> None:
    card = machine.gpus[which % len(machine.gpus)]
    never_slower(model, machine, replace(machine, gpus=(*machine.gpus, card)), prompt)


def _card(machine: Machine, which: int, change: Callable[[Gpu], Gpu]) -> Machine:
    index = which % len(machine.gpus)
    return replace(
        machine, gpus=tuple(change(gpu) if i == index else gpu for i, gpu in enumerate(machine.gpus))
    )
