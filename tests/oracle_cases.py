"""The measured cases of `tests/data/oracle` through the program's own reading of a command."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.hardware.types import Cpu, Gpu, Machine, Ram
from plan_llama.memory.estimate import DeviceMemory
from plan_llama.memory.scheduler import CUDA_KIND, BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec
from plan_llama.units import GIB, MIB
from tests.gguf_builder import ORACLE, oracle_file

BUILD = 11434
# The stand-in device sizes tensors as the CUDA backend does, but aligns to 32 bytes.
STAND_IN = BackendKind(alignment=32, cuda_sizes=True)
_PROGRAMS = {"real": "llama-fit-params", "server": "llama-server"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of cases.jsonl."""

    model: str
    program: str
    flags: tuple[str, ...]
    cards: tuple[tuple[int, int], ...]  # total and used, MiB
    variant: str | None
    bytes: dict[str, dict[str, int]]  # empty where the engine refused
    other_host_bytes: dict[str, dict[str, int]]
    refused: bool

    @property
    def label(self) -> str:
        """A name for messages."""
        return f"{self.model} {self.program} {len(self.cards)} cards {' '.join(self.flags)}"

    def real(self, place: str) -> tuple[int, int, int]:
        """Weights, context and compute that the engine reserved in a place; formats of the CPU count as Host."""
        parts = [self.bytes.get(place, {})]
        if place == "Host":
            parts += self.other_host_bytes.values()
        return (
            sum(part.get("model", 0) for part in parts),
            sum(part.get("context", 0) for part in parts),
            sum(part.get("compute", 0) for part in parts),
        )


def cases(*models: str) -> Iterator[Case]:
    """The cases of models, in the order of the file."""
    for line in (ORACLE / "cases.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["model"] in models:
            yield Case(
                model=row["model"],
                program=_PROGRAMS[row["set"]],
                flags=tuple(row["flags"]),
                cards=tuple((card["mib"], card["used_mib"]) for card in row["sim_gpus"]),
                variant=row.get("variant"),
                bytes=row.get("bytes", {}),
                other_host_bytes=row.get("other_host_bytes", {}),
                refused="refused" in row,
            )


def fit_choices(*models: str) -> Iterator[dict[str, Any]]:
    """The lines of fit_choices.jsonl of models."""
    for line in (ORACLE / "fit_choices.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["model"] in models:
            yield row


@cache
def spec(name: str) -> ModelSpec:
    """A captured header, read as any GGUF."""
    with tempfile.TemporaryDirectory() as folder:
        return load(oracle_file(name, Path(folder)))


@cache
def table(name: str) -> ModelTable:
    """Its table, which remembers compute buffers over the tests of a run."""
    return ModelTable(spec(name))


def machine_with(
    cards: tuple[tuple[int, int], ...], *, ram_bytes: int = 512 * GIB, unified: bool = False
) -> Machine:
    """A machine with CUDA cards of (total, used) MiB and plenty of everything else."""
    gpus = tuple(
        Gpu(
            name="RTX 3090",
            vendor="nvidia",
            total_bytes=total * MIB,
            free_bytes=(total - used) * MIB,
            bandwidth_bytes_per_s=936e9,
            fp16_flops_per_s=71e12,
            pcie_gen=4,
            pcie_width=16,
            integrated=unified,
        )
        for total, used in cards
    )
    ram = Ram(total_bytes=ram_bytes, available_bytes=ram_bytes * 98 // 100, bandwidth_bytes_per_s=150e9)
    return Machine(name="described", simulated=True, unified=unified, gpus=gpus, ram=ram, cpu=_cpu())


def _cpu() -> Cpu:
    return Cpu(physical_cores=16, logical_cores=32, isa=("avx2", "fma", "f16c"))


def parsed(case: Case) -> ParsedCommand:
    """The case's command, read by the flag table of its build."""
    argv = [case.program, "-m", "model.gguf", *case.flags]
    return parse(argv, table=FlagTable.load(BUILD))


def reading(case: Case) -> CommandReading:
    """What the command means on the machine of the case."""
    return to_settings(parsed(case), model=spec(case.model), machine=machine_with(case.cards))


def devices(case: Case, kind: BackendKind = CUDA_KIND) -> tuple[DeviceMemory, ...]:
    """The cards of the case."""
    return tuple(DeviceMemory(free_bytes=(total - used) * MIB, kind=kind) for total, used in case.cards)
