"""Cards in another order, and cards that are left out: what the engine reserves with --device."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.patterns import n_cpu_moe
from plan_llama.memory.types import Settings
from plan_llama.units import MIB
from tests import fit_cases
from tests.engine import processes
from tests.engine.measure import places, run_membytes
from tests.engine.record_fit import stand_ins
from tests.engine.record_memory import header
from tests.oracle_cases import STAND_IN

pytestmark = pytest.mark.engine
MODEL = "glm-4.5-air"
CARDS = (24576, 12288, 24576)


@pytest.mark.parametrize(
    ("devices", "words", "host_layers", "split"),
    [
        ((1, 0), (), 0, ()),
        ((1, 0), ("-ncmoe", "40"), 40, ()),
        ((2,), ("-ncmoe", "40"), 40, ()),
        ((2, 1), ("-ts", "3,1"), 0, (0.0, 1.0, 3.0)),
    ],
)
def test_the_order_of_devices(
    engine_bin: Path,
    tmp_path: Path,
    devices: tuple[int, ...],
    words: tuple[str, ...],
    host_layers: int,
    split: tuple[float, ...],
) -> None:
    wanted = Settings(
        context=32768,
        ubatch=1024,
        gpu_layers=99,
        repack=False,
        devices=devices,
        main_gpu=devices[0],
        overrides=n_cpu_moe(host_layers),
        tensor_split=split,
    )
    cards = [DeviceMemory(free_bytes=(mib - fit_cases.USED_MIB) * MIB, kind=STAND_IN) for mib in CARDS]
    made = buffers(fit_cases.table(MODEL), wanted, cards)
    with stand_ins(engine_bin, tmp_path, len(CARDS)) as endpoints:
        argv: list[str | Path] = ["--rpc", ",".join(endpoints)]
        argv += ["-m", header(fit_cases.spec(MODEL), tmp_path)]
        argv += ["-c", "32768", "-np", "1", "-ngl", "99", "-ub", "1024", "-fa", "on", "-nr"]
        argv += ["--device", ",".join(f"RPC{i}" for i in devices), *words]
        env = processes.engine_env(
            engine_bin,
            SIM_GPU_MIB=",".join(map(str, CARDS)),
            SIM_GPU_USED_MIB=",".join([str(fit_cases.USED_MIB)] * len(CARDS)),
            MEMBYTES_MODE="server",
        )
        found = places(run_membytes(engine_bin, argv, env))
    for index, part in enumerate(made.devices):
        real = found.get(f"GPU{index}")
        assert (real is None) == (index not in devices)
        if real is not None:
            assert (part.weights_bytes, part.context_bytes) == (real.weights_bytes, real.context_bytes)
            assert abs(part.compute_bytes - real.compute_bytes) <= MIB
        else:
            assert not part.total_bytes
