"""Writes a command for another llama-server than b11434's: only arguments that it lists.

A plan's command is written for b11434 and then held against the installed program's own --help, or against the table
of the build that was asked for. What is missing there is replaced by
the older spelling (profiles/engines/llama.cpp/older-spellings.toml) or left out, and every loss is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from plan_llama.engines.arguments import history
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable, replacements
from plan_llama.engines.launch import LaunchCommand
from plan_llama.findings import Finding
from plan_llama.memory.patterns import expert_layers
from plan_llama.memory.types import HOST

_MANY_LAYERS = "999"  # for builds whose -ngl takes a number only: more than any model has


def named(build: int | str) -> str:
    """A build as one says it. 0 and 1 are what a tree without its history reports: no build number at all."""
    if isinstance(build, str):  # an engine that has versions
        return build
    return f"b{build}" if build > 1 else "a build without a number"


class InstalledHelp:
    """The arguments that a binary's --help lists ("-fa,--flash-attn [on|off|auto]" each)."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._values: dict[str, str] = {}
        for line in arguments:
            names, _, value = line.partition(" ")
            for name in names.split(","):
                self._values[name] = value

    def has(self, flag: str) -> bool:
        """Whether the binary knows a spelling."""
        return flag in self._values

    def value_of(self, flag: str) -> str:
        """What its value looks like; empty for a switch."""
        return self._values.get(flag, "")


def adapt(
    command: LaunchCommand, arguments: Sequence[str], build: int
) -> tuple[LaunchCommand, list[Finding]]:
    """The command for a binary with these arguments, and what is lost on the way.

    An argument that the binary lacks and for which nothing is known is left out with an error.
    """
    known = InstalledHelp(arguments)
    said: list[Finding] = []
    words: list[str] = [command.argv[0]]
    for flag, values in _arguments(command.argv[1:]):
        words += _rewritten(known, flag, values, build, said)
    return replace(command, argv=tuple(words), build=build), said


def for_build(command: LaunchCommand, build: int) -> tuple[LaunchCommand, list[Finding]]:
    """The command for a build that is not here, by what its source accepts; what is not known of it is said."""
    table = FlagTable.load(build)
    made, said = adapt(command, table.listed("llama-server"), build)
    made, refused = without_refused_values(made, table)
    return made, [*said, *refused, *unknown(table)]


def with_template(command: LaunchCommand, table: FlagTable) -> LaunchCommand:
    """The command with --jinja for builds that do not use the model's own chat template unasked.

    They have it as a flag; since it can be switched off it is on (common/common.h, b6324 and b8643).
    """
    known = table.lookup("--jinja", "llama-server")
    if known is None or known.kind != "flag" or "--host" not in command.argv:
        return command
    place = command.argv.index("--host")
    return replace(command, argv=(*command.argv[:place], "--jinja", *command.argv[place:]))


def without_refused_values(command: LaunchCommand, table: FlagTable) -> tuple[LaunchCommand, list[Finding]]:
    """The command without arguments whose value the build does not take yet, with an error for each."""
    refused = parse(command.argv, table=table).refused
    if not refused:
        return command, []
    gone = {place for item in refused for place in range(item.position, item.position + 1 + len(item.values))}
    said = [
        Finding(
            id="flag-unknown-old-build",
            severity="error",
            text=f"{named(command.build)} does not take {item.words} ({item.reason}): it is left out",
            fix="a newer llama-server",
        )
        for item in refused
    ]
    kept = tuple(word for place, word in enumerate(command.argv) if place not in gone)
    return replace(command, argv=kept), said


def unknown(table: FlagTable) -> Iterator[Finding]:
    """What is to be said where a build has no table of its own."""
    if table.note:
        yield Finding(
            id="engine-build-unknown",
            severity="warning",
            text=table.note,
            fix="llama-server ARGS --help exits with an error where it does not take them",
        )


def _arguments(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Flags with their values, as plans write them: at most one value each, never beginning with a dash."""
    index = 0
    while index < len(argv):
        flag = argv[index]
        values = []
        if index + 1 < len(argv) and not argv[index + 1].startswith("-"):
            values = [argv[index + 1]]
        yield flag, values
        index += 1 + len(values)


def _rewritten(
    known: InstalledHelp, flag: str, values: list[str], build: int, said: list[Finding]
) -> Sequence[str]:
    value = values[0] if values else ""
    if flag == "-ngl" and value == "all" and not known.value_of(flag).endswith("|all"):
        return (flag, _MANY_LAYERS)
    if flag == "-fa" and known.has(flag) and not known.value_of(flag):
        return (flag,) if value == "on" else ()
    if known.has(flag):
        return (flag, *values)
    if flag == "-ncmoe" and known.has(
        "-ot"
    ):  # the first layers by one pattern, as the flag does by one per layer
        override = expert_layers(range(int(value)), HOST)
        return ("-ot", f"{override.pattern}=CPU")
    older = replacements().get(flag)
    if older is not None:
        instead = older.values.get(value, older.values.get("*"))
        if instead is not None and all(known.has(word) for word in instead if word.startswith("-")):
            if older.lost:
                said.append(
                    Finding(
                        id="flag-unknown-old-build",
                        severity="warning",
                        text=f"{named(build)} has no {flag}: {older.lost}",
                    )
                )
            return instead
    said.append(
        Finding(
            id="flag-unknown-old-build",
            severity="error",
            text=f"{named(build)} has no {' '.join([flag, *values])}, and nothing that does the same is known: "
            "it is left out",
            fix=_needed(flag),
        )
    )
    return ()


def _needed(flag: str) -> str:
    """The build that has an argument."""
    span = history().spans.get(("llama-server", flag))
    return f"b{span.since} or a newer one knows it" if span else "a newer llama-server"
