"""Arguments of one command that cancel each other, or open the server to others, though the parser takes each of them.

The rules are those of llama.cpp b11434: src/llama.cpp (devices and main_gpu), common/arg.cpp (order of the arguments),
tools/server/server-http.cpp (keys).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from plan_llama.engines.command_settings import CommandReading
from plan_llama.engines.commandline import ParsedArgument, ParsedCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine

_EXPERTS_ON_CPU = ("-cmoe", "-ncmoe", "-ncffn")


def contradictions(parsed: ParsedCommand, reading: CommandReading, machine: Machine) -> Iterator[Finding]:
    """One finding for each pair of arguments that does not go together."""
    given = {
        name: item
        for item in parsed.arguments
        if item.argument and item.status in ("ok", "duplicate")
        for name in item.argument.names
    }
    yield from _devices(given, reading, machine)
    yield from _placement(given, reading)
    yield from _others(given)
    if parsed.program == "llama-server":
        yield from _open_server(given, reading.host)


def _devices(
    given: dict[str, ParsedArgument], reading: CommandReading, machine: Machine
) -> Iterator[Finding]:
    count = len(reading.devices) if "-sm" not in given or "-dev" in given else len(machine.gpus)
    mode, main = given.get("-sm"), given.get("-mg")
    if mode and mode.values[:1] == ("none",):
        index = _whole(main)
        if index is not None and count and index >= count:
            yield Finding(
                id="unknown-device",
                severity="error",
                text=f"{main.words if main else '-mg'}: {count} device{'s' if count != 1 else ''} to choose from, "
                "counted from 0",
                fix="the index of a device that is there",
            )
        if "-ts" in given:
            yield _no_effect(given["-ts"], mode, "everything goes to one device")
    elif "-ts" in given and machine.gpus:
        shares = [
            part for part in given["-ts"].values[0].replace("/", ",").replace(";", ",").split(",") if part
        ]
        if len(shares) > count > 0:
            yield Finding(
                id="flags-contradict",
                severity="warning",
                text=f"{given['-ts'].words}: {len(shares)} shares for {count} device{'s' if count != 1 else ''}; "
                "those beyond are not used",
                fix="one share per device, in the order of --list-devices",
            )


def _placement(given: dict[str, ParsedArgument], reading: CommandReading) -> Iterator[Finding]:
    layers, device = given.get("-ngl"), given.get("-dev")
    asks = _whole(layers)
    if device and device.values == ("none",) and layers and asks != 0:
        yield _no_effect(layers, device, "no layer goes to a device")
    if layers and asks == 0:
        for name in _EXPERTS_ON_CPU:
            if name in given:
                yield _no_effect(given[name], layers, "every layer is on the CPU as it is")
    if "-cmoe" in given and "-ncmoe" in given:
        yield _no_effect(given["-ncmoe"], given["-cmoe"], "the experts of all layers are on the CPU as it is")
    batch, ubatch = _whole(given.get("-b")), _whole(given.get("-ub"))
    if ubatch is not None and ubatch > (2048 if batch is None else batch):
        yield Finding(
            id="flags-contradict",
            severity="warning",
            text=f"{given['-ub'].words}: the micro-batch is cut to the batch, {reading.settings.ubatch} tokens",
            fix=f"-b {ubatch} as well",
        )


def _others(given: dict[str, ParsedArgument]) -> Iterator[Finding]:
    model, repo = given.get("-m"), given.get("-hf")
    if model and repo:
        yield Finding(
            id="flags-contradict",
            severity="warning",
            text=f"{model.words} and {repo.words} both name a model",
            fix="leave one of them out",
        )
    projector, automatic = given.get("-mm"), given.get("--mmproj-auto")
    if projector and automatic and automatic.negated:
        yield Finding(
            id="flags-contradict",
            severity="warning",
            text=f"{projector.words} loads a projector although {automatic.words} is given: that one only stops the "
            "search for one",
            fix="leave one of them out",
        )


def _open_server(given: dict[str, ParsedArgument], host: str) -> Iterator[Finding]:
    key = given.get("--api-key")
    if key and not key.from_env:
        yield Finding(
            id="api-key-visible",
            severity="note",
            text="the key stands in the command: everybody on this machine can read it in the list of processes",
            fix="--api-key-file FILE, or the environment variable LLAMA_API_KEY",
        )
    if is_loopback(host) or key or "--api-key-file" in given:
        return
    yield Finding(
        id="no-api-key",
        severity="warning",
        text=f"--host {host} lets other machines in, and no key is asked of them",
        fix="--host 127.0.0.1, or --api-key-file FILE",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name that ends in .sock is a UNIX socket."""
    if host == "localhost" or host.endswith(".sock"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _whole(item: ParsedArgument | None) -> int | None:
    text = item.values[0] if item and item.values else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _no_effect(item: ParsedArgument, because: ParsedArgument, why: str) -> Finding:
    return Finding(
        id="flags-contradict",
        severity="warning",
        text=f"{item.words} has no effect beside {because.words}: {why}",
        fix="leave one of them out",
    )
