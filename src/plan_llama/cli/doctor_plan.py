"""From a diagnosis to a plan: the command that would fit, and what is predicted beside what the log measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from plan_llama.cli import llama_command
from plan_llama.cli.options import WishOptions
from plan_llama.cli.plan_command import solved
from plan_llama.cli.wishes import wishes
from plan_llama.doctor.evidence import Device, Evidence, Start, is_host
from plan_llama.doctor.redact import redacted
from plan_llama.doctor.report import Found
from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import PlanLlamaError
from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import Footprint, footprint
from plan_llama.memory.table import ModelTable
from plan_llama.models import catalog_models
from plan_llama.models.resolve import from_catalog, resolve_model
from plan_llama.models.types import ModelSpec
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond
from plan_llama.units import gib, tokens

_DIFFERS = 0.05
_MUCH = 0.4  # more than the token embedding of a small model
_SMALL_BYTES = 64 * 1024**2  # a difference in less is not worth a word
_KINDS = (("weights", "model"), ("context", "context"), ("compute", "compute"))
_ENGINES = ("llama.cpp", "ollama", "lm-studio", None)
# fmt: off
TO_PLAN_FOR = frozenset(
    (
        "zero-offload", "partial-offload", "moe-experts-on-cpu-slow", "mmap-paging-thrash", "host-oom-killed",
        "host-alloc-failed", "container-memory-limit", "vulkan-oom", "tensor-split-unbalanced", "metal-working-set",
        "windows-shared-memory-spill", "ctx-per-slot-divided", "swap-thrash", "ollama-partial-ctx", "gpu-oom-weights",
        "ollama-runner-killed", "log-ends-early", "vram-held-by-other-process", "gpu-oom-kv", "gpu-oom-compute",
        "gpu-oom-runtime", "kv-quant-needs-fa", "threads-oversubscribed", "threads-too-few", "ecores-used",
    )
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One kind of memory of one device.

    `room_bytes`: a process is measured as a whole, with this much beside what is predicted; what it has not touched yet
    is not in it, so that less is no difference.
    """

    device: str
    kind: str
    measured_bytes: int
    predicted_bytes: int
    room_bytes: int | None = None

    @property
    def differs(self) -> bool:
        """By more than is to be expected."""
        if self.room_bytes is not None:
            return self.measured_bytes > (1 + _DIFFERS) * self.predicted_bytes + self.room_bytes
        wrong = abs(self.predicted_bytes - self.measured_bytes)
        return wrong > _DIFFERS * self.measured_bytes and wrong > _SMALL_BYTES // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What came of it; `why_not` says what was missing."""

    command: LaunchCommand | None = None
    about: str = ""
    why_not: str = ""
    compared: tuple[Compared, ...] = ()
    findings: list[Found] = field(default_factory=list)

    @property
    def table(self) -> list[str]:
        """The comparison, a line per device and kind."""
        return [
            f"  {item.device:<10} {item.kind:<9} {gib(item.measured_bytes):>10} measured  "
            f"{gib(item.predicted_bytes):>10} predicted" + ("  differs" if item.differs else "")
            for item in self.compared
        ]

    def as_json(self) -> dict[str, object] | None:
        """For programs; null where nothing was planned."""
        if self.command is None and not self.compared:
            return None
        command = None
        if self.command is not None:
            command = {
                "engine": self.command.engine,
                "build": self.command.build,
                "argv": list(self.command.argv),
                "env": dict(self.command.env),
            }
        return {
            "command": command,
            "about": self.about,
            "compared": [
                {
                    "device": item.device,
                    "kind": item.kind,
                    "measured_bytes": item.measured_bytes,
                    "predicted_bytes": item.predicted_bytes,
                }
                for item in self.compared
            ],
        }


def plan_of(
    evidence: Evidence, found: Sequence[Found], *, model: str | None, quant: str | None, ram: str | None
) -> Planned:
    """A plan where the log says enough: the model with its quant, the cards, and for a new command the RAM."""
    start = next((item for item in reversed(evidence.starts) if item.begun is not None), None)
    if start is None or start.get("engine") not in _ENGINES:
        return Planned()
    try:
        return _plan(start, found, model, quant, ram)
    except PlanLlamaError as error:
        if model is not None or ram is not None:
            raise
        return Planned(why_not=f"No command is planned: {error.line()}.")


