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
    evidence = read(sample.text)
    found = report.findings(evidence, diagnose(evidence, load()))
    assert [item.id for item in found if item.severity != "note"] == []
