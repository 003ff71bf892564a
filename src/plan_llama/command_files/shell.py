"""Read a POSIX shell or bash script for the commands in it, with the variables that it sets itself.

Quoting, continuations, assignments, arrays and the common forms of `${...}` are read as a shell reads them (POSIX.1,
chapter 2; bash for arrays and `$'...'`). Nothing is executed: what only a running shell knows (`$(nproc)`, `$1`) stays
as it is written and counts as unknown. Branches are read one after the other, as if all were taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from plan_llama.command_files.images import in_container
from plan_llama.command_files.shell_words import ASSIGNMENT, NAME, Lexer, Part, Raw
from plan_llama.command_files.types import FoundCommand, Word, names_program, starts_engine
from plan_llama.engines.commandline import program_of
from plan_llama.errors import InputError

_KEYWORDS = frozenset({"if", "then", "else", "elif", "while", "until", "do", "{", "!", "time"})
_DECLARE = frozenset({"export", "readonly", "declare", "local", "typeset"})
# Programs that start the one named behind their own options.
_WRAPPERS = frozenset(
    (
        "sudo",
        "doas",
        "env",
        "exec",
        "nohup",
        "command",
        "nice",
        "ionice",
        "numactl",
        "taskset",
        "chrt",
        "stdbuf",
    )
) | {
    "setsid",
    "systemd-run",
    "systemd-inhibit",
    "caffeinate",
    "timeout",
    "screen",
    "unbuffer",
    "prlimit",
    "script",
}
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
_CONTAINERS = frozenset({"docker", "podman", "nerdctl"})
_SERVER_VARIABLE = re.compile(r"^\$\{?\w*llama_?server", re.IGNORECASE)  # "$LLAMA_SERVER", set elsewhere
_DEEPEST = 16


def commands(text: str, *, variables: Mapping[str, str] | None = None) -> list[FoundCommand]:
    """The commands of a script that start an engine, in their order."""
    return _Script(dict(variables or {}), 0).run(text)


def split(text: str) -> tuple[Word, ...]:
    """The words of one command line as a shell splits it; of what follows an operator nothing."""
    script = _Script({}, 0)
    for raw in Lexer(text).commands():
        return tuple(word for parts in raw.words for word in script.fields(parts))
    return ()


class _Script:
    """The state of a script that is read: its variables, and what was said of them."""

    def __init__(self, variables: dict[str, str], depth: int) -> None:
        if depth > _DEEPEST:
            raise InputError(f"commands within commands, more than {_DEEPEST} deep")
        self.depth = depth
        self.values: dict[str, list[Word]] = {name: [Word(value)] for name, value in variables.items()}
        self.values.setdefault("HOME", [Word(str(Path.home()))])
        self.arrays: dict[str, list[Word]] = {}
        self.exported = set(variables)
        self.given = frozenset(variables)
        self.unset: dict[str, str] = {}
        self.again: set[str] = set()

    def run(self, text: str) -> list[FoundCommand]:
        found = []
        for raw in Lexer(text).commands():
            found += self._command(raw)
        return found

    def _command(self, raw: Raw) -> list[FoundCommand]:
        for name, adds, elements in raw.arrays:
            made = [word for parts in elements for word in self.fields(parts)]
            self.arrays[name] = [*self.arrays.get(name, []), *made] if adds else made
        words: list[Word] = []
        prefix: dict[str, list[Word]] = {}
        leading = True
        for parts in raw.words:
            if leading and (assigned := _assignment(parts)):
                name, adds, value = assigned
                whole = self._joined(value)
                before = self.values.get(name, []) if adds else []
                prefix[name] = [_join([*before, *whole])]
                continue
            words += self.fields(parts)
            leading = leading and bool(words) and words[-1].text in _KEYWORDS
        while words and words[0].text in _KEYWORDS:
            words.pop(0)
        if not words:
            self._set(prefix)
            return []
        if words and words[0].text in _DECLARE:
            self._declare(words[0].text, raw.words)
            return []
        return self._found(words, prefix, raw.line)

    def _set(self, values: Mapping[str, list[Word]]) -> None:
        for name, value in values.items():
            if name in self.values and self.values[name] != value and name not in self.given:
                self.again.add(name)
            self.values[name] = value

    def _declare(self, how: str, raw: list[list[Part]]) -> None:
        exports = how == "export"
        for parts in raw:
            plain = "".join(part.text for part in parts)
            exports |= how in ("declare", "typeset") and plain.startswith("-") and "x" in plain
            if assigned := _assignment(parts):
                self._set({assigned[0]: [_join(self._joined(assigned[2]))]})
                if exports:
                    self.exported.add(assigned[0])
            elif exports and NAME.fullmatch(plain):
                self.exported.add(plain)

    def _found(self, words: list[Word], prefix: dict[str, list[Word]], line: int) -> list[FoundCommand]:
        """The command itself, or the one that a wrapper, a shell or a container starts."""
        if words and not words[0].known and _SERVER_VARIABLE.search(words[0].text):
            words[0] = Word("llama-server")
        elif words and program_of(words[0].text):  # in a folder that is not known
            words[0] = Word(words[0].text)
        if not words or not words[0].known:
            return []
        first = re.split(r"[/\\]", words[0].text)[-1]
        env = {
            name: value[0].text
            for name, value in {
                **{k: self.values[k] for k in self.exported if k in self.values},
                **prefix,
            }.items()
            if value and value[0].known
        }
        if first == "command" and len(words) > 1 and words[1].text in ("-v", "-V"):
            return []
        if first in _SHELLS:
            inner = next(
                (words[i + 1] for i in range(1, len(words) - 1) if re.fullmatch(r"-\w*c", words[i].text)),
                None,
            )
            if inner is None or not inner.known:
                return []
            nested = _Script(env, self.depth + 1).run(inner.text)
            return [
                FoundCommand(words=i.words, env=i.env, where=f"line {line}", notes=i.notes) for i in nested
            ]
        if first in _CONTAINERS:
            contained = in_container(words)
            if contained is None:
                return []
            words, env = contained
        elif not (starts_engine(words) if first in _WRAPPERS else names_program(words)):
            return []
        return [FoundCommand(words=tuple(words), env=env, where=f"line {line}", notes=tuple(self._notes()))]

    def _notes(self) -> Iterator[str]:
        if self.unset:
            taken = ", ".join(f"{name} ({value})" if value else name for name, value in self.unset.items())
            yield f"taken as not set from outside, so that their defaults count: {taken}"
        if self.again:
            yield f"set more than once, the last value is taken: {', '.join(sorted(self.again))}"

    def fields(self, parts: list[Part]) -> list[Word]:
        """The words that a word becomes: unquoted values are split at blanks, an array gives one word an element."""
        made = _Fields()
        for place, part in enumerate(parts):
            if part.every:
                made.add_all(self._value(part))
            elif part.name is not None and not part.quoted:
                self._split(part, made)
            elif place == 0 and _is_home(parts):
                made.add(Word(str(Path.home())))
            else:
                made.add(_join(self._value(part)))
        nothing = any(part.every for part in parts) and not any(part.text for part in parts if not part.every)
        return [] if nothing and made.words() == [Word("")] else made.words()

    def _split(self, part: Part, made: _Fields) -> None:
        """An unquoted parameter: blanks at the ends of its value end the words around it; a default has own quotes."""
        default = self._default_of(part)
        if default is not None:
            made.add_all([word for parts in self._deeper(default).words() for word in self.fields(parts)])
            self.depth -= 1
            return
        value = _join(self._value(part))
        if not value.known:
            made.add(value)
            return
        if value.text[:1].isspace():
            made.close()
        made.add_all([Word(piece) for piece in value.text.split()])
        if value.text[-1:].isspace():
            made.close()

    def _joined(self, parts: list[Part]) -> list[Word]:
        """A value that is assigned: not split."""
        return [_join([_join(self._value(part), " ") for part in parts])]

    def _value(self, part: Part) -> list[Word]:
        if part.unknown:
            return [Word(part.text, known=False)]
        if part.name is None:
            return [Word(part.text)]
        if part.name == "@":
            return []
        if part.name in self.arrays and (part.every or part.name not in self.values):
            return self.arrays[part.name] if part.every else self.arrays[part.name][:1]
        default = self._default_of(part)
        if default is not None:
            made = self._joined(self._deeper(default.replace('"', "") + '"').double())
            self.depth -= 1
            if part.operator.endswith("="):
                self.values[part.name] = made
            return made
        if part.operator.endswith("+"):
            return []
        return self.values.get(part.name) or [Word("${" + part.name + "}", known=False)]

    def _default_of(self, part: Part) -> str | None:
        """What stands for a parameter that is not set (with `+`: that is), or None where its value counts."""
        kind = part.operator.lstrip(":")
        value = self.values.get(part.name or "")
        there = value is not None and not (part.operator.startswith(":") and value == [Word("")])
        if kind == "+":
            return part.default if there else None
        if kind not in ("-", "=") or there or part.name is None:
            return None
        self.unset[part.name] = part.default.strip("\"'")
        return part.default

    def _deeper(self, text: str) -> Lexer:
        if self.depth >= _DEEPEST:
            raise InputError(f"values within values, more than {_DEEPEST} deep")
        self.depth += 1
        return Lexer(text)


class _Fields:
    """Words as they grow from pieces."""

    def __init__(self) -> None:
        self._done: list[Word] = []
        self._current: Word | None = None

    def add(self, piece: Word) -> None:
        self._current = piece if self._current is None else _join([self._current, piece])

    def add_all(self, pieces: list[Word]) -> None:
        """Pieces of which each but the first begins a new word."""
        for place, piece in enumerate(pieces):
            if place:
                self.close()
            self.add(piece)

    def close(self) -> None:
        if self._current is not None:
            self._done.append(self._current)
        self._current = None

    def words(self) -> list[Word]:
        return [*self._done, *([] if self._current is None else [self._current])]


def _is_home(parts: list[Part]) -> bool:
    """Whether a word begins with an unquoted `~` or `~/`."""
    first = parts[0]
    plain = not first.quoted and first.name is None and first.text == "~"
    return plain and (len(parts) == 1 or parts[1].text.startswith("/"))


def _join(words: list[Word], between: str = "") -> Word:
    return Word(between.join(word.text for word in words), all(word.known for word in words))


def _assignment(parts: list[Part]) -> tuple[str, bool, list[Part]] | None:
    """Name, whether it adds, and the parts of the value; None for another word."""
    head = ""
    for place, part in enumerate(parts):
        if part.quoted or part.name is not None or part.unknown:
            return None
        head += part.text
        if match := ASSIGNMENT.fullmatch(head):
            value = parts[place + 1 :]
            if value and not value[0].quoted and value[0].text == "~" and value[0].name is None:
                value = [Part(str(Path.home()), quoted=True), *value[1:]]
            return match[1], match[2] == "+=", value
    return None
