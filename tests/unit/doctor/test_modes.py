"""Every failure of the catalogue: a log that shows it, and one that nearly does.

The lines are the engines' own messages (tests/data/logs/README.md), so the wording is theirs, not ours.
"""

from __future__ import annotations

import pytest

from plan_llama.doctor.rules import load
from tests.unit.doctor.logs import LOGS, Sample, found, samples

MODES = [sample for path in sorted((LOGS / "modes").glob("*.txt")) for sample in samples(path)]


def named(sample: Sample) -> str:
    return f"{sample.name}-{sample.label}"


@pytest.mark.parametrize("sample", [item for item in MODES if item.label == "true"], ids=named)
def test_a_failure_is_seen_and_comes_first(sample: Sample) -> None:
    seen = found(sample.text)
    rule = next(item for item in load() if item.id == sample.name)
    same = [item for item in seen if item.severity != "note" or rule.severity == "note"]
    assert same, [item.rule.id for item in seen]
    if rule.severity == "note":
        assert sample.name in [item.rule.id for item in seen]
    else:
        assert same[0].rule.id == sample.name
    assert all(line.text for item in seen for line in item.evidence)


@pytest.mark.parametrize("sample", [item for item in MODES if item.label == "near"], ids=named)
def test_what_only_looks_like_it_is_not(sample: Sample) -> None:
    assert sample.name not in [item.rule.id for item in found(sample.text) if item.severity != "note"]
    if next(item for item in load() if item.id == sample.name).severity == "note":
        assert sample.name not in [item.rule.id for item in found(sample.text)]


def test_every_failure_has_both() -> None:
    for label in ("true", "near"):
        have = {item.name for item in MODES if item.label == label}
        assert have | {"harmless-line"} == {rule.id for rule in load()}
