"""Ask llama-fit-params what a command of llama-server would reserve: the arguments that it takes, and its answer.

`llama-fit-params -fitp on` loads a model without allocating anything and prints `NAME model context compute` in MiB
for every device, then `Host` (tools/fit-params/fit-params.cpp and common_fit_print in common/fit.cpp, b11434). At
`-lv 4` it also logs a table with the buffers that are neither a device's nor the host's, such as CPU_REPACK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plan_llama.engines.commandline import ParsedArgument, ParsedCommand
from plan_llama.engines.older_builds import InstalledHelp
from plan_llama.units import MIB

PROGRAM = "llama-fit-params"
# Where the model comes from, what ends the program at once, what talks to others or writes files: never passed on.
_REACHES_OUT = frozenset(
    ("-m", "-mu", "-dr", "-hf", "-hff", "-hft", "-hfd", "-mmu", "--rpc", "--help", "--version", "-cl")
) | {"--completion-bash", "--list-devices", "--log-file", "--log-jsonl", "--log-prompts-dir"}
_OURS = _REACHES_OUT | {"-fit", "-fitp", "-fitt", "-fitc", "-lv", "-v", "--log-disable", "--log-colors"}
_OURS |= {"--log-prefix"}
# Left out where llama-fit-params does not take them, and the numbers are then of something else.
_DECIDES_MEMORY = frozenset(
    ("-kvu", "--kv-unified-per-slot", "--spec-type", "-mm", "-mmu", "-md", "-hfd", "--embedding", "--rerank")
)

# What places layers and tensors on devices.
_PLACES = frozenset(
    ("-ngl", "-ts", "-sm", "-mg", "-dev", "-ot", "-cmoe", "-ncmoe", "-ncffn", "-kvo", "--op-offload")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """The arguments that llama-fit-params is given, and those that decide memory and that it does not take."""

    arguments: tuple[ParsedArgument, ...]
    other_memory: tuple[str, ...] = ()
    repack_off: bool = False

    def words(self, names: Mapping[str, str]) -> tuple[str, ...]:
        """As words, with other names for the devices."""
        made = [word for item in self.arguments for word in (item.spelling, *_values(item, names))]
        return (*made, "-nr") if self.repack_off else tuple(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDevice:
    """A device as the engine lists it."""

    name: str  # CUDA0, RPC0
    description: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class RealBytes:
    """What the engine printed of one device. Each part may be larger than printed by `above_bytes`: whole MiB are cut
    off; and where they are rounded, smaller by `below_bytes`. Without `model_bytes` the weights are not to be compared.
    """

    model_bytes: int | None
    context_bytes: int
    compute_bytes: int
    above_bytes: int = MIB
    below_bytes: int = 0

    def __add__(self, other: RealBytes) -> RealBytes:
        return RealBytes(
            None
            if self.model_bytes is None or other.model_bytes is None
            else self.model_bytes + other.model_bytes,
            self.context_bytes + other.context_bytes,
            self.compute_bytes + other.compute_bytes,
        )


def translate(
    parsed: ParsedCommand,
    known: InstalledHelp,
    *,
    host_only: bool,
    repack: bool,
    without: frozenset[str] = frozenset(),
) -> Translated:
    """A command's arguments as this program takes them; `known` is its own --help.

    `host_only` leaves out all that speaks of devices, `without` more. Without `repack` the host's weights stay as they
    are in the file.
    """
    kept: list[ParsedArgument] = []
    other: list[str] = []
    for item in parsed.arguments:
        if item.argument is None or item.status not in ("ok", "duplicate") or item.from_env:
            continue
        names = {*item.argument.names}
        if names & (_OURS | without) or (host_only and names & _PLACES):
            continue
        if any(known.has(name) for name in (*names, *item.argument.negative)):
            kept.append(item)
        elif names & _DECIDES_MEMORY:
            other.append(item.words)
    off = (
        not repack
        and known.has("-nr")
        and not any(item.argument and "-nr" in item.argument.negative and item.negated for item in kept)
    )
    return Translated(arguments=tuple(kept), other_memory=tuple(other), repack_off=off)


def for_parser(parsed: ParsedCommand, names: Mapping[str, str], *, host_only: bool) -> tuple[str, ...]:
    """The command's arguments for its own parser, refused ones included; without the model's, and without those that
    would end the program or reach beyond it. `host_only` leaves out what names devices: the engine has none.
    """
    words: list[str] = []
    for item in parsed.arguments:
        taken = {*item.argument.names} if item.argument else set()
        if item.spelling.endswith(("-default", "-spec")):  # names a model of its own, to be fetched
            continue
        if item.from_env or taken & _REACHES_OUT or (host_only and taken & {"-dev", "-ot", "-mg", "-mmdev"}):
            continue
        words += [item.spelling, *_values(item, names)]
    return tuple(words)


def _values(item: ParsedArgument, names: Mapping[str, str]) -> tuple[str, ...]:
    """The values with the engine's own names of the devices."""
    taken = item.argument.names if item.argument and item.values else ()
    if "-dev" in taken:
        return (",".join(names.get(name, name) for name in item.values[0].split(",")),)
    if "-ot" in taken:
        parts = [part.partition("=") for part in item.values[0].split(",")]
        return (",".join(f"{pattern}{sign}{names.get(at, at)}" for pattern, sign, at in parts),)
    return item.values


_DEVICE = re.compile(r"^  (\w+): (.*) \((\d{1,12}) MiB, (\d{1,12}) MiB free\)\s*$", re.MULTILINE)


def listed_devices(text: str) -> tuple[EngineDevice, ...]:
    """The devices of `--list-devices` (common_print_available_devices, common/arg.cpp, b11434)."""
    return tuple(
        EngineDevice(
            name=match[1],
            description=match[2],
            total_bytes=int(match[3]) * MIB,
            free_bytes=int(match[4]) * MIB,
        )
        for match in _DEVICE.finditer(text.partition("Available devices:")[2])
    )


_LINE = re.compile(r"^(\S{1,64}) (\d{1,12}) (\d{1,12}) (\d{1,12}) ?$", re.MULTILINE)
# A row of the table that is logged: `| - CPU_REPACK | 1234 = 1200 + 0 + 34 |`, with padding in between.
_ROW = re.compile(r"\|\s+- (\S+)(?: \(.*\))?\s*\|\s*(?:\d+ = \d+ \+ \()?\s*\d+ = +(\d+) \+ +(\d+) \+ +(\d+)")


def printed(out: str, devices: Iterable[str]) -> dict[str, RealBytes]:
    """What was printed of the named devices and of Host. A name that is missing was not printed: the program died, or
    printed something else.
    """
    wanted = {*devices, "Host"}
    found: dict[str, RealBytes] = {}
    for match in _LINE.finditer(out):
        if match[1] in wanted:
            found[match[1]] = RealBytes(*(int(number) * MIB for number in match.groups()[1:]))
    return found


def other_buffers(log: str, devices: Iterable[str]) -> dict[str, RealBytes]:
    """Buffers beside the devices' and the host's in the table that is logged: copies in system memory."""
    known = {*devices, "Host"}
    found: dict[str, RealBytes] = {}
    for match in _ROW.finditer(log):
        if match[1] not in known:
            found[match[1]] = RealBytes(*(int(number) * MIB for number in match.groups()[1:]))
    return found
