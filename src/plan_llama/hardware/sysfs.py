"""Small readers of /proc and /sys under a sysroot, so that captured trees can be read like a live machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_MOST_BYTES = 4 << 20


def under(sysroot: Path, absolute: str) -> Path:
    """The path of a file of the probed machine: `under(Path("/captures/a"), "/proc/meminfo")`."""
    return sysroot / absolute.lstrip("/")


def text(path: Path, most_bytes: int = _MOST_BYTES) -> str | None:
    """The content of a small file without surrounding white space, None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(most_bytes).decode("utf-8", "replace").strip("\0 \t\r\n")
    except (OSError, ValueError):  # ValueError: a path with a null character
        return None


def integer(path: Path) -> int | None:
    """A decimal or 0x number in a file; None where it is absent or something else (such as cgroup's
    `max`).
    """
    content = text(path, 64)
    if content is None:
        return None
    try:
        return int(content, 16 if content.lower().startswith("0x") else 10)
    except ValueError:
        return None


def cpu_list(content: str | None) -> frozenset[int]:
    """The members of a kernel CPU list: `0-3,8` is {0, 1, 2, 3, 8}. Malformed parts are left out."""
    found: set[int] = set()
    for part in (content or "").split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            found.update(range(first, min(last, first + 65536) + 1))
    return frozenset(found)


def fields(content: str | None, separator: str = ":") -> dict[str, str]:
    """The `key: value` (or `key value`, `KEY=value`) lines of a file; the first of equal keys wins."""
    found: dict[str, str] = {}
    for line in (content or "").splitlines():
        key, found_separator, value = line.partition(separator)
        if found_separator:
            found.setdefault(key.strip(), value.strip())
    return found


def numbered(folder: Path, pattern: str) -> Iterator[tuple[int, Path]]:
    """Entries such as card0, card1, card10 in the order of their numbers; connectors (card0-DP-1) are
    left out.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return
    matches = [match for name in names if (match := re.fullmatch(pattern, name))]
    for match in sorted(matches, key=lambda found: int(found[1])):
        yield int(match[1]), folder / match[0]
