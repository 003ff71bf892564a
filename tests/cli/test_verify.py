"""`verify` with engines that answer as llama.cpp was recorded to, and with engines that misbehave."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from plan_llama.models.writer import write_header
from plan_llama.units import MIB
from tests.cli.conftest import GLM, Cli, Ended
from tests.conformance_cases import spec
from tests.gguf_builder import ORACLE, oracle_file

SCHEMA = json.loads(files("plan_llama").joinpath("schema/plan.schema.json").read_text(encoding="utf-8"))
MODEL = "glm-5.1-ud-iq2"
# A stand-in for a card: the numbers that were recorded are of one, without what CUDA's own kernels hold.
CARD = "RPC0: 127.0.0.1:50052 (24576 MiB, 24064 MiB free)"
# Of the real --help of b11434: the arguments that these commands use.
HELP = """-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads
-c,    --ctx-size N                     size of the prompt context
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
-nr,   --no-repack                      disable weight repacking
-np,   --parallel N                     number of parallel sequences
-lm,   --load-mode MODE                 model loading mode
-dev,  --device <dev1,dev2,..>          devices to use for offloading
-ot,   --override-tensor <pattern>=<buffer type>,...
-cmoe, --cpu-moe                        keep all experts in the CPU
-ncmoe, --n-cpu-moe N                   keep the experts of the first N layers in the CPU
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
-ts,   --tensor-split N0,N1,N2,...      fraction of the model to offload to each GPU
-fitp, --fit-print [on|off]             print the estimated memory
"""

MakeEngine = Callable[..., Path]


@pytest.fixture
def engine(tmp_path: Path) -> MakeEngine:
    """`engine(body, devices)`: a folder with a llama-fit-params whose dry run does `body`, and a llama-server."""

    def make(body: str, *, devices: str = "", server: str = "exit 0", with_server: bool = True) -> Path:
        folder = tmp_path / "engine"
        folder.mkdir(exist_ok=True)
        (folder / "help").write_text(HELP, encoding="utf-8")
        listed = shlex.quote(f"  {devices}" if devices else "")
        asked = f"""#!/bin/sh
