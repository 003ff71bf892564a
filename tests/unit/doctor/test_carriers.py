"""The same log gets the same answer however it was carried, on some stored logs; test_every_carrier.py takes all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import pytest

from plan_llama.doctor import report
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.rules import load
from tests.unit.doctor.batches import NO_CAUSE
from tests.unit.doctor.carriers import CARRIERS, WRAPS, Carrier, mixed
from tests.unit.doctor.logs import LOGS, book, read, samples

SAMPLE = 9  # logs for each carrier in the fast run, others for each


@cache
def stored() -> tuple[tuple[str, str], ...]:
    """Every stored log by its name, without the line that holds its link."""
    found = []
    for folder in ("batches", "public", "healthy"):
        for path in sorted((LOGS / folder).glob("*.txt")):
            for item in samples(path):
                head, _, rest = item.text.partition("\n")
                found.append((f"{path.stem} {item.name}", rest if head.startswith("# http") else item.text))
    for folder in ("real", "cuda"):
        found += [
            (path.stem, path.read_text(encoding="utf-8")) for path in sorted((LOGS / folder).glob("*.log"))
        ]
    return tuple(found)


@cache
def answer(data: bytes) -> str:
    """The first finding that is no note."""
    reader = LogReader(book())
    reader.read(io.BytesIO(data), "log")
    evidence = reader.finish()
    found = report.findings(evidence, diagnose(evidence, load()))
    return next((item.id for item in found if item.severity != "note"), "")


def changed(carrier: Carrier, logs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """What is answered otherwise: before and after. Where text follows, a log does not end early."""
    pairs = {name: (answer(text.encode()), answer(carrier(text))) for name, text in logs}
    ends = ("log-ends-early",) if carrier is CARRIERS["fenced"] else ()
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and pair[0] not in ends}


def test_there_are_enough_logs() -> None:
    assert len(stored()) >= 950
    assert len({name for name, _ in stored()}) == len(stored())


@pytest.mark.parametrize("name", CARRIERS)
def test_a_carrier_changes_no_answer(name: str) -> None:
    place = list(CARRIERS).index(name)
    step = len(stored()) // SAMPLE
    assert changed(CARRIERS[name], stored()[place % step :: step]) == {}


@pytest.mark.parametrize("name", WRAPS)
def test_a_terminal_that_cuts_lines_changes_no_answer_of_a_few(name: str) -> None:
    assert changed(WRAPS[name], stored()[:: len(stored()) // 40]) == {}


def test_a_healthy_log_beside_it_changes_no_cause() -> None:
    assert beside(stored()[:: len(stored()) // 40]) == ({}, {})


def beside(logs: Sequence[tuple[str, str]]) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Whose causes change with a healthy log before or behind them, and healthy ones that look sick then.

    A cause can only stay where the log shows that an engine starts in it: else it is one with the healthy one.
    """
    different, sick = {}, {}
    for name, text in logs:
        evidence = read(text)
        said = answer(text.encode())
        for kind, carrier in mixed(str(evidence.starts[-1].get("engine"))).items():
            data = carrier(text)
            pair = said, answer(data)
            if not said and pair[1]:
                sick[f"{name}, {kind}"] = pair
            elif pair[1] != said not in NO_CAUSE and starts(data) > len(evidence.starts):
                different[f"{name}, {kind}"] = pair
    return different, sick


def starts(data: bytes) -> int:
    """How many starts of an engine are told apart."""
    return len(read(data.decode()).starts)
