"""More memory, bandwidth or cores never make a plan slower for the same request and context, on random machines and
models, parts of one layer's experts included.

By no more than 2 %, which is what the search may miss: how much room a graph leaves is known for the splits that were
looked at, and one that leaves a few MiB more may not be among them. `PLAN_LLAMA_DEEP_EXAMPLES=200` looks for
counterexamples at random.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.ggml_types import by_name
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import WORTH_MEMORY, candidates
from plan_llama.solver.types import Wishes
from plan_llama.units import GIB, MIB
from tests.oracle_cases import machine_with
from tests.small_models import llama_like, qwen3moe_like

_DEEP = int(os.environ.get("PLAN_LLAMA_DEEP_EXAMPLES", "0"))
LAW = settings(
    max_examples=_DEEP or 10,
    derandomize=not _DEEP,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
SEARCH = 1.02  # times the time that the search may miss
_BESIDE_MIB = 1900  # margin, driver, and about what a graph takes


@cache
def model_of(experts: bool, layers: int, width: int, hidden: int, mixed: bool) -> ModelTable:
    """A model; `mixed`: with larger down matrices in every other layer, as llama-quantize makes them."""
    if experts:
        spec = qwen3moe_like(layers=layers, width=width, experts=64, used=8, hidden=hidden)
    else:
        spec = llama_like(layers=layers, width=width)
    if not mixed:
        return ModelTable(spec)
    larger = by_name("q6_K")
    return ModelTable(
        replace(
            spec,
            tensors=tuple(
                replace(tensor, type=larger)
                if ".ffn_down" in tensor.name and int(tensor.name.split(".")[1]) % 2
                else tensor
                for tensor in spec.tensors
            ),
        )
    )


MODELS = st.builds(
    model_of,
    st.booleans(),
    st.sampled_from([6, 8, 12, 16]),
    st.sampled_from([1024, 2048]),
    st.sampled_from([512, 1024]),
    st.booleans(),
)


def seconds(model: ModelTable, machine: Machine, prompt: int) -> tuple[float, float] | None:
    """The request under the fastest candidate and under the plan; None where no plan keeps every margin."""
    wishes = Wishes(workload=workload("chat"), context=16384, prompt_tokens=prompt)
    found = candidates(make_task(model, machine, wishes, beyond()), 16384, "f16")
    times = [one.speed.request_s for one in found if one.footprint.verdict == "fits"]
    return (min(times), times[0]) if times and found[0].footprint.verdict == "fits" else None


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelTable, Machine, int]:
    """A model, one to three cards that hold a part of it, with links and rates of all sorts, and a prompt."""
    model = draw(MODELS)
    count = draw(st.integers(1, 3))
    size = model.loaded_bytes // MIB
    sizes = [_BESIDE_MIB + draw(st.integers(size // 20, size // count + size // 10)) for _ in range(count)]
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
    return model, replace(made, gpus=gpus, ram=ram), draw(st.sampled_from([200, 3000, 12000]))


Case = tuple[ModelTable, Machine, int]


def never_slower(case: Case, after: Machine) -> None:
    """The search's best is not slower but for what it may miss; the plan gives up no more of that for a GiB of memory
    than it may."""
    model, before, prompt = case
    first, then = seconds(model, before, prompt), seconds(model, after, prompt)
    if first is None:
        return
    assert then is not None
    assert then[0] <= first[0] * SEARCH
    assert then[1] <= then[0] * WORTH_MEMORY


@pytest.mark.slow
@LAW
@given(cases(), st.integers(0, 2), st.integers(1, 2048))
def test_more_memory_of_a_card(case: Case, which: int, more: int) -> None:
    never_slower(case, _card(case[1], which, lambda gpu: _larger(gpu, more)))


@pytest.mark.slow
@LAW
@given(
    cases(), st.integers(0, 2), st.sampled_from(["bandwidth_bytes_per_s", "fp16_flops_per_s", "pcie_width"])
)
def test_a_faster_card(case: Case, which: int, what: str) -> None:
    never_slower(case, _card(case[1], which, lambda gpu: replace(gpu, **{what: getattr(gpu, what) * 2})))


@pytest.mark.slow
@LAW
@given(cases(), st.sampled_from(["cores", "bandwidth", "memory"]))
def test_a_better_host(case: Case, what: str) -> None:
    never_slower(case, _better_host(case[1], what))


@pytest.mark.slow
@LAW
@given(cases(), st.integers(0, 2))
def test_one_more_card(case: Case, which: int) -> None:
    never_slower(case, _one_more(case[1], which))


@pytest.mark.parametrize("experts", [True, False])
def test_each_law_on_one_machine(experts: bool) -> None:
    """The laws above draw their cases, which takes long."""
    model = model_of(experts, 6, 1024, 512, False)
    size = _BESIDE_MIB + model.loaded_bytes // MIB // 2
    machine = machine_with(((size, 0),), ram_bytes=64 * GIB)
    case = (model, machine, 3000)
    assert seconds(*case) is not None
    never_slower(case, _card(machine, 0, lambda gpu: _larger(gpu, 512)))
    never_slower(case, _card(machine, 0, lambda gpu: replace(gpu, pcie_width=32)))
    never_slower(case, _better_host(machine, "bandwidth"))
    never_slower(case, _one_more(machine, 0))


def _card(machine: Machine, which: int, change: Callable[[Gpu], Gpu]) -> Machine:
    index = which % len(machine.gpus)
    return replace(
        machine, gpus=tuple(change(gpu) if i == index else gpu for i, gpu in enumerate(machine.gpus))
    )


def _larger(gpu: Gpu, more_mib: int) -> Gpu:
    return replace(
        gpu, total_bytes=gpu.total_bytes + more_mib * MIB, free_bytes=gpu.free_bytes + more_mib * MIB
    )


def _better_host(machine: Machine, what: str) -> Machine:
    cpu, ram = machine.cpu, machine.ram
    assert ram.bandwidth_bytes_per_s is not None
    if what == "cores":
        cpu = replace(cpu, physical_cores=2 * cpu.physical_cores, logical_cores=4 * cpu.physical_cores)
    elif what == "bandwidth":
        ram = replace(ram, bandwidth_bytes_per_s=1.5 * ram.bandwidth_bytes_per_s)
    else:
        ram = replace(ram, total_bytes=2 * ram.total_bytes, available_bytes=2 * ram.available_bytes)
    return replace(machine, cpu=cpu, ram=ram)


def _one_more(machine: Machine, which: int) -> Machine:
    return replace(machine, gpus=(*machine.gpus, machine.gpus[which % len(machine.gpus)]))
