"""Logs in one pass and bounded memory: lines become hits of patterns and facts, split into starts of an engine."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

from plan_llama.doctor import prefixes
from plan_llama.doctor.derived import derive, inherit
from plan_llama.doctor.evidence import Evidence, Fact, Hit, Hits, Line, Start
from plan_llama.doctor.facts import FACTS, FactPattern
from plan_llama.doctor.kept import FIRST, LAST, Open
from plan_llama.doctor.patterns import DIGITS, TABLE, Index, Pattern, compiled, distinct
from plan_llama.doctor.unpack import Unpacker, opened
from plan_llama.errors import InputError

_CHUNK = 1 << 20
_LONGEST = 8192  # of a longer line, this much of its beginning and of its end is read
_MOST_STARTS = 40
_MOST_BYTES = 48 << 20  # of the lines that are kept of all starts
_TAIL = 30
_ERRORS = 12
# fmt: off
_ERROR_WORDS = (
    "error", "ERROR", "Error", "failed", "Failed", "FATAL", "fatal", "panic", "Traceback (most recent call last)",
    "exception", "Exception", "RuntimeError", "ValueError", "Segmentation fault", "aborted", "Aborted", "terminated",
    "Killed", "killed", "OSError", "AssertionError", "abort", "ImportError",
    "KeyError", "TypeError", "AttributeError", "IndexError", "NotImplementedError", "ERROR:", "segfault", "SEGV",
)
# fmt: on
_TEXT_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
Telling = Mapping[
    bytes, tuple[int, ...]
]  # the shapes of some lines that patterns may match, and which patterns


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
        self.turning = frozenset(self.marks)
        general = self.errors - self.rules - by_template.keys()
        self.general = frozenset(n for n, item in enumerate(self.patterns) if item.template in general)
        self.numbered = frozenset(n for n, item in enumerate(self.patterns) if item.numbered)
        self.index = Index(self.patterns)


class LogReader:
    """Feed it files, chunks or lines; `finish` gives the evidence."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._starts: deque[Open] = deque(maxlen=_MOST_STARTS)
        self._count = 0
        self._lines = 0
        self._number = 0
        self._tail: deque[tuple[int, bytes, str]] = deque(maxlen=_TAIL)
        self._observed: dict[str, Fact] = {}
        self._source = ""

    def read(self, stream: BinaryIO, source: str) -> None:
        """A whole file. Raises InputError where it is no text, OSError where it cannot be read."""
        first = stream.read(_CHUNK)
        encoding = next((name for bom, name in _TEXT_BOMS if first.startswith(bom)), None)
        first = opened(first)
        encoding = encoding or _wide(first)
        decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
        if decoder is None and b"\0" in first:
            raise InputError(f"{source}: not a text file", hint="give the text that the engine printed")
        unpacker = Unpacker()

        def scan(data: bytes) -> None:
            self._scan(unpacker.lines(prefixes.undressed(data)), source)

        chunk, carry = first, b""
        while chunk:
            data = carry + (decoder.decode(chunk).lstrip("\ufeff").encode() if decoder else chunk)
            end = unpacker.end(data)
            carry = data[end + 1 :]
            if end >= 0:
                scan(data[:end])
            if len(carry) > _CHUNK:  # a line without an end
                head, carry = unpacker.cut(carry)
                if head:
                    scan(head)
                carry = _cut(carry) if len(carry) > _CHUNK else carry
            chunk = opened(stream.read(_CHUNK))
        if carry:
            scan(carry)

    def feed(self, lines: Sequence[bytes], source: str) -> None:
        """Some whole lines, in order. Every source is a start of its own."""
        if lines:
            self._scan(prefixes.undressed(b"\n".join(lines)), source)
        else:
            self._turn_to(source)

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
            tail=tuple(Line(number, _text(raw), source) for number, raw, source in self._tail),
            observed=dict(self._observed),
        )

    def _turn_to(self, source: str) -> None:
        if source != self._source or not self._starts:
            self._source, self._number = source, 0
            self._open(1)

    def _open(self, number: int) -> None:
        self._count += 1
        while sum(item.size_bytes for item in self._starts) > _MOST_BYTES:
            self._starts.popleft()
        self._starts.append(Open(self._count, number, self._source))

    def _scan(self, data: bytes, source: str) -> None:
        """Whole lines. What cannot matter is told from what may by the shapes, of which there are few."""
        self._turn_to(source)
        spelled = data.replace(b"\\n", b"\\ ")  # a line break inside of JSON is no letter of the next word
        shapes = spelled.translate(TABLE, DIGITS).split(b"\n")
        telling = self._book.index.candidates(frozenset(shapes))
        if telling:
            lines = data.split(b"\n")
            self._collect(shapes, lines, telling)
            tail = lines[-_TAIL:]
        else:
            tail = data.rsplit(b"\n", _TAIL)[-_TAIL:]
        self._number += len(shapes)
        self._lines += len(shapes)
        for number, raw in enumerate(tail, self._number - len(tail) + 1):
            self._tail.append((number, _cut(raw), source))

    def _collect(self, shapes: Sequence[bytes], lines: Sequence[bytes], telling: Telling) -> None:
        """The lines that patterns may match, shape by shape, for the start that they are of."""
        turning = self._book.turning
        turns = {
            shape: turning.intersection(places)
            for shape, places in telling.items()
            if not turning.isdisjoint(places)
        }
        waiting = self._waiting(telling, turns)
        for place, shape in enumerate(shapes):
            group = waiting.get(shape)
            if group is None:
                continue
            if shape in turns and (now := self._marks(lines[place], turns[shape])):
                if self._begins(now):
                    self._keep(waiting, lines, telling)
                    self._open(self._number + place + 1)
                    waiting = self._waiting(telling, turns)
                    group = waiting[shape]
                self._note(now)
            group.append(place)
        self._keep(waiting, lines, telling)

    def _waiting(self, telling: Telling, turns: Mapping[bytes, object]) -> dict[bytes, list[int]]:
        """Shapes whose lines are to be collected: not those of which enough were seen that match nothing."""
        dull = self._starts[-1].dull
        return {shape: [] for shape in telling if hash(shape) not in dull or shape in turns}

    def _keep(self, groups: Mapping[bytes, Sequence[int]], lines: Sequence[bytes], telling: Telling) -> None:
        """Hands the lines that were collected, by their places among `lines`, to the latest start."""
        start, book = self._starts[-1], self._book

        def line(place: int) -> tuple[int, bytes]:
            return self._number + 1 + place, _cut(lines[place])

        for shape, group in groups.items():
            places = telling[shape]
            if group and book.general.issuperset(places):
                for place in group:
                    start.keep_error(places, line(place))
                continue
            numbered = sorted(book.numbered.intersection(places)) if group else []
            for ident, some in (
                self._kinds(shape, numbered, group, lines) if numbered else ((hash(shape), group),)
            ):
                if some:
                    picked = some if len(some) <= FIRST + LAST else (*some[:FIRST], *some[-LAST:])
                    unseen = len(some) - len(picked)
                    start.keep(ident, places, [line(place) for place in picked], unseen, book.patterns)

    def _kinds(
        self, shape: bytes, numbered: Sequence[int], group: Sequence[int], lines: Sequence[bytes]
    ) -> Iterable[tuple[int, list[int]]]:
        """Lines of a shape by which of the patterns with numbers of their own they match."""
        kinds: dict[int, list[int]] = {}
        for place in group:
            text = _cut(lines[place]).decode("utf-8", "replace")
            found = tuple(n for n in numbered if self._book.patterns[n].search(text))
            kinds.setdefault(hash((shape, found)), []).append(place)
        return kinds.items()

    def _marks(self, raw: bytes, places: Iterable[int]) -> list[tuple[str, str]]:
        """What a line marks in the life of a server, and the model's path where a load begins."""
        marks = self._book.marks
        if self._starts[-1].served and all(marks[place] == "served" for place in places):
            return []  # "all slots are idle" comes with every request
        text = _cut(raw).decode("utf-8", "replace")
        found: list[tuple[str, str]] = []
        for place in sorted(places):
            match = self._book.patterns[place].search(text)
            if match is not None:
                load = marks[place] == "load"
                found.append((marks[place], match["x"].strip().strip("'\"") if load else ""))
        return found

    def _begins(self, marks: Iterable[tuple[str, str]]) -> bool:
        """Whether a new start begins: a process after a load has begun, or a load after one has ended."""
        now = self._starts[-1]
        return any(
            (mark == "start" and (now.begun or now.ended))
            or (mark == "load" and (now.ended or (now.served and path != now.path)))
            for mark, path in marks
        )

    def _note(self, marks: Iterable[tuple[str, str]]) -> None:
        now = self._starts[-1]
        for mark, path in marks:
            now.begun |= mark in ("load", "begun", "served")
            now.served |= mark == "served"
            now.ended |= mark == "ended"
            now.path = path or now.path

    def _look(self, item: Open, start: Start) -> None:
        """The lines of a start, in order: facts, rules' patterns, errors."""
        for number, raw, found in item.all():
            whole, labelled, text = prefixes.split(raw.decode("utf-8", "replace"))
            line = Line(number, text, item.source)
            front = whole[: len(whole) - len(text) + prefixes.FRONT]
            if "engine" not in start.facts and (name := prefixes.engine(front)):
                start.set("engine", name, line)
            if prefixes.prompt(front):
                continue
            for place in found:
                pattern = self._book.patterns[place]
                error = pattern.template in self._book.errors
                match = pattern.search(text)
                if match is None and not error and text != labelled:
                    match = pattern.search(prefixes.known(labelled, pattern.template))
                if match is None:
                    continue
                hit = Hit(line, _values(match.groupdict()))
                for fact in self._book.facts[place]:
                    fact.handler(start, hit)
                if pattern.template in self._book.rules:
                    start.hits.setdefault(pattern.template, Hits()).add(hit)
                if error and not prefixes.calm(front):
                    _error(start, line)
        for kind in item.kinds.values():
            for place in kind.places if kind.dropped else ():
                pattern = self._book.patterns[place]
                hits = start.hits.get(pattern.template)
                if hits is not None and pattern.search(_text(kind.lines[-1][1])):
                    hits.count += kind.dropped


def _values(groups: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in groups.items() if value is not None}


def _error(start: Start, line: Line) -> None:
    if start.errors and start.errors[-1].number == line.number:
        return
    if len(start.errors) >= _ERRORS:
        del start.errors[_ERRORS // 2]  # the first ones and the last ones tell most
    start.errors.append(line)


def _wide(first: bytes) -> str | None:
    """UTF-16 without a mark: every other byte is empty."""
    low, high = first[0:4000:2], first[1:4000:2]
    if 2 * high.count(0) > len(high) and 20 * low.count(0) < len(low):
        return "utf-16-le"
    return "utf-16-be" if 2 * low.count(0) > len(low) and 20 * high.count(0) < len(high) else None


def _cut(raw: bytes) -> bytes:
    return raw if len(raw) <= 2 * _LONGEST else raw[:_LONGEST] + b" " + raw[-_LONGEST:]


def _text(raw: bytes) -> str:
    return prefixes.strip(raw.decode("utf-8", "replace"))
