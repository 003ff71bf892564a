"""The rules themselves: complete, with sources, and listed in the reference."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from plan_llama.doctor import report
from plan_llama.doctor.conditions import condition
from plan_llama.doctor.evidence import Start
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.patterns import compiled
from plan_llama.doctor.rules import load, templates
from plan_llama.doctor.spelling import spelled
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import ProfileError
from tests.unit.doctor.logs import found, read

ROOT = Path(__file__).parents[3]


def test_every_rule_has_a_public_source_and_words() -> None:
    for rule in load():
        assert all(url.startswith("https://") for url in rule.sources), rule.id
        assert rule.cause.endswith((".", ".)")), rule.id
        assert rule.fix.endswith((".", ".)")), rule.id


def test_every_pattern_can_be_looked_for() -> None:
    """A hole of one name twice is found only when a line has the pattern's words."""
    for text in templates():
        assert compiled(text).search("no such line") is None, text


def test_the_page_is_made_from_the_rules() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "doctor_rules.py"))["page"]()
    assert (ROOT / "docs" / "reference" / "doctor-rules.md").read_text(encoding="utf-8") == made


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a < b", True),
        ("a >= 0.5 b", True),
        ("a > b", False),
        ("nothing > 0", False),
        ("name is llama|gemma", True),
        ("name is not llama", False),
        ("name has lam", True),
        ("on", True),
        ("not on", False),
        ("unknown nothing", True),
        ("known a", True),
    ],
)
def test_conditions(text: str, *, holds: bool) -> None:
    start = Start(1)
    for name, value in (("a", 2), ("b", 4), ("name", "llama"), ("on", True)):
        start.set(name, value)
    assert condition(text, "rule").met(start, {}, {}) is holds


def test_a_condition_that_is_none() -> None:
    with pytest.raises(ProfileError, match="no condition"):
        condition("a << b", "rule")


@pytest.mark.parametrize(
    ("build", "text"), [(11434, "Take --load-mode none and -fa on."), (4000, "Take --no-mmap and -fa.")]
)
def test_arguments_are_spelled_for_the_build(build: int, text: str) -> None:
    assert spelled("Take `--load-mode none` and `-fa on`.", FlagTable.load(build)) == text


def test_of_two_errors_that_end_a_start_the_first_is_the_cause() -> None:
    lines = [
        "unknown model architecture: 'new'",
        "Error: failed to open /models/a.gguf: No such file or directory",
    ]
    for order in (lines, lines[::-1]):
        first = found("\n".join(order))[0].rule.id
        assert first == ("unknown-architecture" if order is lines else "file-not-found")


def test_words_that_a_pattern_does_not_keep() -> None:
    """The cause quotes what the engine said; where the pattern has no hole for it, that is the line."""
    evidence = read("ValueError: --data-parallel-size and --device-ids are mutually exclusive\n")
    said = report.findings(evidence, diagnose(evidence, load()))[0]
    assert said.id == "vllm-option-refused"
    assert "Its own words: ValueError: --data-parallel-size and" in said.cause


def test_no_two_rules_give_way_to_each_other() -> None:
    """Both would be left out."""
    ways = {(rule.id, other) for rule in load() for other in rule.yields_to}
    assert not {(one, other) for one, other in ways if (other, one) in ways}


def test_texts_name_failures_that_exist() -> None:
    known = {rule.id for rule in load()} | {"cause-not-found"}
    for rule in load():
        named = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", rule.apart))
        assert named <= known - {rule.id}, (rule.id, named - known)
