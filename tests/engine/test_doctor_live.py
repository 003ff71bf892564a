"""plan-llama doctor -- llama-server ...: real servers, with and without a limit of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine import make_model, processes

pytestmark = pytest.mark.engine
LIMIT_BYTES = 700_000_000


@pytest.fixture(scope="module")
def model(engine_cache: Path) -> Path:
    return make_model.model_file(make_model.DENSE, engine_cache)


def doctor(engine_bin: Path, *command: str) -> tuple[int, Any]:
    argv = [sys.executable, "-m", "plan_llama", "doctor", "--json", "--timeout", "120", "--", *command]
    ended = subprocess.run(
        argv,
        env=processes.engine_env(engine_bin),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.stderr == ""
    return ended.returncode, json.loads(ended.stdout)


def server(engine_bin: Path, model: Path, context: int) -> list[str]:
    words = [
        str(engine_bin / "llama-server"),
        "-m",
        str(model),
        "-c",
        str(context),
        "-np",
        "1",
        "-fit",
        "off",
    ]
    return [*words, "--port", str(processes.free_port())]


def test_a_limit_of_memory_is_named_with_the_peak_and_the_fix(engine_bin: Path, model: Path) -> None:
    """65,536 tokens of context are 768 MiB of cache: more than the limit has beside the file of 127 MiB."""
    limit = ["prlimit", f"--as={LIMIT_BYTES}"]
    code, answer = doctor(engine_bin, *limit, *server(engine_bin, model, 65536))
    assert code == 4
    first = answer["findings"][0]
    assert (first["id"], first["severity"]) == ("host-alloc-failed", "fatal")
    seen = {item["name"]: item["value"] for item in answer["observed"]}
    assert seen["address_limit_bytes"] == LIMIT_BYTES
    assert model.stat().st_size < seen["address_peak_bytes"] < LIMIT_BYTES
    assert "668 MiB" in first["cause"]
    assert "ulimit -v unlimited" in first["fix"]
    assert any("RLIMIT_AS" in line["text"] for line in first["evidence"])
    assert any("failed to allocate buffer of size 805306368" in line["text"] for line in first["evidence"])


def test_a_server_without_a_limit_is_fine(engine_bin: Path, model: Path) -> None:
    code, answer = doctor(engine_bin, *server(engine_bin, model, 4096))
    assert code == 0
    assert answer["log"]["state"] == "served"
    assert answer["build"] == "b11434"
    assert {item["kind"] for item in answer["log"]["buffers"]} >= {"model", "context", "compute"}
    seen = {item["name"]: item["value"] for item in answer["observed"]}
    assert seen["rss_peak_bytes"] > 100 * 1024**2
    assert not {"exit_code", "exit_signal"} & set(seen)


def test_a_server_that_runs_is_asked_and_its_output_judged(
    engine_bin: Path, model: Path, tmp_path: Path
) -> None:
    """The model's weights are random: what it writes at temperature 0 is no text."""
    port = processes.free_port()
    argv = [
        str(engine_bin / "llama-server"),
        "-m",
        str(model),
        "-c",
        "4096",
        "-np",
        "2",
        "-t",
        "1",
        "-fit",
        "off",
    ]
    argv += ["--metrics", "--port", str(port), "--api-key", "geheim"]
    env = processes.engine_env(engine_bin)
    with processes.running(argv, env=env, log=tmp_path / "log") as process:
        processes.wait_until(
            lambda: processes.ask(port, "/health") is not None,
            process,
            tmp_path / "log",
            what="llama-server",
            timeout_s=60,
        )
        words = ["--url", f"http://127.0.0.1:{port}", "--pid", str(process.pid), "--probe-output", "--json"]
        ended = subprocess.run(
            [sys.executable, "-m", "plan_llama", "doctor", *words],
            env={**env, "LLAMA_API_KEY": "geheim"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    answer = json.loads(ended.stdout)
    assert ended.returncode == 4
    assert "output-garbage" in [item["id"] for item in answer["findings"]]
    facts = answer["log"]["facts"]
    assert (answer["build"], facts["slots"], facts["slot_context"]) == ("b11434", 2, 2048)
    assert "geheim" not in ended.stdout