here={shlex.quote(str(folder))}
printf '%s\\n' "$*" >>"$here/$(basename "$0").calls"
case "$*" in
*--version*) echo 'version: 0.6.0-dev (build 11434, commit 1a2b3c4)'; exit 0;;
*--list-devices*) echo 'Available devices:'; echo {listed}; exit 0;;
--help) cat "$here/help"; exit 0;;
esac
"""
        programs = {"llama-fit-params": body} | ({"llama-server": server} if with_server else {})
        for name, what in programs.items():
            path = folder / name
            path.write_text(f"{asked}{what}\n", encoding="utf-8")
            path.chmod(0o755)
        return folder

    return make


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def recorded(*flags: str) -> tuple[str, dict[str, dict[str, int]]]:
    """What llama-fit-params b11434 printed for one card of 24 GiB, as a shell command that prints it."""
    for line in (ORACLE / "cases.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        same = case["model"] == MODEL and case["flags"] == list(flags) and case["set"] == "real"
        if same and len(case["sim_gpus"]) == 1 and "bytes" in case:
            lines = [
                f"{place.replace('GPU', 'RPC')} {part['model']} {part['context']} {part['compute']} "
                for place, part in case["devices"].items()
            ]
            return f"printf '%s\\n' {shlex.join(lines)}", case["devices"]
    raise AssertionError(f"no such case: {flags}")


def verified(cli: Cli, folder: Path, *argv: str) -> Ended:
    return cli("verify", "--json", "--engine-path", str(folder), *argv)


FITS = ("-ngl", "99", "-c", "16384", "-np", "1", "-cmoe", "-nr")
ONE = ("--gpu", "24GiB", "--ram", "256GiB", "--cpu-cores", "16")


def on_recorded(
    cli: Cli, engine: MakeEngine, home: Path, body: str, flags: tuple[str, ...] = FITS, **more: str
) -> Ended:
    path = oracle_file(MODEL, home)
    folder = engine(body, devices=CARD, **more)
    return verified(cli, folder, *ONE, "--", "llama-server", "-m", str(path), *flags, "--fit", "off")


def test_recorded_numbers_are_met_line_by_line(
    cli: Cli, engine: MakeEngine, home: Path, scratch: Path
) -> None:
    body, devices = recorded(*FITS)
    ended = on_recorded(cli, engine, home, body)
    found = ended.json["verify"]
    Draft202012Validator(SCHEMA).validate(ended.json)
    assert (ended.code, ended.err, found["verdict"], found["unchecked"]) == (0, "", "verified", [])
    assert found["accepted"] is True
    assert [line["device"] for line in found["lines"]] == ["gpu0"] * 4 + ["host"] * 4
    assert {line["verdict"] for line in found["lines"]} <= {"same", "within"}
    real = {(line["device"], line["part"]): line["real_bytes"] for line in found["lines"]}
    assert real["gpu0", "model"] == devices["GPU0"]["model"] << 20
    assert real["host", "compute"] == devices["Host"]["compute"] << 20
    assert found["dry_run"]["header_only"] is False
    assert list(scratch.iterdir()) == []


def test_server_arguments_are_kept_from_the_dry_run(cli: Cli, engine: MakeEngine, home: Path) -> None:
    body, _ = recorded(*FITS)
    flags = (*FITS, "--host", "0.0.0.0", "--port", "1234", "--jinja", "--cache-ram", "0", "--temp", "1")  # noqa: S104
    assert on_recorded(cli, engine, home, body, flags).code == 0
    folder = home.parent
    calls = (
        next(folder.rglob("llama-fit-params.calls"), None)
        or engine("", devices=CARD) / "llama-fit-params.calls"
    )
    dry = calls.read_text(encoding="utf-8").splitlines()[-1].split()
    assert dry[2:] == [*FITS, "-fitp", "on", "-lv", "4"]


def test_a_number_below_the_real_need_is_named(cli: Cli, engine: MakeEngine, home: Path) -> None:
    body, devices = recorded(*FITS)
    line = devices["GPU0"]
    more = f"RPC0 {line['model']} {line['context']} {line['compute'] + 200} "
    ended = on_recorded(cli, engine, home, f"{body}; echo '{more}'")
    found = ended.json["verify"]
    assert (ended.code, found["verdict"]) == (3, "differs")
    assert "below the real need" in found["reason"]
    wrong = [(line["device"], line["part"]) for line in found["lines"] if line["verdict"] == "below"]
    assert ("gpu0", "compute") in wrong


def test_a_plan_that_does_not_fit_by_the_real_numbers(cli: Cli, engine: MakeEngine, home: Path) -> None:
    flags = ("-ngl", "99", "-c", "16384", "-np", "1", "-nr")
    body, _ = recorded(*flags)
    ended = on_recorded(cli, engine, home, body, flags)
    assert (ended.code, ended.json["verify"]["verdict"]) == (3, "does-not-fit")
    assert ended.json["verify"]["memory_verdict"] == "does-not-fit"


@pytest.mark.parametrize(
    ("body", "verdict", "said"),
    [
        ("kill -ABRT $$", "not-verified", "killed by SIGABRT"),
        (
            "echo 'GGML_ASSERT(*cur_backend_id != -1) failed' >&2; kill -ABRT $$",
            "not-verified",
            "cur_backend_id",
        ),
        ("head -c 100000 /dev/urandom", "not-verified", "printed no memory lines"),
        ("echo 'RPC0 many of them'; echo 'Host 1 2'", "not-verified", "printed no memory lines"),
        ("exit 0", "not-verified", "printed no memory lines"),
        ("echo 'error: invalid argument: -cmoe' >&2; exit 1", "refused", "invalid argument: -cmoe"),
        (
            "echo '0.00.7 E llama_init: no V' >&2; echo ' what():  failed to create llama_context' >&2; kill -ABRT $$",
            "refused",
            "llama_init: no V",
        ),
        ("yes 0123456789", "not-verified", "without an answer"),
        ("exec sleep 60", "not-verified", "without an answer"),
    ],
)
def test_an_engine_that_fails(
    cli: Cli, engine: MakeEngine, scratch: Path, body: str, verdict: str, said: str
) -> None:
    folder = engine(body, devices=CARD)
    command = ("--timeout", "1", "--", "llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", *FITS)
    ended = verified(cli, folder, *ONE, *command)
    found = ended.json["verify"]
    Draft202012Validator(SCHEMA).validate(ended.json)
    assert (ended.code, found["verdict"]) == (3, verdict)
    assert said in found["reason"]
    assert {line["verdict"] for line in found["lines"]} == {"not-checked"}
    assert found["memory"] is None
    assert list(scratch.iterdir()) == []  # the stand-in for the model is gone


def test_a_plan_whose_dry_run_crashes_says_so_per_line(cli: Cli, engine: MakeEngine) -> None:
    folder = engine("kill -ABRT $$", devices=CARD, with_server=False)
    ended = cli("verify", "--engine-path", str(folder), *GLM, *ONE)
    assert (ended.code, ended.err) == (3, "")
    assert "NOT-VERIFIED llama-fit-params: killed by SIGABRT" in ended.flat
    assert ended.flat.count("not checked") == 8
    assert "no llama-server was asked" in ended.flat


def test_what_the_server_refuses(cli: Cli, engine: MakeEngine, home: Path) -> None:
    body, _ = recorded(*FITS)
    ended = on_recorded(cli, engine, home, body, server="echo 'error: no such thing' >&2; exit 1")
    found = ended.json["verify"]
    assert (ended.code, found["verdict"], found["accepted"]) == (3, "refused", False)
    assert "no such thing" in found["reason"]


def test_a_crash_after_the_host_line_leaves_nothing_verified(
    cli: Cli, engine: MakeEngine, home: Path
) -> None:
    body, _ = recorded(*FITS)
    ended = on_recorded(cli, engine, home, f"{body}; kill -SEGV $$")
    assert (ended.code, ended.json["verify"]["verdict"]) == (3, "not-verified")


def test_an_engine_without_the_cards_checks_the_rest(cli: Cli, engine: MakeEngine, home: Path) -> None:
    """The oracle has this model with all of it on the host: those are the numbers that are met."""
    for line in (ORACLE / "cases.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if (
            case["model"] == MODEL
            and not case["sim_gpus"]
            and case["set"] == "real"
            and "-nr" in case["flags"]
        ):
            break
    host = case["devices"]["Host"]
    folder = engine(f"echo 'Host {host['model']} {host['context']} {host['compute']} '")
    flags = [word for word in case["flags"] if word not in ("-ngl", "99", "0", "-cmoe")]
    path = oracle_file(MODEL, home)
    ended = verified(
        cli,
        folder,
        *ONE,
        "--",
        "llama-server",
        "-m",
        str(path),
        *flags,
        "-ngl",
        "99",
        "-cmoe",
        "--fit",
        "off",
    )
    found = ended.json["verify"]
    assert (ended.code, found["verdict"]) == (0, "partly-verified")
    assert "this engine has none" in found["unchecked"][0]
    verdicts = {line["device"]: line["verdict"] for line in found["lines"]}
    assert verdicts["gpu0"] == "not-checked"
    assert verdicts["host"] in ("same", "within")
    assert "-ngl" not in found["dry_run"]["argv"]


def test_no_engine_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = cli("verify", *GLM, *ONE)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "no llama-server or llama-fit-params on PATH" in ended.err
    assert "--engine-path" in ended.err
    for folder, said in (
        (tmp_path / "nowhere", "no such program"),
        (tmp_path, "no llama-server or llama-fit-params there"),
    ):
        ended = cli("verify", *GLM, *ONE, "--engine-path", str(folder))
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert said in ended.err


def test_what_cannot_be_verified_is_refused(cli: Cli, engine: MakeEngine) -> None:
    folder = str(engine("exit 0"))
    for argv, said in (
        ((), "--model is missing"),
        (("--", "llama-bench", "-m", "x.gguf"), "llama-bench cannot be dry-run"),
        (("--", "llama-server", "-m", "nowhere.gguf"), "nowhere.gguf"),
        (("--", "ls"), "no program of llama.cpp"),
        (("--engine-build", "b9093", *GLM), "is b11434"),
        (("--program", "llama-bench", *GLM), "--program llama-bench: no such program"),
    ):
        ended = cli("verify", "--engine-path", folder, *argv)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
        assert said in ended.err


# What llama-server b11434 logged of buffers on a CPU, with `-m llama-dense.gguf -c 4096 -np 2 -fa on -nr -lv 4`.
LOG = """\
0.00.020.268 I srv    load_model: loading model '/m/llama-dense.gguf'
0.00.025.144 I load_tensors:   CPU_Mapped model buffer size =     4.52 MiB
0.00.025.443 I llama_context: constructing llama_context
0.00.025.475 I llama_context:        CPU  output buffer size =     0.00 MiB
0.00.025.680 I llama_kv_cache:        CPU KV buffer size =     8.00 MiB
0.00.032.395 I sched_reserve:        CPU compute buffer size =     6.02 MiB
0.01.327.925 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 256, kv_unified = 'false'
0.01.355.306 I srv  llama_server: listening on http://127.0.0.1:53379"""
PARSES = 'case "$*" in *--help) exit 0;; esac\n'
SERVED = ("--no-gpu", "--ram", "16GiB", "--timeout", "20")
COMMAND = ("llama-server", "-c", "4096", "-np", "2", "-fa", "on", "--fit", "off")


