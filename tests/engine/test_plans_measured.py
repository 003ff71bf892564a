"""Every plan of the comparison with --fit, reserved by the engine: no card's or host's margin is cut into."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.engines.llama_server import command
from plan_llama.memory.types import Settings
from plan_llama.solver.types import Candidate
from plan_llama.units import MIB
from tests import fit_cases
from tests.engine import processes
from tests.engine.measure import host_sum, places, run_membytes
from tests.engine.record_fit import stand_ins
from tests.engine.record_memory import header

pytestmark = pytest.mark.engine
# What the parser of membytes does not take, with its value.
_SERVER_ONLY = {"--cache-ram": 1, "--ctx-checkpoints": 1, "--host": 1, "--port": 1, "--fit": 1}


def reserving(settings: Settings, model: str, path: Path, endpoints: list[str]) -> list[str | Path]:
    """The plan's command for membytes, on the stand-ins."""
    made = command(
        settings,
        model=fit_cases.spec(model),
        machine=fit_cases.machine("8 x 80 GB"),
        model_path=str(path),
        device_names=[f"RPC{i}" for i in range(len(endpoints))],
    )
    words = list(made.argv[1:])
    argv: list[str | Path] = ["--rpc", ",".join(endpoints), "-nr"]
    while words:
        word = words.pop(0)
        if word in _SERVER_ONLY:
            del words[: _SERVER_ONLY[word]]
        else:
            argv.append(_buffers_named(word, endpoints))
    return argv


def _buffers_named(word: str, endpoints: list[str]) -> str:
    """With a stand-in's buffer called as llama.cpp does, which is not how it calls the device."""
    for index, endpoint in enumerate(endpoints):
        word = word.replace(f"=RPC{index}", f"=RPC0[{endpoint}]")
    return word


@pytest.mark.parametrize("model", fit_cases.MODELS)
def test_every_margin_is_kept(engine_bin: Path, tmp_path: Path, model: str) -> None:
    path = header(fit_cases.spec(model), tmp_path)
    with stand_ins(engine_bin, tmp_path, 8) as endpoints:
        for name, cards in fit_cases.MACHINES.items():
            plan = fit_cases.plan(model, name)
            used = endpoints[: len(cards.mib)]
            env = processes.engine_env(
                engine_bin,
                SIM_GPU_MIB=",".join(map(str, cards.mib)),
                SIM_GPU_USED_MIB=",".join(["0"] * len(cards.mib)),
                MEMBYTES_MODE="server",
            )
            found = places(run_membytes(engine_bin, reserving(plan.chosen.settings, model, path, used), env))
            _kept(plan.chosen, found, f"{model} on {name}")


def _kept(chosen: Candidate, found: dict, what: str) -> None:  # type: ignore[type-arg]
    """Real buffers, and what the plan counts beside them, leave the margin."""
    pools = chosen.footprint.pools
    for index, (device, pool) in enumerate(zip(chosen.footprint.devices, pools[1:], strict=True)):
        part = found.get(f"GPU{index}")
        assert (part is None) == (not device.total_bytes), (what, index)
        if part is None:
            continue
        real = part.weights_bytes + part.context_bytes + part.compute_bytes
        said = device.total_bytes - device.overhead_bytes
        assert abs(said - real) <= 8 * MIB, (what, index, (said - real) / MIB)
        spare = pool.available_bytes - real - device.overhead_bytes - device.pool_bytes
        assert spare >= pool.margin_bytes - MIB, (what, index, spare / MIB)
    host = host_sum(found)
    beside = chosen.footprint.host.cache_bytes
    real = host.weights_bytes + host.context_bytes + host.compute_bytes + beside
    assert pools[0].available_bytes - real >= pools[0].margin_bytes, what
