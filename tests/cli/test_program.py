"""The program as it is started: help, version, encodings, pipes, and how wide it writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plan_llama import __version__
from plan_llama.cli.screen import Screen
from tests.cli.conftest import GLM, ONE_CARD, Cli
from tests.gguf_builder import oracle_file

COMMANDS = ("check", "hardware", "models", "inspect")
HEAVY = ("psutil", "pynvml", "numpy", "rich", "pydantic", "typer")


def started(*argv: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A process of its own. Warnings are errors there too."""
    words = [sys.executable, "-W", "error", "-m", "plan_llama", *argv]
    return subprocess.run(
        words, env=os.environ | env, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


def test_version_loads_nothing() -> None:
    probe = (
        "import sys, runpy; sys.argv = ['plan-llama', '--version'];"
        "runpy.run_module('plan_llama', run_name='__main__');"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"plan-llama {__version__}", "[]"]


def test_a_plan_loads_no_heavy_package() -> None:
    probe = (
        "import sys; from plan_llama.cli.app import run; code = run(sys.argv[1:]);"
        "heavy = [name for name in ('pynvml', 'numpy', 'rich', 'pydantic') if name in sys.modules];"
        "print(code, heavy, file=sys.stderr)"
    )
    argv = [sys.executable, "-c", probe, *GLM, *ONE_CARD]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"


def test_inspect_imports_only_what_reads_headers(tmp_path: Path) -> None:
    # of a file all that is needed beside the reader is its catalog entry and what its layers cache
    probe = (
        "import sys; from plan_llama.cli.app import run; code = run(sys.argv[1:]);"
        "print(code, *sys.modules, file=sys.stderr)"
    )
    file = oracle_file("glm-5.1-ud-iq2", tmp_path)
    argv = [sys.executable, "-c", probe, "inspect", str(file)]
    code, *loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stderr.split()
    assert code == "0"
    ours = {name.removeprefix("plan_llama.") for name in loaded if name.startswith("plan_llama.")}
    assert {
        name for name in ours if name.startswith(("memory.", "hardware", "solver", "speed", "engines"))
    } == {
        "memory.caches",
        "memory.recurrent",
        "memory.windows",
    }
    assert {
        name for name in ours if name.startswith(("models.tables", "models.images", "models.quant"))
    } == set()
    assert {"psutil", "pynvml", "numpy", "rich", "pydantic", "urllib.request", "tomli_w"} & set(
        loaded
    ) == set()


def test_version_through_the_parser(cli: Cli) -> None:
    assert cli("-V").out == cli("--version").out == f"plan-llama {__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(cli: Cli, command: str) -> None:
    for flag in ("--help", "-h"):
        ended = cli(*([command] if command else []), flag)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("Usage: plan-llama")
        assert ended.out.isascii()
        # an option without a word of help is as good as not there
        assert not re.search(r"^  (-\w, )?--[a-z-]+( [^ ]+)?$\n  (-\w, )?-", ended.out, re.MULTILINE)


@pytest.mark.slow
def test_an_ascii_terminal_gets_ascii() -> None:
    done = started(*GLM, *ONE_CARD, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "?" not in text
    assert re.search(r"gpu0  #+\.+  ", text)
    assert "-> --ram-type and --ram-channels" in text


@pytest.mark.parametrize(
    "argv", [pytest.param((*GLM, *ONE_CARD, "--json"), marks=pytest.mark.slow), ("models",)]
)
def test_a_reader_that_leaves_early_is_no_error(argv: tuple[str, ...]) -> None:
    words = [sys.executable, "-W", "error", "-m", "plan_llama", *argv]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(30), said) == (0, b"")


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param((*GLM, *ONE_CARD, "--explain"), marks=pytest.mark.slow),
        (*GLM, "--hardware", "rtx-pro-6000-512"),
        pytest.param(
            (*GLM, "--hardware", "8xmi300x-2tb", "--workload", "server", "--explain"), marks=pytest.mark.slow
        ),
        pytest.param((*GLM, "--hardware", "mac-studio-m3-ultra-512", "--explain"), marks=pytest.mark.slow),
        (*GLM, "--gpu", "24GiB", "--ram", "64GiB"),
        ("models",),
        ("check", *ONE_CARD, "--", "llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-ngl", "47", "--mlock"),
    ],
)
def test_lines_are_no_wider_than_120(cli: Cli, argv: tuple[str, ...]) -> None:
    # a word that must be copied whole (a path, an address, a pattern) may be
    wide = [
        line for line in cli(*argv).out.splitlines() if len(line) > 120 and max(map(len, line.split())) < 60
    ]
    assert wide == []


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(("--model", "glm-4.5v", "--hardware", "rtx4090-128"), marks=pytest.mark.slow),
        pytest.param(
            ("--model", "kimi-k2", "--hardware", "8xh100-2tb", "--users", "16", "--workload", "server"),
            marks=pytest.mark.slow,
        ),
        ("--model", "gpt-oss-120b", "--hardware", "strix-halo-128"),
        ("check", *GLM, *ONE_CARD, "--", "llama-server", "-ngl", "47", "--mlock"),
    ],
)
def test_lines_fit_narrow_terminals(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], width: int
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line for line in cli(*argv).out.splitlines() if "hf download" not in line]
    assert [line for line in lines if len(line) > width and max(map(len, line.split())) < 50] == []


def test_colour_is_only_for_terminals(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in cli(*GLM, *ONE_CARD).out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen().colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Screen().colour


def test_foreign_escapes_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(colour=True, unicode=True).write("\x1b[32mfine\x1b[0m \x1b]0;title\x07 \x1b[2J\n")
    out = capsys.readouterr().out
    assert out.startswith("\x1b[32mfine\x1b[0m ")
    assert "\x1b]" not in out
    assert "\x1b[2J" not in out
    assert "\x07" not in out


def test_models_can_be_searched(cli: Cli) -> None:
    listed = cli("models", "5.1", "unsloth")
    assert "glm-5.1" in listed.out
    assert "glm-5  " not in listed.out
    answer = cli("models", "--json").json
    assert {model["id"] for model in answer["models"]} >= {"glm-5.1", "glm-5"}
    assert cli("models", "no-such-thing").out.startswith("No model in the catalog matches.")


def test_inspect_shows_shapes(cli: Cli) -> None:
    answer = cli("inspect", "glm-5.1", "--json").json
    # https://huggingface.co/zai-org/GLM-5.1: 78 layers and one draft layer, 256 experts, 202,752 tokens
    assert (answer["layers"], answer["draft_layers"], answer["context_train"]) == (78, 1, 202752)
    assert answer["hparams"]["expert_count"] == 256
    assert sum(total["tensors"] for total in answer["classes"]) == answer["tensors"] == 1809
    assert "not on this machine" in cli("inspect", "glm-5.1").out


def test_hardware_can_be_saved_and_used(cli: Cli) -> None:
    saved = cli(
        "hardware", "--gpu", "RTX 3090*2", "--ram", "128GiB", "--cpu-cores", "16", "--save", "box.toml"
    )
    assert saved.code == 0
    answer = cli("hardware", "--hardware", "box.toml", "--json").json
    assert [gpu["total_bytes"] for gpu in answer["gpus"]] == [24 * 1024**3] * 2
    assert answer["ram"]["total_bytes"] == 128 * 1024**3
    again = cli("hardware", "--hardware", "box.toml", "--save", "box.toml")
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err
