r"""Read a batch file (cmd) or a PowerShell script for the commands in it, with the variables that it sets itself.

Batch: `^` continues a line and escapes, `%NAME%` and `set NAME=value`, double quotes keep blanks. PowerShell: a
backtick continues and escapes, `'...'` is literal, `$name` and `$env:NAME`, arrays `@(...)` splatted with `@name`. A
program splits its own line on Windows by CommandLineToArgvW's rule, where `\"` is a quote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from plan_llama.command_files.types import FoundCommand, Word, names_program
from plan_llama.errors import InputError

_SET = re.compile(r'@?set\s+(?:"([^=]+)=(.*)"|([^=\s]+)=(.*))', re.IGNORECASE)
_PERCENT = re.compile(r"%(%|~?\w*\d|\*|[A-Za-z_]\w*%)")
_LEADING = re.compile(r"^(?:@|call\s+|start\s+(?:\"[^\"]*\"\s*)?(?:/\w+\s+)*)+", re.IGNORECASE)
_UNKNOWN = "\0"
_PS_ASSIGN = re.compile(r"\$(env:)?(\w+)\s*(\+?=)\s*(.*)", re.IGNORECASE | re.DOTALL)
_PS_NAME = re.compile(r"\$\{?(env:)?(\w+)\}?", re.IGNORECASE)
_QUOTES = dict.fromkeys("'‘’‚‛", "'") | dict.fromkeys('"“”„', '"')  # what PowerShell takes for one
_PS_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "e": "\x1b"}


def batch(text: str) -> list[FoundCommand]:
    """The commands of a batch file."""
    variables: dict[str, str] = {}
    found = []
    for number, line in _joined(text, "^"):
        bare = line.strip()
        if re.match(r"@?(rem\b|::|:)", bare, re.IGNORECASE):
            continue
        if match := _SET.fullmatch(bare):
            name, value = (match[1], match[2]) if match[1] else (match[3], match[4])
            variables[name.strip().upper()] = _percent(value, variables).replace(_UNKNOWN, "%")
            continue
        for part in _pieces(_percent(bare, variables)):
            words = [
                Word(text.replace(_UNKNOWN, "%"), _UNKNOWN not in text)
                for text in argv_of(_LEADING.sub("", part))
            ]
            if names_program(words):
                found.append(FoundCommand(words=tuple(words), env=dict(variables), where=f"line {number}"))
    return found


def _joined(text: str, mark: str) -> Iterator[tuple[int, str]]:
    """Lines with those that go on with a mark at their end."""
    pending, first = "", 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        first = first or number
        if line.rstrip().endswith(mark):
            pending += line.rstrip()[: -len(mark)] + " "
            continue
        yield first, pending + line
        pending, first = "", 0
    if pending:
        yield first, pending


def _pieces(line: str) -> Iterator[str]:
    """Commands of one line as cmd hands them on: `^` resolved, cut at & and |, redirections left out."""
    quoted, piece, place = False, "", 0
    while place < len(line):
        character = line[place]
        if character == "^" and not quoted:
            piece += line[place + 1 : place + 2]
            place += 2
            continue
        quoted ^= character == '"'
        if not quoted and character in "&|":
            yield piece
            piece = ""
        elif not quoted and character in "<>":
            yield re.sub(r"\d$", "", piece)
            return
        else:
            piece += character
        place += 1
    yield piece


def argv_of(line: str) -> Iterator[str]:
    """A program's line as CommandLineToArgvW splits it: backslashes count where a quote follows them."""
    current, quoted, seen, place = "", False, False, 0
    while place < len(line):
        slashes = len(line) - place - len(line[place:].lstrip("\\"))
        following = line[place + slashes : place + slashes + 1]
        if slashes and following == '"':
            current, seen = current + "\\" * (slashes // 2), True
            if slashes % 2:
                current += '"'
            place += slashes + slashes % 2
        elif slashes:
            current, seen = current + "\\" * slashes, True
            place += slashes
        elif following == '"':
            quoted, seen = not quoted, True
            place += 1
        elif following in " \t" and not quoted:
            if seen:
                yield current
            current, seen = "", False
            place += 1
        else:
            current, seen = current + following, True
            place += 1
    if seen:
        yield current


def _percent(text: str, variables: dict[str, str]) -> str:
    """A line with its variables, as cmd puts them in before it reads words; the `%` of unknown ones is replaced."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        name = match[1][:-1].upper()
        if match[1].endswith("%") and name in variables:
            return variables[name]
        return match[0].replace("%", _UNKNOWN)

    return _PERCENT.sub(value, text)


def powershell(text: str) -> list[FoundCommand]:
    """The commands of a PowerShell script."""
    values: dict[str, list[Word]] = {}
    env: dict[str, str] = {}
    found = []
    for number, statement in _statements(text):
        if match := _PS_ASSIGN.fullmatch(statement):
            made = list(_ps_words(match[4], values, env))
            if match[1]:
                env[match[2]] = " ".join(word.text for word in made)
            else:
                name = match[2].lower()
                values[name] = [*values.get(name, []), *made] if match[3] == "+=" else made
            continue
        words = [word for word in _ps_words(re.sub(r"^&\s*", "", statement), values, env) if word.text != "&"]
        if names_program(words):
            found.append(FoundCommand(words=tuple(words), env=dict(env), where=f"line {number}"))
    started = [*values.get("executable", []), *values.get("arguments", [])]
    if not found and names_program(started):  # handed to a process by name
        found.append(FoundCommand(words=tuple(started), env=env, where="$executable and $arguments"))
    return found


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Statements, cut at line ends and `;` outside of quotes and brackets; comments are left out."""
    text = re.sub(
        r"<#.*?#>", lambda found: "\n" * found[0].count("\n"), text.replace("\r\n", "\n"), flags=re.DOTALL
    )
    statement, line, first, depth, quote, place = "", 1, 1, 0, "", 0
    while place < len(text):
        character = text[place]
        if character == "`" and quote != "'":
            piece = text[place : place + 2]
            statement += " " if piece == "`\n" else piece
            line += piece.count("\n")
            place += 2
            continue
        if quote:
            quote = "" if _QUOTES.get(character) == quote else quote
        elif character in _QUOTES:
            quote = _QUOTES[character]
        elif character == "#" and (not statement or statement[-1].isspace()):
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
            continue
        depth += (character in "([") - (character in ")]") if not quote else 0
        if not quote and character in "\n;|{}" and depth <= 0:
            if statement.strip():
                yield first, statement.strip()
            statement, first, depth = "", line + (character == "\n"), 0
        else:
            statement += character
        line += character == "\n"
        place += 1
    if quote:
        raise InputError(f"line {first}: a quote {quote} is never closed")
    if statement.strip():
        yield first, statement.strip()


def _ps_words(text: str, values: dict[str, list[Word]], env: dict[str, str]) -> Iterator[Word]:
    """Words of a command, or the elements of a value; `@name` gives an array's elements."""
    place = 0
    while place < len(text):
        if text[place] in " \t\n,()" or text.startswith("@(", place):
            place += 2 if text.startswith("@(", place) else 1
            continue
        if match := re.compile(r"@(\w+)").match(text, place):
            yield from values.get(match[1].lower(), [Word(match[0], known=False)])
            place = match.end()
            continue
        current, known, place = _ps_word(text, place, values, env)
        if isinstance(current, list):
            yield from current
        else:
            yield Word(current, known)


def _ps_word(
    text: str, place: int, values: dict[str, list[Word]], env: dict[str, str]
) -> tuple[str | list[Word], bool, int]:
    current, known, quote, start = "", True, "", place
    while place < len(text):
        character = text[place]
        if quote != "'" and character == "`":
            current += _PS_ESCAPES.get(text[place + 1 : place + 2], text[place + 1 : place + 2])
            place += 2
        elif quote and _QUOTES.get(character) == quote:
            doubled = _QUOTES.get(text[place + 1 : place + 2]) == quote
            current += text[place + 1] if doubled else ""
            quote = quote if doubled else ""
            place += 2 if doubled else 1
        elif not quote and character in _QUOTES:
            quote = _QUOTES[character]
            place += 1
        elif quote != "'" and (match := _PS_NAME.match(text, place)):
            given = [Word(env[match[2]])] if match[1] and match[2] in env else values.get(match[2].lower())
            if (
                given
                and not quote
                and place == start
                and text[match.end() : match.end() + 1] in ("", " ", ",", "\n")
            ):
                return given, True, match.end()
            known = known and given is not None
            current += " ".join(word.text for word in given) if given is not None else match[0]
            place = match.end()
        elif not quote and character in " \t\n,()":
            break
        else:
            current += character
            place += 1
    return current, known, place
