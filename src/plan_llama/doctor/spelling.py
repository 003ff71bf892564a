"""Arguments in the texts of rules, as the build that wrote the log takes them."""

from __future__ import annotations

import re
import shlex

from plan_llama.engines.flags import FlagTable

_CODE = re.compile(r"`(-[^`]+)`")
_PROGRAM = "llama-server"


def spelled(text: str, table: FlagTable | None) -> str:
    """Backquotes removed; between them, what begins with `-` is written for the build (None: as it stands)."""
    if table is not None:
        text = _CODE.sub(lambda found: f"`{_for_build(found[1], table)}`", text)
    return " ".join(text.replace("`", "").split())


def _for_build(words: str, table: FlagTable) -> str:
    try:
        parts = shlex.split(words)
    except ValueError:
        return words
    done: list[str] = []
    place = 0
    while place < len(parts):
        name = parts[place]
        end = place + 1
        while end < len(parts) and not parts[end].startswith("-"):
            end += 1
        done += _one(name, parts[place + 1 : end], table)
        place = end
    return " ".join(done)


def _one(name: str, values: list[str], table: FlagTable) -> list[str]:
    """One argument with its values."""
    known = table.lookup(name, _PROGRAM)
    if known is not None:
        takes = len(known.values)
        off = bool(values) and values[0] == "off"
        if takes == 0 and values and not off:  # a switch in this build: -fa on
            return [name, *values[1:]]
        return [name, *values]
    older = table.replacement(name, tuple(values), _PROGRAM)
    if older is not None:
        words = next(iter(older.values.values()))
        return list(words) or [f"no {name}"]
    if table.span(name, _PROGRAM) is not None:
        return [name, *values, "(not in this build)"]
    return [name, *values]
