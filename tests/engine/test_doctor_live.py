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


GROUPS = Path(
    "/sys/fs/cgroup/memory"
)  # v1, where it is mounted; the tests of the other kinds replay captured ones
GROUP_BYTES = 400 << 20


def in_a_group(argv: list[str], folder: Path) -> list[str]:
    """The command, inside a control group that limits its memory; without the right to make one, the words alone."""
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
    except OSError:
        return ["prlimit", f"--as={LIMIT_BYTES}", *argv]
    return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh", *argv]


def test_a_group_that_ends_it_is_named_with_the_peak_and_the_fix(engine_bin: Path, model: Path) -> None:
    """Its cache of 768 MiB is written at the start, which the group's 400 MiB do not hold: the kernel ends it.

    Where no group can be made, address space is what limits it.
    """
    folder = GROUPS / f"plan-llama-test-{processes.free_port()}"
    argv = in_a_group(server(engine_bin, model, 65536), folder)
    grouped = argv[0] == "sh"
    try:
        code, answer = doctor(engine_bin, *argv)
    finally:
        if grouped:
            folder.rmdir()
    assert code == 4
    first = answer["findings"][0]
    assert (first["id"], first["severity"]) == (
        "container-memory-limit" if grouped else "host-alloc-failed",
        "fatal",
    )
    seen = {item["name"]: item["value"] for item in answer["observed"]}
    limit, peak = (
        ("cgroup_limit_bytes", "cgroup_peak_bytes")
        if grouped
        else ("address_limit_bytes", "address_peak_bytes")
    )
    assert seen[limit] == (GROUP_BYTES if grouped else LIMIT_BYTES)
    assert 0.3 * seen[limit] < seen[peak] <= seen[limit]
    shown = f"{first['cause']} {' '.join(line['text'] for line in first['evidence'])}"
    assert ("400 MiB" if grouped else "668 MiB") in shown
    assert "the peak was" in shown
    assert first["fix"]
    # The file is no catalog's; its own header and the limit say what fits.
    command = answer["plan"]["command"]["argv"]
    command = command[command.index(str(engine_bin / "llama-server")) :]
    assert command[command.index("-m") + 1] == str(model)
    assert int(command[command.index("-c") + 1]) < 65536


def test_a_server_without_a_limit_is_fine(engine_bin: Path, model: Path) -> None:
    code, answer = doctor(engine_bin, *server(engine_bin, model, 4096))
    assert code == 0
    assert answer["log"]["state"] == "served"
    assert answer["build"] == "b11434"
    assert {item["kind"] for item in answer["log"]["buffers"]} >= {"model", "context", "compute"}
    seen = {item["name"]: item["value"] for item in answer["observed"]}
    assert seen["rss_peak_bytes"] > 100 * 1024**2
    assert not {"exit_code", "exit_signal"} & set(seen)


def ask_running(
    engine_bin: Path, argv: list[str], words: list[str], log: Path, port: int
) -> tuple[int, Any, str]:
    """doctor's answer about a server that runs meanwhile; PID in its words is the server's."""
    env = processes.engine_env(engine_bin)
    with processes.running(argv, env=env, log=log) as process:
        processes.wait_until(
            lambda: processes.ask(port, "/health") is not None,
            process,
            log,
            what="llama-server",
            timeout_s=60,
        )
        words = [word.replace("PID", str(process.pid)) for word in words]
        ended = subprocess.run(
            [sys.executable, "-m", "plan_llama", "doctor", *words, "--json"],
            env={**env, "LLAMA_API_KEY": "geheim"},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    return ended.returncode, json.loads(ended.stdout), ended.stdout


def running(engine_bin: Path, model: Path, port: int, *more: str) -> list[str]:
    words = [str(engine_bin / "llama-server"), "-m", str(model), "-c", "4096", "-np", "2", "-fit", "off"]
    return [*words, "--port", str(port), "--api-key", "geheim", *more]


def test_a_server_that_runs_is_asked_and_its_output_judged(
    engine_bin: Path, model: Path, tmp_path: Path
) -> None:
    """The model's weights are random: what it writes at temperature 0 is no text. By its port its process is found."""
    port = processes.free_port()
    argv = running(engine_bin, model, port, "--metrics", "-t", "1", "--cache-ram", "0")
    words = ["--url", f"http://127.0.0.1:{port}", "--probe-output", "--timeout", "60"]
    code, answer, out = ask_running(engine_bin, argv, words, tmp_path / "log", port)
    assert code == 4
    assert "output-garbage" in [item["id"] for item in answer["findings"]]
    facts = answer["log"]["facts"]
    assert (answer["build"], facts["slots"], facts["slot_context"]) == ("b11434", 2, 2048)
    assert "geheim" not in out
    seen = {item["name"]: item["text"] for item in answer["observed"]}
    assert "--api-key ***" in seen["process_command"]
    assert seen["probe_short"].startswith("probe, short: ")
    (ram,) = answer["plan"]["compared"]
    # the model's 127 MiB are mapped and left out, caches and buffers are touched as they are used
    assert (ram["device"], ram["kind"]) == ("RAM", "anonymous")
    assert ram["predicted_bytes"] < model.stat().st_size
    assert 0.5 * ram["predicted_bytes"] < ram["measured_bytes"] < ram["predicted_bytes"] + (512 << 20)


def test_the_command_of_a_server_that_runs_is_corrected(
    engine_bin: Path, model: Path, tmp_path: Path
) -> None:
    """No catalog knows the file: its header is read where the process has it."""
    port = processes.free_port()
    argv = running(engine_bin, model, port, "-t", "96", "--no-warmup", "--alias", "mine")
    code, answer, out = ask_running(engine_bin, argv, ["--pid", "PID"], tmp_path / "log", port)
    assert code == 4
    assert [item["id"] for item in answer["findings"] if item["severity"] != "note"] == [
        "threads-oversubscribed"
    ]
    command = answer["plan"]["command"]["argv"]
    assert command[:3] == argv[:3]
    assert int(command[command.index("-t") + 1]) < 96
    assert command[command.index("--alias") + 1] == "mine"
    assert command[command.index("--port") + 1] == str(port)
    assert "geheim" not in out
