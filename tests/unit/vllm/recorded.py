"""The recorded starts of vLLM 0.33.0 (tests/data/vllm), read as commands on described machines."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from plan_llama.engines.vllm import flags
from plan_llama.engines.vllm.parsing import parse
from plan_llama.engines.vllm.reading import Reading, read
from plan_llama.hardware.types import Cpu, Gpu, Machine, Ram
from plan_llama.models.checkpoint_source import from_config
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.units import GIB

DATA = Path(__file__).parents[2] / "data" / "vllm"
CONFIGS: dict[str, dict[str, Any]] = json.loads((DATA / "configs.json").read_text())
CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (DATA / "recorded.jsonl").read_text().splitlines()
]


def name_of(case: dict[str, Any]) -> str:
    """A case in a test's id."""
    return f"{case['model']} {case['capability']} {' '.join(case['args'])} {case['stage']}"


@cache
def checkpoint(model: str) -> Checkpoint:
    """The checkpoint of a recorded config."""
    return from_config(CONFIGS[model], model, model, local=False, where=model)


def machine(case: dict[str, Any]) -> Machine:
    """The machine that the case describes."""
    total = int(case["gib"] * GIB)
    gpu = Gpu(
        name="imaginary",
        total_bytes=total,
        free_bytes=total,
        compute_capability=case["capability"],
        vendor="nvidia",
        sources={"total_bytes": "measured"},
    )
    ram = Ram(total_bytes=2048 * GIB, available_bytes=2000 * GIB)
    cpu = Cpu(physical_cores=8, logical_cores=16)
    return Machine(name="imaginary", simulated=True, gpus=(gpu,) * case["gpus"], ram=ram, cpu=cpu)


def reading(case: dict[str, Any]) -> Reading:
    """The case's command, as `check` reads it."""
    command = parse(["vllm", "serve", case["model"], *case["args"]], flags.load())
    assert not command.refused
    return read(command, checkpoint(case["model"]), machine(case))
