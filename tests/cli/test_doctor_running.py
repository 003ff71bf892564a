"""plan-llama doctor --url and --pid: a server made for the test, and real processes."""

from __future__ import annotations

import contextlib
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
        self.texts: list[str] = []
        self.url = ""
        self.held = threading.Event()  # once set, an answer that waits for it may end
        self.holds = ""  # the question whose answer waits after its first half

    def says(self, *texts: str) -> None:
        """What it writes, one answer after the other, in pieces as llama-server b11434 sends them."""
        self.texts = list(texts)

    def chat(self) -> tuple[int, Any]:
        """The next answer; the last one again and again."""
        if not self.texts:
            return self.answers.get("/v1/chat/completions", (404, {"error": "no"}))
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        pieces = [{"choices": [{"delta": {"content": text[at : at + 7]}}]} for at in range(0, len(text), 7)]
        lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
        return 200, ("".join(lines) + "data: [DONE]\n\n").encode()


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
            status, answer = (
                fake.chat() if body is not None else fake.answers.get(self.path, (404, {"error": "no"}))
            )
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body is not None and fake.holds and fake.holds in body["messages"][0]["content"]:
                with contextlib.suppress(OSError):
                    self.wfile.write(data[: len(data) // 2])
                fake.held.wait(30)
                return
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        fake.held.set()
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
    questions = [body for _, _, body in fake.asked if body is not None]
    assert len(questions) == 3
    assert {body["temperature"] for body in questions} == {0}
    seen = {item["name"]: item["text"] for item in ended.json["observed"]}
    assert all(seen[f"probe_{name}"].startswith("probe, ") for name in ("short", "languages", "long"))


def test_a_fault_in_one_answer_is_enough(cli: Cli, fake: Fake) -> None:
    """The short answer is good, and the long one goes round in circles."""
    fake.says(
        "Paris.", "Guten Morgen. Доброе утро. صباح الخير. おはようございます。", "The dough rises. " * 40
    )
    ended = cli("doctor", "--url", fake.url, "--probe-output", "--json")
    assert [item["id"] for item in ended.json["findings"]] == ["output-garbage"]
    assert "repetition" in ended.json["findings"][0]["evidence"][0]["text"]


def test_a_time_that_is_over_keeps_the_other_findings(cli: Cli, fake: Fake) -> None:
    fake.says("G" * 100, GOOD)
    fake.holds = "bread"
    ended = cli("doctor", "--url", fake.url, "--probe-output", "--timeout", "2", "--json")
    assert {item["id"] for item in ended.json["findings"]} == {"output-slow", "output-garbage"}
    assert "not finished after" in str(ended.json["findings"])


def test_a_server_that_says_nothing(cli: Cli, fake: Fake) -> None:
    fake.says("")
    fake.holds = "France"
    ended = cli("doctor", "--url", fake.url, "--probe-output", "--timeout", "1", "--json")
    assert ended.code == 4
    assert [item["id"] for item in ended.json["findings"]] == ["output-no-answer"]
    assert len([body for _, _, body in fake.asked if body is not None]) == 1
    assert ended.json["log"]["facts"]["slots"] == 2


def test_a_server_that_fails(cli: Cli, fake: Fake) -> None:
    fake.answers["/v1/chat/completions"] = (500, {"error": {"message": "compute error"}})
    ended = cli("doctor", "--url", fake.url, "--probe-output", "--json")
    assert [item["id"] for item in ended.json["findings"]] == ["output-no-answer"]
    fake.answers["/v1/chat/completions"] = (401, {"error": {"message": "Invalid API Key"}})
    assert cli("doctor", "--url", fake.url, "--probe-output", "--json").json["findings"] == []


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


def made(root: Path, *, ticks: int = 0, processor: int = 0, swapped: int = 0, read: int = 0) -> None:
    """/proc of a machine on which process 7 runs two threads."""
    folder = root / "proc/7"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "proc/vmstat").write_text(f"pswpin {swapped}\npswpout 0\n")
    (folder / "status").write_text("Pid:\t7\nVmHWM:\t 100 kB\nVmRSS:\t 100 kB\nThreads:\t2\n")
    (folder / "io").write_text(f"rchar: 1\nread_bytes: {read}\n")
    (folder / "stat").write_text("7 (x) S 1 7 7 0 -1 4194304 9 0 0 0 1 2 3\n")
    for number in (7, 8):
        task = folder / f"task/{number}"
        task.mkdir(parents=True, exist_ok=True)
        words = ["S", "1", "7", "7", *["0"] * 7, str(ticks), "0", *["0"] * 23, str(processor), "0"]
        (task / "stat").write_text(f"{number} (x) {' '.join(words)}\n")


def test_what_it_does_while_it_is_watched(tmp_path: Path) -> None:
    """Two threads that compute on one core, pages that go to swap, and bytes that come from a drive."""
    made(tmp_path)
    reader = LogReader(Book(rules.templates()))
    timer = threading.Timer(
        0.3, made, args=(tmp_path,), kwargs={"ticks": 90, "swapped": 20_000, "read": 1 << 30}
    )
    timer.start()
    doctor_process.looked_at(reader, 7, sysroot=tmp_path, seconds=0.8)
    timer.join()
    evidence = reader.finish()
    said = {name: fact.line.text for name, fact in evidence.observed.items() if fact.line is not None}
    assert said["busy_threads"] == "2 threads compute, on 1 cores of 1 memory node"
    assert said["swap_rate_bytes"].startswith("to and from swap, of all programs: ")
    assert said["drive_rate_bytes"].startswith("read from drives while it runs: ")
    found = {item.rule.id: item.severity for item in diagnose(evidence, rules.load())}
    assert found == {"swap-thrash": "slow", "threads-oversubscribed": "note"}


def test_the_server_below_is_the_one_that_has_the_model(tmp_path: Path) -> None:
    """As Ollama and the router of llama-server start them."""
    for pid, parent, words in (
        (7, 1, "ollama\0serve"),
        (8, 7, "/lib/llama-server\0--model\0/blobs/x\0-c\0512"),
    ):
        folder = tmp_path / f"proc/{pid}"
        folder.mkdir(parents=True)
        (folder / "status").write_text(f"Pid:\t{pid}\nVmHWM:\t 100 kB\nVmRSS:\t 100 kB\nThreads:\t2\n")
        (folder / "stat").write_text(f"{pid} (x) S {parent} 7 7 0 -1 4194304 9 0 0 0 1 2 3\n")
        (folder / "cmdline").write_text(words)
    (tmp_path / "proc/8/environ").write_text("LLAMA_ARG_N_PARALLEL=2\0HOME=/root")
    reader = LogReader(Book(rules.templates()))
    server = doctor_process.looked_at(reader, 7, sysroot=tmp_path, seconds=0.1)
    assert (server.pid, server.words[0]) == (8, "/lib/llama-server")
    assert server.environment == {"LLAMA_ARG_N_PARALLEL": "2"}


def test_the_process_behind_a_port(tmp_path: Path) -> None:
    """Lines of /proc/net/tcp as proc(5) has them: 1F90 is 8080, 0A listens, and the inode is the tenth word."""
    rest = (
        "00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0"
    )
    lines = [
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        "   0: 0100007F:1F90 " + rest.format(state="0A", inode=555),
        "   1: 0100007F:1F91 " + rest.format(state="01", inode=556),
    ]
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/tcp").write_text("\n".join(lines))
    for pid, program in ((8, "nginx"), (9, "/opt/llama-server")):
        folder = tmp_path / f"proc/{pid}/fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to("socket:[555]")
        (folder / "4").symlink_to("socket:[556]")
        (folder.parent / "cmdline").write_text(f"{program}\0-m\0a.gguf\0")
    assert doctor_process.listener(8080, sysroot=tmp_path) == 9
    assert doctor_process.listener(8081, sysroot=tmp_path) is None
    assert doctor_process.listener(80, sysroot=tmp_path) is None
