"""From the characters of a shell script to simple commands: words of parts, with what is to be expanded in them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from plan_llama.errors import InputError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)")
_OPERATORS = ("&&", "||", ";;", "|&", ";", "&", "|", "(", ")", "\n")
_REDIRECTION = re.compile(r"\d*(?:&>>|&>|<<<|<<-|<<|>>|>\||<>|>&|<&|>|<)")
_PARAMETER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\[[@*]\])?(?:(:?[-=+?])(.*))?", re.DOTALL)


@dataclass(slots=True)
class Part:
    """A piece of a word: text, or a parameter with what is done to it; a source that nobody knows has no name."""

    text: str = ""
    quoted: bool = False
    name: str | None = None
    operator: str = ""
    default: str = ""
    every: bool = False  # "${array[@]}"
    unknown: bool = False


@dataclass(slots=True)
class Raw:
    """A simple command before its words are worked out."""

    line: int
    words: list[list[Part]] = field(default_factory=list)
    arrays: list[tuple[str, bool, list[list[Part]]]] = field(default_factory=list)  # name, +=, elements


class Lexer:
    """From characters to simple commands."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.line = text.replace("\r\n", "\n"), 0, 1
        self.heredocs: list[tuple[str, bool]] = []
        self.breaks = " \t\n;&|()<>"

    def commands(self) -> Iterator[Raw]:
        raw = Raw(line=1)
        while self.place < len(self.text):
            operator = self._operator()
            if operator is not None:
                if raw.words or raw.arrays:
                    yield raw
                if operator == "\n":
                    self._skip_heredocs()
                raw = Raw(line=self.line)
            elif self.text[self.place] in " \t":
                self._step()
            elif self.text.startswith("\\\n", self.place):
                self._step(2)
            elif self.text[self.place] == "#":
                self._to_end_of_line()
            elif match := _REDIRECTION.match(self.text, self.place):
                self._redirection(match[0])
            else:
                if not (raw.words or raw.arrays):
                    raw.line = self.line
                self._word_or_array(raw)
        if raw.words or raw.arrays:
            yield raw

    def words(self) -> Iterator[list[Part]]:
        """All of the text as words: nothing in it ends a command."""
        self.breaks = " \t\n"
        while self.place < len(self.text):
            if self.text[self.place] in self.breaks:
                self._step()
            else:
                yield self._word()

    def _step(self, count: int = 1) -> str:
        taken = self.text[self.place : self.place + count]
        self.line += taken.count("\n")
        self.place += count
        return taken

    def _operator(self) -> str | None:
        if self.text.startswith("&>", self.place):
            return None
        found = next((item for item in _OPERATORS if self.text.startswith(item, self.place)), None)
        if found:
            self._step(len(found))
        return found

    def _to_end_of_line(self) -> None:
        end = self.text.find("\n", self.place)
        self.place = len(self.text) if end < 0 else end

    def _redirection(self, sign: str) -> None:
        self._step(len(sign))
        while self.place < len(self.text) and self.text[self.place] in " \t":
            self._step()
        start = self.place
        self._word()
        if sign.endswith(("<<", "<<-")) and not sign.endswith("<<<"):
            self.heredocs.append((re.sub(r"[\"'\\]", "", self.text[start : self.place]), sign.endswith("-")))

    def _skip_heredocs(self) -> None:
        for delimiter, tabs in self.heredocs:
            while self.place < len(self.text):
                start = self.place
                self._to_end_of_line()
                line = self.text[start : self.place]
                if self.place < len(self.text):
                    self._step()
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    break
        self.heredocs.clear()

    def _word_or_array(self, raw: Raw) -> None:
        match = ASSIGNMENT.match(self.text, self.place)
        if match and self.text.startswith("(", match.end()):
            self._step(match.end() - self.place + 1)
            raw.arrays.append((match[1], match[2] == "+=", self._elements()))
        else:
            raw.words.append(self._word())

    def _elements(self) -> list[list[Part]]:
        found = []
        while self.place < len(self.text) and self.text[self.place] != ")":
            if self.text[self.place] in " \t\n":
                self._step()
            elif self.text.startswith("\\\n", self.place):
                self._step(2)
            elif self.text[self.place] == "#":
                self._to_end_of_line()
            else:
                before = self.place
                found.append(self._word())
                if self.place == before:  # an operator where no word can be
                    self._step()
        self._step()
        return found

    def _word(self) -> list[Part]:
        parts: list[Part] = []
        while self.place < len(self.text):
            character = self.text[self.place]
            if character in self.breaks:
                break
            if character == "\\":
                taken = self._step(2)
                if taken != "\\\n":
                    parts.append(Part(taken[1:], quoted=True))
            elif character == "'":
                parts.append(Part(self._until("'"), quoted=True))
            elif self.text.startswith("$'", self.place):
                self._step()
                parts.append(Part(_ansi(self._until("'", escapes=True)), quoted=True))
            elif character == '"' or self.text.startswith('$"', self.place):
                self._step(1 if character == '"' else 2)
                parts += self.double()
            elif character in "$`":
                parts.append(self._expansion(quoted=False))
            else:
                parts.append(Part(self._step()))
        return parts

    def _until(self, quote: str, *, escapes: bool = False) -> str:
        opened = self.line
        self._step()
        start = self.place
        while self.place < len(self.text) and self.text[self.place] != quote:
            self._step(2 if escapes and self.text[self.place] == "\\" else 1)
        if self.place >= len(self.text):
            raise InputError(f"line {opened}: a quote {quote} is never closed")
        text = self.text[start : self.place]
        self._step()
        return text

    def double(self) -> list[Part]:
        opened = self.line
        parts = [Part(quoted=True)]
        while self.place < len(self.text):
            character = self.text[self.place]
            if character == '"':
                self._step()
                return parts
            if character == "\\" and self.text[self.place + 1 : self.place + 2] in (
                "$",
                "`",
                '"',
                "\\",
                "\n",
            ):
                taken = self._step(2)
                parts.append(Part("" if taken == "\\\n" else taken[1:], quoted=True))
            elif character in "$`":
                parts.append(self._expansion(quoted=True))
            else:
                parts.append(Part(self._step(), quoted=True))
        raise InputError(f'line {opened}: a quote " is never closed')

    def _expansion(self, *, quoted: bool) -> Part:
        start = self.place
        if self.text[start] == "`":
            self._step()
            while self.place < len(self.text) and self.text[self.place] != "`":
                self._step(2 if self.text[self.place] == "\\" else 1)
            self._step()
        elif self.text.startswith("$(", start):
            self._balanced("(", ")")
        elif self.text.startswith("${", start):
            inner = self._balanced("{", "}")[2:-1]
            match = _PARAMETER.fullmatch(inner)
            if match:
                return Part(
                    self.text[start : self.place],
                    quoted,
                    match[1],
                    match[3] or "",
                    match[4] or "",
                    every=bool(match[2]),
                )
        elif match := NAME.match(self.text, start + 1):
            self._step(match.end() - start)
            return Part(match[0], quoted, match[0])
        elif self.text[start + 1 : start + 2] in set("@*#?$!-0123456789"):
            self._step(2)
            if self.text[start + 1] in "@*":  # the script's own arguments: none
                return Part(self.text[start : self.place], quoted, every=True, name="@")
        else:
            return Part(self._step(), quoted)
        source = self.text[start : self.place]
        if source.startswith(("`#", "$(#")):  # a comment between two arguments
            return Part("", quoted, name="@", every=True)
        return Part(source, quoted, unknown=True)

    def _balanced(self, opening: str, closing: str) -> str:
        """From `$(` or `${` to its end; quotes inside are skipped."""
        start, opened, depth = self.place, self.line, 0
        while self.place < len(self.text):
            character = self.text[self.place]
            if character == "'" and not (opening == "{" and depth):
                self._until("'")
                continue
            self._step(2 if character == "\\" else 1)
            depth += (character == opening) - (character == closing)
            if not depth and character == closing:
                return self.text[start : self.place]
        raise InputError(f"line {opened}: ${opening} is never closed")


def _ansi(text: str) -> str:
    r"""The inside of `$'...'`."""
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError:
        return text
