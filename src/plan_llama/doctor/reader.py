"""Logs in one pass and bounded memory: lines become hits of patterns and facts, split into starts of an engine."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from plan_llama.doctor import prefixes
from plan_llama.doctor.derived import derive, inherit
from plan_llama.doctor.evidence import Evidence, Fact, Hit, Hits, Line, Start
from plan_llama.doctor.facts import FACTS, FactPattern
from plan_llama.doctor.patterns import DIGITS, TABLE, Index, Pattern, compiled, distinct
from plan_llama.errors import InputError

_CHUNK = 1 << 20
_LONGEST = 8192  # of a longer line, this much of its beginning and of its end is read
_MOST_STARTS = 40
_MOST_KEPT = 1500  # shapes of one start
_FIRST, _LAST = 40, 10  # lines of a shape: eight cards, listed by every pass
_TAIL = 30
_ERRORS = 12
# fmt: off
_ERROR_WORDS = (
    "error", "ERROR", "Error", "failed", "Failed", "FATAL", "fatal", "panic", "Traceback (most recent call last)",
    "exception", "Exception", "RuntimeError", "ValueError", "Segmentation fault", "aborted", "Aborted", "terminated",
    "Killed", "killed", "OSError", "AssertionError", "abort", "ImportError",
)
# fmt: on
_TEXT_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(slots=True)
class _Open:
    """A start whose lines are not looked at yet: most logs hold more starts than anybody asks about."""

    number: int
    first_line: int
    source: str
    lines: dict[
        int, tuple[tuple[int, ...], list[tuple[int, bytes]]]
    ]  # by shape: patterns, first and last lines
    dropped: dict[int, int]  # by shape: how many between
    begun: bool = False
    served: bool = False
    ended: bool = False
    path: str = ""
    known: dict[str, Fact] = field(default_factory=dict)


class Book:
    """Patterns of rules, facts and errors, with what was found out about lines; readers may share one."""

    def __init__(self, templates: Iterable[str]) -> None:
        rules = distinct(templates)
        by_template: dict[str, list[FactPattern]] = {}
        for item in FACTS:
            by_template.setdefault(item.template, []).append(item)
        names = distinct([*rules, *by_template, *_ERROR_WORDS])
        self.rules = frozenset(rules)
        self.errors = frozenset(_ERROR_WORDS)
        self.patterns: list[Pattern] = [compiled(text) for text in names]
        self.facts = [by_template.get(pattern.template, []) for pattern in self.patterns]
        self.marks = {
            place: item.marks for place, items in enumerate(self.facts) for item in items if item.marks
        }
        self.index = Index(self.patterns)


class LogReader:
    """Feed it files, chunks or lines; `finish` gives the evidence."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._starts: deque[_Open] = deque(maxlen=_MOST_STARTS)
        self._count = 0
        self._lines = 0
        self._number = 0
        self._tail: deque[Line] = deque(maxlen=_TAIL)
        self._observed: dict[str, Fact] = {}
        self._source = ""

    def read(self, stream: BinaryIO, source: str) -> None:
        """A whole file. Raises InputError where it is no text, OSError where it cannot be read."""
        first = stream.read(_CHUNK)
        encoding = next((name for bom, name in _TEXT_BOMS if first.startswith(bom)), None)
        decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
        if decoder is None and b"\0" in first:
            raise InputError(f"{source}: not a text file", hint="give the text that the engine printed")
        chunk, carry = first, b""
        while chunk:
            data = carry + (decoder.decode(chunk).lstrip("\ufeff").encode() if decoder else chunk)
            lines = data.split(b"\n")
            carry = lines.pop()
            if len(carry) > _CHUNK:  # a line without an end
                carry = carry[:_LONGEST] + carry[-_LONGEST:]
            self.feed(lines, source)
            chunk = stream.read(_CHUNK)
        if carry:
            self.feed([carry], source)

    def feed(self, lines: Sequence[bytes], source: str) -> None:
        """Some whole lines, in order. Every source is a start of its own."""
        if source != self._source or not self._starts:
            self._source, self._number = source, 0
            self._open(1)
        known = self._book.index.known
        marks = self._book.marks
        kept = self._starts[-1].lines
        boundaries = frozenset(marks)
        number = self._number
        for raw in lines:
            number += 1
            if len(raw) > 2 * _LONGEST:
                raw = raw[:_LONGEST] + b" " + raw[-_LONGEST:]
            outline = raw.translate(TABLE, DIGITS)
            ident = hash(outline)
            found = known.get(ident)
            if found is None:
                found = self._book.index.candidates(outline)
            if not found:
                continue
            if not boundaries.isdisjoint(found):
                self._mark(number, raw, found)
                kept = self._starts[-1].lines
            entry = kept.get(ident)
            if entry is None:
                if len(kept) < _MOST_KEPT:
                    kept[ident] = (found, [(number, raw)])
                continue
            entry[1].append((number, raw))
            if len(entry[1]) > _FIRST + _LAST:
                del entry[1][_FIRST]
                dropped = self._starts[-1].dropped
                dropped[ident] = dropped.get(ident, 0) + 1
        for offset, raw in enumerate(lines[-_TAIL:], number - len(lines[-_TAIL:]) + 1):
            self._tail.append(Line(offset, _text(raw), source))
        self._lines += len(lines)
        self._number = number

    @property
    def served(self) -> bool:
        """Whether the latest start serves."""
        return bool(self._starts) and self._starts[-1].served

    def observe(self, name: str, fact: Fact) -> None:
        """What a probe of the machine found."""
        self._observed[name] = fact

    def know(self, name: str, fact: Fact) -> None:
        """What is true of the latest start and stands in no line; `served` says that it serves."""
        self._starts[-1].known[name] = fact

    def finish(self) -> Evidence:
        """Everything that was read."""
        starts: list[Start] = []
        for item in self._starts:
            start = Start(item.number, item.first_line)
            if starts and starts[-1].source == item.source:
                inherit(starts[-1], start)
            start.source = item.source
            self._look(item, start)
            start.facts |= item.known
            if "served" in item.known:
                start.served = start.begun = item.known["served"].line
            derive(start)
            starts.append(start)
        return Evidence(
            starts=tuple(starts),
            lines=self._lines,
            dropped_starts=self._count - len(starts),
            tail=tuple(self._tail),
            observed=dict(self._observed),
        )

    def _open(self, number: int) -> None:
        self._count += 1
        self._starts.append(_Open(self._count, number, self._source, {}, {}))

    def _mark(self, number: int, raw: bytes, found: tuple[int, ...]) -> None:
        """Whether a new start begins here: a process after a load has begun, or a load after one has ended."""
        text = raw.decode("utf-8", "replace")
        for place in found:
            mark = self._book.marks.get(place)
            if mark is None:
                continue
            match = self._book.patterns[place].search(text)
            if match is None:
                continue
            now = self._starts[-1]
            path = match["x"].strip().strip("'\"") if mark == "load" else ""
            over = now.ended or (now.served and path != now.path)
            if (mark == "start" and (now.begun or now.ended)) or (mark == "load" and over):
                self._open(number)
                now = self._starts[-1]
            now.begun |= mark in ("load", "begun", "served")
            now.served |= mark == "served"
            now.ended |= mark == "ended"
            now.path = path or now.path

    def _look(self, item: _Open, start: Start) -> None:
        """The lines of a start, in order: facts, rules' patterns, errors."""
        lines = [(number, raw, found) for found, entries in item.lines.values() for number, raw in entries]
        lines.sort(key=lambda entry: entry[0])
        for number, raw, found in lines:
            text = _text(raw)
            line = Line(number, text, item.source)
            for place in found:
                pattern = self._book.patterns[place]
                match = pattern.search(text)
                if match is None:
                    continue
                hit = Hit(line, _values(match.groupdict()))
                for fact in self._book.facts[place]:
                    fact.handler(start, hit)
                if pattern.template in self._book.rules:
                    start.hits.setdefault(pattern.template, Hits()).add(hit)
                if pattern.template in self._book.errors:
                    _error(start, line)
        for ident, unseen in item.dropped.items():
            for place in item.lines[ident][0]:
                hits = start.hits.get(self._book.patterns[place].template)
                if hits is not None:
                    hits.count += unseen


def _values(groups: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in groups.items() if value is not None}


def _error(start: Start, line: Line) -> None:
    if start.errors and start.errors[-1].number == line.number:
        return
    if len(start.errors) >= _ERRORS:
        del start.errors[_ERRORS // 2]  # the first ones and the last ones tell most
    start.errors.append(line)


def _text(raw: bytes) -> str:
    return prefixes.strip(raw[: 2 * _LONGEST + 1].decode("utf-8", "replace"))
