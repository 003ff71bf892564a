"""Published runs that are in no fit: all are compared, none is in the fit, and the page says how well they are
predicted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripts import speed_fresh, speed_report
from scripts.speed_cases import DATA, Case, read

from plan_llama import catalog
from plan_llama.speed.constants import Constants, parse
from plan_llama.speed.rates import widened

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "speed.md"


@pytest.fixture(scope="module")
def constants() -> Constants:
    path = ROOT / "profiles" / "speed" / "constants.toml"
    return parse(catalog.load(path), str(path))


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    return speed_fresh.fresh().cases


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def test_every_row_is_compared(cases: tuple[Case, ...]) -> None:
    rows = _rows(speed_fresh.FILE)
    assert [row["id"] for row in rows] == [case.id for case in cases]
    assert len({row["id"] for row in rows}) == len(rows) >= 140
    assert len(set(speed_fresh.pages().values())) >= 35
    classes = Counter(speed_report.size_class(case) for case in cases)
    assert all(classes[name] >= 20 for name in speed_report.CLASSES)
    assert all(row["date"] >= "2025" and row["engine"] in ("llama.cpp", "ik_llama.cpp") for row in rows)


def test_no_row_is_in_the_fit(cases: tuple[Case, ...]) -> None:
    assert not {case.id for case in cases} & {case.id for case in read().cases}
    known = _rows("calibration.jsonl")
    assert not {row["source_url"] for row in known} & set(speed_fresh.pages().values())

    def speeds(row: dict[str, Any]) -> set[tuple[str, str, float]]:
        return {(row["model"], key, row[key]) for key in ("tg_tok_s", "pp_tok_s") if row.get(key)}

    assert not {s for row in known for s in speeds(row)} & {
        s for row in _rows(speed_fresh.FILE) for s in speeds(row)
    }


def test_at_most_four_rows_of_a_page_machine_and_placement(cases: tuple[Case, ...]) -> None:
    counts = Counter(
        (
            row["source_url"],
            json.dumps([row.get(key) for key in ("gpus", "cpu", "ram")]),
            speed_report.size_class(case),
        )
        for row, case in zip(_rows(speed_fresh.FILE), cases, strict=True)
    )
    assert max(counts.values()) <= 4


def test_page_holds_the_section_of_the_shipped_constants(constants: Constants) -> None:
    page, section = PAGE.read_text(encoding="utf-8"), speed_fresh.section(constants)
    assert section in page
    assert page.count(speed_fresh.HEADING) == 1
    assert speed_fresh.replaced(page, section) == page
    with pytest.raises(ValueError, match="no heading"):
        speed_fresh.replaced("# Another page\n", section)


def test_the_worst_are_the_worst(cases: tuple[Case, ...], constants: Constants) -> None:
    for index in (0, 1):
        worst = speed_fresh.worst(cases, constants, index)
        errors = [abs(math.log(ratio)) for _, ratio in worst]
        everything = [r for case in cases for r in [speed_fresh.ratios(case, constants)[index]] if r]
        assert len(worst) == speed_fresh.WORST
        assert errors == sorted(errors, reverse=True)
        assert errors[0] == max(abs(math.log(ratio)) for ratio in everything)


def test_errors_and_coverage(cases: tuple[Case, ...], constants: Constants) -> None:
    errors: tuple[list[float], list[float]] = ([], [])
    inside: tuple[list[bool], list[bool]] = ([], [])
    roofline = []
    for case in cases:
        name = speed_report.size_class(case)
        _, said = speed_report.resolve(case, constants)
        spreads = (constants.spread_decode[name], constants.spread_prefill[name])
        for index, ratio in enumerate(speed_fresh.ratios(case, constants)):
            if ratio is not None:
                errors[index].append(math.log(ratio))
                inside[index].append(abs(math.log(ratio)) <= math.log(widened(spreads[index], said.factors)))
        if case.decode_tok_s:
            roofline.append(math.log(speed_report.roofline(case, constants) / case.decode_tok_s))
    decode, prefill = (speed_report.median_error(values) for values in errors)
    assert decode <= 0.18
    assert prefill <= 0.25
    assert sum(inside[0]) / len(inside[0]) >= 0.75
    assert sum(inside[1]) / len(inside[1]) >= 0.70
    assert speed_report.median_error(roofline) > 3 * decode
