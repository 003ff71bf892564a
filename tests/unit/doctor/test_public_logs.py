"""Excerpts of logs that people published, labelled before doctor read them (tests/data/logs/README.md)."""

from __future__ import annotations

import pytest

from tests.unit.doctor.logs import LOGS, Sample, found, samples

PUBLIC = [sample for path in sorted((LOGS / "public").glob("*.txt")) for sample in samples(path)]


def problems(sample: Sample) -> list[str]:
    return [item.rule.id for item in found(sample.text) if item.severity != "note"]


def test_there_are_enough_of_them() -> None:
    healthy = [item for item in PUBLIC if item.label == "healthy"]
    assert len(PUBLIC) >= 40
    assert len(healthy) >= 5
    assert all(item.text.startswith("# https://") for item in PUBLIC)
    assert len({item.name for item in PUBLIC}) == len(PUBLIC)


@pytest.mark.parametrize(
    "sample", [item for item in PUBLIC if item.label == "healthy"], ids=lambda item: item.name
)
def test_no_healthy_log_is_accused(sample: Sample) -> None:
    assert problems(sample) == []


def test_the_first_cause_is_the_right_one() -> None:
    sick = [item for item in PUBLIC if item.label != "healthy"]
    right = [item for item in sick if problems(item)[:1] == [item.label]]
    wrong = {item.name: (item.label, problems(item)) for item in sick if item not in right}
    assert len(right) >= 0.9 * len(sick), wrong
