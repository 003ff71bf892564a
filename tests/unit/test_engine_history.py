"""Arguments and architectures by build, against what every source tree and three real programs say.

tests/data/engines/trees.json holds what each tree accepts by itself, as a difference to the one before
(scripts/flag_history.py); help-*.txt are outputs of real programs.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines import architectures
from plan_llama.engines.arguments import history
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.older_builds import for_build
from plan_llama.hardware.engines import parse_help
from plan_llama.models.resolve import resolve_model

DATA = Path(__file__).parents[1] / "data" / "engines"
TREES: list[dict[str, Any]] = json.loads((DATA / "trees.json").read_text())
PROGRAMS = ("llama-server", "llama-cli", "llama-bench", "llama-fit-params")


def read(line: str, build: int) -> ParsedCommand:
    return parse(shlex.split(line), table=FlagTable.load(build))


def said(tree: int, what: str) -> set[str]:
    names: set[str] = set()
    for row in TREES[: tree + 1]:
        names = (names | set(row[what]["added"])) - set(row[what]["gone"])
    return names


def rebuilt(build: int, program: str) -> set[str]:
    table = FlagTable.load(build)
    return {name for item in table.arguments if program in item.programs for name in item.spellings}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", range(len(TREES)), ids=lambda place: f"b{TREES[place]['build']}")
def test_each_trees_spellings_are_given_back(place: int, program: str) -> None:
    assert rebuilt(TREES[place]["build"], program) == said(place, program)


def test_enough_trees_are_known() -> None:
    builds = [tree.build for tree in history().trees]
    assert builds == [row["build"] for row in TREES] == sorted(builds)
    assert len(builds) >= 16
    assert builds[0] < 4000
    assert builds[-1] == 11434


@pytest.mark.parametrize(("build", "text"), [(9093, "help-b9093.txt"), (4879, "help-7841fc7.txt")])
def test_real_programs_list_the_same(build: int, text: str) -> None:
    """--rpc is there only in programs that are built with it, and these are not."""
    listed = {
        name for line in parse_help((DATA / text).read_text()) for name in line.partition(" ")[0].split(",")
    }
    assert listed == rebuilt(build, "llama-server") - {"--rpc"}


def test_flash_attention_took_no_value_before_b6325() -> None:
    """https://github.com/ggml-org/llama.cpp/pull/15434: between the trees b6324 and b8643, known closer."""
    assert read("llama-server -m m.gguf -fa", 6324).accepted
    assert not read("llama-server -m m.gguf -fa on", 6324).accepted
    assert read("llama-server -m m.gguf -fa on", 6325).accepted
    assert not read("llama-server -m m.gguf -fa", 6325).accepted


def test_mapping_flags_by_build() -> None:
    """common/arg.cpp: --mmap and --load-mode in b10240 to b10531, --load-mode alone in b10883."""
    for flag in ("--mmap", "--no-mmap", "--mlock", "-dio"):
        assert read(f"llama-server {flag}", 10531).accepted
        refused = read(f"llama-server {flag}", 10883).refused
        assert [item.status for item in refused] == ["removed"]
        assert "b10883 and newer refuse it" in refused[0].reason
        assert refused[0].fix.startswith("write --load-mode")
    assert read("llama-server -lm none", 10240).accepted


@pytest.mark.parametrize(
    ("line", "build", "reason", "fix"),
    [
        ("--load-mode none", 10001, "after b10001, with b10240 at the latest", "write --no-mmap"),
        ("--load-mode mmap+mlock", 9093, "after b10001, with b10240 at the latest", "write --mlock"),
        ("--fit off", 6324, "after b6324, with b8643 at the latest", "leave it out"),
        ("-ncmoe 10", 5904, "after b5904, with b6324 at the latest", "b6324 or a newer one knows it"),
        ("--cache-ram 0", 6324, "after b6324, with b8643 at the latest", "leave it out (this build has no"),
        ("--jinja", 4295, "after b4295, with b4579 at the latest", "b4579 or a newer one knows it"),
    ],
)
def test_an_argument_that_came_later(line: str, build: int, reason: str, fix: str) -> None:
    (refused,) = read(f"llama-server {line}", build).refused
    assert reason in refused.reason
    assert refused.fix.startswith(fix)


def test_an_argument_that_went_has_its_value_taken() -> None:
    parsed = read("llama-server --logdir here -c 4096", 11434)
    assert [item.words for item in parsed.arguments] == ["--logdir here", "-c 4096"]
    assert "b4295 and newer refuse it" in parsed.refused[0].reason
    assert parsed.refused[0].fix == "write --log-file FNAME"


def test_a_build_between_two_trees_takes_the_older_and_says_so() -> None:
    table = FlagTable.load(10000)
    assert table.table_build == 9871
    assert "lies between two known ones" in (table.note or "")
    assert "b9871" in (table.note or "")
    assert "b10001" in (table.note or "")
    assert FlagTable.load(10001).note is None
    assert "older" in (FlagTable.load(3000).note or "")


