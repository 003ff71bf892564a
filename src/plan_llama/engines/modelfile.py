"""Ollama's Modelfile: read as its own parser does, and written so that it reads back what was meant.

The rules are those of parser/parser.go (ParseFile, CreateRequest) and api/types.go (FormatParams) of Ollama 0.33.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from plan_llama.engines.ollama_facts import facts
from plan_llama.errors import InputError

_COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
_NO_COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)
_NO_ROLE = 'message role must be one of "system", "user", or "assistant"'
_ROLES = ("system", "user", "assistant")
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?|nan)", re.IGNORECASE)
_NUMBER = r"(0|[1-9]\d*)"
_SEMVER = re.compile(
    rf"v?{_NUMBER}(\.{_NUMBER}(\.{_NUMBER}(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z.-]+)?)?)?"
)
_MOST_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Instruction:
    """A line of a Modelfile: `from`, `system`, … or, with its name, a parameter."""

    name: str
    value: str
    parameter: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """A Modelfile that Ollama takes. `ignored` are parameters that it drops with a warning."""

    sources: tuple[str, ...]  # FROM: paths or names of models
    parameters: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]

    def number(self, name: str) -> int | None:
        """A whole number among the parameters; the last one counts."""
        found = [value for key, value in self.parameters if key == name]
        return int(found[-1]) if found else None

    def switch(self, name: str) -> bool | None:
        """A switch among the parameters."""
        found = [value for key, value in self.parameters if key == name]
        return found[-1] in _TRUE if found else None


def read(text: str) -> Modelfile:
    """What Ollama makes of a Modelfile. Raises InputError with Ollama's own message where it refuses it."""
    instructions = parse(text)
    ignored, parameters = [], []
    kinds = facts().parameters
    for item in instructions:
        if item.name == "requires" and not item.parameter and not _SEMVER.fullmatch(item.value):
            raise _refused("requires must be a valid semver (e.g. 0.14.0)")
        if not item.parameter:
            continue
        kind = kinds.get(item.name)
        if kind == "deprecated":
            ignored.append(item.name)
        elif kind is None:
            raise _refused(f"unknown parameter '{item.name}'")
        elif trouble := _value_problem(kind, item.value):
            raise _refused(trouble)
        else:
            parameters.append((item.name, item.value))
    sources = tuple(item.value for item in instructions if item.name == "from" and not item.parameter)
    return Modelfile(sources=sources, parameters=tuple(parameters), ignored=tuple(ignored))


def _refused(reason: str) -> InputError:
    return InputError(f"Modelfile: {reason}", hint="docs/guides/ollama.md shows one that Ollama takes")


def _value_problem(kind: str, value: str) -> str | None:
    if kind == "int" and not (re.fullmatch(r"[+-]?\d{1,19}", value) and -(1 << 63) <= int(value) < 1 << 63):
        return f"invalid int value [{value}]"
    if kind == "float" and not _FLOAT.fullmatch(value):
        return f"invalid float value [{value}]"
    if kind == "bool" and value not in (*_TRUE, *_FALSE):
        return f"invalid bool value [{value}]"
    return None


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of a Modelfile, rune by rune as ParseFile goes. Raises InputError with its message."""
    if len(text) > _MOST_CHARS:
        raise _refused("more than a million characters")
    found: list[Instruction] = []
    state, buffer, line = "nil", "", 1
    name, role, parameter = "", "", False
    for rune in text.removeprefix("\ufeff"):
        line += rune in "\r\n"
        following, written = _step(rune, state, buffer, line)
        if following != state:
            if state == "name":
                if buffer.lower() not in _COMMANDS:
                    raise _refused(f"(line {line}): {_NO_COMMAND}")
                name, parameter = buffer.lower(), False
                following = {"parameter": "parameter", "message": "message"}.get(name, following)
            elif state == "parameter":
                name, parameter = buffer, True
            elif state == "message":
                if buffer not in _ROLES:
                    raise _refused(f"(line {line}): {_NO_ROLE}")
                role = buffer
            elif state == "value":
                value = unquoted(buffer.strip())
                if value is None or rune in " \t":
                    buffer += rune
                    continue
                found.append(Instruction(name, f"{role}: {value}" if role else value, parameter))
                role = ""
            buffer, state = "", following
        if written and rune.isprintable():
            buffer += rune
    if state == "value":
        value = unquoted(buffer.strip())
        if value is None:
            raise _refused("unexpected EOF")
        found.append(Instruction(name, f"{role}: {value}" if role else value, parameter))
    elif state not in ("nil", "comment"):
        raise _refused("unexpected EOF")
    if not any(item.name == "from" and not item.parameter for item in found):
        raise _refused("no FROM line")
    return tuple(found)


def _step(rune: str, state: str, buffer: str, line: int) -> tuple[str, bool]:
    """The next state, and whether the rune is kept (parseRuneForState)."""
    newline, space = rune in "\r\n", rune in " \t"
    letter = rune.isascii() and rune.isalpha()
    if state == "nil":
        if rune == "#":
            return "comment", False
        return ("nil", False) if space or newline else ("name", True)
    if state == "name":
        if not letter and not space:
            raise _refused(f"(line {line}): {_NO_COMMAND}")
        return ("name", True) if letter else ("value", False)
    if state == "value":
        return ("nil", True) if newline or space else ("value", True)
    if state == "comment":
        return ("nil" if newline else "comment"), False
    word = letter or (state == "parameter" and ((rune.isascii() and rune.isdigit()) or rune == "_"))
    if not word and not space:
        raise _refused(f"unexpected EOF: {buffer}")
    return (state, True) if word else ("value", False)


def unquoted(text: str) -> str | None:
    """A value without its quotes; None where they are not closed yet."""
    if text.startswith('"""'):
        return text[3:-3] if len(text) >= 6 and text.endswith('"""') else None
    if text.startswith('"'):
        return text[1:-1] if len(text) >= 2 and text.endswith('"') else None
    return text


def quoted(value: str) -> str:
    """A value so that Ollama reads it back: bare, in quotes, or in three.

    Raises InputError for what no Modelfile can hold: characters that the parser drops, and three quotes in a line of
    a text of several.
    """
    if any(not (c.isprintable() or c in "\t\n") for c in value) or not _is_text(value):
        raise InputError(
            f"a Modelfile cannot hold {value!a}: Ollama drops characters that are not printable",
            hint="give the file another name, or a link to it",
        )
    for form in (value, f'"{value}"', f'"""{value}"""'):
        if _reads_back(form, value):
            return form
    raise InputError(f"a Modelfile cannot hold {value!a}", hint="give the file another name, or a link to it")


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # bytes of a name that is no UTF-8
        return False
    return True


def _reads_back(form: str, value: str) -> bool:
    """Asks the parser, with a line after it: quotes that close late would swallow it."""
    try:
        found = parse(f"FROM {form}\nPARAMETER num_ctx 1\n")
    except InputError:
        return False
    return found == (Instruction("from", value), Instruction("num_ctx", "1", parameter=True))


def written(
    sources: Iterable[str], parameters: Iterable[tuple[str, str]], *, comments: Iterable[str] = ()
) -> str:
    """The text of a Modelfile."""
    lines = [f"# {''.join(c if c.isprintable() else '?' for c in comment)}" for comment in comments]
    lines += [f"FROM {quoted(source)}" for source in sources]
    lines += [f"PARAMETER {name} {quoted(value)}" for name, value in parameters]
    return "\n".join(lines) + "\n"
