"""`plan-llama verify` with a build that has no llama-fit-params: the real llama-server is started, read and ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from plan_llama.models.spec import load
from plan_llama.models.writer import write_header
from tests.engine import processes
from tests.engine.conftest import GpuSimulation
from tests.engine.test_verify import assert_agrees, verify

pytestmark = pytest.mark.engine

HOST_ONLY = ("--no-gpu", "--ram", "16GiB")
ONE_CARD = ("--gpu", "8GiB", "--ram", "16GiB")


@pytest.fixture
def server_only(engine_bin: Path, tmp_path: Path) -> Path:
    """A folder as older builds and some packages have it."""
    folder = tmp_path / "distribution"
    folder.mkdir()
    (folder / "llama-server").symlink_to(engine_bin / "llama-server")
    return folder


@pytest.fixture
def env(engine_bin: Path) -> dict[str, str]:
    return processes.engine_env(engine_bin)


@pytest.fixture(autouse=True)
def nothing_is_left(server_only: Path) -> Iterator[None]:
    """No process of the program that was started."""
    yield
    program = str(server_only / "llama-server")
    found = [
        folder.name
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and program in command_line(folder)
    ]
    assert found == []


def command_line(folder: Path) -> list[str]:
    try:
        return (folder / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def host_lines(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {line["part"]: line for line in answer["verify"]["lines"] if line["device"] == "host"}


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("llama-dense", "-c 4096 -np 4 -kvu"),  # llama-fit-params does not take -kvu
        ("gemma3-dense", "-c 2048 -np 2 -ctk q8_0 -ctv q8_0 -fa on"),
        ("qwen3next-moe", "-c 4096 -np 2"),
        ("deepseek4-moe", "-c 4096 -np 2"),  # compressor states have lines of their own
        ("glm-dsa-moe", "-c 4096 -np 1 -fa off"),
    ],
)
def test_the_host_alone(
    model: str,
    flags: str,
    server_only: Path,
    env: dict[str, str],
    tiny_archs: dict[str, Path],
    tmp_path: Path,
) -> None:
    command = ("llama-server", "-m", str(tiny_archs[model]), *flags.split(), "-nr", "--fit", "off")
    code, answer = verify(server_only, env, tmp_path, *HOST_ONLY, "--", *command)
    assert_agrees(code, answer)
    found = answer["verify"]
    assert {line["verdict"] for line in found["lines"]} <= {"same", "within"}
    assert found["dry_run"]["program"] == "llama-server"
    assert "once it had said" in found["dry_run"]["ended"]
    argv = found["dry_run"]["argv"]
    assert argv[argv.index("--host") + 1] == "127.0.0.1"


def test_a_card_and_the_host(
    server_only: Path, sim_gpus: GpuSimulation, tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """Half of the layers on each side; what the host has of the file is one stretch of it."""
    flags = (
        "-c",
        "4096",
        "-np",
        "2",
        "-ngl",
        "2",
        "-b",
        "256",
        "--load-mode",
        "none",
        "--port",
        "80",
        "--fit",
        "off",
    )
    with sim_gpus([8192], [512]) as (env, rpc):
        command = ("llama-server", "-m", str(tiny_archs["llama-dense"]), *flags)
        code, answer = verify(server_only, env, tmp_path, *ONE_CARD, *rpc, "--", *command)
    assert_agrees(code, answer)
    argv = answer["verify"]["dry_run"]["argv"]
    assert (argv.count("--port"), argv[argv.index("-lm") + 1]) == (1, "mmap")
    assert "--load-mode" not in argv


def test_two_cards_and_a_model_that_drafts(
    server_only: Path, sim_gpus: GpuSimulation, tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    flags = (
        "-c",
        "4096",
        "-np",
        "2",
        "-ngl",
        "99",
        "-ts",
        "1,1",
        "--spec-type",
        "draft-simple",
        "--fit",
        "off",
    )
    with sim_gpus([8192, 8192], [512, 512]) as (env, rpc):
        models = ("-m", str(tiny_archs["llama-dense"]), "-md", str(tiny_archs["qwen3-dense"]))
        command = ("llama-server", *models, *flags)
        code, answer = verify(server_only, env, tmp_path, *ONE_CARD, "--gpu", "8GiB", *rpc, "--", *command)
    assert_agrees(code, answer)
    assert answer["memory"]["draft"]["devices"][1]["weights_bytes"] > 0


def test_a_header_stands_in_for_the_model(
    server_only: Path, env: dict[str, str], tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """A file whose data is not all there: cut behind its header."""
    whole = tiny_archs["llama-dense"]
    spec = load(str(whole))
    cut = tmp_path / "cut.gguf"
    write_header(spec, cut)
    os.truncate(cut, cut.stat().st_size - sum(tensor.nbytes for tensor in spec.tensors) // 2)
    command = ("llama-server", "-m", str(cut), "-c", "4096", "-np", "2", "-nr", "--fit", "off")
    code, answer = verify(server_only, env, tmp_path, *HOST_ONLY, "--", *command)
    assert_agrees(code, answer)
    assert answer["verify"]["dry_run"]["header_only"] is True


def test_an_engine_that_aborts(
    server_only: Path, env: dict[str, str], tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """b11434 takes `-b 0` and aborts on it."""
    command = ("llama-server", "-m", str(tiny_archs["llama-dense"]), "-c", "4096", "-b", "0", "--fit", "off")
    code, answer = verify(server_only, env, tmp_path, *HOST_ONLY, "--", *command)
    found = answer["verify"]
    assert (code, found["verdict"], found["accepted"]) == (3, "not-verified", True)
    assert "SIGABRT" in found["reason"]
    assert "GGML_ASSERT" in found["reason"]


def test_a_combination_that_it_refuses(
    server_only: Path, env: dict[str, str], tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("-c", "4096", "-np", "1", "-fa", "off", "-ctv", "q8_0", "--fit", "off")
    command = ("llama-server", "-m", str(tiny_archs["llama-dense"]), *flags)
    code, answer = verify(server_only, env, tmp_path, *HOST_ONLY, "--", *command)
    assert (code, answer["verify"]["verdict"]) == (3, "refused"), answer["verify"]["reason"]


def test_a_server_that_does_not_come_up(
    server_only: Path, env: dict[str, str], tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """It waits for ever for an RPC server that takes connections and does not speak."""
    with socket.create_server((processes.LOOPBACK, 0)) as silent:
        rpc = ("--rpc", f"{processes.LOOPBACK}:{silent.getsockname()[1]}", "--timeout", "3")
        command = ("llama-server", "-m", str(tiny_archs["llama-dense"]), "-c", "4096", "--fit", "off")
        code, answer = verify(server_only, env, tmp_path, *HOST_ONLY, *rpc, "--", *command)
    found = answer["verify"]
    assert (code, found["verdict"]) == (3, "not-verified")
    assert found["dry_run"]["timed_out"] is True
    assert "without an answer" in found["reason"]


def test_what_would_eat_the_machine_is_not_started(
    server_only: Path, env: dict[str, str], tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """A cache of two TiB, on a machine that is described as large."""
    flags = ("-c", str(1 << 30), "-np", "1", "--fit", "off")
    command = ("llama-server", "-m", str(tiny_archs["llama-dense"]), *flags)
    code, answer = verify(server_only, env, tmp_path, "--no-gpu", "--ram", "8TiB", "--", *command)
    found = answer["verify"]
    assert (code, found["verdict"], found["dry_run"]["seconds"]) == (3, "not-verified", 0)
    assert "of this machine's memory" in found["reason"]
    assert {line["verdict"] for line in found["lines"]} == {"not-checked"}


def test_the_program_can_be_named(
    engine_bin: Path, env: dict[str, str], tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    """Both programs are there: by itself it is llama-fit-params."""
    command = ("llama-server", "-m", str(tiny_archs["llama-dense"]), "-c", "4096", "-nr", "--fit", "off")
    for asked, runs in (((), "llama-fit-params"), (("--program", "llama-server"), "llama-server")):
        code, answer = verify(engine_bin, env, tmp_path, *HOST_ONLY, *asked, "--", *command)
        assert_agrees(code, answer)
        assert answer["verify"]["dry_run"]["program"] == runs
