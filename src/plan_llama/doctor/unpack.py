"""Lines as the engine wrote them, out of what carries them as a whole: records of JSON, parts, pages, narrow terminals.

What stands in front of a line is left to `prefixes`. Each line keeps its number: where several make up one, it stands
at the first of them, and the others are empty. Only a text that is one string of JSON, or a page whose lines end with
tags, is counted by the lines within.
"""

from __future__ import annotations

import json
import re

from plan_llama.doctor.columns import Columns

_SAMPLE = 200  # lines that tell a layout
_LEAST_BREAKS = 3  # in a string of JSON that is a whole log
_MESSAGES = ("log", "MESSAGE", "message", "msg", "line", "body", "output", "stdout", "stderr")
# What loggers say beside a message. In other records a value may tell more than it: they are read as they stand.
# fmt: off
_ASIDE = frozenset((
    "level", "severity", "lvl", "time", "ts", "timestamp", "t", "stream", "tag", "source", "logger", "name", "caller",
    "module", "pid", "tid", "thread", "hostname", "host", "container", "container_name", "container_id", "attrs",
    "kubernetes", "docker", "date", "title", "number", "filename", "lineno",
))
# fmt: on
_MOST_PARTS = 64  # of one line
_STRING = re.compile(rb'(?:[{,\s]"(?:' + "|".join(_MESSAGES).encode() + rb')"\s*:\s*|\A\s*\[?\s*)"|\Ab?\'')
_STRING_FRONT = 4096  # bytes in which such a string begins
_STRING_END = re.compile(rb'["\'][\s}\],]*\Z')
_ESCAPE = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|([nrtbf'"\\/]))""")
_ESCAPED = {"n": "\n", "r": "", "t": " ", "b": "", "f": "", "'": "'", '"': '"', "\\": "\\", "/": "/"}
_HEAD = 1 << 16
_CRI = re.compile(rb" std(?:out|err) [PF] ")
_PART = re.compile(rb"\S+ (stdout|stderr) ([PF]) ")
_BINARY = re.compile(rb"(?s)\nMESSAGE\n.{8}")
_FIELD = re.compile(rb"(?m)^(?!MESSAGE=)_{0,2}[A-Z][A-Z0-9_]*=.*$")
_BREAK = re.compile(rb"<br ?/?>\n?")


class Unpacker:
    """For one file: what its beginning shows holds to its end."""

    def __init__(self) -> None:
        self._first = True
        self._string = False
        self._columns = Columns()

    def lines(self, data: bytes) -> bytes:
        """Whole lines, unpacked. The beginning of a chunk tells its form: looking all through it takes long."""
        head = data[:_HEAD]
        self._string = self._string or (self._first and _is_string(data))
        if self._string:
            data = _unescaped(_STRING.sub(b"", data, count=1) if self._first else data)
        elif data.startswith((b'{"', b"{\n")) or b'\n{"' in head:
            data = _records(data)
        self._first = False
        if _CRI.search(head) and b" P " in data:
            data = _whole(data)
        if b"__REALTIME_TIMESTAMP=" in head:
            data = _FIELD.sub(b"", data).replace(b"\nMESSAGE=", b"\n")
        if b"<br" in head and data.count(b"<br") > data.count(b"\n"):
            data = _BREAK.sub(b"\n", data)
        return self._columns.lines(data)

    def end(self, data: bytes) -> int:
        """Where the last line ends that needs nothing of what comes next; -1 where none does."""
        last = end = data.rfind(b"\n")
        for _ in range(_MOST_PARTS):
            row = data[data.rfind(b"\n", 0, max(end, 0)) + 1 : max(end, 0)]
            if not (
                self._columns.full(row)
                or (b" P " in row and (found := _PART.match(row)) and found[2] == b"P")
            ):
                return end
            end = data.rfind(b"\n", 0, end)
        return last

    def cut(self, line: bytes) -> tuple[bytes, bytes]:
        """What can be read of a line that is too long to wait for its end, and what cannot yet."""
        if not self._string and not (self._first and _is_string(line)):
            return b"", line
        head, _, rest = line.rpartition(b"\\n")
        return head, rest


def opened(data: bytes) -> bytes:
    """A journal's export, where fields with control characters are binary, as text."""
    return _BINARY.sub(b"\nMESSAGE=", data) if b"\nMESSAGE\n" in data else data


def _is_string(data: bytes) -> bool:
    """Whether it is one string of JSON, or of Python, that holds many lines."""
    breaks = data.count(b"\\n") - data.count(b"\\\\n")
    if (
        data[:1] not in (b"{", b"[", b'"', b"'", b"b")
        or breaks < _LEAST_BREAKS
        or breaks <= 2 * data.count(b"\n")
    ):
        return False
    first, _, more = data.partition(b"\n")
    if more.strip() and message(first.decode("utf-8", "replace")) is not None:
        return False  # a record on each line
    return _STRING.search(data[:_STRING_FRONT]) is not None


def message(text: str) -> str | None:
    """What a logger's record of JSON says; None where it is none, or says more than a message."""
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    for key in _MESSAGES:
        said = record.get(key)
        if key == "MESSAGE" and isinstance(said, list):  # a journal's, where it holds colours
            said = bytes(item for item in said if isinstance(item, int) and 0 <= item < 256).decode(
                "utf-8", "replace"
            )
        if isinstance(said, str):
            if key == "MESSAGE":
                kernel = record.get("SYSLOG_IDENTIFIER") == "kernel"
                return f"kernel: {said}" if kernel else said
            return said if _ASIDE.issuperset(other for other in record if other != key) else None
    return None


def _records(data: bytes) -> bytes:
    """Records of JSON, one on each line, as what they say. Of a line that Docker cut only the last part has a break."""
    done: list[str] = []
    open_place: int | None = None
    rows = data.decode("utf-8", "replace").split("\n")
    alone = sum(map(bool, rows)) == 1 or rows[0] == "{"
    ends = '\\n"' in rows[0] or any('\\n"' in row for row in rows[:_SAMPLE])
    for row in rows:
        record = "{" + row.strip().rstrip(",") + "}" if rows[0] == "{" and row.startswith(" ") else row
        said = message(record) if record.startswith('{"') else None
        if said is None:
            open_place = None
            done.append(row)
            continue
        text = said.rstrip("\r\n")
        text = text if alone else text.replace("\n", " ")
        if open_place is not None:
            done[open_place] += text
            done.append("")
        else:
            done.append(text)
        if not (ends and row.startswith('{"log":')) or said.endswith("\n"):
            open_place = None
        elif open_place is None:
            open_place = len(done) - 1
    return "\n".join(done).encode("utf-8", "replace")


def _unescaped(data: bytes) -> bytes:
    """A part of a string of JSON as the lines that it holds."""

    def character(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else _ESCAPED[found[2]]

    text = _STRING_END.sub(b"", b"" if data.strip() in (b"}", b"]") else data).decode("utf-8", "replace")
    return _ESCAPE.sub(character, text).encode("utf-8", "replace")


def _whole(data: bytes) -> bytes:
    """CRI's parts of lines put together, each stream by itself."""
    done: list[bytes] = []
    open_places: dict[bytes, int] = {}
    for row in data.split(b"\n"):
        found = _PART.match(row)
        if found is None:
            done.append(row)
            continue
        place = open_places.get(found[1])
        if place is None:
            done.append(row)
            place = len(done) - 1
        else:
            done[place] += row[found.end() :]
            done.append(b"")
        if found[2] == b"P":
            open_places[found[1]] = place
        else:
            open_places.pop(found[1], None)
    return b"\n".join(done)
