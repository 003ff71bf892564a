"""For how many of an engine's own messages doctor names a cause: `python scripts/doctor_coverage.py SOURCE [--list]`.

SOURCE is a tree of llama.cpp (or of a fork), or of Ollama (Go). Every check, abort, exception and error line in what a
server links is printed as the engine would, and read. "special" is a rule with a cause of its own, "general" one that
only names the message's kind. With --list the messages that no rule knows follow.
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
_GO_KINDS = {
    "errors.New": "error of Go",
    "fmt.Errorf": "error of Go",
    "gin.H": "answer of the server",
    "slog.Error": "error line of the server",
    "slog.Warn": "warning of the server",
    "log.Fatal": "error line of the server",
    "panic": "abort",
}
_GO_CALL = re.compile(
    r"\b(errors\.New|fmt\.Errorf|slog\.Error|slog\.Warn|log\.Fatal|panic)(?:f|Context)?\("
    r'\s*(?:fmt\.Sprintf\()?\s*(?:[\w.]+,\s*)?(?:"((?:[^"\\\n]|\\.)*)"|`([^`]*)`)'
    r'|\b(gin\.H)\{\s*"error":\s*(?:fmt\.Sprintf\()?"((?:[^"\\\n]|\\.)*)"'
)
# What the client prints before an error of these, which is where their user reads it.
_GO_BEFORE = {
    "convert/": "gathering model components\nError: ",
    "parser/": "gathering model components\nError: ",
    "server/create.go": "gathering model components\nError: ",
    "server/quantization.go": "gathering model components\nError: ",
    "x/create/": "gathering model components\nError: ",
    "server/download.go": "pulling manifest\nError: ",
    "x/transfer/download.go": "pulling manifest\nError: ",
    "server/upload.go": "retrieving manifest\nError: ",
    "x/transfer/upload.go": "retrieving manifest\nError: ",
    "x/mlxrunner/": "Error: 500 Internal Server Error: mlx runner failed: Error: ",
    "x/models/": "Error: 500 Internal Server Error: mlx runner failed: Error: ",
}
_GO_LEFT_OUT = ("_test.go", "/testdata/", "/examples/")
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
        if self.call in _GO_KINDS:
            return self._printed_by_go(text)
        if self.call == "GGML_ASSERT":
            return f"/src/{self.path}:123: GGML_ASSERT({text}) failed"
        if self.call == "GGML_ABORT":
            return f"/src/{self.path}:123: {text}"
        if _KINDS[self.call] == "exception":
            loading = self.path.startswith("src")
            return ("llama_model_load: error loading model: " if loading else "  what():  ") + text
        function = "gguf_init_from_reader" if self.path.endswith("gguf.cpp") else "graph_compute"
        return f"{function}: {re.sub(r'^word[: ]+', '', text)}"

    def _printed_by_go(self, text: str) -> str:
        if self.call.startswith("slog"):
            level, name = self.call.removeprefix("slog.").upper(), self.path.rpartition("/")[2]
            return f'time=2026-01-01T00:00:00Z level={level} source={name}:123 msg="{text}" error=word'
        if self.call == "panic":
            return f"panic: {text}"
        before = next((line for part, line in _GO_BEFORE.items() if self.path.startswith(part)), "Error: ")
        return before + text


def messages(tree: Path) -> Iterator[Message]:
    """Every message of a tree, each once."""
    if (tree / "go.mod").exists():
        yield from _go_messages(tree)
        return
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


def _go_messages(tree: Path) -> Iterator[Message]:
    seen: set[Message] = set()
    for path in sorted(tree.rglob("*.go")):
        name = path.relative_to(tree).as_posix()
        if any(part in f"/{name}" for part in _GO_LEFT_OUT):
            continue
        source = re.sub(r"(?m)^\s*//.*$", "", path.read_text(encoding="utf-8", errors="replace"))
        for found in _GO_CALL.finditer(source):
            text = next((part for part in found.groups()[1:3] if part), found[5] or "")
            text = re.sub(r"%[-+ #0]*[\d.]*[wvqTtxXp]", "word", text).replace("\\t", " ")
            message = Message(name, found[1] or found[4], text)
            if re.search(r"(?!word\b)[A-Za-z]{3}", text) and message not in seen:
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
    reader.feed([part.encode() for part in line.split("\n")], "log")
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
    kinds = _GO_KINDS if (options.source / "go.mod").exists() else _KINDS
    counts: Counter[tuple[str, str]] = Counter()
    unknown: list[str] = []
    for message in messages(options.source):
        line = message.printed()
        result = read(line, book)
        counts[kinds[message.call], result] += 1
        if result == "none":
            unknown.append(f"{message.path}: {line}")
    sys.stdout.write(f"{'message':28}{'all':>7}{'special':>9}{'general':>9}{'none':>7}\n")
    for kind in dict.fromkeys(kinds.values()):
        row = [counts[kind, result] for result in ("special", "general", "none")]
        sys.stdout.write(f"{kind:28}{sum(row):7}{row[0]:9}{row[1]:9}{row[2]:7}\n")
    if options.list:
        sys.stdout.write("\n".join(unknown) + "\n")


if __name__ == "__main__":
    main()