def test_every_written_replacement_is_of_something_that_is_gone_or_changed() -> None:
    newest = FlagTable.load()
    for form in newest.removed:
        for program in form.programs:
            for name in form.names:
                span = newest.span(name, program)
                assert form.bare or (span is not None and span.until is not None), f"{program} {name}"


GIVEN: list[dict[str, Any]] = json.loads((DATA / "older_builds.json").read_text())


@pytest.mark.parametrize(
    "case", [row for row in GIVEN if row["build"] == "b9093"], ids=lambda row: row["given"][:40]
)
def test_a_command_for_a_named_build_is_the_one_that_its_parser_took(case: dict[str, Any]) -> None:
    command = LaunchCommand(engine="llama.cpp", build=11434, argv=("llama-server", *case["given"].split()))
    made, found = for_build(command, 9093)
    assert list(made.argv[1:]) == case["argv"]
    assert "engine-build-unknown" not in {item.id for item in found}


@pytest.mark.parametrize("build", [row["build"] for row in TREES])
def test_commands_are_spelled_as_each_tree_takes_them(build: int) -> None:
    for given in dict.fromkeys(row["given"] for row in GIVEN):
        command = LaunchCommand(engine="llama.cpp", build=11434, argv=("llama-server", *given.split()))
        made, _ = for_build(command, build)
        parsed = parse(made.argv, table=FlagTable.load(build))
        assert parsed.accepted, [item.words for item in parsed.refused]


def test_what_a_build_cannot_be_told_is_an_error_that_names_the_build() -> None:
    command = LaunchCommand(
        engine="llama.cpp", build=11434, argv=("llama-server", "-m", "m.gguf", "-ncmoe", "3")
    )
    made, (found,) = for_build(command, 4579)
    assert made.argv == ("llama-server", "-m", "m.gguf")
    assert (found.severity, found.fix) == ("error", "b6324 or a newer one knows it")


@pytest.mark.parametrize(
    ("build", "text", "tree"), [(9093, "help-b9093.txt", 9093), (0, "help-7841fc7.txt", 4879)]
)
def test_a_program_that_is_here_is_asked_itself(build: int, text: str, tree: int) -> None:
    """Both were built without RPC; the second has no number and is known by what it lists."""
    table = FlagTable.of_program(build, parse_help((DATA / text).read_text()))
    assert (table.build, table.table_build) == (build, tree)
    assert table.lookup("--rpc", "llama-server") is None
    assert {
        name for item in table.arguments if "llama-server" in item.programs for name in item.spellings
    } == (rebuilt(tree, "llama-server") - {"--rpc"})


def test_a_program_between_two_trees_has_what_it_lists() -> None:
    older, newer = FlagTable.load(10531), FlagTable.load(10883)
    came = rebuilt(10883, "llama-server") - rebuilt(10531, "llama-server")
    assert came
    table = FlagTable.of_program(10700, [*older.listed("llama-server"), *sorted(came)])
    for name in came:
        assert table.lookup(name, "llama-server") is not None
        assert newer.lookup(name, "llama-server") is not None
    assert table.lookup("--mmap", "llama-server") is not None


@pytest.mark.parametrize("place", range(len(TREES)), ids=lambda place: f"b{TREES[place]['build']}")
def test_each_trees_architectures_are_given_back(place: int) -> None:
    build = TREES[place]["build"]
    known = architectures.architectures()
    here = {n for n, k in known.items() if k.since <= build and (k.until is None or build <= k.until)}
    assert here == said(place, "architectures")
    assert {name for name in known if architectures.drafts(build, name)} == said(place, "drafting")


def test_a_model_that_is_newer_than_the_build() -> None:
    """src/llama-arch.cpp: glm-dsa is not in llama-cpp-python 0.3.16's tree and is in 0.3.20's (b8643)."""
    spec = resolve_model("glm-5.1", "UD-IQ2_M")
    too_old, between = architectures.finding(6324, spec), architectures.finding(7000, spec)
    assert too_old is not None
    assert between is not None
    assert (too_old.severity, between.severity) == ("error", "warning")
    assert too_old.fix == "llama.cpp b8643 or newer"
    assert architectures.finding(8643, spec) is None
    assert architectures.finding(0, spec) is None
    assert architectures.finding(3000, resolve_model("llama-3.1-8b", "Q4_K_M")) is None


def test_a_value_that_a_build_does_not_take_yet() -> None:
    """--spec-type of b8643 has no draft-mtp (common/arg.cpp of llama-cpp-python 0.3.20)."""
    words = ("llama-server", "-m", "m.gguf", "--spec-type", "draft-mtp", "-c", "4096")
    made, (found,) = for_build(LaunchCommand(engine="llama.cpp", build=11434, argv=words), 8643)
    assert made.argv == ("llama-server", "-m", "m.gguf", "-c", "4096")
    assert found.severity == "error"
    assert "--spec-type draft-mtp" in found.text


def test_a_no_flag_of_its_own_says_no() -> None:
    """-nkvo is a flag without a -kvo in b3848 and the negative of a switch in b11434 (common/arg.cpp)."""
    for build in (3848, 11434):
        (item,) = read("llama-server -nkvo", build).arguments
        assert item.status == "ok"
        assert item.negated
