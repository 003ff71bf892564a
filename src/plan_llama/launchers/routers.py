"""Entries for programs that start llama-server themselves: llama-swap, and llama-server's own router.

A presets file has the grammar of common/preset.cpp (b11434): no quotes and no escapes, so that a value which would end
early there (at ` ;`, ` #` or a blank at its end) cannot be written. What the router decides itself (address, port, key)
is left out. llama-swap splits a command as a POSIX shell does and knows `${...}` as a macro, nothing else as special.
"""

from __future__ import annotations

import re
import shlex

from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError
from plan_llama.launchers.types import LOOPBACK, Recipe, check_words, only_llama_cpp
from plan_llama.launchers.yaml_text import Node, dump
from plan_llama.memory import patterns
from plan_llama.memory.types import HOST

PRESET_NAME = "models.ini"
SWAP_NAME = "llama-swap.yaml"
_ROUTERS = frozenset(("--host", "--port", "--api-key", "--api-key-file"))
_SECTION = re.compile(r"[^\]\n:;#]+")
_ENDS = re.compile(r"\s*[;#]|[\n\r]|^\s|\s$")


def preset(recipe: Recipe, name: str) -> str:
    """A section of a presets file. Raises InputError for a value that its grammar cannot hold."""
    only_llama_cpp(recipe, "the router that reads a presets file")
    check_words(recipe)
    command = recipe.command
    table = FlagTable.load(command.build if isinstance(command.build, int) and command.build > 1 else None)
    lines = [
        f"; Written by plan-llama: {command.engine} b{command.build} as planned.",
        *([f"; {recipe.heading}"] if recipe.heading else []),
        f"; llama-server --models-preset {PRESET_NAME} --models-max 1 --host {LOOPBACK} --port {recipe.port}",
        *(f"; start the router with {key}={shlex.quote(value)}" for key, value in command.env.items()),
        "version = 1",
        "",
        f"[{_section(name)}]",
    ]
    overrides: list[str] = []
    for item in parse(("llama-server", *command.argv[1:]), table=table).arguments:
        argument = item.argument
        if argument is not None and (made := _patterns(argument.names, item.values)):
            overrides += made
            continue
        if argument is None or item.from_env or _ROUTERS & set(argument.names):
            continue
        if len(item.values) > 1:
            raise InputError(f"a presets file has no place for the two values of {item.words}")
        value = item.values[0] if item.values else "true"
        if _ENDS.search(value) or not value:
            raise InputError(f"a presets file cannot hold this value: {item.words!r}", hint="--launcher sh")
        lines.append(f"{item.spelling.lstrip('-')} = {value}")
    if overrides:
        lines.append(f"ot = {','.join(overrides)}")
    return "\n".join(lines) + "\n"


def _patterns(names: tuple[str, ...], values: tuple[str, ...]) -> list[str]:
    """What an argument adds to the overrides: all go into one, since the router sorts its arguments by name."""
    if "-ot" in names:
        return [values[0]]
    if "-cmoe" in names:
        return [f"{patterns.cpu_moe().pattern}=CPU"]
    if "-ncmoe" in names:
        count = int(values[0])
        return [f"{patterns.expert_layers(range(count), HOST).pattern}=CPU"] if count else []
    if "-ncffn" in names:
        return [f"{item.pattern}=CPU" for item in patterns.n_cpu_ffn(int(values[0]))]
    return []


def swap(recipe: Recipe, name: str) -> str:
    """A file for llama-swap with this model; its entry goes under `models` of a larger one."""
    check_words(recipe, lines=False, raw=False)
    command = recipe.command
    words = list(command.argv)
    for flag in ("--host", "--port"):
        if flag in words:
            place = words.index(flag)
            del words[place : place + 2]
    if any("${" in word for word in words):
        raise InputError(
            "llama-swap would take ${...} in a path for a macro of its own", hint="--launcher sh"
        )
    lines = [shlex.quote(words[0]), *(shlex.quote(word) for word in words[1:])]
    entry: dict[str, Node] = {
        "cmd": " ".join([*lines, "--host", LOOPBACK, "--port", "${PORT}"]),
        "proxy": f"http://{LOOPBACK}:${{PORT}}",
        "checkEndpoint": "/health",
    }
    if command.env:
        entry["env"] = [f"{key}={value}" for key, value in command.env.items()]
    head = [
        f"# Written by plan-llama: {command.engine} b{command.build} as planned.",
        *([f"# {recipe.heading}"] if recipe.heading else []),
        "# llama-swap checks nothing: start-llama-server.sh --check tells what changed since the plan.",
    ]
    # a large model is read for minutes
    whole: dict[str, Node] = {"healthCheckTimeout": 3600, "models": {_section(name): entry}}
    return "\n".join(head) + "\n" + dump(whole)


def _section(name: str) -> str:
    """A model's name as clients say it: a presets file takes what follows a colon for a quant."""
    made = "".join(c if _SECTION.fullmatch(c) else "-" for c in name).strip()
    return made or "model"
