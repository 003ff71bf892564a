"""`plan-llama verify` with the real engine: plans for simulated cards, for the host, and with a model that is here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine import processes
from tests.engine.conftest import GpuSimulation

pytestmark = pytest.mark.engine


def verify(
    engine_bin: Path, env: Mapping[str, str], home: Path, *argv: str, before: Sequence[str] = ()
) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the installed program."""
    words = [sys.executable, "-m", "plan_llama", "verify", "--json", "--engine-path", str(engine_bin), *argv]
    own = {**env, "HOME": str(home), "TMPDIR": str(home)}
    done = subprocess.run(
        [*before, *words],
        env=own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == "", done.stderr
    assert list(home.glob("plan-llama-verify-*")) == []
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def assert_agrees(code: int, answer: dict[str, Any], verdict: str = "verified") -> None:
    found = answer["verify"]
    wrong = [line for line in found["lines"] if line["verdict"] in ("above", "below")]
    assert wrong == [], found["reason"]
    assert (code, found["verdict"], found["accepted"]) == (0, verdict, True), found["reason"]


@pytest.mark.parametrize(
    ("model", "cards", "ram", "more"),
    [
        (("--model", "glm-5.1", "--quant", "UD-IQ2_M"), (24576,), "256GiB", ()),
        (("--model", "glm-5.1", "--quant", "UD-IQ2_M"), (24576, 24576), "256GiB", ("--ctx", "16K")),
        (("--model", "llama-3.1-8b", "--quant", "Q4_K_M"), (24576,), "64GiB", ("--kv-type", "q8_0")),
        (("--model", "gemma-2-9b", "--quant", "Q4_K_M"), (24576,), "64GiB", ()),
        (("--model", "qwen3-30b-a3b", "--quant", "Q4_K_M"), (12288,), "64GiB", ("--ctx", "16K")),
    ],
)
def test_a_plan_holds_on_simulated_cards(
    model: tuple[str, ...],
    cards: tuple[int, ...],
    ram: str,
    more: tuple[str, ...],
    engine_bin: Path,
    sim_gpus: GpuSimulation,
    tmp_path: Path,
) -> None:
    asked = [word for size in cards for word in ("--gpu", f"{size}MiB")]
    with sim_gpus(cards, [0] * len(cards)) as (env, rpc):
        code, answer = verify(
            engine_bin, env, tmp_path, *model, *asked, "--ram", ram, "--cpu-cores", "16", *more, *rpc
        )
    assert_agrees(code, answer)
    assert [device["name"] for device in answer["verify"]["devices"]] == [
        f"RPC{i}" for i in range(len(cards))
    ]
    assert answer["verify"]["dry_run"]["header_only"] is True


def test_a_plan_for_cards_that_are_not_here(engine_bin: Path, tmp_path: Path) -> None:
    code, answer = verify(
        engine_bin,
        processes.engine_env(engine_bin),
        tmp_path,
        *("--model", "glm-5.1", "--quant", "UD-IQ2_M", "--gpu", "24GiB", "--ram", "256GiB"),
    )
    assert_agrees(code, answer, "partly-verified")
    host = [line for line in answer["verify"]["lines"] if line["device"] == "host"]
    assert all(line["real_bytes"] is not None for line in host)


def test_a_command_and_a_model_that_is_here(
    engine_bin: Path, sim_gpus: GpuSimulation, tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    command = (
        "llama-server",
        "-m",
        str(tiny_archs["llama-dense"]),
        "-ngl",
        "99",
        "-c",
        "4096",
        "-np",
        "1",
        "--fit",
    )
    with sim_gpus([8192], [512]) as (env, rpc):
        code, answer = verify(
            engine_bin, env, tmp_path, "--gpu", "8GiB", "--ram", "16GiB", *rpc, "--", *command, "off"
        )
        assert_agrees(code, answer)
        assert answer["verify"]["dry_run"]["header_only"] is False
        code, answer = verify(
            engine_bin,
            env,
            tmp_path,
            "--gpu",
            "8GiB",
            "--ram",
            "16GiB",
            *rpc,
            "--",
            *command,
            "off",
            "--mmap",
        )
    assert (code, answer["verify"]["verdict"], answer["verify"]["accepted"]) == (3, "refused", False)
    assert "--mmap" in answer["verify"]["reason"]


def test_a_combination_that_the_engine_refuses(
    engine_bin: Path, tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """Its parser takes a quantised V cache without flash attention; its context does not."""
    flags = ("-c", "4096", "-np", "1", "-fa", "off", "-ctv", "q8_0", "--fit", "off")
    code, answer = verify(
        engine_bin,
        processes.engine_env(engine_bin),
        tmp_path,
        *("--no-gpu", "--", "llama-server", "-m", str(tiny_archs["llama-dense"]), *flags),
    )
    assert (code, answer["verify"]["verdict"]) == (3, "refused")
    assert (
        "failed to create llama_context" in answer["verify"]["reason"]
        or "flash_attn" in answer["verify"]["reason"]
    )
    assert "kv-quant-needs-fa" in [item["id"] for item in answer["findings"]]
