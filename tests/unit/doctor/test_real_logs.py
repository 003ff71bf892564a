"""Whole logs of llama-server b11434, made by scripts/doctor_logs.py or on an H200 (tests/data/logs/README.md): what was
done to it is what is found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plan_llama.doctor import report
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.rules import load
from tests.unit.doctor.logs import LOGS, read

REAL = LOGS / "real"
CUDA = LOGS / "cuda"
CASES: dict[str, dict[str, Any]] = {
    f"{folder.name}/{name}": row
    for folder in (REAL, CUDA)
    for name, row in json.loads((folder / "index.json").read_text(encoding="utf-8")).items()
}


def test_every_log_is_listed() -> None:
    assert {
        f"{path.parent.name}/{path.stem}" for folder in (REAL, CUDA) for path in folder.glob("*.log")
    } == set(CASES)
    assert len(CASES) >= 45


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_was_done_is_found(name: str) -> None:
    expected = CASES[name]["expected"]
    evidence = read((LOGS / f"{name}.log").read_text(encoding="utf-8"))
    shown = report.findings(evidence, diagnose(evidence, load()))
    problems = [item.id for item in shown if item.severity != "note"]
    notes = [item.id for item in shown if item.severity == "note"]
    if expected.startswith("note:"):
        assert problems == []
        assert expected.removeprefix("note:") in notes
    elif expected:
        assert problems[0] == expected
    else:
        assert problems == []
        assert report.state(evidence.starts[-1]) == "served"


def test_the_facts_of_a_whole_log() -> None:
    start = read((REAL / "healthy-offloaded.log").read_text(encoding="utf-8")).starts[-1]
    assert start.get("build") == 11434
    assert start.get("architecture") == "llama"
    assert start.get("file_type") == "Q8_0"
    assert start.get("context") == 2048
    assert start.get("kv_type_k") == "f16"
    assert start.get("flash_attn") == "enabled"
    kinds = {(item.device, item.kind) for item in start.buffers}
    assert {("RPC0", "model"), ("RPC0", "context"), ("RPC0", "compute"), ("CPU_Mapped", "model")} <= kinds