def with_server_alone(engine: MakeEngine, tmp_path: Path, body: str) -> tuple[Path, Path]:
    """A folder with a llama-server only, and the header of the model that its log is of."""
    folder = engine("", server=body)
    (folder / "llama-fit-params").unlink()
    path = tmp_path / "llama-dense.gguf"
    write_header(spec("tiny", "llama-dense"), path)
    return folder, path


def test_a_build_without_the_dry_run_has_its_server_read_and_ended(
    cli: Cli, engine: MakeEngine, scratch: Path, tmp_path: Path
) -> None:
    folder, path = with_server_alone(engine, tmp_path, f"{PARSES}cat <<'E'\n{LOG}\nE\nexec sleep 300")
    ended = verified(cli, folder, *SERVED, "--", *COMMAND, "-m", str(path))
    found = ended.json["verify"]
    Draft202012Validator(SCHEMA).validate(ended.json)
    assert (ended.code, ended.err, found["verdict"]) == (0, "", "verified"), found["reason"]
    assert found["dry_run"]["exit_code"] is None
    assert found["dry_run"]["seconds"] < 15
    real = {line["part"]: line["real_bytes"] / MIB for line in found["lines"]}
    assert real == pytest.approx({"model": 4.52, "context": 8.0, "compute": 6.02, "total": 18.54}, abs=0.02)
    text = cli("verify", "--engine-path", str(folder), *SERVED, "--", *COMMAND, "-m", str(path))
    assert "ended once it had said what it reserves" in text.flat


