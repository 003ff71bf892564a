"""The proof: the launcher of a plan, run as a user would, starts a server that uses what the plan said."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine import processes
from tests.engine.conftest import MembytesRunner
from tests.engine.measure import MIB, Sums, host_sum, log_buffers, places

pytestmark = pytest.mark.engine

CONTEXT = 4096
START_WITHIN_S = 60.0
ANSWER_TOKENS = 8


@pytest.fixture(scope="module")
def models(engine_cache: Path) -> dict[str, Path]:
    """Small real models, made once."""
    from tests.engine import make_model  # needs gguf and numpy, which the fast suite does not install

    shapes = {"dense": make_model.DENSE, "dense-q4_0": make_model.DENSE_Q4_0, "moe": make_model.MOE}
    return {name: make_model.model_file(shape, engine_cache / "models") for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What a real server said and did."""

    log: str
    props: dict[str, Any]
    answer: dict[str, Any]
    resident_peak_bytes: int


@contextlib.contextmanager
def serving(argv: Sequence[str | Path], port: int, env: dict[str, str], log: Path) -> Iterator[int]:
    """A server that answers /health; gives its process id (the launcher's own, which it replaces)."""
    with processes.running(argv, env=env, log=log) as server:

        def healthy() -> bool:
            return bool(processes.ask(port, "/health", timeout_s=5))

        processes.wait_until(healthy, server, log, what=str(argv[0]), timeout_s=START_WITHIN_S)
        yield server.pid


def witness(argv: Sequence[str | Path], env: dict[str, str], tmp_path: Path) -> Witness:
    """Start the server with a log of every buffer, ask it once, end it, and check that it is gone."""
    port, log = processes.free_port(), tmp_path / "server.log"
    words = [*argv, "--host", processes.LOOPBACK, "--port", str(port), "-lv", "4"]
    with serving(words, port, env, log) as pid:
        body = {"prompt": "w1 w2 and some text", "n_predict": ANSWER_TOKENS, "ignore_eos": True}
        answer = processes.ask(port, "/completion", body)
        props = processes.ask(port, "/props")
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    assert answer is not None, log.read_text(encoding="utf-8", errors="replace")[-2000:]
    assert props is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert not processes.listens(port)
    return Witness(
        log=log.read_text(encoding="utf-8", errors="replace"),
        props=props,
        answer=answer,
        resident_peak_bytes=status_bytes(status, "VmHWM"),
    )


def status_bytes(status: str, key: str) -> int:
    """A size of /proc/PID/status, which is in kB of 1024."""
    value = next(line for line in status.splitlines() if line.startswith(f"{key}:"))
    return int(value.split()[1]) * 1024


def plan(model: Path, launchers: Path, env: dict[str, str], extra: Sequence[str]) -> dict[str, Any]:
    """The plan of the installed program for this machine, with its launchers written."""
    argv = [
        sys.executable,
        "-m",
        "plan_llama",
        "--model",
        str(model),
        "--ctx",
        str(CONTEXT),
        "--parallel",
        "1",
    ]
    argv += ["--engine", "llama.cpp", "--write", str(launchers), "--json", *extra]
    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_as_predicted(predicted: dict[str, Any], real: Sums) -> None:
    """Weights to 0.1 %, context to 1 MiB, compute to 10 % or 1 MiB."""
    said = {key: predicted[key] for key in ("weights_bytes", "context_bytes", "compute_bytes")}
    assert said == {
        "weights_bytes": pytest.approx(real.weights_bytes, rel=1e-3),
        "context_bytes": pytest.approx(real.context_bytes, rel=0, abs=MIB),
        "compute_bytes": pytest.approx(real.compute_bytes, rel=0.1, abs=MIB),
    }


@pytest.mark.parametrize("name", ["dense", "dense-q4_0", "moe"])
def test_log_and_breakdown_agree(
    name: str, models: dict[str, Path], engine_bin: Path, membytes: MembytesRunner, tmp_path: Path
) -> None:
    """Our two witnesses, the log of a running server and membytes, say the same of the same arguments."""
    words = ["-m", str(models[name]), "-c", str(CONTEXT), "-np", "1", "--load-mode", "none"]
    env = processes.engine_env(engine_bin)
    seen = witness([engine_bin / "llama-server", *words], env, tmp_path)
    told = host_sum(places(membytes(words, env | {"MEMBYTES_MODE": "server"})))
    logged = log_buffers(seen.log)
    for key in ("weights_bytes", "context_bytes", "compute_bytes"):
        # The log rounds each buffer to 0.01 MiB.
        assert getattr(logged, key) == pytest.approx(getattr(told, key), abs=0.02 * MIB), key


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("dense", ()),
        ("moe", ()),
        # Without the mapping each buffer holds its own tensors only, the repacked ones too.
        ("dense-q4_0", ("--pin", "load-mode=none")),
    ],
)
def test_launcher_serves_within_the_plan(
    name: str, extra: tuple[str, ...], models: dict[str, Path], engine_bin: Path, tmp_path: Path
) -> None:
    env = processes.engine_env(engine_bin, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    launchers = tmp_path / "launchers"
    planned = plan(models[name], launchers, env, extra)
    assert planned["verdict"] in ("fits", "tight")
    assert planned["model"]["path"] == str(models[name])
    scripts = sorted(launchers.glob("*.sh"))
    assert len(scripts) == 1, sorted(path.name for path in launchers.iterdir())

    seen = witness(["sh", scripts[0]], env, tmp_path)

    assert seen.answer["tokens_predicted"] == ANSWER_TOKENS
    assert seen.props["total_slots"] == planned["settings"]["parallel"]
    assert seen.props["default_generation_settings"]["n_ctx"] == planned["settings"]["context_per_slot"]
    host = planned["memory"]["host"]
    assert_as_predicted(host, log_buffers(seen.log))
    # What no buffer shows (code, tokenizer, HTTP threads) stays within the margin that the plan keeps.
    buffers = host["weights_bytes"] + host["context_bytes"] + host["compute_bytes"]
    margin = planned["memory"]["pools"][0]["margin_bytes"]
    assert seen.resident_peak_bytes <= buffers + margin
