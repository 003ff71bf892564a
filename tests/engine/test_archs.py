"""Every architecture that the engine knows, by its smallest model: what is predicted beside what is reserved.

Weights and context must be met, and the compute buffers of a described architecture; for the others those are an upper
bound and must never be below.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.memory.compute import is_described
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Buffers, Settings
from plan_llama.models.spec import load
from tests.engine.conftest import GpuSimulation, MembytesRunner
from tests.engine.measure import Sums, places

pytestmark = pytest.mark.engine

CARD_MIB, USED_MIB = 24576, 512
STAND_IN = BackendKind(alignment=32, cuda_sizes=True)  # how the simulated card sizes and aligns
SMALL = 64 * 1024
COMMON = ("-nr",)
CASES = {
    ("-ngl", "99", "-c", "4096", "-np", "1", "-fa", "on"): Settings(
        program="llama-fit-params", context=4096, gpu_layers=99, repack=False
    ),
    ("-ngl", "99", "-c", "4096", "-np", "1", "-fa", "off"): Settings(
        program="llama-fit-params", context=4096, gpu_layers=99, flash_attn=False, repack=False
    ),
    ("-ngl", "1", "-c", "2048", "-np", "4", "-ub", "256", "-fa", "on"): Settings(
        program="llama-fit-params", context=2048, parallel=4, ubatch=256, gpu_layers=1, repack=False
    ),
}


def wrong(name: str, model: ModelTable, found: Buffers, real: dict[str, Sums]) -> list[str]:
    """Where a prediction is off by more than it may be."""
    described = is_described(model.spec)
    lines = []
    for place, said in (("GPU0", found.devices[0]), ("Host", found.host)):
        for part in ("weights", "context", "compute"):
            ours, theirs = getattr(said, f"{part}_bytes"), getattr(real[place], f"{part}_bytes")
            slack = max(theirs // (50 if part == "compute" else 1000), SMALL)
            must_meet = described or part != "compute"
            if ours < theirs - slack:
                lines.append(f"{name} {place}: {part} {ours:,} is below the real {theirs:,}")
            if ours > theirs + slack and must_meet:
                lines.append(f"{name} {place}: {part} {ours:,} is above the real {theirs:,}")
    return lines


def test_every_architecture_is_predicted(
    tiny_archs: dict[str, Path], sim_gpus: GpuSimulation, membytes: MembytesRunner
) -> None:
    lines = []
    met = set()
    with sim_gpus([CARD_MIB], [USED_MIB]) as (env, rpc):
        for name, path in tiny_archs.items():
            model = ModelTable(load(path))
            device = DeviceMemory(free_bytes=(CARD_MIB - USED_MIB) << 20, kind=STAND_IN)
            for flags, chosen in CASES.items():
                answer = membytes(["-m", path, *rpc, *flags, *COMMON], env)
                if "error" in answer:
                    continue  # refused: no numbers to compare
                lines += wrong(name, model, buffers(model, chosen, [device]), places(answer))
                met.add(name)
    assert not lines, "\n".join(lines)
    assert len(met) >= 125, f"only {len(met)} models could be measured"
