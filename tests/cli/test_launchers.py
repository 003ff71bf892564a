"""Launchers of a whole plan, and the rules of who is let in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from plan_llama.command_files import reading
from plan_llama.engines.flags import FlagTable
from tests.cli.conftest import Cli

MODEL = (
    "--model",
    "qwen3-30b-a3b",
    "--quant",
    "Q4_K_M",
    "--gpu",
    "24GiB",
    "--ram",
    "64GiB",
    "--cpu-cores",
    "8",
)


def commands(path: Path) -> list[list[str]]:
    found = reading.commands(reading.text_of(str(path)), str(path), FlagTable.load())
    return [[word.text for word in item.words] for item in found]


@pytest.mark.slow
def test_all_that_fit_the_machine(cli: Cli, tmp_path: Path) -> None:
    ended = cli(*MODEL, "--ctx", "32K", "--write", str(tmp_path), "--launcher", "all", "--json")
    argv = ended.json["command"]["argv"]
    names = [Path(path).name for path in ended.json["written"]]
    assert names == [
        *("start-llama-server.sh", "llama-server.service", "compose.yaml", "llama-swap.yaml", "models.ini"),
        "llama-server.k8s.yaml",
    ]
    assert names == [Path(path).name for path in ended.json["written"]]
    first, *smaller = commands(tmp_path / "start-llama-server.sh")
    assert first == ["exec", *argv]
    # the ladder's smaller contexts, with the placement of the plan
    contexts = [words[words.index("-c") + 1] for words in smaller]
    assert contexts == ["16384", "8192"]
    assert all(words[words.index("-ngl") + 1] == "all" for words in smaller)
    assert commands(tmp_path / "llama-server.service") == [argv]
    (inside,) = commands(tmp_path / "compose.yaml")
    assert inside[3:-4] == argv[3:-4]
    (routed,) = commands(tmp_path / "models.ini")
    assert routed[:5] == ["llama-server", *argv[1:5]]
    service = yaml.safe_load((tmp_path / "compose.yaml").read_text("utf-8"))["services"]["llama-server"]
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    assert not (tmp_path / "llama-server.service").stat().st_mode & 0o111
    again = cli(*MODEL, "--write", str(tmp_path), "--launcher", "all")
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith(
        f"plan-llama: {tmp_path / 'start-llama-server.sh'}: is there already; --force"
    )


def test_those_that_are_named(cli: Cli, tmp_path: Path) -> None:
    ended = cli(*MODEL, "--write", str(tmp_path), "--launcher", "ps1, cmd")
    assert ended.out.endswith(
        f"written: {tmp_path / 'start-llama-server.ps1'}\nwritten: {tmp_path / 'start-llama-server.cmd'}\n"
    )
    # Windows PowerShell wants a mark at the start of a file in UTF-8, cmd wants none
    assert (
        (tmp_path / "start-llama-server.ps1").read_bytes().startswith(b"\xef\xbb\xbf# Written by plan-llama")
    )
    assert (tmp_path / "start-llama-server.cmd").read_bytes().startswith(b"@echo off\r\n")


def test_what_a_format_cannot_hold(cli: Cli, tmp_path: Path) -> None:
    mac = ("--model", "qwen3-30b-a3b", "--quant", "Q4_K_M", "--hardware", "mac-studio-m3-ultra-512")
    ended = cli(*mac, "--write", str(tmp_path), "--launcher", "compose")
    assert (ended.code, ended.err) == (
        2,
        "plan-llama: no image of llama.cpp reaches these cards: metal; --launcher sh\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--write", "x", "--launcher", "bash"],
            "--launcher bash: bash is not known; it takes sh, ps1, cmd, ",
        ),
        (["--write", "x", "--launcher", ","], "--launcher ,: names nothing"),
        (["--launcher", "sh"], "--launcher without --write"),
        (["--force"], "--force without --write"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines would be let in without a key"),  # noqa: S104
        (["--host", ""], "--host '': not an address"),
        (["--host", "::", "--api-key-file", "absent"], "--api-key-file absent: no such file"),
        (["--port", "0"], "Invalid value for '--port'"),
    ],
)
def test_wishes_that_are_refused(cli: Cli, argv: list[str], line: str) -> None:
    ended = cli(*MODEL, *argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"plan-llama: {line}")


@pytest.mark.slow
def test_an_address_with_a_key(cli: Cli, home: Path) -> None:
    (home / "keys").write_text("secret\n", "utf-8")
    words = ("--host", "192.168.1.5", "--port", "9000", "--api-key-file", "keys")
    ended = cli(*MODEL, *words, "--write", "out", "--launcher", "all", "--json")
    argv = ended.json["command"]["argv"]
    assert argv[-6:] == ["--host", "192.168.1.5", "--port", "9000", "--api-key-file", str(home / "keys")]
    for path in (home / "out").iterdir():
        assert "secret\n" not in path.read_text("utf-8")
    whole = yaml.safe_load((home / "out/compose.yaml").read_text("utf-8"))
    assert whole["services"]["llama-server"]["ports"] == ["192.168.1.5:9000:8080"]
    assert cli(*MODEL, "--host", "::1", "--port", "81", "--json").json["command"]["argv"][-3:] == [
        "::1",
        "--port",
        "81",
    ]


# -- launch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "--model is missing; plan-llama launch --model FILE.gguf"),
        (MODEL, "launch: the plan is for a described machine, not this one"),
    ],
)
def test_what_is_not_launched(cli: Cli, argv: list[str], line: str) -> None:
    ended = cli("launch", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"plan-llama: {line}")


def test_a_plan_that_does_not_fit_is_not_launched(cli: Cli) -> None:
    ended = cli("launch", *MODEL[:4], "--no-gpu", "--ram", "16GiB", "--json")
    assert ended.code == 3
    assert ended.json["launch"] == {"url": None, "reason": "the verdict is pages-from-disk"}
    assert ended.err.startswith("plan-llama: launch: not started, the verdict is pages-from-disk")


def test_launch_writes_too(cli: Cli, tmp_path: Path) -> None:
    ended = cli("launch", *MODEL, "--write", str(tmp_path))
    assert ended.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["start-llama-server.sh"]


def test_a_unit_is_one_for_systemd(cli: Cli, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    cli(*MODEL, "--write", str(tmp_path), "--launcher", "sh,systemd")
    text = (tmp_path / "llama-server.service").read_text("utf-8")
    assert "\nLimitMEMLOCK=infinity\n" in text
    assert f"ExecStartPre=/bin/sh {tmp_path / 'start-llama-server.sh'} --check\n" in text
    if tool is None:  # the engine tests ask it in any case
        return
    (tmp_path / "llama-server.service").write_text(text.replace("=llama-server \\", "=/bin/true \\"), "utf-8")
    done = subprocess.run(
        [tool, "--user", "--man=no", "verify", str(tmp_path / "llama-server.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
