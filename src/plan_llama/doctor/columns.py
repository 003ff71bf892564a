"""Lines that a screen has laid out: cut at a terminal's last column, or in the columns of Python's rich.

What the beginning of a file shows holds to its end. Each line keeps its number: where several rows make up one line, it
stands at the first of them, and the others are empty.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_LEAST_WIDTH, _MOST_WIDTH = 40, 400  # columns of a terminal
_BEGINNING = 8  # characters by which lines of a kind begin alike
_USUAL_WIDTHS = frozenset((80, 100, 120, 132, 160, 200))
_SHARE = 4  # one of so many rows that end at the last column must go on in a way that no line begins
_SURE = 3  # rows that go on in the next: so many are no accident
_SAMPLE = 200  # rows that tell a layout
_NUMERAL = re.compile(r"\d")
_BEGINS = re.compile(
    r"\s*(?:[\w.~<>/-]+(?:::[\w~<>]+)*(?:\([^)]*\))?\s*(?:: |:$|\| )|[\[(|+#>*-]|\d+\.\d\d\.\d{3}|\d{4}[-/]|[A-Z]{4,}\b"
    r"|(?:llama|ggml|slot|srv|clip|system|main|print)\w*\b|(?:time|level)=|Traceback|File \"|[DIWEF] |\^+|\s\s|$)"
)
_WORD = re.compile(r"[a-z0-9_/]")
_RICH = re.compile(
    r"(?:\[[\d/]+ ?[\d:]+(?: [AP]M)?\] | {11}| {20})(?:DEBUG   |INFO    |WARNING |ERROR   |CRITICAL) "
)
_INDENT = " " * 19  # of a row that goes on
_RICH_PATH = re.compile(r"(?<=\s)[\w./-]+\.py:\d+\s*$")


class Columns:
    """The layout of one file."""

    def __init__(self) -> None:
        self._looked = False
        self._rich = False
        self._padded = False  # with blanks to the right edge
        self._width = 0  # of the terminal that cut its lines; 0: none did
        self._sure = False
        self._begins: set[str] = set()

    def lines(self, data: bytes) -> bytes:
        """Whole rows as lines."""
        if not self._looked:
            self._looked = True
            self._look(_rows(data))
        if self._rich:
            return _two_columns(_rows(data))
        return self._joined(_rows(data)) if self._width else data

    def _look(self, rows: list[str]) -> None:
        first = [row for row in rows[:_SAMPLE] if row]
        heads = sum(_RICH.match(row) is not None for row in first)
        self._rich = heads > 0 and 2 * (heads + sum(row.startswith(_INDENT) for row in first)) > len(first)
        self._padded = 2 * sum(row.endswith(" ") for row in rows) > sum(map(bool, rows))
        rows = self._trimmed(rows)
        width = max(map(len, rows))
        if not _LEAST_WIDTH <= width <= _MOST_WIDTH:
            return
        self._begins = {
            _begin(row) for before, row in zip(["", *rows], rows, strict=False) if len(before) < width
        }
        full = [at for at, row in enumerate(rows[:-1]) if len(row) == width and rows[at + 1]]
        fresh = sum(_begin(rows[at + 1]) not in self._begins for at in full)
        cut = sum(not self._new(rows[at], rows[at + 1]) for at in full)
        if cut and _SHARE * cut >= len(full):
            self._width, self._sure = width, cut >= _SURE and 2 * fresh > len(full)

    def _trimmed(self, rows: list[str]) -> list[str]:
        return [row.rstrip() for row in rows] if self._padded else rows

    def _new(self, full: str, row: str) -> bool:
        """Whether a row begins a line, where the one before it is full."""
        if _begin(row) in self._begins or self._sure:
            return _begin(row) in self._begins
        if len(full) in _USUAL_WIDTHS and _WORD.match(row) and _WORD.match(full[-1]):
            return False  # a word is cut
        return _BEGINS.match(row) is not None

    def _joined(self, rows: list[str]) -> bytes:
        """Rows that end at the last column, with those that they go on in."""
        rows = self._trimmed(rows)
        done: list[str] = []
        place = 0
        while place < len(rows):
            end = place
            while end + 1 < len(rows) and len(rows[end]) == self._width and rows[end + 1]:
                if self._new(rows[end], rows[end + 1]):
                    break
                end += 1
            done.append("".join(rows[place : end + 1]))
            # where it may be an accident, the rows are read as they stand too
            done += [""] * (end - place) if self._sure else rows[place + 1 : end + 1]
            place = end + 1
        return "\n".join(done).encode()


def _rows(data: bytes) -> list[str]:
    return data.decode("utf-8", "replace").replace("\r", "").split("\n")


def _begin(row: str) -> str:
    """How a row begins; times and numbers are all the same."""
    return _NUMERAL.sub("0", row[:_BEGINNING])


def _two_columns(rows: list[str]) -> bytes:
    """rich's layout: a message in a column of its own that goes on below, the place in the code at the right."""
    done: list[str] = []
    parts: list[str] = []
    column = width = 0
    for row in rows:
        found = _RICH.match(row)
        goes_on = found is None and bool(parts) and row[:column].isspace() and len(row) > column
        if parts and not goes_on:
            done += [_unfolded(parts, width), *[""] * (len(parts) - 1)]
            parts = []
        if found is not None:
            column = found.end()
            path = _RICH_PATH.search(row, column)
            end = len(row) if path is None else path.start()
            width = end - column - 1
            parts = [row[column:end].rstrip()]
        elif goes_on:
            parts.append(row[column:].rstrip())
        else:
            done.append(row)
    if parts:
        done += [_unfolded(parts, width), *[""] * (len(parts) - 1)]
    return "\n".join(done).encode()


def _unfolded(parts: Sequence[str], width: int) -> str:
    """A word that is longer than the column is cut; other lines end at a blank."""
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        last, first = (before.split() or [""])[-1], (part.split() or [""])[0]
        cut = len(before) == width and len(last) + len(first) > width and before[-1] not in ":,;"
        text += part if cut else f" {part.lstrip()}"
    return text
