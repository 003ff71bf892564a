"""Options that several commands share, as groups: a command names the groups it takes and gets their values.

`@takes` turns each field of a group, which is a parameter like `hardware: HardwareOptions`, into an option of the
command, so that the options exist once and are the same everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOptions:
    """Which machine: this one, a described one, and single facts overridden."""

    hardware: Annotated[
        str | None, typer.Option("--hardware", metavar="NAME|FILE", help="Plan for a described machine.")
    ] = None
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu", metavar="NAME|SIZE[*N]", help="A card, e.g. 'RTX 3090*2' or 24GiB. Repeatable."
        ),
    ] = None
    gpu_free: Annotated[
        list[str] | None, typer.Option("--gpu-free", metavar="SIZE", help="Free memory, per card in order.")
    ] = None
    ram: Annotated[str | None, typer.Option("--ram", metavar="SIZE", help="System memory.")] = None
    ram_available: Annotated[
        str | None, typer.Option("--ram-available", metavar="SIZE", help="System memory that is available.")
    ] = None
    ram_type: Annotated[str | None, typer.Option("--ram-type", metavar="DDR5-5600", help="Memory type.")] = (
        None
    )
    ram_channels: Annotated[
        int | None, typer.Option("--ram-channels", metavar="N", help="Memory channels.")
    ] = None
    ram_bandwidth: Annotated[
        float | None,
        typer.Option("--ram-bandwidth", metavar="GBPS", help="Memory bandwidth in 10^9 bytes/s."),
    ] = None
    cpu: Annotated[str | None, typer.Option("--cpu", metavar="NAME", help="Processor.")] = None
    cpu_cores: Annotated[int | None, typer.Option("--cpu-cores", metavar="N", help="Physical cores.")] = None
    cpu_isa: Annotated[
        str | None, typer.Option("--cpu-isa", metavar="amx,avx512,...", help="Instruction sets.")
    ] = None
    unified: Annotated[bool, typer.Option("--unified", help="GPU and CPU share one pool of memory.")] = False
    no_gpu: Annotated[bool, typer.Option("--no-gpu", help="Plan without a GPU.")] = False
    reserve: Annotated[
        str | None,
        typer.Option("--reserve", metavar="gpu0=4GiB,ram=24GiB", help="Keep memory for something else."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Catalog name, GGUF file, hf:OWNER/REPO[:QUANT] or ollama:NAME.",
        ),
    ] = None
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant", "-q", metavar="Q", help="Quant; left out, the largest that fits; best: worth its time."
        ),
    ] = None
    mmproj: Annotated[
        str | None,
        typer.Option("--mmproj", metavar="FILE", help="Projector for images, if not the model's own."),
    ] = None
    no_mmproj: Annotated[
        bool, typer.Option("--no-mmproj", help="Text only: leave the projector for images out.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WishOptions:
    """What the plan is for."""

    ctx: Annotated[
        str | None, typer.Option("--ctx", "-c", metavar="N|max", help="Tokens of one conversation.")
    ] = None
    parallel: Annotated[
        int | None, typer.Option("--parallel", metavar="N", min=1, max=256, help="Slots.")
    ] = None
    workload: Annotated[
        str, typer.Option("--workload", metavar="NAME", help="chat, agent, rag, batch or server.")
    ] = "chat"
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", metavar="N", min=1, help="Tokens of a prompt.")
    ] = None
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", metavar="N", min=1, help="Tokens of an answer.")
    ] = None
    reuse: Annotated[
        float | None, typer.Option("--reuse", metavar="RATIO", min=0, max=1, help="Cached share of a prompt.")
    ] = None
    users: Annotated[
        int | None, typer.Option("--users", metavar="N", min=1, max=256, help="Active at once.")
    ] = None
    ttft: Annotated[
        float | None,
        typer.Option("--ttft", metavar="SECONDS", min=0.001, help="First token of a new prompt by then."),
    ] = None
    kv_type: Annotated[
        str | None, typer.Option("--kv-type", metavar="TYPE", help="KV cache type, K and V alike.")
    ] = None
    objective: Annotated[
        str, typer.Option("--objective", metavar="NAME", help="balanced, speed, context or quality.")
    ] = "balanced"
    margin: Annotated[
        str | None, typer.Option("--margin", metavar="SIZE", help="What stays free on each card.")
    ] = None
    allow_paging: Annotated[
        bool, typer.Option("--allow-paging", help="Accept weights that are read from disk for every token.")
    ] = False
    pin: Annotated[
        list[str] | None, typer.Option("--pin", metavar="KEY=VALUE", help="Fix one setting. Repeatable.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Which engine the command is for."""

    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="llama.cpp, ik_llama.cpp, ollama or vllm.")
    ] = "llama.cpp"
    engine_build: Annotated[
        str | None, typer.Option("--engine-build", metavar="b11434", help="Build, if not the installed one.")
    ] = None
    engine_path: Annotated[
        str | None, typer.Option("--engine-path", metavar="FILE", help="llama-server, if not on PATH.")
    ] = None
    nodes: Annotated[
        int,
        typer.Option("--nodes", metavar="N", min=1, max=64, help="Machines of this kind that work together."),
    ] = 1
    node_address: Annotated[
        list[str] | None,
        typer.Option(
            "--node-address", metavar="IP", help="Their addresses, the first one's first. Repeatable."
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where the server is to listen, and which launchers are written."""

    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Listen here; 127.0.0.1 unless given.")
    ] = None
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", min=1, max=65535, help="Port; 8080 unless given.")
    ] = None
    api_key_file: Annotated[
        str | None,
        typer.Option("--api-key-file", metavar="FILE", help="Keys that clients must know, one a line."),
    ] = None
    write: Annotated[
        str | None, typer.Option("--write", metavar="DIR", help="Write launchers into this folder.")
    ] = None
    launcher: Annotated[
        str | None,
        typer.Option(
            "--launcher",
            metavar="NAME,...",
            help="sh, ps1, cmd, systemd, compose, llama-swap, preset, k8s, or all that fit the machine.",
        ),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How the answer is given."""

    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False
    explain: Annotated[bool, typer.Option("--explain", help="Show the working.")] = False


def takes(function: F) -> F:
    """Gives a command the options of the groups among its parameters; it gets one value per group, by name."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    parameters = [p for p in own if p.name not in groups]
    for group in groups.values():
        parameters += _parameters(group)

    def command(**values: Any) -> Any:
        made = {}
        for name, group in groups.items():
            chosen = {item.name: values.pop(item.name) for item in fields(group)}
            made[name] = group(**chosen)
        return function(**values, **made)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command  # type: ignore[return-value]


@cache
def _hints(group: type[Any]) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)


@cache
def _parameters(group: type[Any]) -> tuple[inspect.Parameter, ...]:
    """The fields of a group as parameters; most groups belong to several commands."""
    hints = _hints(group)  # type: ignore[arg-type]
    kind = inspect.Parameter.KEYWORD_ONLY
    return tuple(
        inspect.Parameter(item.name, kind, default=item.default, annotation=hints[item.name])
        for item in fields(group)
    )


def given(group: Any) -> list[str]:
    """The names of a group's options that differ from their defaults."""
    return [name for name, _ in _changed(group)]


def words(group: Any) -> list[str]:
    """The options of a group that differ from their defaults, as one writes them with their values."""
    written = []
    for name, value in _changed(group):
        for item in value if isinstance(value, list) else [value]:
            written += (
                [name] if item is True else [name, f"{item:g}" if isinstance(item, float) else str(item)]
            )
    return written


def _changed(group: Any) -> list[tuple[str, Any]]:
    hints = _hints(type(group))  # type: ignore[arg-type]
    found: list[tuple[str, Any]] = []
    for item in fields(group):
        if getattr(group, item.name) in (item.default, []):
            continue
        spelled = f"--{item.name.replace('_', '-')}"
        if get_origin(hints[item.name]) is Annotated:
            # typer keeps the first name of an annotated option where a default would stand
            spelled = str(get_args(hints[item.name])[1].default)
        found.append((spelled, getattr(group, item.name)))
    return found
