"""plan-llama doctor -- COMMAND: what is run, how it is watched, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from plan_llama.cli import doctor_live
from tests.cli.conftest import Cli

UP = "print('srv  llama_server: listening on http://127.0.0.1:8080', flush=True)\n"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_live, "_IDLE_S", 0.3)


def script(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_a_server_that_listens_is_fine_and_all_it_started_is_ended(cli: Cli, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    text = (
        "import os, subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n" + UP + "time.sleep(300)\n"
    )
    ended = cli("doctor", "--timeout", "60", "--", sys.executable, script(tmp_path, text))
    assert ended.code == 0
    assert "NOTHING WRONG FOUND" in ended.out
    pids = [int(word) for word in note.read_text().split()]
    until = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_what_it_started_ends_with_doctor_however_that_ends(tmp_path: Path) -> None:
    """Killed as the kernel kills for want of memory: doctor itself can end nothing then."""
    note = tmp_path / "pids"
    text = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(note)!r} + '.part', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(note)!r} + '.part', {str(note)!r})\n"
        "time.sleep(300)\n"
    )
    argv = [sys.executable, "-m", "plan_llama", "doctor", "--", sys.executable, script(tmp_path, text)]
    doctor = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not note.exists() and time.monotonic() < until:
            time.sleep(0.05)
        pids = [int(word) for word in note.read_text().split()]
        assert all(map(alive, pids))
    finally:
        doctor.kill()
        doctor.wait()
    until = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_words_reach_the_program_as_they_are(cli: Cli, tmp_path: Path) -> None:
    note = tmp_path / "words"
    text = f"import sys, json\njson.dump(sys.argv[1:], open({str(note)!r}, 'w'))\n" + UP
    words = ["$(touch x)", "; ls", "--log", "a b", "--", "*"]
    ended = cli("doctor", "--", sys.executable, script(tmp_path, text), *words)
    assert ended.code == 0
    assert json.loads(note.read_text()) == words


def test_one_that_is_killed_without_a_word(cli: Cli, tmp_path: Path) -> None:
    text = (
        "import os, time\nprint(\"srv    load_model: loading model '/m/a.gguf'\", flush=True)\n"
        "time.sleep(1)\nos.kill(os.getpid(), 9)\n"
    )
    ended = cli("doctor", "--json", "--", sys.executable, script(tmp_path, text))
    assert ended.code == 4
    answer = ended.json
    schema = json.loads(files("plan_llama").joinpath("schema/doctor.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(answer)
    first = answer["findings"][0]
    assert first["id"] == "host-oom-killed"
    assert any("SIGKILL" in line["text"] for line in first["evidence"])
    seen = {item["name"]: item["value"] for item in answer["observed"]}
    assert seen["exit_signal"] == "SIGKILL"
    assert seen["rss_peak_bytes"] > 0


def test_an_end_that_nothing_explains_is_said_to_be_one(cli: Cli, tmp_path: Path) -> None:
    ended = cli("doctor", "--", sys.executable, "-c", "raise SystemExit(7)")
    assert ended.code == 4
    assert "cause-not-found" in ended.out
    assert "with exit code 7" in ended.flat


def test_a_good_end_is_no_problem(cli: Cli) -> None:
    assert cli("doctor", "--", sys.executable, "-c", "print('done')").code == 0


def test_the_time_is_limited(cli: Cli, tmp_path: Path) -> None:
    text = "import time\nprint('loading', flush=True)\ntime.sleep(300)\n"
    began = time.monotonic()
    ended = cli("doctor", "--timeout", "1", "--", sys.executable, script(tmp_path, text))
    assert time.monotonic() - began < 30
    assert ended.code == 4
    assert "not-ready-in-time" in ended.out
    assert "--timeout" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log", "a.log", "--", "true"], "a log and a command"),
        (["server.log"], "'server.log' is neither"),
        (["server.log", "--", "true"], "'server.log' is neither"),
        (["--", "/no/such/program"], "/no/such/program: cannot be started"),
        (["--timeout", "0", "--", "true"], "--timeout"),
    ],
)
def test_refusals_are_one_line(cli: Cli, words: list[str], said: str) -> None:
    ended = cli("doctor", *words)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""
