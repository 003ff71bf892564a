"""Lines that rules know, as templates, and a quick way to find the templates that a line may match.

A template is the text of a log line with holes: `<n>` a number, `<a>` to `<e>` numbers that are kept, `<s>` any text,
`<w>` one word, `<x>` to `<z>` texts that are kept. A space stands for one or more. Log lines repeat: a line without its
digits and punctuation, in small letters, is its shape, and what a shape may match is worked out once. Templates of
three words and more match in any case: wrappers begin their sentences with another letter than the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from plan_llama.errors import ProfileError

_HOLE = re.compile(r"<([a-z])>")
_NUMBER = r"[-+]?\d[\d.,]*(?<![.,])"
_PLAIN = re.compile(r"[-+]?\d+(?:\.\d+)?")
_KEPT_NUMBERS = frozenset("abcde")
_KEPT_TEXTS = frozenset("xyz")
_WORD_BYTES: Final = frozenset(
    byte
    for byte in range(256)
    if byte >= 0x80 or chr(byte).isalpha() or byte == ord("_") or byte == 0x01  # 0x01: a hole in a template
)
TABLE: Final = bytes(
    byte if byte in _WORD_BYTES or byte == 0x0A else 0x20 for byte in range(256)
).lower()  # lines stay lines
DIGITS: Final = b"0123456789"
_MOST_SHAPES = 20_000
_LONGEST_KNOWN = 512  # bytes of a shape that is remembered
_ANY_CASE_WORDS = 3  # "Killed" is not "killed", but "Failed to load" is "failed to load"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A template ready for use: `words` are those that every matching line has; `numbered`: it holds digits itself."""

    template: str
    words: frozenset[bytes]
    key: bytes
    numbered: bool

    def search(self, text: str) -> re.Match[str] | None:
        """Where a line matches."""
        return _regex(self.template).search(text)


@cache
def compiled(template: str) -> Pattern:
    """Raises ProfileError for one without a whole word."""
    marked = _HOLE.sub(lambda m: "0" if m[1] in _KEPT_NUMBERS | {"n"} else "\x01", template)
    words = frozenset(word for word in shape(marked.encode()).split() if b"\x01" not in word)
    if not words:
        raise ProfileError(f"pattern '{template}': has no whole word to look for")
    numbered = any(character.isdigit() for character in template)
    return Pattern(template, words, max(sorted(words), key=len), numbered)


@cache
def _regex(template: str) -> re.Pattern[str]:
    """Made when the first line asks for it: most patterns of most logs are never asked for."""
    parts: list[str] = []
    end = 0
    for hole in _HOLE.finditer(template):
        last = hole.end() == len(template)
        before = template[end : hole.start()]
        if last and hole[1] not in _KEPT_NUMBERS | {"n", "w"} and before.endswith(" "):  # it may be empty
            parts += [_literal(before[:-1]), r"\s*"]
        else:
            parts.append(_literal(before))
        parts.append(_hole(hole[1], last=last))
        end = hole.end()
    parts.append(_literal(template[end:]))
    loose = len(_HOLE.sub(" ", template).split()) >= _ANY_CASE_WORDS
    return re.compile("".join(parts), re.IGNORECASE if loose else 0)


def _literal(text: str) -> str:
    return re.sub(r"(\\ )+", r"\\s+", re.escape(text))


def _hole(name: str, *, last: bool) -> str:
    if name == "n":
        return rf"\s*{_NUMBER}"
    if name in _KEPT_NUMBERS:
        return rf"\s*(?P<{name}>{_NUMBER})"
    if name == "w":
        return r"[^\s,;:)'\"]+"
    text = ".*" if last else ".*?"
    return f"(?P<{name}>{text})" if name in _KEPT_TEXTS else text


def shape(raw: bytes) -> bytes:
    """A line without digits, punctuation as spaces, in small letters."""
    return raw.translate(TABLE, DIGITS)


class Index:
    """Which of many patterns a line may match. Patterns are known by their place in the list."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = tuple(patterns)
        self._by_key: dict[bytes, list[int]] = {}
        for place, pattern in enumerate(self.patterns):
            self._by_key.setdefault(pattern.key, []).append(place)
        self._keys = frozenset(self._by_key)
        self._known: dict[bytes, tuple[int, ...]] = {}

    def candidates(self, outlines: Iterable[bytes]) -> dict[bytes, tuple[int, ...]]:
        """The patterns whose words a shape has, of those shapes that have any.

        Most shapes have no key of a pattern and are forgotten at once: a server's own lines are few shapes, and what
        is in requests never comes again.
        """
        found: dict[bytes, tuple[int, ...]] = {}
        known, keys = self._known, self._keys
        for outline in outlines:
            places = known.get(outline)
            if places is None:
                words = outline.split()
                if keys.isdisjoint(words):
                    continue
                places = self._matching(words, outline)
            if places:
                found[outline] = places
        return found

    def _matching(self, words: Sequence[bytes], outline: bytes) -> tuple[int, ...]:
        there = frozenset(words)
        places = tuple(
            sorted(
                place
                for key in self._keys & there
                for place in self._by_key[key]
                if self.patterns[place].words <= there
            )
        )
        if len(self._known) >= _MOST_SHAPES:
            self._known.clear()
        if len(outline) <= _LONGEST_KNOWN:
            self._known[outline] = places
        return places


def number(text: str) -> float:
    """A number of a log: `24,105.5` is 24105.5, and of `1.2.3` the beginning."""
    found = _PLAIN.match(text.replace(",", ""))
    return float(found[0]) if found else 0.0


def distinct(templates: Iterable[str]) -> list[str]:
    """Each template once, in order."""
    return list(dict.fromkeys(templates))
