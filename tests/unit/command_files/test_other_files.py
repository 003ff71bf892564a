"""Presets, batch and PowerShell files, and any text at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.command_files import presets, reading, shell, unit, windows
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError

PRESETS = """\
version = 1
; for all
[*]
c = 8192
jinja = true   ; on
[one]
model = /models/a b.gguf
n-gpu-layers = 33
LLAMA_ARG_CACHE_RAM = 0
no-mmproj = 1
load-on-startup = true
[two]
m = /x.gguf
c = 4096
no-cont-batching = off
nonsense = 3
"""


def test_presets() -> None:
    one, two = presets.commands(PRESETS, FlagTable.load())
    shared = ["llama-server", "-c", "8192", "--jinja"]
    assert [word.text for word in one.words] == [
        *shared,
        *("--model", "/models/a b.gguf", "--n-gpu-layers", "33", "--cache-ram", "0", "--no-mmproj"),
    ]
    assert one.where == "section one, line 6"
    assert [word.text for word in two.words][3:] == [
        *("--jinja", "-m", "/x.gguf", "--cont-batching", "--nonsense", "3"),
    ]
    with pytest.raises(InputError, match="line 1"):
        presets.commands("what is this", FlagTable.load())


BATCH = r"""@echo off
rem llama-server -m not.gguf
set MODEL=C:\models\a b.gguf
set "ARGS=-c 4096 -ngl 99"
SET LLAMA_ARG_NP=2
start "llm" /min C:\llama\llama-server.exe -m "%MODEL%" %ARGS% ^
  --alias "100%% \"x\"" -t %NUMBER_OF_PROCESSORS% > log.txt
"""


def test_batch() -> None:
    (item,) = windows.batch(BATCH)
    assert [word.text for word in item.words] == [
        *(r"C:\llama\llama-server.exe", "-m", r"C:\models\a b.gguf", "-c", "4096", "-ngl", "99"),
        *("--alias", '100% "x"', "-t", "%NUMBER_OF_PROCESSORS%"),
    ]
    assert [word.text for word in item.words if not word.known] == ["%NUMBER_OF_PROCESSORS%"]
    assert (item.env["LLAMA_ARG_NP"], item.where) == ("2", "line 6")


POWERSHELL = r"""
<# llama-server -m not.gguf #>
$Model = 'C:\models\it''s a.gguf'
$env:LLAMA_ARG_NP = "2"
$ctx = 4096
$rest = @(
  '--jinja', "-ngl", 99  # all
)
& "C:\llama\llama-server.exe" -m $Model -c $ctx `
  --alias "n`"$ctx`"" @rest -t $threads | Out-Null
"""


def test_powershell() -> None:
    (item,) = windows.powershell(POWERSHELL)
    assert [word.text for word in item.words] == [
        *(r"C:\llama\llama-server.exe", "-m", r"C:\models\it's a.gguf", "-c", "4096", "--alias", 'n"4096"'),
        *("--jinja", "-ngl", "99", "-t", "$threads"),
    ]
    assert [word.text for word in item.words if not word.known] == ["$threads"]
    assert dict(item.env) == {"LLAMA_ARG_NP": "2"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x", "[Service]\nExecStart=llama-server -m a.gguf\n"),
        ("x.service", "[Service]\nExecStart=llama-server -m a.gguf\n"),
        ("compose.yaml", "services: {a: {image: 'x/llama.cpp:server', command: -m a.gguf}}"),
        ("-", "services:\n  a: {image: 'x/llama.cpp:server', command: -m a.gguf}\n"),
        ("-", "; mine\n[a]\nm = a.gguf\n"),
        ("run", "#!/bin/sh\nllama-server -m a.gguf\n"),
        ("run.sh", "llama-server \\\r\n -m a.gguf\r\n"),
        ("run.BAT", "llama-server -m a.gguf"),
        ("run.ps1", "llama-server -m a.gguf"),
    ],
)
def test_the_kind_of_a_file(name: str, text: str) -> None:
    (item,) = reading.commands(text, name, FlagTable.load())
    assert [word.text for word in item.words] == ["llama-server", "-m", "a.gguf"]


def test_a_file_without_a_command() -> None:
    with pytest.raises(InputError, match=r"x\.sh: no command of llama\.cpp in it"):
        reading.commands("echo hello", "x.sh", FlagTable.load())


SIGNS = (
    r"\ ' { } ( ) ` ^ % = @ # ; & | << > ~ * $ ${A:- $( [Service] ExecStart= services: cmd llama-server -m A"
)
PIECES = st.sampled_from([*SIGNS.split(" "), '"', " ", "\n", "\t"])


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join))
def test_no_text_breaks_a_reader(text: str) -> None:
    table = FlagTable.load()
    for read in (shell.commands, unit.commands, windows.batch, windows.powershell):
        with contextlib.suppress(InputError):
            read(text)
    for name in ("x.yml", "x.ini", "-"):
        with contextlib.suppress(InputError):
            reading.commands(text, name, table)
