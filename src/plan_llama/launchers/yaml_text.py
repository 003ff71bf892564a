"""Write YAML: the few shapes that launchers need, with strings that every reader takes for the same text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_PLAIN = re.compile(r"[A-Za-z/_][A-Za-z0-9/_.-]*")
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"))

Node = str | int | bool | Mapping[str, "Node"] | Sequence["Node"]


def dump(node: Mapping[str, Node]) -> str:
    """A mapping as a block, keys in their order."""
    return "".join(f"{line}\n" for line in _block(node))


def scalar(value: str | int | bool) -> str:
    """A value; a text without quotes only where nobody reads it as anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return '"' + "".join(_escaped(c) for c in value) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable() or character == " ":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _block(node: Mapping[str, Node] | Sequence[Node]) -> Iterator[str]:
    pairs = node.items() if isinstance(node, Mapping) else ((None, item) for item in node)
    for key, value in pairs:
        head = "-" if key is None else f"{scalar(key)}:"
        if isinstance(value, str | int):
            yield f"{head} {scalar(value)}"
        elif not value:
            yield f"{head} {'{}' if isinstance(value, Mapping) else '[]'}"
        elif key is None:
            first, *rest = _block(value)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield head
            yield from (f"  {line}" for line in _block(value))