def _plan(
    start: Start, found: Sequence[Found], model: str | None, quant: str | None, ram: str | None
) -> Planned:
    spec = _model(start, model, quant)
    if spec is None:
        return Planned(why_not="For a command that fits, say which model it is: --model NAME --quant Q.")
    devices = _cards(start)
    known_ram = ram or _size(start.number_of("ram_total_bytes"))
    machine = resolve(_machine(start, devices, known_ram))
    parsed, whole = _command(start)
    reading = to_settings(parsed, model=spec, machine=machine)
    table = ModelTable(spec)
    compared = tuple(_compare(start, devices, spec, machine, reading)) if whole else ()
    findings = [difference(compared)] if any(item.differs for item in compared) else []
    wanted = [item.id for item in found if item.severity != "note" and item.id in TO_PLAN_FOR]
    if not wanted:
        return Planned(compared=compared, findings=findings)
    if known_ram is None:
        why = "For a command that fits, say how much RAM the machine has: --ram SIZE (the log does not)."
        return Planned(why_not=why, compared=compared, findings=findings)
    context = reading.settings.context_per_slot if start.number_of("context") else None
    asked = replace(
        wishes(WishOptions()),
        context=context,
        parallel=1 if start.get("kv_unified") else int(start.number_of("sequences") or 1),
        older=reading.settings.older,
    )
    task, plan, _ = solved(make_task(table, machine, asked, beyond()), ladder=False)
    if plan is None or plan.chosen.footprint.verdict not in ("fits", "tight"):
        verdict = plan.chosen.footprint.verdict if plan else "does-not-fit"
        size = tokens(context) if context else "any number of"
        why = f"{spec.quant} with {size} tokens of context has no place there ({verdict}): a smaller quant or context "
        why += "is needed; plan-llama --model finds the largest that fits."
        return Planned(why_not=why, compared=compared, findings=findings)
    command, _ = llama_command.make(task, plan, parsed.build)
    if isinstance(path := start.get("model_path"), str):  # the file that is there
        command = replace(command, argv=(*command.argv[:2], redacted(path), *command.argv[3:]))
    use = plan.chosen.footprint
    cards = ", ".join(
        f"{item.name} {gib(item.total_bytes)} of {gib(item.free_bytes)} free" for item in use.devices
    )
    about = (
        f"predicted: {cards or 'no card'}; RAM {gib(use.host.total_bytes)} of {gib(use.host.available_bytes)}"
    )
    return Planned(command=command, about=about, compared=compared, findings=findings)


def _model(start: Start, model: str | None, quant: str | None) -> ModelSpec | None:
    if model is not None:
        return resolve_model(model, quant)
    path = start.get("model_path")
    name, file_type = start.get("model_name"), start.get("file_type")
    names = [str(path).replace("\\", "/").rpartition("/")[2]] if path else []
    if name and file_type:
        short = re.sub(r" - (Medium|Small|Large)", lambda found: f"_{found[1][0]}", str(file_type)).split(
            " "
        )[0]
        names.append(f"{str(name).replace(' ', '-')}-{short}.gguf")
    for text in names:
        guess = catalog_models.guess(text)
        if guess is not None:
            known = catalog_models.model(guess[0])
            spec = from_catalog(known, catalog_models.get_quant(known, guess[1]))
            architecture = start.get("architecture")
            if architecture is None or architecture == spec.architecture:
                return spec
    return None


def _cards(start: Start) -> list[Device]:
    """The GPUs in the log's order, those with a size."""
    return [
        item
        for item in start.devices.values()
        if (item.total_bytes or item.free_bytes) and not is_host(item.name)
    ]


def _size(value: float | None) -> str | None:
    return None if value is None else f"{int(value) // 1024**2}MiB"


