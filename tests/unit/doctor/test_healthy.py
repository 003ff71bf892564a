"""Logs with nothing wrong, in the engines' own words (tests/data/logs/README.md)."""

from __future__ import annotations

import pytest

from plan_llama.doctor import report
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.rules import load
from tests.unit.doctor.logs import LOGS, Sample, read, samples

HEALTHY = [sample for path in sorted((LOGS / "healthy").glob("*.txt")) for sample in samples(path)]


@pytest.mark.parametrize("sample", HEALTHY, ids=lambda item: item.name)
def test_no_healthy_log_is_accused(sample: Sample) -> None:
    assert accused(sample.text) == []


@pytest.mark.parametrize("sample", HEALTHY[::10], ids=lambda item: item.name)
def test_nor_where_a_wrapper_hands_its_lines_on_as_errors(sample: Sample) -> None:
    """What an engine writes to the standard error is at that level for many loggers."""
    lines = sample.text.splitlines()
    for before in (
        "2026-03-04 10:11:12,123 - wrapper - ERROR - ",
        "ERROR:wrapper:",
        '{"level":"error","msg":"',
    ):
        assert accused("\n".join(before + line for line in lines)) == []


def accused(log: str) -> list[str]:
    evidence = read(log)
    found = report.findings(evidence, diagnose(evidence, load()))
    return [item.id for item in found if item.severity != "note"]
