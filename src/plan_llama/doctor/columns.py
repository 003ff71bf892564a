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
    r"\s*(?:[\w.~<>/-]+(?:::[\w~<>]+)*(?:\([^)]*\))?\s*(?:: |:$|\| )|[\[(|+#>*-]|\d+\.\d\d\.\d{3}|\d{4}[-/]"
    r"|[A-Z][a-z]+\b|[A-Z]{4,}\b|ROCm|\{|(?:llama|ggml|slot|srv|clip|system|main|print)\w*\b|(?:time|level)="
    r"|Traceback|File \"|[DIWEF] |\^+|\s\s|$)"
)
# The end of a word that was cut, and no word with which engines and wrappers begin.
_FRAGMENT = re.compile(
    r"(?!(?:srv|slot|llama|ggml|clip|load|print|cmn|time|level|main|error|init|build|warning|fatal|note|panic|info|debug|exit|server|worker|ollama|vllm|python|kernel|model"
    r"|status|caused?|runtime|usage|loading|failed)\b)[a-z][a-z0-9]{0,11}(?:[ :'\"\]).,]|$)"
)
_QUOTED = re.compile(r"[> ]+")
_WORD = re.compile(r"[a-z_/]")
_RICH = re.compile(
    r"(?:\[[\d/]+ ?[\d:]+(?: [AP]M)?\] | {11}| {20})(?:DEBUG   |INFO    |WARNING |ERROR   |CRITICAL) "
)
_INDENT = " " * 19  # of a row that goes on
_RICH_PATH = re.compile(r"(?<=\s)[\w./-]+\.py:\d+\s*$")


class Columns:
    """The layout of one file."""

    def __init__(self) -> None:
        self._looked = False
        self._quoted = ""  # what stands before each row in mail
        self._rich = False
        self._padded = False  # with blanks to the right edge
        self._width = 0  # of the terminal that cut its lines; 0: none did
        self._sure = False
        self._begins: set[str] = set()

    def lines(self, data: bytes) -> bytes:
        """Whole rows as lines."""
        if not self._looked:
            self._looked = True
            rows = _rows(data)
            self._quoted = _quoting([row for row in rows if row.strip()])
            self._look(self._bare(rows))
        if self._rich:
            return _two_columns(self._bare(_rows(data)))
        return self._joined(self._bare(_rows(data))) if self._width else data

    def full(self, row: bytes) -> bool:
        """Whether a row may go on in the next."""
        return bool(self._width) and len(row.decode("utf-8", "replace").rstrip("\r")) >= self._width - 1

    def _bare(self, rows: list[str]) -> list[str]:
        return [row.removeprefix(self._quoted) for row in rows] if self._quoted else rows

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
            _begin(row) for before, row in zip(["", *rows], rows, strict=False) if len(before) < width - 1
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
        if full[-1].isalnum() and (_WORD if len(full) in _USUAL_WIDTHS else _FRAGMENT).match(row):
            return False  # a word is cut
        return _BEGINS.match(row) is not None

    def _goes_on(self, row: str, after: str) -> bool:
        """Whether a row goes on in the one after it. A blank in the last column may be lost."""
        if not after or len(row) < self._width - self._sure or self._new(row, after):
            return False
        return len(row) == self._width or (row[-1] != " " and _BEGINS.match(after) is None)

    def _joined(self, rows: list[str]) -> bytes:
        """Rows that end at the last column, with those that they go on in."""
        rows = self._trimmed(rows)
        done: list[str] = []
        place = 0
        while place < len(rows):
            end = place
            while end + 1 < len(rows) and self._goes_on(rows[end], rows[end + 1]):
                rows[end] = rows[end].ljust(self._width)
                end += 1
            done.append("".join(rows[place : end + 1]))
            # where it may be an accident, the rows are read as they stand too
            done += [""] * (end - place) if self._sure else rows[place + 1 : end + 1]
            place = end + 1
        return "\n".join(done).encode()


def _quoting(rows: Sequence[str]) -> str:
    """What mail, or a list, has put before every row."""
    found = _QUOTED.match(rows[0]) if rows else None
    before = found[0] if found else ""
    while not all(row.startswith(before) for row in rows):
        before = before[:-1]
    return before


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
