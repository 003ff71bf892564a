"""How an answer goes out: JSON, or text with the colour, glyphs and line breaks that the terminal can show.

Text is readable without any of these.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator

_CODES = {"bold": "1", "dim": "2", "good": "32", "warn": "33", "bad": "31", "command": "36", "heading": "1;4"}
_PLAIN = {
    "█": "#",
    "▒": "+",
    "░": ".",
    "←": "<-",
    "→": "->",
    "✗": "x",
    "·": "-",
    "×": "x",
    "…": "...",
    "–": "-",
}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_FOREIGN = re.compile(r"\x1b(?!\[[0-9;]*m)")  # a name may hold what would steer the terminal


class Screen:
    """What the output goes to. `colour` and `unicode` can be forced for tests."""

    def __init__(
        self, *, colour: bool | None = None, unicode: bool | None = None, width: int | None = None
    ) -> None:
        tty = sys.stdout.isatty()
        wanted = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.colour = tty and wanted if colour is None else colour
        encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
        self.unicode = encoding.startswith("utf") if unicode is None else unicode
        self.width = width or (min(120, shutil.get_terminal_size((100, 24)).columns) if tty else 120)

    def style(self, text: str, name: str) -> str:
        """Text in a style, where colour is shown."""
        return f"\x1b[{_CODES[name]}m{text}\x1b[0m" if self.colour and text else text

    def glyph(self, mark: str) -> str:
        """A mark, or what stands for it in ASCII."""
        return mark if self.unicode else _PLAIN.get(mark, mark)

    def heading(self, text: str) -> str:
        """A section's name."""
        return self.style(text, "bold") if self.colour else f"{text}:"

    def wrap(self, text: str, *, indent: int, style: str = "") -> Iterator[str]:
        """Lines no wider than the screen; words are never broken, so that paths and commands can be copied."""
        pad = " " * indent
        for line in textwrap.wrap(
            text,
            self.width,
            initial_indent=pad,
            subsequent_indent=pad + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        ):
            yield self.style(line, style) if style else line

    def write(self, text: str) -> None:
        """Prints, with control characters of foreign names made visible and what cannot be encoded replaced."""
        shown = "".join(c if c in "\n\x1b" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        shown = shown if self.colour else _ESCAPE.sub("", shown)
        shown = _FOREIGN.sub("\N{REPLACEMENT CHARACTER}", shown)
        if not self.unicode:
            shown = "".join(_PLAIN.get(c, c) for c in shown)
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(shown.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()


def print_json(answer: dict[str, object]) -> None:
    """One object on standard output, readable in any encoding."""
    text = json.dumps(_finite(answer), indent=2, ensure_ascii=True, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # a reader that has gone is noticed here, not at exit


def _finite(value: object) -> object:
    """JSON has no number for infinity or NaN, which a header may hold: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
