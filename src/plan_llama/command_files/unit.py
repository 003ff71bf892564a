r"""Read a systemd unit or a Podman quadlet for its commands.

Continuation lines, quoting with C escapes, `$NAME` and `${NAME}` from Environment=, `%` specifiers and the prefixes of
ExecStart= as in systemd.syntax(7), systemd.exec(5) and systemd.service(5). EnvironmentFile= is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from plan_llama.command_files import shell
from plan_llama.command_files.images import image_program
from plan_llama.command_files.types import FoundCommand, Word, starts_engine
from plan_llama.errors import InputError

_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_ESCAPES |= {"\\": "\\", '"': '"', "'": "'"}
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})")
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)\})")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SPECIFIER = re.compile(r"%(.)")
_PREFIXES = "@-:+!|"


def commands(text: str) -> list[FoundCommand]:
    """The commands of ExecStart= lines (of a quadlet, what its image makes of Exec=)."""
    env: dict[str, str] = {}
    lines: list[tuple[int, str]] = []
    image = ""
    notes: list[str] = []
    for line, section, key, value in _settings(text):
        if section == "Service" and key == "ExecStart":
            lines = [*lines, (line, value)] if value else []
        elif section == "Container" and key == "Exec":
            lines = [(line, value)]
        elif section == "Container" and key == "Image":
            image = value
        elif key == "Environment" and section in ("Service", "Container"):
            for item in words(value):
                name, _, given = item.partition("=")
                env[name] = _specified(given)[0]
            env = env if value else {}
        elif key == "EnvironmentFile" and section in ("Service", "Container"):
            notes.append(f"variables of {value} are not read")
    if image and not lines:
        lines = [(0, "")]
    found: list[FoundCommand] = []
    for line, value in lines:
        found += _started(line, value, image, env, tuple(notes))
    return found


def _started(
    line: int, value: str, image: str, env: dict[str, str], notes: tuple[str, ...]
) -> list[FoundCommand]:
    prefix = "" if image else value[: len(value) - len(value.lstrip(_PREFIXES))]
    literal = ":" in prefix
    made = [
        word
        for text in words(value[len(prefix) :])
        for word in _expanded(text, {} if literal else env, literal)
    ]
    own = env
    if image:
        entered = image_program(image, made)
        if entered is None:
            return []
        made, defaults = entered
        own = {**defaults, **env}
    where = f"line {line}" if line else "its image"
    if made and re.split("/", made[0].text)[-1] in ("sh", "bash", "dash") and len(made) > 2:
        nested = shell.commands(made[2].text, variables=env)
        return [
            FoundCommand(words=item.words, env={**env, **item.env}, where=where, notes=(*notes, *item.notes))
            for item in nested
        ]
    return [FoundCommand(words=tuple(made), env=own, where=where, notes=notes)] if starts_engine(made) else []


def _settings(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, section, key and value, with continuation lines joined; comments within them are left out."""
    section, pending, first = "", "", 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        bare = line.strip()
        if bare.startswith(("#", ";")) or (not bare and not pending):
            continue
        first = first or number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
            continue
        whole, pending = (pending + line).strip(), ""
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
        else:
            key, _, value = whole.partition("=")
            yield first, section, key.strip(), value.strip()
        first = 0


def words(text: str, *, relaxed: bool = False) -> list[str]:
    """Words as systemd splits them: quotes around all or a part of one, C escapes inside and outside of them.

    Raises InputError for what systemd refuses; `relaxed` takes it literally, as in the value of a variable.
    """
    found: list[str] = []
    current: str | None = None
    quote, place = "", 0
    while place < len(text):
        character = text[place]
        if character == "\\":
            piece, place = _escape(text, place + 1, relaxed=relaxed)
            current = (current or "") + piece
            continue
        if quote and character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote, current = character, current or ""
        elif not quote and character in " \t\n\r":
            if current is not None:
                found.append(current)
            current = None
        else:
            current = (current or "") + character
        place += 1
    if quote and not relaxed:
        raise InputError(f"a quote {quote} is never closed in: {text[:60]}")
    return found if current is None else [*found, current]


def _escape(text: str, place: int, *, relaxed: bool) -> tuple[str, int]:
    """What a backslash stands for, and where the text goes on; `place` is behind it."""
    kind = text[place : place + 1]
    if kind in _ESCAPES:
        return _ESCAPES[kind], place + 1
    match = _CODE.match(text, place)
    number = (
        int(match[1] or match[2] or match[3], 16)
        if match and not match[4]
        else int(match[4], 8)
        if match
        else 0
    )
    if match and 0 < number < 0x110000:
        return chr(number), match.end()
    if relaxed:
        return "\\" + kind, place + 1
    raise InputError(f"systemd knows no \\{kind} in: {text[:60]}")


def _specified(text: str) -> tuple[str, bool]:
    """Specifiers resolved as far as they are known: `%%` and `%h`."""
    known = True

    def value(match: re.Match[str]) -> str:
        nonlocal known
        if match[1] == "%":
            return "%"
        if match[1] == "h":
            return str(Path.home())
        known = False
        return match[0]

    return _SPECIFIER.sub(value, text), known


def _expanded(word: str, env: dict[str, str], literal: bool) -> list[Word]:
    """A word with its variables: `$NAME` as a word of its own is split at blanks, `${NAME}` never is."""
    text, known = _specified(word)
    if literal:
        return [Word(text, known)]
    if text.startswith("$") and text[1:2] not in ("{", "$"):
        name = text[1:]
        if name in env:
            return [Word(item) for item in words(env[name], relaxed=True)]
        return [Word(text, known=False)] if _NAME.fullmatch(name) else []

    def value(found: re.Match[str]) -> str:
        nonlocal known
        if found[1]:
            return "$"
        if not _NAME.fullmatch(found[2]):
            return ""
        known = known and found[2] in env
        return env.get(found[2], found[0])

    return [Word(_VARIABLE.sub(value, text), known)]
