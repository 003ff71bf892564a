"""Whether a text that a model wrote is none: empty, the same over and over, or broken characters."""

from __future__ import annotations

import re
import unicodedata

_RUN = 24  # of one character
_TIMES = 4  # a phrase that often in a row
_LEAST = 60  # characters that the repetition must fill
_BROKEN_SHARE = 0.04
_WORDS = 60  # so many, of which the groups of three are mostly the same, go round in circles
_DISTINCT = 0.35
# UTF-8 that was read as Latin-1: two of its bytes as two letters.
_TWICE = re.compile("[\u00c2\u00c3\u00d0\u00d1\u00e2\u00e3\u00ef][\u0080-\u00bf\u2018-\u2026\u20ac\u2122]")


def fault(text: str) -> str:
    """`empty`, `repetition` or `mojibake`, empty where it may be read."""
    plain = text.strip()
    if not any(character.isalnum() or character in "#@?!" for character in plain):
        return "empty" if len(plain) < _RUN else "repetition"
    odd = sum(1 for character in plain if character == "\ufffd" or _odd(character))
    odd += 2 * len(_TWICE.findall(plain))
    if odd > _BROKEN_SHARE * len(plain):
        return "mojibake"
    return "repetition" if _repeats(plain) or _circles(plain) else ""


def _odd(character: str) -> bool:
    return unicodedata.category(character) in ("Co", "Cn", "Cs") or (
        unicodedata.category(character) == "Cc" and character not in "\n\r\t"
    )


def _repeats(text: str) -> bool:
    """Whether it ends in a phrase, or a character, that comes again and again."""
    for period in range(1, len(text) // _TIMES + 1):
        same = 0
        while same + period < len(text) and text[-1 - same] == text[-1 - same - period]:
            same += 1
        filled = same + period
        if filled >= (_RUN if period == 1 else max(_LEAST, _TIMES * period)):
            return True
    return False


def _circles(text: str) -> bool:
    """Whether it says the same again and again with other numbers between. Numbers and marks do not count."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    groups = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= _WORDS and len(set(groups)) < _DISTINCT * len(groups)
