"""The recorded measurements can be made again: a sample of them gives the same bytes with the same engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.conftest import GpuSimulation, MembytesRunner
from tests.engine.measure import Sums, places
from tests.engine.processes import finished
from tests.oracle_cases import fit_choices

pytestmark = pytest.mark.engine

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
CARD = {"mib": 24576, "used_mib": 512}

# (model, set, cards, flags): each stands for a rule that another one does not use.
SAMPLE = [
    ("glm-5.1-ud-iq2", "real", 1, "-ngl 99 -c 65536 -np 1 -cmoe -ub 2048 -nr"),
    ("glm-5.1-ud-iq2", "server", 1, "-ngl 99 -c 32768 -np 1 -cmoe -nr"),
    ("glm-5.1-ud-iq2", "real", 4, "-ngl 99 -c 32768 -np 1 -cmoe -ts 1,1,1,1 -nr"),
    ("gemma-3-27b-q4_0", "server", 1, "-ngl 99 -c 32768 -np 2 -kvu -ub 1024 -nr"),
    ("llama-3.1-8b-q4_k_m", "real", 2, "-ngl 99 -c 65536 -np 1 -ts 3,1 -nr"),
    ("qwen3.5-35b-a3b-q4_k_m", "real", 1, "-ngl 99 -c 65536 -np 1 -ctk q4_0 -ctv q4_0 -nr"),
    ("granite-4.0-h-small-q4_k_m", "real", 0, "-c 16384 -np 1 -nr"),
]


def recorded(model: str, kind: str, cards: int, flags: str) -> dict[str, Sums]:
    """The stored bytes of one case; a case that is not there is an error of the sample."""
    for line in (ORACLE / "cases.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if (case["model"], case["set"], case["flags"]) != (model, kind, flags.split()):
            continue
        if case["sim_gpus"] == [CARD] * cards:
            return {
                place: Sums(
                    weights_bytes=sizes["model"],
                    context_bytes=sizes["context"],
                    compute_bytes=sizes["compute"],
                )
                for place, sizes in case["bytes"].items()
            }
    raise AssertionError(f"cases.jsonl has no case {model} {kind} {cards} cards {flags}")


@pytest.mark.parametrize(("model", "kind", "cards", "flags"), SAMPLE)
def test_recorded_bytes_are_measured_again(
    model: str,
    kind: str,
    cards: int,
    flags: str,
    sim_gpus: GpuSimulation,
    membytes: MembytesRunner,
    tmp_path: Path,
) -> None:
    rebuild = [sys.executable, str(ORACLE / "rebuild.py"), str(tmp_path), model]
    subprocess.run(rebuild, check=True, capture_output=True, timeout=60)
    with sim_gpus([CARD["mib"]] * cards, [CARD["used_mib"]] * cards) as (env, rpc):
        if kind == "server":
            env["MEMBYTES_MODE"] = "server"
        answer = membytes(["-m", tmp_path / f"{model}.gguf", *rpc, *flags.split()], env)
    assert places(answer) == recorded(model, kind, cards, flags)


def test_a_choice_of_fit_is_made_again(engine_bin: Path, sim_gpus: GpuSimulation, tmp_path: Path) -> None:
    """With a quantised cache, of which flash attention on CUDA keeps copies in f16."""
    model = "llama-3.1-8b-q4_k_m"
    row = next(row for row in fit_choices(model) if "-ctk" in row["flags"])
    rebuild = [sys.executable, str(ORACLE / "rebuild.py"), str(tmp_path), model]
    subprocess.run(rebuild, check=True, capture_output=True, timeout=60)
    path = tmp_path / f"{model}.gguf"
    cards = [[card[key] for card in row["sim_gpus"]] for key in ("mib", "used_mib")]
    with sim_gpus(*cards) as (env, rpc):
        argv = [engine_bin / "llama-fit-params", "-m", path, *rpc, *row["flags"]]
        done = finished(argv, env=env, address_space_bytes=(32 << 30) + path.stat().st_size)
    assert done.stdout.splitlines()[-1].strip() == row["chosen"]
