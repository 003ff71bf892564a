"""plan-llama doctor --url and --pid: a server made for the test, and real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plan_llama.cli import doctor_process
from plan_llama.doctor import report, rules
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import Book, LogReader
from tests.cli.conftest import Cli

GOOD = "Flour, water, yeast and salt are kneaded. The dough rises. It is baked in a hot oven."
PROPS = {  # the keys of llama-server b11434
    "default_generation_settings": {"n_ctx": 2048, "params": {}},
    "total_slots": 2,
    "model_path": "/home/alice/m.gguf",
    "model_ftype": "Q8_0",
    "build_info": "b11434-1a2b3c4",
}


class Fake:
    """What a server answers by path: a status and a body."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/health": (200, {"status": "ok"}),
            "/props": (200, PROPS),
        }
        self.asked: list[tuple[str, str | None, Any]] = []
        self.url = ""

    def says(self, text: str) -> None:
        """What it writes."""
        self.answers["/v1/chat/completions"] = (200, {"choices": [{"message": {"content": text}}]})


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
            """Nothing."""

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            fake.asked.append((self.path, self.headers["Authorization"], body))
            status, answer = fake.answers.get(self.path, (404, {"error": "no"}))
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    with serving(Fake()) as made:
        yield made


def test_what_a_server_says_of_itself(cli: Cli, fake: Fake) -> None:
    fake.answers["/slots"] = (200, [{"is_processing": True}, {"is_processing": False}])
    metrics = (
        b"# TYPE x counter\nllamacpp:tokens_predicted_total 120\nllamacpp:predicted_tokens_seconds 12.5\n"
    )
    fake.answers["/metrics"] = (200, metrics)
    ended = cli("doctor", "--url", fake.url, "--json")
    assert ended.code == 0
    answer = ended.json
    assert (answer["engine"], answer["build"], answer["log"]["state"]) == ("llama.cpp", "b11434", "served")
    facts = answer["log"]["facts"]
    assert (facts["slots"], facts["slot_context"], facts["decode_tok_s"]) == (2, 2048, 12.5)
    assert "alice" not in ended.out
    assert {path for path, _, _ in fake.asked} == {"/health", "/props", "/slots", "/metrics"}


def test_a_key_comes_from_the_environment_and_is_not_shown(
    cli: Cli, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answers["/props"] = (401, {"error": "Invalid API Key"})
    assert "LLAMA_API_KEY" in cli("doctor", "--url", fake.url).flat
    monkeypatch.setenv("LLAMA_API_KEY", "geheim")
    ended = cli("doctor", "--url", fake.url)
    assert fake.asked[-1][1] == "Bearer geheim"
    assert "geheim" not in ended.out


def test_redirects_are_not_followed(cli: Cli, fake: Fake) -> None:
    for path in ("/health", "/props", "/slots", "/metrics"):
        fake.answers[path] = (302, b"")
    assert cli("doctor", "--url", fake.url).code == 0
    assert "/elsewhere" not in {path for path, _, _ in fake.asked}


@pytest.mark.parametrize(
    ("text", "ident"), [("G" * 100, "output-garbage"), ("", "output-garbage"), (GOOD, "")]
)
def test_what_it_writes_is_judged_when_asked(cli: Cli, fake: Fake, text: str, ident: str) -> None:
    fake.says(text)
    assert cli("doctor", "--url", fake.url).code == 0
    assert all(body is None for _, _, body in fake.asked)
    ended = cli("doctor", "--url", fake.url, "--probe-output", "--json")
    assert [item["id"] for item in ended.json["findings"]] == ([ident] if ident else [])
    assert ended.code == (4 if ident else 0)
    assert fake.asked[-1][2]["temperature"] == 0


def test_a_template_that_does_not_parse_is_known(cli: Cli, fake: Fake) -> None:
    fake.answers["/v1/chat/completions"] = (
        500,
        {"error": {"message": "Chat template parsing error: line 3"}},
    )
    ended = cli("doctor", "--url", fake.url, "--probe-output", "--json")
    assert [item["id"] for item in ended.json["findings"]] == ["output-wrong-template"]


def test_answers_that_are_nonsense_harm_nothing(cli: Cli, fake: Fake) -> None:
    for body in (
        b"[" * 100_000,
        b"\xff\xfe",
        b"null",
        b'{"default_generation_settings": 3, "model_path": 7}',
    ):
        for path in ("/props", "/slots", "/metrics"):
            fake.answers[path] = (200, body)
        assert cli("doctor", "--url", fake.url).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "ftp://x"], "not a usable URL"),
        (["--url", "http://me:geheim@x/"], "not a usable URL"),
        (["--url", "http://127.0.0.1:1"], "cannot be asked"),
        (["--url", "http://127.0.0.1:99999"], "not a usable URL"),
        (["--probe-output"], "--url"),
        (["--pid", "999999999"], "no process"),
        (["--pid", "1", "--", "true"], "a server that runs and a command"),
    ],
)
def test_refusals_are_one_line(cli: Cli, words: list[str], said: str) -> None:
    ended = cli("doctor", *words)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert "geheim" not in ended.err


def looked_at(words: list[str], environment: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What is seen of a real process with these arguments, and the problems found."""
    code = "print('up', flush=True); import time; time.sleep(60)"
    argv = [sys.executable, "-c", code, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            reader = LogReader(Book(rules.templates()))
            doctor_process.looked_at(reader, process.pid, seconds=0.3)
        finally:
            process.kill()
    evidence = reader.finish()
    found = report.findings(evidence, diagnose(evidence, rules.load()))
    said = {name: fact.line.text for name, fact in evidence.observed.items() if fact.line is not None}
    return said, [item.id for item in found]


def test_a_process_that_runs_without_its_secrets() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "1", "LLAMA_API_KEY": "geheim", "HOME": "/home/alice"}
    said, found = looked_at(["--api-key", "geheim", "-t", "1", "-m", "/home/alice/m.gguf"], environment)
    assert found == []
    assert "-t 1" in said["process_command"]
    assert "RAM of the process" in said["rss_peak_bytes"]
    assert "geheim" not in str(said)
    assert "alice" not in str(said)


def test_more_threads_than_processors_and_a_target_that_is_overridden() -> None:
    _, found = looked_at(["-t", "4096"], {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"})
    assert found[0] == "threads-oversubscribed"
    assert "output-garbage-rocm" in found


def test_pages_that_are_read_again_and_again(tmp_path: Path) -> None:
    """A process of 10 faults at first and 10 more at each look is fine; one of 900 is not."""
    for rate, expected in ((10, []), (900, ["mmap-paging-thrash"])):
        reader = LogReader(Book(rules.templates()))
        folder = tmp_path / str(rate) / "proc/7"
        folder.mkdir(parents=True)
        (folder / "status").write_text("Pid:\t7\nVmHWM:\t 100 kB\nVmRSS:\t 100 kB\nThreads:\t2\n")

        def at(faults: int, folder: Path = folder) -> None:
            (folder / "stat").write_text(f"7 (x) S 1 7 7 0 -1 4194304 9 0 {faults} 0 1 2 3\n")

        at(10)
        timer = threading.Timer(0.1, at, args=(10 + rate,))
        timer.start()
        doctor_process.looked_at(reader, 7, sysroot=tmp_path / str(rate), seconds=1.0)
        timer.join()
        evidence = reader.finish()
        assert [item.rule.id for item in diagnose(evidence, rules.load())] == expected
