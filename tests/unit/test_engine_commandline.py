"""Reading commands. What is accepted comes from the real parsers of b11434 (tests/data/engines)."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError

CAPTURED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data/engines/accepted_b11434.json").read_text(encoding="utf-8")
)
# The command of a published guide for a 744 B model on a 24 GB card.
GUIDE = (
    "llama-server -m glm-5.1-744b-ud-iq2_m.gguf -c 4096 -n 512 --n-gpu-layers 47 "
    "--mmap --mlock --flash-attn --defrag-thold 0.1 -ngl 47"
)


def read(line: str, build: int | None = None) -> ParsedCommand:
    return parse(shlex.split(line), table=FlagTable.load(build))


@pytest.mark.parametrize(
    "case", CAPTURED, ids=lambda case: f"{case['program']} {' '.join(case['arguments'])}"
)
def test_accepts_what_the_engine_accepts(case: dict[str, Any]) -> None:
    parsed = parse([case["program"], *case["arguments"], "--help"], table=FlagTable.load())
    assert parsed.accepted == (case["exit"] == 0)


def test_the_guides_command() -> None:
    parsed = read(GUIDE)
    by_status = {item.words: item.status for item in parsed.arguments}
    assert by_status == {
        "-m glm-5.1-744b-ud-iq2_m.gguf": "ok",
        "-c 4096": "ok",
        "-n 512": "ok",
        "--n-gpu-layers 47": "ok",
        "--mmap": "removed",
        "--mlock": "removed",
        "--flash-attn --defrag-thold": "bad-value",
        "--defrag-thold 0.1": "ignored",
        "-ngl 47": "duplicate",
    }
    assert dict(parsed.meant) == {"mmap": True, "mlock": True, "flash_attn": True}
    assert [item.spelling for item in parsed.refused] == ["--mmap", "--mlock", "--flash-attn"]
    assert "--load-mode" in parsed.refused[0].fix


@pytest.mark.parametrize(
    ("line", "program", "executable"),
    [
        ("llama-server -c 0", "llama-server", "llama-server"),
        ("./build/bin/llama-cli -c 0", "llama-cli", "./build/bin/llama-cli"),
        (r"'C:\llama\llama-server.exe' -c 0", "llama-server", r"C:\llama\llama-server.exe"),
        ("llama serve -c 0", "llama-server", "llama"),
        ("sudo numactl --interleave=all llama-bench -p 512", "llama-bench", "llama-bench"),
        ("env A=1 llama-fit-params -c 0", "llama-fit-params", "llama-fit-params"),
    ],
)
def test_the_program_is_known_by_its_name(line: str, program: str, executable: str) -> None:
    parsed = read(line)
    assert (parsed.program, parsed.executable, parsed.accepted) == (program, executable, True)


@pytest.mark.parametrize("line", ["", "python -m vllm", "ollama run llama3"])
def test_no_program_of_llama_cpp(line: str) -> None:
    with pytest.raises(InputError, match=r"no program of llama\.cpp"):
        read(line)


def test_environment_comes_first_and_the_command_line_wins() -> None:
    parsed = read("LLAMA_ARG_CTX_SIZE=8192 LLAMA_ARG_MLOCK=1 LLAMA_ARG_NO_REPACK=1 llama-server -c 4096")
    found = [(item.spelling, item.status, item.negated) for item in parsed.arguments]
    assert found == [
        ("LLAMA_ARG_CTX_SIZE", "ok", False),
        ("LLAMA_ARG_NO_REPACK", "ok", True),
        ("LLAMA_ARG_MLOCK", "ignored", False),
        ("-c", "ok", False),
    ]


def test_a_value_that_is_only_partly_read_is_said() -> None:
    parsed = read("llama-server -c 32k")  # std::stoi reads 32
    assert parsed.accepted
    assert "read as 32" in parsed.arguments[0].reason


def test_another_programs_argument_and_a_slip() -> None:
    parsed = read("llama-fit-params --jinja --cache-typ-k q8_0")
    assert "llama-server" in parsed.arguments[0].reason
    assert parsed.arguments[1].fix == "perhaps --cache-type-k"
    assert parsed.arguments[1].values == ("q8_0",)


def test_an_unknown_newer_build_says_so() -> None:
    table = FlagTable.load(12000)
    assert table.table_build == 11434
    assert table.note is not None
    assert "newer" in table.note
    assert FlagTable.load(11434).note is None
    older = FlagTable.load(3000).note
    assert older is not None
    assert "older" in older


def test_absurd_input_is_refused_quickly() -> None:
    with pytest.raises(InputError, match="words"):
        parse(["llama-server"] * 30_000, table=FlagTable.load())
    assert not read("llama-server -c " + "9" * 100_000).accepted