def _machine(start: Start, devices: Sequence[Device], ram: str | None) -> HardwareChoice:
    available = (
        _size(start.number_of("ram_free_bytes")) if ram and start.number_of("ram_free_bytes") else None
    )
    cores = start.number_of("threads")
    return HardwareChoice(
        gpu=tuple(_size(item.total_bytes or item.free_bytes) or "" for item in devices),
        gpu_free=tuple(_size(item.free_bytes or item.total_bytes) or "" for item in devices),
        no_gpu=not devices,
        ram=ram or "1024GiB",
        ram_available=available,
        cpu_cores=int(cores) if cores else None,
    )


def _command(start: Start) -> tuple[ParsedCommand, bool]:
    """The command that was run: as the log shows it, else made from the settings in the log.

    The second value tells whether it says where every weight went.
    """
    number = start.number_of("build")
    table = FlagTable.load(int(number) if number and number > 1 else None)
    text = start.get("command")
    if isinstance(text, str) and "llama-server" in text:
        try:
            words = shlex.split(text)
        except ValueError:
            words = []
        place = next(
            (i for i, word in enumerate(words) if PurePosixPath(word).name.startswith("llama-server")), None
        )
        if place is not None:
            return parse(words[place:], table=table), True
    argv = ["llama-server", "-m", "model.gguf"]
    for name, fact in (("-c", "context"), ("-np", "sequences"), ("-b", "batch"), ("-ub", "ubatch")):
        if (value := start.number_of(fact)) is not None:
            argv += [name, str(int(value))]
    offloaded, layers = start.number_of("offloaded"), start.number_of("layers")
    if offloaded is not None and layers is not None:
        argv += ["-ngl", str(int(offloaded) if offloaded < layers else 999)]
    for name, fact in (("-ctk", "kv_type_k"), ("-ctv", "kv_type_v")):
        if isinstance(kind := start.get(fact), str) and kind:
            argv += [name, kind]
    flash = start.get("flash_attn")
    if table.lookup("-fa", "llama-server") is not None and flash in ("enabled", "disabled"):
        argv += ["-fa", "on" if flash == "enabled" else "off"]
    if start.get("kv_unified") is True and table.lookup("-kvu", "llama-server") is not None:
        argv.append("-kvu")
    if table.lookup("-fit", "llama-server") is not None:
        argv += ["-fit", "off"]
    moved = bool(start.get("overrides")) or _weights_elsewhere(start)
    return parse(argv, table=table), offloaded is not None and not moved


def _weights_elsewhere(start: Start) -> bool:
    """Every layer on the GPU and much on the host: experts that a log's settings do not tell of."""
    host, gpu = start.number_of("host_model_bytes") or 0, start.number_of("gpu_model_bytes") or 0
    return gpu > 0 and host > _MUCH * gpu and start.number_of("offloaded") == start.number_of("layers")


def _compare(
    start: Start, devices: Sequence[Device], spec: ModelSpec, machine: Machine, reading: CommandReading
) -> Iterator[Compared]:
    """Each device's parts, where the log shows them all."""
    if start.number_of("context") is None:
        return
    use: Footprint = footprint(ModelTable(spec), reading.settings, machine, beyond())
    for device, predicted in zip(devices, use.devices, strict=False):
        for name, kind in _KINDS:
            measured = sum(
                item.size_bytes for item in start.buffers if (item.device, item.kind) == (device.name, kind)
            )
            if measured > _SMALL_BYTES:
                yield Compared(
                    device=device.name,
                    kind=name,
                    measured_bytes=measured,
                    predicted_bytes=int(getattr(predicted, f"{name}_bytes")),
                )


def difference(compared: Sequence[Compared]) -> Found:
    """What is said where the prediction is not what was measured."""
    worst = [item for item in compared if item.differs]
    said = "; ".join(
        f"{item.device} {item.kind}: {gib(item.measured_bytes)} measured, {gib(item.predicted_bytes)} predicted"
        for item in worst
    )
    return Found(
        id="prediction-differs",
        severity="note",
        confidence=0.9,
        title="What was measured is not what is predicted",
        cause=f"They differ by more than 5 %: {said}. The file may be another quant than its name says, the command "
        "may hold what is not seen here, or the build may place memory otherwise.",
        fix="--model FILE takes the file itself; if it stays so, please report it with --bundle.",
        commands=(),
        evidence=(),
    )
