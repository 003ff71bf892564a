"""The runs of `tests/data/cpu/speed.jsonl` as inputs of the speed model: llama-bench on two cores, random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scripts.speed_cases import Case
from tests.engine.speed_models import spec
from tests.oracle_cases import BUILD

from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.hardware.types import Cpu, Machine, Ram
from plan_llama.memory import weights
from plan_llama.memory.table import ModelTable
from plan_llama.speed.traffic import traffic
from plan_llama.units import GIB

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "cpu"
DATA_CLASS = "own_cpu"


def read() -> Iterator[Case]:
    """Every measured rate."""
    first, *rows = map(json.loads, (DATA / "speed.jsonl").read_text(encoding="utf-8").splitlines())
    here = machine({row["threads"]: row["bytes_per_s"] for row in first["memory"]["by_threads"]})
    for number, row in enumerate(rows):
        yield _case(number, row, here)


def machine(read_rates: Mapping[int, float]) -> Machine:
    """The machine of these runs, as its README describes it, with the memory's bytes per second by threads."""
    ram = Ram(
        total_bytes=24 * GIB,
        available_bytes=22 * GIB,
        bandwidth_bytes_per_s=read_rates[2],
        thread_bytes_per_s=read_rates[1],
        sources={"bandwidth_bytes_per_s": "measured"},
    )
    return Machine(
        name="AMD EPYC, two cores",
        gpus=(),
        ram=ram,
        cpu=Cpu(physical_cores=2, logical_cores=2, isa=("avx2", "f16c", "fma", "bmi2")),
    )


@cache
def _table(model: str, mix: str) -> ModelTable:
    return ModelTable(spec(model, mix))


def _case(number: int, row: dict[str, Any], here: Machine) -> Case:
    table, decode = _table(row["model"], row["mix"]), row["kind"] == "decode"
    command = parse(["llama-bench", "-m", "model.gguf", *row["flags"].split()], table=FlagTable.load(BUILD))
    settings = to_settings(command, model=table.spec, machine=here).settings
    placed = weights.place(table, settings, [])
    shares = traffic(
        table.spec, placed.device_of, placed.layer_device, settings, output_device=placed.output_device
    )
    used = max(t.expert_used_ratio for t in shares)
    return Case(
        id=f"epyc2-{number}-{row['model']}-{row['mix'].lower()}",
        group=f"epyc2-{row['model']}",
        data_class=DATA_CLASS,
        machine=here,
        traffic=shares,
        settings=settings,
        engine="llama.cpp",
        repacked=settings.repack,
        depth=row["depth"] + (row["tokens"] // 2 if decode else 0),
        prompt_tokens=1 if decode else row["tokens"],
        decode_tok_s=row["tok_s"] if decode else None,
        prefill_tok_s=None if decode else row["tok_s"],
        active_bytes=sum(sum(t.dense_bytes.values()) + used * sum(t.expert_bytes.values()) for t in shares),
        runs=tuple(row["runs"]),
    )
