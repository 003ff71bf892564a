"""The same placement for llama-cli and llama-bench: a chat in the terminal, and a measurement.

llama-bench has an option for most of what places a model, each with its own form of value: `;` between overrides, `/`
between devices and shares, 0 or 1 for switches (tools/llama-bench/llama-bench.cpp, b11434).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from plan_llama.engines.commandline import ParsedArgument, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import FurtherCommand, LaunchCommand
from plan_llama.memory import patterns

_EVERY_LAYER = "999"  # more than any model has
# What has a meaning for a server only.
_OF_A_SERVER = frozenset(
    ("-np", "-kvu", "--kv-unified-per-slot", "-cram", "--cache-ram", "-ctxcp", "--host", "--port", "--alias")
) | {"--api-key", "--api-key-file"}
# Switches of the server by the option of llama-bench, and what it is given.
_SWITCHES = {
    "-kvo": ("-nkvo", "1"),
    "-nkvo": ("-nkvo", "1"),
    "--op-offload": ("-nopo", "1"),
    "-nopo": ("-nopo", "1"),
    "--repack": ("--repack", "0"),
    "-nr": ("--repack", "0"),
    "--mmap": ("-mmp", "0"),
}
_SAME = ("-m", "-ub", "-b", "-ctk", "-ctv", "-t", "-sm", "-mg", "-lm", "-ncmoe")
_OVERRIDES = ("-ot", "-cmoe", "-ncmoe", "-ncffn")


def others(command: LaunchCommand, *, context: int, prompt_tokens: int) -> tuple[FurtherCommand, ...]:
    """The commands of both programs for a plan's llama-server command; `context` is that of one conversation."""
    if not isinstance(command.build, int):
        return ()
    table = FlagTable.load(command.build if command.build > 1 else None)
    words = ("llama-server", *command.argv[1:])  # whatever the file is called
    arguments = [item for item in parse(words, table=table).arguments if item.argument]
    chat = [_beside(command.argv[0], "llama-cli"), *_cli(arguments, table, context)]
    given, lost = _bench(arguments, table)
    measure = [_beside(command.argv[0], "llama-bench"), *given, "-p", str(prompt_tokens), "-n", "128"]
    without = f", which knows no {', '.join(lost)}" if lost else ""
    return (
        FurtherCommand(what="Chat in the terminal", argv=tuple(chat), env=command.env),
        FurtherCommand(what=f"Measure it with llama-bench{without}", argv=tuple(measure), env=command.env),
    )


def _beside(server: str, program: str) -> str:
    """The program in the server's folder."""
    head, name = re.fullmatch(r"(.*[/\\])?([^/\\]*)", server, re.DOTALL).groups()  # type: ignore[union-attr]
    ending = ".exe" if name.endswith(".exe") else ""
    return f"{head or ''}{program}{ending}"


def _cli(arguments: list[ParsedArgument], table: FlagTable, context: int) -> Iterator[str]:
    for item in arguments:
        names = item.argument.names if item.argument else ()
        if _OF_A_SERVER & set(names) or table.lookup(item.spelling, "llama-cli") is None:
            continue
        yield item.spelling
        yield from (str(context),) if "-c" in names else item.values


def _bench(arguments: list[ParsedArgument], table: FlagTable) -> tuple[list[str], list[str]]:
    """The words, and what llama-bench of this build has no option for."""
    words: list[str] = []
    lost: list[str] = []
    overrides: list[str] = []
    counts: list[str] = []

    def add(flag: str, value: str, said: str) -> None:
        if table.lookup(flag, "llama-bench") is None:
            lost.append(said)
        else:
            words.extend((flag, value))

    for item in arguments:
        names = item.argument.names if item.argument else ()
        name = next(
            (n for n in (*_SAME, *_OVERRIDES, *_SWITCHES, "-ngl", "-fa", "-dev", "-ts") if n in names), None
        )
        if name is None:
            if "--swa-full" in names:
                lost.append(item.words)
        elif name in _OVERRIDES:
            if name == "-ncmoe" and table.lookup("-ncmoe", "llama-bench"):
                counts = ["-ncmoe", item.values[0]]
            else:
                overrides += _patterns(name, item.values)
        elif name == "-ngl":
            add("-ngl", _EVERY_LAYER if item.values[0] == "all" else item.values[0], item.words)
        elif name == "-fa":
            known = table.lookup("-fa", "llama-bench")
            on = not item.values or item.values[0] in ("on", "1")
            spelled = ("on" if on else "off") if known and "on" in known.choices else ("1" if on else "0")
            add("-fa", spelled, item.words)
        elif name in ("-dev", "-ts"):
            add(name, item.values[0].replace(",", "/"), item.words)
        elif name in _SWITCHES:
            add(*_SWITCHES[name], item.words)
        else:
            add(name, item.values[0], item.words)
    if overrides:
        add("-ot", ";".join(overrides), "-ot")
    return _taken([*words, *counts], table, lost), lost


def _taken(words: list[str], table: FlagTable, lost: list[str]) -> list[str]:
    """The words less the values that this build's llama-bench does not take; those are added to what is lost."""
    refused = parse(["llama-bench", *words], table=table).refused
    gone = {place for item in refused for place in range(item.position, item.position + 1 + len(item.values))}
    lost += [item.words for item in refused]
    return [word for place, word in enumerate(words, 1) if place not in gone]


def _patterns(name: str, values: tuple[str, ...]) -> list[str]:
    """Overrides as `-ot` takes them."""
    if name == "-ot":
        return values[0].split(",")
    if name == "-cmoe":
        return [f"{patterns.cpu_moe().pattern}=CPU"]
    make = patterns.n_cpu_moe if name == "-ncmoe" else patterns.n_cpu_ffn
    return [f"{item.pattern}=CPU" for item in make(int(values[0]))]
