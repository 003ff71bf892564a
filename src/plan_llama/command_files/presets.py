"""Read the presets file of llama-server's router (--models-preset): one command a section.

The grammar is that of common/preset.cpp (b11434): keys are arguments without their dashes or names of their
environment variables, a value ends where ` ;` or ` #` begins, `[*]` holds what all sections share. An argument that is
a switch is written with a word for on or off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from plan_llama.command_files.types import FoundCommand, Word
from plan_llama.engines import values as cxx
from plan_llama.engines.arguments import Argument
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError

_LINE = re.compile(r"(?:\[\s*([^\]]+?)\s*\]|([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*?))?[ \t]*(?:[;#].*)?")
_EVERY, _UNNAMED = "*", "default"  # `default`: what stands before the first section
# arguments that a presets file alone has (common_params_add_preset_options, common/arg.cpp)
_OF_THE_ROUTER = frozenset(("load-on-startup", "stop-timeout", "dedup-cache-models", "version"))
_PROGRAM = "llama-server"


def commands(text: str, table: FlagTable) -> list[FoundCommand]:
    """What the router starts for each section. Raises InputError for a line that is none of a presets file."""
    sections: dict[str, dict[str, str]] = {}
    first: dict[str, int] = {}
    current = _UNNAMED
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(f"line {number}: not a line of a presets file: {line.strip()[:60]}")
        if match[1]:
            current = match[1]
            first[current] = number
            sections[current] = {}
        elif match[2]:
            first.setdefault(current, number)
            sections.setdefault(current, {})[match[2]] = match[3]
    shared = sections.pop(_EVERY, {})
    if not sections.get(_UNNAMED, {}).keys() - _OF_THE_ROUTER:
        sections.pop(_UNNAMED, None)
    return [
        FoundCommand(
            words=(Word(_PROGRAM), *_words({**shared, **own}, table)),
            where=f"section {name}, line {first[name]}",
        )
        for name, own in sections.items()
    ]


def _words(given: dict[str, str], table: FlagTable) -> Iterator[Word]:
    for key, value in given.items():
        if key in _OF_THE_ROUTER:
            continue
        argument, spelling = _argument(key, table)
        if argument is None or argument.kind not in ("flag", "switch"):
            yield Word(spelling)
            yield Word(value)
        elif value not in cxx.FALSE_WORDS:
            yield Word(spelling)
        elif argument.negative:
            yield Word(argument.names[-1] if spelling in argument.negative else argument.negative[-1])


def _argument(key: str, table: FlagTable) -> tuple[Argument | None, str]:
    """The argument that a key names, and a spelling of it."""
    for dashes in ("--", "-"):
        if argument := table.lookup(dashes + key, _PROGRAM):
            return argument, dashes + key
    by_variable = table.from_env(key, _PROGRAM)
    return (by_variable[0], by_variable[0].name) if by_variable else (None, f"--{key}")
