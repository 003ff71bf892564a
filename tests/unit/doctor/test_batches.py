"""Published logs that were labelled before doctor read them (tests/data/logs/batches/README.md)."""

from __future__ import annotations

import re

import pytest

from plan_llama.doctor.rules import load
from tests.unit.doctor.batches import answer, batch, right
from tests.unit.doctor.logs import LOGS, Sample

BATCHES = sorted(path.stem for path in (LOGS / "batches").glob("*.txt"))
ALL = [sample for name in BATCHES for sample in batch(name)]


def test_every_log_has_a_link_a_year_and_a_label_of_the_catalogue() -> None:
    known = {rule.id for rule in load()} | {"healthy", "cannot-tell"}
    assert len({item.name for item in ALL}) == len(ALL)
    for item in ALL:
        assert re.match(r"# https://\S+ 20(24|25|26)(-\d\d){0,2}\n", item.text), item.name
        assert set(item.label.split("|")) <= known, item.name


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_large_and_has_healthy_ones(name: str) -> None:
    healthy = [item for item in batch(name) if item.label == "healthy"]
    assert len(batch(name)) >= 40
    assert len(healthy) >= 6


@pytest.mark.parametrize(
    "sample", [item for item in ALL if item.label == "healthy"], ids=lambda item: item.name
)
def test_no_healthy_log_is_accused(sample: Sample) -> None:
    assert answer(sample) == ""


@pytest.mark.parametrize("name", BATCHES)
def test_the_first_cause_is_the_right_one(name: str) -> None:
    sick = [(item, answer(item)) for item in batch(name) if item.label != "healthy"]
    wrong = {item.name: (item.label, said) for item, said in sick if not right(item, said)}
    assert len(wrong) <= 0.1 * len(sick), wrong
