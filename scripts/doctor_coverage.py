"""For how many of llama.cpp's own messages doctor names a cause: `python scripts/doctor_coverage.py SOURCE [--list]`.

SOURCE is a tree of llama.cpp (or of a fork). Every check, abort, exception and error line in what a server links is
printed as the engine would, and read. "special" is a rule with a cause of its own, "general" one that only names the
message's kind. With --list the messages that no rule knows follow.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.doctor.rules import load, templates

FOLDERS = ("src", "ggml/src", "common", "tools/server", "tools/mtmd")
SUFFIXES = (".c", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".m", ".mm")
_KINDS = {
    "GGML_ASSERT": "check",
    "GGML_ABORT": "abort",
    "std::runtime_error": "exception",
    "std::invalid_argument": "exception",
    "LLAMA_LOG_ERROR": "error line of the library",
    "GGML_LOG_ERROR": "error line of a backend",
    "LOG_ERR": "error line of the server",
    "SRV_ERR": "error line of the server",
    "SLT_ERR": "error line of the server",
    "send_error": "answer of the server",
    "format_error_response": "answer of the server",
}
_CALL = re.compile(rf"\b({'|'.join(_KINDS)})\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LONGEST = 2500


@dataclass(frozen=True, slots=True)
class Message:
    """What a place in the source may print."""

    path: str
    call: str
    text: str

    def printed(self) -> str:
        """The line as it stands in a log."""
        text = " ".join(_filled(self.text).split())
        if self.call == "GGML_ASSERT":
            return f"/src/{self.path}:123: GGML_ASSERT({text}) failed"
        if self.call == "GGML_ABORT":
            return f"/src/{self.path}:123: {text}"
        if _KINDS[self.call] == "exception":
            loading = self.path.startswith("src")
            return ("llama_model_load: error loading model: " if loading else "  what():  ") + text
        function = "gguf_init_from_reader" if self.path.endswith("gguf.cpp") else "graph_compute"
        return f"{function}: {re.sub(r'^word[: ]+', '', text)}"


def messages(tree: Path) -> Iterator[Message]:
    """Every message of a tree, each once."""
    seen: set[Message] = set()
    for path in sorted(path for folder in FOLDERS for path in (tree / folder).rglob("*")):
        if path.suffix not in SUFFIXES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        source = re.sub(r"(?m)(^|\s)//.*$", "", text)
        for call in _CALL.finditer(source):
            text = _text(call[1], _arguments(source, call.end() - 1))
            message = Message(path.relative_to(tree).as_posix(), call[1], text)
            if text and message not in seen:
                seen.add(message)
                yield message


def _arguments(source: str, begin: int) -> str:
    """What stands between a parenthesis and its partner."""
    depth = 0
    quoted = False
    place = begin
    while place < min(len(source), begin + _LONGEST):
        character = source[place]
        if quoted and character == "\\":
            place += 1
        elif character == '"':
            quoted = not quoted
        elif not quoted and character in "()":
            depth += 1 if character == "(" else -1
            if depth == 0:
                return source[begin + 1 : place]
        place += 1
    return source[begin + 1 : place]


def _text(call: str, arguments: str) -> str:
    if call == "GGML_ASSERT":
        return arguments.strip()
    strings = _STRING.findall(arguments)
    if not strings or "+" not in arguments:
        adjacent = re.match(r'[^"]*((?:"(?:[^"\\]|\\.)*"\s*(?:PRI\w+\s*)?)+)', arguments)
        return "".join(_STRING.findall(adjacent[1])) if adjacent else ""
    return "word".join(strings)


def _filled(text: str) -> str:
    text = text.replace("\\n", "\n").replace('\\"', '"')
    text = re.sub(r"%[-+ 0#]*[\d*]*(?:\.[\d*]+)?[sc]", "word", text)
    text = re.sub(r"%[-+ 0#]*\d*(?:\.\d+)?[feg]", "1.50", text)
    return re.sub(r"%[-+ 0#]*\d*(?:hh|h|ll|l|z|j)?[diuxXp]?", "123", text)


def read(line: str, book: Book) -> str:
    """`special`, `general` or `none`."""
    reader = LogReader(book)
    reader.feed([line.encode()], "log")
    found = diagnose(reader.finish(), load())
    if any(not item.rule.last_resort for item in found):
        return "special"
    return "general" if found else "none"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    book = Book(templates())
    counts: Counter[tuple[str, str]] = Counter()
    unknown: list[str] = []
    for message in messages(options.source):
        line = message.printed()
        result = read(line, book)
        counts[_KINDS[message.call], result] += 1
        if result == "none":
            unknown.append(f"{message.path}: {line}")
    sys.stdout.write(f"{'message':28}{'all':>7}{'special':>9}{'general':>9}{'none':>7}\n")
    for kind in dict.fromkeys(_KINDS.values()):
        row = [counts[kind, result] for result in ("special", "general", "none")]
        sys.stdout.write(f"{kind:28}{sum(row):7}{row[0]:9}{row[1]:9}{row[2]:7}\n")
    if options.list:
        sys.stdout.write("\n".join(unknown) + "\n")


if __name__ == "__main__":
    main()
