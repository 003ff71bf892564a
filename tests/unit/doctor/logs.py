"""Logs of the tests: files of many short ones, each behind a line `=== NAME LABEL`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from plan_llama.doctor.evidence import Evidence
from plan_llama.doctor.judge import Diagnosis, diagnose
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.doctor.rules import load, templates

LOGS = Path(__file__).parents[2] / "data" / "logs"


@dataclass(frozen=True, slots=True)
class Sample:
    """A log and what it stands for."""

    name: str
    label: str
    text: str


def samples(path: Path) -> Iterator[Sample]:
    """The logs of one file."""
    for block in path.read_text(encoding="utf-8").split("=== ")[1:]:
        head, _, text = block.partition("\n")
        name, _, label = head.partition(" ")
        yield Sample(name, label, text)


@cache
def book() -> Book:
    """The patterns of all rules, worked out once."""
    return Book(templates())


def read(text: str) -> Evidence:
    """What is in a log."""
    reader = LogReader(book())
    reader.read(io.BytesIO(text.encode()), "log")
    return reader.finish()


def found(text: str) -> list[Diagnosis]:
    """What is wrong by a log."""
    return diagnose(read(text), load())
