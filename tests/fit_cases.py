"""Six models on nine machines, for which llama.cpp's own `--fit` was asked (`tests/data/fit`)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import footprint
from plan_llama.memory.table import ModelTable
from plan_llama.models.resolve import resolve_model
from plan_llama.models.types import ModelSpec
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Candidate, Plan, Wishes
from plan_llama.units import MIB

CHOICES = Path(__file__).parent / "data" / "fit" / "choices.jsonl"
USED_MIB = 512  # on every card when --fit asks, as in tests/data/oracle
CONTEXT = 32768
FLAGS = ("-c", str(CONTEXT), "-np", "1", "-nr")
PROMPT_TOKENS, OUTPUT_TOKENS = 8000, 500

MODELS = {
    "glm-5.1": "UD-IQ2_M",
    "gpt-oss-120b": "MXFP4_MOE",
    "glm-4.5-air": "Q4_K_M",
    "qwen3-235b-a22b": "Q3_K_M",
    "llama-3.1-70b": "Q4_K_M",
    "deepseek-v3": "UD-Q2_K_XL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """A machine of the comparison: a described one, with memory for every model, and MiB of each card."""

    hardware: str
    mib: tuple[int, ...]
    gpu: str | None = None  # in place of the profile's card


MACHINES = {
    "8 GB laptop": Cards(hardware="laptop-4060-32", mib=(8192,)),
    "12 GB": Cards(hardware="rtx3060-32", mib=(12288,)),
    "16 GB": Cards(hardware="rtx4090-128", mib=(16384,), gpu="RTX 4080"),
    "24 GB": Cards(hardware="rtx4090-128", mib=(24576,)),
    "32 GB": Cards(hardware="rtx5090-192", mib=(32768,)),
    "2 x 24 GB": Cards(hardware="2x3090-128", mib=(24576,) * 2),
    "4 x 24 GB": Cards(hardware="4x3090-256", mib=(24576,) * 4),
    "24 + 12 GB, x4 link": Cards(hardware="4090-3060-64", mib=(24576, 12288)),
    "8 x 80 GB": Cards(hardware="8xh100-2tb", mib=(81920,) * 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What `--fit` chose: the arguments that it printed, with CUDA0 for the first card."""

    model: str
    machine: str
    arguments: str


def choices() -> Iterator[Choice]:
    """The stored choices, in the order of MODELS and MACHINES."""
    for line in CHOICES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Choice(model=row["model"], machine=row["machine"], arguments=row["chosen"])


@cache
def spec(model: str) -> ModelSpec:
    """The catalog's file."""
    return resolve_model(model, MODELS[model])


@cache
def table(model: str) -> ModelTable:
    """Its table, which remembers compute buffers over the tests of a run."""
    return ModelTable(spec(model))


@cache
def machine(name: str) -> Machine:
    """The described machine, with 512 GiB of memory at least and cards of just the size that `--fit` was told.

    The engine asks for free memory when its own CUDA context is there already: that is what USED_MIB stands for. A plan
    is made before, of a card that is free, and takes off what the driver will hold (600 MiB).
    """
    cards = MACHINES[name]
    ram = None if name == "8 x 80 GB" else "512GiB"
    found = resolve(HardwareChoice(hardware=cards.hardware, gpu=(cards.gpu,) if cards.gpu else (), ram=ram))
    sized = (
        replace(gpu, total_bytes=mib * MIB, free_bytes=mib * MIB)
        for gpu, mib in zip(found.gpus, cards.mib, strict=True)
    )
    return replace(found, gpus=tuple(sized))


@cache
def task(model: str, machine_name: str) -> Task:
    """The request of the comparison."""
    wishes = Wishes(
        workload=workload("chat"),
        context=CONTEXT,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    )
    return make_task(table(model), machine(machine_name), wishes, beyond())


@cache
def plan(model: str, machine_name: str) -> Plan:
    """The plan for it."""
    made = solve(task(model, machine_name), ladder=False)
    assert made is not None
    return made


def theirs(choice: Choice) -> Candidate:
    """What `--fit` chose, by the plan's own models. llama-server has a micro-batch of 512 and maps the file."""
    words = shlex.split(choice.arguments)
    where = words.index("-ngl")
    if words[where + 1] == "-1":
        del words[where : where + 2]
    argv = ["llama-server", "-m", "model.gguf", "-np", "1", *words]
    asked, model = task(choice.model, choice.machine), table(choice.model)
    reading = to_settings(parse(argv, table=FlagTable.load()), model=model.spec, machine=asked.machine)
    return judged(asked, reading.settings, footprint(model, reading.settings, asked.machine, asked.beyond))
