"""`plan-llama launch` and what launchers hold, with the real server, router and systemd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, cli  # noqa: F401 - a fixture
from tests.engine import make_model, processes

pytestmark = pytest.mark.engine

CONTEXT = "4096"


@pytest.fixture(scope="module")
def model(engine_cache: Path) -> Path:
    return make_model.model_file(make_model.DENSE, engine_cache)


def argv_of(model: Path, *more: str) -> list[str]:
    words = ["--model", str(model), "--ctx", CONTEXT, "--parallel", "1", "--no-gpu"]
    return [sys.executable, "-m", "plan_llama", *more[:1], *words, *more[1:]]


def started(argv: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_server_is_started_answers_and_is_gone_with_us(
    engine_bin: Path, model: Path, number: signal.Signals
) -> None:
    port = processes.free_port()
    process = started(
        argv_of(model, "launch", "--port", str(port), "--json", "--timeout", "120"),
        processes.engine_env(engine_bin),
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            lines.append(line)
        answer = json.loads("".join(lines))
        launch = answer["launch"]
        assert launch["url"] == f"http://127.0.0.1:{port}"
        assert launch["ready_s"] > 0
        assert processes.ask(port, "/health") == {"status": "ok"}
        said = processes.ask(port, "/completion", {"prompt": "w1 w2", "n_predict": 4, "ignore_eos": True})
        assert said["tokens_predicted"] == 4
        props = processes.ask(port, "/props")
        assert props["default_generation_settings"]["n_ctx"] == answer["settings"]["context_per_slot"]
        process.send_signal(number)
        killed = number == signal.SIGKILL
        assert process.wait(30) == (-number if killed else 0)
        end = time.monotonic() + (5 if killed else 0)
        while (left := _group_is_left(launch["pid"])) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left
        assert not processes.listens(port)
    finally:
        process.kill()
        process.communicate()


def _group_is_left(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_that_ends_or_is_too_slow(engine_bin: Path, model: Path, tmp_path: Path) -> None:
    fake = tmp_path / "llama-server"
    real = engine_bin / "llama-server"
    for ending, reason in (
        (
            "echo '0.00.1 E boom: no more' >&2; exit 7",
            "it ended before it answered: exit code 7; boom: no more",
        ),
        ("sleep 60", "it did not answer within 2 s"),
    ):
        fake.write_text(
            f'#!/bin/sh\ncase "$*" in *--version*|*--help*|*--list*) exec {real} "$@" ;; esac\n{ending}\n',
            "utf-8",
        )
        fake.chmod(0o755)
        argv = argv_of(model, "launch", "--timeout", "2", "--json", "--engine-path", str(fake), "--port")
        env = processes.engine_env(engine_bin)
        began = time.monotonic()
        done = subprocess.run(
            [*argv, str(processes.free_port())],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert time.monotonic() - began < 40
        assert done.returncode == 3
        assert json.loads(done.stdout)["launch"] == {"url": None, "reason": reason}
        assert done.stderr.splitlines()[-1] == f"plan-llama: launch: {reason}"


def refused(argv: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_file_that_is_not_whole_and_a_port_that_is_taken(
    engine_bin: Path, model: Path, tmp_path: Path
) -> None:
    env = processes.engine_env(engine_bin)
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[: 3 * model.stat().st_size // 4])
    assert f"{short}: has " in refused(argv_of(short, "launch"), env)
    hole = tmp_path / "hole.gguf"
    hole.write_bytes(model.read_bytes()[: 1 << 20])
    os.truncate(hole, model.stat().st_size)
    assert f"{hole}: most of it is a hole" in refused(argv_of(hole, "launch"), env)
    import socket

    with socket.socket() as other:
        other.bind((processes.LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(argv_of(model, "launch", "--port", str(port)), env)
    assert said.startswith(f"plan-llama: port {port}: another program listens on it; ")
    lacking = env | {"PATH": "/usr/bin:/bin"}
    assert "llama-server is not on PATH" in refused(argv_of(model, "launch"), lacking)


@pytest.fixture
def router(engine_bin: Path, model: Path, tmp_path: Path) -> Iterator[tuple[int, list[str]]]:
    """The real router over a presets file that was written for a plan, and the plan's words."""
    env = processes.engine_env(engine_bin)
    done = subprocess.run(
        [
            *argv_of(model),
            *("--write", str(tmp_path), "--launcher", "preset", "--json", "--pin", "ubatch=256"),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    port, log = processes.free_port(), tmp_path / "router.log"
    words = ["--models-preset", str(tmp_path / "models.ini"), "--models-max", "1", "--port", str(port)]
    with processes.running([engine_bin / "llama-server", *words], env=env, log=log) as process:
        processes.wait_until(
            lambda: processes.ask(port, "/health") is not None, process, log, what="router", timeout_s=60
        )
        yield port, json.loads(done.stdout)["command"]["argv"]


def test_the_router_loads_the_preset_and_starts_the_plan(router: tuple[int, list[str]], model: Path) -> None:
    port, planned = router
    listed = processes.ask(port, "/models")["data"]
    (entry,) = [item for item in listed if item["id"] == model.stem]
    given = entry["status"]["args"]
    for flag, long in (("-m", "--model"), ("-c", "--ctx-size"), ("-ub", "--ubatch-size"), ("--fit", "--fit")):
        assert given[given.index(long) + 1] == planned[planned.index(flag) + 1]
    body: dict[str, Any] = {"model": model.stem, "prompt": "w1", "n_predict": 2, "ignore_eos": True}
    answer = processes.ask(port, "/completion", body, timeout_s=120)
    assert answer is not None
    assert answer["tokens_predicted"] == 2


def test_systemd_takes_the_unit(cli: Cli, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    tool = shutil.which("systemd-analyze")
    assert tool is not None, "install systemd (apt-get install systemd)"
    folder = tmp_path / 'it\'s 100% $HOME "here"'
    model = ("--model", "qwen3-30b-a3b", "--quant", "Q4_K_M", "--gpu", "24GiB", "--ram", "64GiB")
    assert cli(*model, "--write", str(folder), "--launcher", "sh,systemd").code == 0
    text = (
        (folder / "llama-server.service")
        .read_text("utf-8")
        .replace("ExecStart=llama-server", "ExecStart=/bin/true")
    )
    target = tmp_path / "llama-server.service"
    target.write_text(text, "utf-8")
    env = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [tool, "--user", "--man=no", "verify", str(target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert (done.returncode, done.stderr) == (0, "")
