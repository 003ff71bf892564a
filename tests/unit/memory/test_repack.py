"""Formats of the CPU: for whom, and what they mean for memory. Their sizes are held in tests/conformance."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import Footprint, footprint
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.solver.profiles import beyond
from plan_llama.units import GIB
from tests.oracle_cases import machine_with
from tests.small_models import llama_like

MODEL = ModelTable(llama_like(layers=8, width=2048))
PLAIN = Settings(context=4096, load_mode="mmap")


def with_cpu(machine: Machine, *isa: str) -> Machine:
    return replace(machine, cpu=replace(machine.cpu, isa=isa))


def used(machine: Machine, given: Settings = PLAIN) -> Footprint:
    return footprint(MODEL, given, machine, beyond())


@pytest.mark.parametrize(
    "isa", [("avx2",), ("neon", "dotprod"), ("neon", "dotprod", "i8mm"), ("avx2", "amx")]
)
def test_a_cpu_alone_repacks_what_it_multiplies_with(isa: tuple[str, ...]) -> None:
    host = used(with_cpu(machine_with(()), *isa)).host
    table = sum(tensor.nbytes for tensor in MODEL.spec.tensors if tensor.name == "token_embd.weight")
    assert 0 < host.repacked_bytes <= host.weights_bytes - table


@pytest.mark.parametrize("isa", [(), ("sse3",), ("f16c",)])
def test_other_cpus_do_not(isa: tuple[str, ...]) -> None:
    assert used(with_cpu(machine_with(()), *isa)).host.repacked_bytes == 0


def test_pinned_memory_comes_first() -> None:
    """Beside a CUDA card host weights go to its host buffer; Metal has none."""
    machine = with_cpu(machine_with(((24576, 512),)), "avx2")
    assert used(machine).host.repacked_bytes == 0
    metal = replace(machine, gpus=tuple(replace(gpu, backend="metal") for gpu in machine.gpus))
    assert used(metal).host.repacked_bytes > 0


def test_nr_switches_it_off() -> None:
    machine = with_cpu(machine_with(()), "avx2")
    assert used(machine, replace(PLAIN, repack=False)).host.repacked_bytes == 0


def test_repacked_weights_are_no_pages_of_the_file() -> None:
    """With mmap a file that does not fit is read again and again; what was repacked of it must stay."""
    plain = with_cpu(machine_with((), ram_bytes=GIB))
    need = used(plain).host
    tight = replace(plain, ram=replace(plain.ram, available_bytes=need.total_bytes - need.weights_bytes // 2))
    assert used(tight).verdict == "pages-from-disk"
    assert used(with_cpu(tight, "avx2")).verdict == "does-not-fit"
