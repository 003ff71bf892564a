"""The lines of a start that patterns may match, in bounded memory: of each kind of line the first and the last ones.

Lines of one shape are of one kind, and a server writes few kinds over and over. Where a pattern holds a number of its
own ("truncated = 1"), which shapes leave out, lines that it matches are a kind apart from those that it does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from plan_llama.doctor.evidence import Fact
from plan_llama.doctor.patterns import Pattern

FIRST, LAST = 40, 10  # lines of a kind: eight cards, listed by every pass
_MOST_KINDS = 1500
_MOST_BYTES = 24 << 20  # of the lines of one start
_LINE_BYTES = 150  # what a line takes beside its text
_ERRORS = 6

Numbered = tuple[int, bytes]  # a line behind its number


@dataclass(slots=True)
class Kind:
    """Lines that the same patterns may match. `places` are those patterns; `dropped` lines were between."""

    places: tuple[int, ...]
    lines: list[Numbered] = field(default_factory=list)
    dropped: int = 0
    matches: bool | None = None  # whether one of the first lines matches; None: not looked at yet


@dataclass(slots=True)
class Open:
    """A start whose lines are not looked at yet: most logs hold more starts than anybody asks about."""

    number: int
    first_line: int
    source: str
    kinds: dict[int, Kind] = field(default_factory=dict)
    dull: set[int] = field(default_factory=set)  # kinds whose lines only have the words of patterns
    errors: list[tuple[int, bytes, tuple[int, ...]]] = field(default_factory=list)
    last_errors: deque[tuple[int, bytes, tuple[int, ...]]] = field(
        default_factory=lambda: deque(maxlen=_ERRORS)
    )
    size_bytes: int = 0
    begun: bool = False
    served: bool = False
    ended: bool = False
    path: str = ""
    known: dict[str, Fact] = field(default_factory=dict)

    def keep(
        self,
        ident: int,
        places: tuple[int, ...],
        lines: Sequence[Numbered],
        unseen: int,
        patterns: Sequence[Pattern],
    ) -> None:
        """Lines of one kind, in order; where more than are kept came at once, `unseen` are left out between."""
        kind = self.kinds.get(ident)
        if kind is None:
            if len(self.kinds) >= _MOST_KINDS or self.size_bytes >= _MOST_BYTES:
                return
            kind = self.kinds[ident] = Kind(places)
        before = _size(kind.lines)
        kind.lines += lines
        kind.dropped += unseen
        most = FIRST if self.size_bytes < _MOST_BYTES else 1
        if (more := len(kind.lines) - most - LAST) > 0:
            del kind.lines[most:-LAST]
            kind.dropped += more
            if kind.matches is None:
                kind.matches = _any(kind, patterns)
                if not kind.matches:
                    self.dull.add(ident)
        self.size_bytes += _size(kind.lines) - before

    def keep_error(self, places: tuple[int, ...], line: Numbered) -> None:
        """A line that says no more than "error": these come in any number of kinds, and are only shown."""
        into = self.errors if len(self.errors) < _ERRORS else self.last_errors
        into.append((*line, places))

    def all(self) -> list[tuple[int, bytes, tuple[int, ...]]]:
        """Everything that was kept, in order."""
        found = [(*line, kind.places) for kind in self.kinds.values() for line in kind.lines]
        return sorted([*found, *self.errors, *self.last_errors], key=lambda item: item[0])


def _size(lines: Sequence[Numbered]) -> int:
    return sum(len(raw) + _LINE_BYTES for _, raw in lines)


def _any(kind: Kind, patterns: Sequence[Pattern]) -> bool:
    return any(
        patterns[place].search(raw.decode("utf-8", "replace"))
        for _, raw in kind.lines
        for place in kind.places
    )
