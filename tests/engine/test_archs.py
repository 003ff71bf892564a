"""Every architecture that the engine knows: what `check` predicts beside what the engine reserves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import GpuSimulation, MembytesRunner
from tests.engine.measure import MIB, Sums, places

pytestmark = pytest.mark.engine

CARD_MIB, USED_MIB = 24576, 512
FLAGS = ("-ngl", "99", "-c", "4096", "-np", "1", "-fa", "on", "-nr")


def predicted(model: Path) -> dict[str, Any]:
    """The memory that the installed program expects of llama-fit-params with FLAGS on one card."""
    machine = ["--gpu", f"{CARD_MIB}MiB", "--gpu-free", f"{CARD_MIB - USED_MIB}MiB", "--ram", "64GiB"]
    argv = [sys.executable, "-m", "plan_llama", "check", "--json", *machine, "--engine-build", "b11434"]
    argv += ["--", "llama-fit-params", "-m", str(model), *FLAGS]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    memory: dict[str, Any] = json.loads(done.stdout)["memory"]
    return memory


def differences(said: Mapping[str, Any], real: Sums) -> list[str]:
    """Where a prediction is off: weights by 0.1 % and 64 KiB, context at all, compute by 10 % and 1 MiB."""
    allowed = {
        "weights_bytes": max(real.weights_bytes // 1000, 64 * 1024),
        "context_bytes": 0,
        "compute_bytes": max(real.compute_bytes // 10, MIB),
    }
    return [
        f"{key} {said[key]:,} instead of {getattr(real, key):,}"
        for key, most in allowed.items()
        if abs(said[key] - getattr(real, key)) > most
    ]


def test_every_architecture_is_predicted(
    tiny_archs: dict[str, Path], sim_gpus: GpuSimulation, membytes: MembytesRunner
) -> None:
    wrong = []
    with sim_gpus([CARD_MIB], [USED_MIB]) as (env, rpc):
        for name, path in tiny_archs.items():
            real = places(membytes(["-m", path, *rpc, *FLAGS], env))
            said = predicted(path)
            for place, where in (("GPU0", said["devices"][0]), ("Host", said["host"])):
                wrong += [f"{name} {place}: {text}" for text in differences(where, real[place])]
    assert not wrong, "\n".join(wrong)
