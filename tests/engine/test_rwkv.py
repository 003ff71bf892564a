"""RWKV models, which test-llama-archs does not make: what is predicted beside what the engine reserves."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import DeviceBytes, Settings
from plan_llama.models.spec import load
from plan_llama.models.writer import write_header
from tests.engine.conftest import GpuSimulation, MembytesRunner
from tests.engine.measure import places
from tests.engine.rwkv_models import headers

pytestmark = pytest.mark.engine

CARD_MIB, USED_MIB = 24576, 512
STAND_IN = BackendKind(alignment=32, cuda_sizes=True)  # how the simulated card sizes and aligns
CASES = (
    (1, "-ngl 99 -c 4096 -np 1", {"gpu_layers": 99}),
    (1, "-ngl 99 -c 4096 -np 4 -ub 256", {"gpu_layers": 99, "parallel": 4, "ubatch": 256}),
    (1, "-ngl 12 -c 4096 -np 4", {"gpu_layers": 12, "parallel": 4}),
    (1, "-ngl 99 -c 4096 -np 2 -nkvo", {"gpu_layers": 99, "parallel": 2, "kv_offload": False}),
    (2, "-ngl 99 -c 4096 -np 1", {"gpu_layers": 99}),
)


@pytest.mark.parametrize("name", [spec.name for spec in headers()])
def test_an_rwkv_model(name: str, tmp_path: Path, sim_gpus: GpuSimulation, membytes: MembytesRunner) -> None:
    (spec,) = (spec for spec in headers() if spec.name == name)
    path = tmp_path / "model.gguf"
    write_header(spec, path)
    table = ModelTable(load(path))
    for cards, flags, chosen in CASES:
        devices = [DeviceMemory(free_bytes=(CARD_MIB - USED_MIB) << 20, kind=STAND_IN)] * cards
        with sim_gpus([CARD_MIB] * cards, [USED_MIB] * cards) as (env, rpc):
            real = places(membytes(["-m", path, *rpc, *flags.split(), "-nr"], env))
        settings = Settings(program="llama-fit-params", context=4096, repack=False, **chosen)  # type: ignore[arg-type]
        found = buffers(table, settings, devices)
        said = {**{f"GPU{index}": part for index, part in enumerate(found.devices)}, "Host": found.host}
        for place, part in said.items():
            sums = real[place]
            expected = DeviceBytes(
                weights_bytes=sums.weights_bytes,
                context_bytes=sums.context_bytes,
                compute_bytes=sums.compute_bytes,
            )
            assert part == expected, (flags, place)
