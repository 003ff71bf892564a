"""The runs of `tests/data/cuda` (llama-bench on an H200 and an H100) as inputs of the speed model.

Their models have random weights. Unless what writes into the residual stream is zero (`tokens_spread`), tokens choose
the same few experts again and again, so that a prompt copies and computes less than a real model's: those are left out.
What a token alone reads is the same whichever it chooses. Of the H200's, which constants are fitted to, Mistral Small 4
is left out, too: the CUDA backend refuses one of its products, and what that costs is not a rate of the card. No fit
sees the H100's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from scripts.speed_cases import Case
from tests.conformance_cases import spec
from tests.oracle_cases import BUILD
from tests.small_models import cut

from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.hardware.gpu_table import lookup
from plan_llama.hardware.types import Cpu, Gpu, Machine, Ram
from plan_llama.memory import weights
from plan_llama.memory.table import ModelTable
from plan_llama.speed.traffic import traffic
from plan_llama.units import GIB, MIB

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "cuda"


@dataclass(frozen=True, slots=True)
class Measured:
    """A card that was measured: its memory in MiB, where its runs are, and their class."""

    name: str
    card: str
    mib: int
    folder: Path
    data_class: str


H200 = Measured("h200", "NVIDIA H200", 143155, DATA, "own")
H100 = Measured("h100", "NVIDIA H100 80GB HBM3", 81079, DATA / "h100", "own_h100")


def read(on: Measured = H200) -> Iterator[Case]:
    """Every run that can be compared."""
    for number, row in enumerate(_rows(on)):
        if on is H200 and row["model"].startswith("mistral-small-4"):
            continue
        if row["grid"] and row["output"] and row["ubatch"] != 512:
            continue  # the same again: a decoded token knows no micro-batch
        case = case_of(f"{on.name}-{number}-{row['model']}", row, on)
        experts = any(t.expert_bytes for t in case.traffic)
        if not (row["prompt"] and experts) or row.get("tokens_spread"):
            yield case


def _rows(on: Measured) -> Iterator[dict[str, Any]]:
    for path in (on.folder / "speed.jsonl", on.folder / "experts.jsonl"):
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                yield {**json.loads(line), "grid": path.name == "experts.jsonl"}


def machine(on: Measured = H200) -> Machine:
    """The machine of these runs, as the README describes it."""
    facts = lookup(on.card)
    if facts is None:
        raise LookupError(on.card)
    read_rates = json.loads((on.folder / "bandwidth.json").read_text(encoding="utf-8"))
    gpu = Gpu(
        name=facts.name,
        vendor=facts.vendor,
        backend=facts.backend,
        total_bytes=on.mib * MIB,
        free_bytes=on.mib * MIB,
        compute_capability=facts.compute_capability,
        bandwidth_bytes_per_s=facts.bandwidth_bytes_per_s,
        fp16_flops_per_s=facts.fp16_flops_per_s,
        pcie_gen=5,
        pcie_width=16,
    )
    ram = Ram(
        total_bytes=128 * GIB,
        available_bytes=120 * GIB,
        bandwidth_bytes_per_s=max(rate for name, rate in read_rates.items() if name.startswith("ram_read")),
        sources={"bandwidth_bytes_per_s": "measured"},
    )
    cpu = Cpu(physical_cores=16, logical_cores=16, isa=("avx2", "f16c", "avx512", "avx512_vnni", "amx"))
    return Machine(name=on.card, gpus=(gpu,), ram=ram, cpu=cpu)


@cache
def _table(name: str) -> ModelTable:
    full, _, layers = name.rpartition("-")
    shortened = layers.endswith("L") and layers[:-1].isdigit()
    return ModelTable(cut(spec("real", full), int(layers[:-1])) if shortened else spec("real", name))


def case_of(name: str, row: dict[str, Any], on: Measured = H200) -> Case:
    """A row of speed.jsonl on that machine."""
    table, here = _table(row["model"]), machine(on)
    words = ["llama-bench", "-m", "model.gguf", *row["flags"].split(), "-t", str(row["threads"])]
    words += ["-ub", str(row["ubatch"]), "-b", str(row["batch"]), "-d", str(row["depth"])]
    words += ["-p", str(row["prompt"]), "-n", str(row["output"])]
    command = parse(words, table=FlagTable.load(BUILD))
    settings = to_settings(command, model=table.spec, machine=here).settings
    settings = replace(settings, repack=False)
    placed = weights.place(table, settings, [gpu.free_bytes for gpu in here.gpus])
    shares = traffic(
        table.spec, placed.device_of, placed.layer_device, settings, output_device=placed.output_device
    )
    used = max(t.expert_used_ratio for t in shares)
    return Case(
        id=name,
        group=f"{on.name}-{row['model']}",
        data_class=on.data_class,
        machine=here,
        traffic=shares,
        settings=settings,
        engine="llama.cpp",
        repacked=False,
        depth=row["depth"] + row["output"] // 2,
        prompt_tokens=row["prompt"] or 1,
        decode_tok_s=None if row["prompt"] else row["tok_s"],
        prefill_tok_s=row["tok_s"] if row["prompt"] else None,
        active_bytes=sum(sum(t.dense_bytes.values()) + used * sum(t.expert_bytes.values()) for t in shares),
    )