@pytest.mark.parametrize(
    ("body", "verdict", "said"),
    [
        (
            f"cat <<'E'\n{LOG.partition('0.00.025.680')[0]}E\nkill -SEGV $$",
            "not-verified",
            "killed by SIGSEGV",
        ),
        (
            PARSES + "echo 'E srv load_model: failed to load model' >&2; exit 1",
            "refused",
            "failed to load model",
        ),
        (PARSES + "exec sleep 60", "not-verified", "without an answer"),
    ],
)
def test_a_server_that_fails(
    cli: Cli, engine: MakeEngine, tmp_path: Path, body: str, verdict: str, said: str
) -> None:
    folder, path = with_server_alone(engine, tmp_path, body)
    ended = verified(cli, folder, *SERVED, "--timeout", "1", "--", *COMMAND, "-m", str(path))
    found = ended.json["verify"]
    assert (ended.code, found["verdict"]) == (3, verdict)
    assert said in found["reason"]


def test_a_server_is_not_asked_for_where_there_is_none(cli: Cli, engine: MakeEngine) -> None:
    folder = engine("exit 0", with_server=False)
    ended = cli("verify", *GLM, *ONE, "--engine-path", str(folder), "--program", "llama-server")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "no llama-server there" in ended.err


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split(")")[1].split()[0]
    except OSError:
        return False


def until(ready: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not ready() and time.monotonic() < end:
        time.sleep(0.05)
    return ready()


@pytest.mark.slow
def test_what_it_started_ends_with_it(engine: MakeEngine, scratch: Path, tmp_path: Path) -> None:
    """A request to end, in the middle of a dry run that has a child of its own."""
    pids = tmp_path / "pids"
    folder = engine(
        f"sleep 300 & echo $$ $! >{shlex.quote(str(pids))}.part; mv {pids}.part {pids}; wait", devices=CARD
    )
    argv = [sys.executable, "-m", "plan_llama", "verify", "--engine-path", str(folder), *GLM, *ONE]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert until(pids.exists)
        started = [int(pid) for pid in pids.read_text(encoding="utf-8").split()]
        assert len(started) == 2
        assert any(scratch.iterdir())
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode not in (0, 3)
    assert "Traceback" not in said
    assert until(lambda: not any(map(alive, started)))
    assert list(scratch.iterdir()) == []
