"""The shipped constants against the published runs: the reference page holds what is recomputed here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scripts import speed_cpu, speed_report
from scripts.speed_cases import DATA, Cases, read

from plan_llama import catalog
from plan_llama.errors import ProfileError
from plan_llama.speed.constants import Constants, parse
from plan_llama.speed.rates import widened

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def constants() -> Constants:
    path = ROOT / "profiles" / "speed" / "constants.toml"
    return parse(catalog.load(path), str(path))


@pytest.fixture(scope="module")
def rows() -> Cases:
    return read()


def test_every_row_is_compared_or_has_a_reason(rows: Cases) -> None:
    ids = [json.loads(line)["id"] for line in (DATA / "calibration.jsonl").read_text("utf-8").splitlines()]
    assert sorted(ids) == sorted([case.id for case in rows.cases] + [row for row, _ in rows.left_out])
    assert len(rows.cases) >= 160


def test_page_holds_the_numbers_of_the_shipped_constants(rows: Cases, constants: Constants) -> None:
    page = (ROOT / "docs" / "reference" / "speed.md").read_text(encoding="utf-8")
    assert speed_report.table(rows.cases, constants) in page
    assert speed_report.INTRODUCTION in page


def test_errors_and_coverage(rows: Cases, constants: Constants) -> None:
    decode, prefill, roofline = [], [], []
    inside = []
    for case in rows.cases:
        predicted, prompt = speed_report.predict(case, constants)
        _, said = speed_report.resolve(case, constants)
        name = speed_report.size_class(case)
        if case.decode_tok_s:
            decode.append(math.log(predicted / case.decode_tok_s))
            roofline.append(math.log(speed_report.roofline(case, constants) / case.decode_tok_s))
            inside.append(abs(decode[-1]) <= math.log(widened(constants.spread_decode[name], said.factors)))
        if case.prefill_tok_s:
            prefill.append(math.log(prompt / case.prefill_tok_s))
    assert speed_report.median_error(decode) <= 0.15
    assert speed_report.median_error(prefill) <= 0.25
    assert sum(inside) / len(inside) >= 0.8
    assert speed_report.median_error(roofline) > 2 * speed_report.median_error(decode)


def test_held_out_errors_are_on_the_page(constants: Constants) -> None:
    fitted = catalog.load(ROOT / "profiles" / "speed" / "constants.toml")["fitted"]
    page = (ROOT / "docs" / "reference" / "speed.md").read_text(encoding="utf-8")
    for kind, most in (("decode", 0.15), ("prefill", 0.25)):
        error = fitted[f"held_out_{kind}_median_abs_error"]
        assert error <= most
        assert f"{kind}: {100 * error:.1f} %" in page
    assert set(constants.spread_decode) == set(speed_report.CLASSES) == set(constants.spread_prefill)


def test_shares_are_shares(constants: Constants) -> None:
    for family in constants.families:
        assert 0.1 < family.decode <= 1.0
        assert 0.05 < family.prefill <= 1.0
    assert 0.3 < constants.ram_experts * constants.ram_peak < 0.9
    assert constants.kernels["iq2_xxs"].core_s_per_byte > 3 * constants.kernels["q4_K"].core_s_per_byte


def test_a_profile_that_lacks_something_names_it() -> None:
    good = catalog.load(ROOT / "profiles" / "speed" / "constants.toml")
    with pytest.raises(ProfileError, match="ram_peak"):
        parse({**good, "host": {k: v for k, v in good["host"].items() if k != "ram_peak"}})
    with pytest.raises(ProfileError, match="unknown key surprise"):
        parse({**good, "surprise": 1})
    with pytest.raises(ProfileError, match="schema"):
        parse({**good, "schema": 2})
    with pytest.raises(ProfileError, match="family"):
        parse({**good, "family": []})


def test_our_own_runs_on_a_cpu_are_in_the_predicted_order(constants: Constants) -> None:
    cases = list(speed_cpu.read())
    pairs, right = speed_report.ranked(
        cases, {case.id: speed_report.predict(case, constants) for case in cases}
    )
    assert pairs >= 100
    assert right == pairs  # those whose three runs on shared cores do not overlap
    page = (ROOT / "docs" / "reference" / "speed.md").read_text(encoding="utf-8")
    assert f"{right} of {pairs} were measured in the predicted order" in page
