"""Write the launchers of a plan, and say which files must be there when they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli.address import Address
from plan_llama.cli.engine_choice import Writer
from plan_llama.cli.model_notes import names_unknown
from plan_llama.cli.plan_command import Made
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import InputError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.launchers import batch, containers, posix, powershell, routers, systemd
from plan_llama.launchers.types import GpuNeed, LaunchNeeds, ModelFile, Recipe, SmallerContext
from plan_llama.launchers.writing import write
from plan_llama.memory.footprint import Footprint, footprint
from plan_llama.models.types import ModelSpec
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Plan

_MOST_SMALLER = 4


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of launcher: its file, and how its text is made of a recipe, a folder and the others written there."""

    name: str
    file: str
    text: Callable[[Recipe, Path, frozenset[str]], str]
    mode: int = 0o644
    newline: str = "\n"
    encoding: str = "utf-8"


FORMATS = (
    Format("sh", posix.FILE_NAME, lambda r, _f, _o: posix.shell_launcher(r), mode=0o755),
    # Windows PowerShell takes a file without a mark at its start for one in the old code page
    Format(
        "ps1",
        powershell.FILE_NAME,
        lambda r, _f, _o: powershell.script(r),
        newline="\r\n",
        encoding="utf-8-sig",
    ),
    Format("cmd", batch.FILE_NAME, lambda r, _f, _o: batch.script(r), newline="\r\n"),
    Format("systemd", systemd.FILE_NAME, lambda r, f, o: systemd.unit(r, f, checked="sh" in o)),
    Format("compose", containers.COMPOSE_NAME, lambda r, _f, _o: containers.compose(r)),
    Format("llama-swap", routers.SWAP_NAME, lambda r, _f, _o: routers.swap(r, _name(r))),
    Format("preset", routers.PRESET_NAME, lambda r, _f, _o: routers.preset(r, _name(r))),
    Format("k8s", containers.KUBERNETES_NAME, lambda r, _f, _o: containers.kubernetes(r)),
)
NAMES = tuple(item.name for item in FORMATS)
_OF_LINUX = frozenset({"systemd", "compose", "k8s"})
_OF_WINDOWS = frozenset({"ps1", "cmd"})


def chosen_formats(text: str | None, machine: Machine) -> tuple[Format, ...]:
    """What `--launcher` names; left out, a script for the machine's own shell; `all` is what fits the machine.

    Raises UsageError for a name that is not one.
    """
    windows = machine.os == "windows"
    if text is None:
        wanted = list(_OF_WINDOWS) if windows else ["sh"]
    elif text == "all":
        wanted = [
            item.name
            for item in FORMATS
            if not (item.name in _OF_LINUX and machine.os != "linux")
            and not (item.name == "sh" and windows)
            and not (item.name in _OF_WINDOWS and not windows)
        ]
    else:
        wanted = [word.strip() for word in text.split(",") if word.strip()]
        wrong = [word for word in wanted if word not in NAMES]
        if wrong or not wanted:
            raise UsageError(
                f"--launcher {text}: {f'{wrong[0]} is not known' if wrong else 'names nothing'}",
                hint=f"it takes {', '.join(NAMES)} or all, separated by commas",
            )
    return tuple(item for item in FORMATS if item.name in wanted)


def write_launchers(folder: Path, recipe: Recipe, formats: Sequence[Format], *, force: bool) -> list[Path]:
    """Writes each, all or none of those that cannot be made. Raises InputError where one cannot be written."""
    names = frozenset(item.name for item in formats)
    texts = [(item, item.text(recipe, folder, names)) for item in formats]
    taken = [folder / item.file for item in formats if (folder / item.file).exists()]
    if taken and not force:
        raise InputError(f"{taken[0]}: is there already", hint="--force replaces it")
    return [
        write(
            folder,
            text,
            name=item.file,
            force=force,
            mode=item.mode,
            newline=item.newline,
            encoding=item.encoding,
        )
        for item, text in texts
    ]


def write_plan(
    folder: Path, made: Made, address: Address, names: str | None, *, force: bool
) -> tuple[list[Path], list[Finding]]:
    """The launchers of a plan, and what is to be said of those that cannot be made of it.

    Raises UsageError for a name that is not one, InputError where one that was asked for cannot be made.
    """
    formats = chosen_formats(names, made.machine)
    whole = recipe(made.task, made.plan, made.launch, made.writer, address)
    said: list[Finding] = []
    if names == "all":
        usable = []
        for item in formats:
            try:
                item.text(whole, folder, frozenset())
                usable.append(item)
            except InputError as error:
                text = f"{item.file} is not written: {error.message}"
                said.append(Finding(id="launcher-left-out", severity="note", text=text, fix=error.hint))
        formats = tuple(usable)
    return write_launchers(folder, whole, formats, force=force), said


def write_files(folder: Path, command: LaunchCommand, names: str | None, *, force: bool) -> list[Path]:
    """The files that go with a command of an engine for which no launcher is made (a Modelfile)."""
    if names is not None:
        raise UsageError(f"--launcher is not for {command.engine}", hint="--write alone writes its files")
    return [write(folder, item.text, name=item.name, force=force, mode=0o644) for item in command.files]


def recipe(task: Task, plan: Plan, command: LaunchCommand, writer: Writer, address: Address) -> Recipe:
    """Everything that the launchers of a plan are made from.

    Raises UsageError where the names of the files are not known before the download.
    """
    spec, machine, chosen = task.table.spec, task.machine, plan.chosen
    settings, used = chosen.settings, chosen.footprint
    files = launcher_files(spec)
    gpus = tuple(
        GpuNeed(
            index=sum(1 for other in machine.gpus[:index] if other.vendor == gpu.vendor),
            name=gpu.name,
            backend=gpu.backend,
            uuid=gpu.uuid,
            pci_bus_id=gpu.pci_bus_id,
            need_bytes=need,
            planned_free_bytes=gpu.free_bytes,
            used=device.total_bytes > device.driver_bytes,
        )
        for index, (gpu, need, device) in enumerate(
            zip(machine.gpus, _gpu_needs(used, machine), used.devices, strict=True)
        )
    )
    locks = settings.load_mode in ("mlock", "mmap+mlock")
    needs = LaunchNeeds(
        files=tuple(replace(item, path=_absolute(item.path)) for item in files),
        gpus=gpus,
        ram_need_bytes=used.pools[0].used_bytes,
        planned_ram_bytes=machine.ram.available_bytes,
        pageable=settings.load_mode == "mmap",
        locked_bytes=used.host.weights_bytes if locks else 0,
    )
    paths = {item.path for item in files}
    return Recipe(
        command=replace(command, argv=_with_absolute(command.argv, paths)),
        needs=needs,
        title=f"{spec.name} {spec.quant} on {machine.name}",
        context=settings.slot_limit or settings.context_per_slot,
        smaller=tuple(_smaller(task, plan, writer, address, paths)),
    )


def _smaller(
    task: Task, plan: Plan, writer: Writer, address: Address, paths: set[str]
) -> Iterator[SmallerContext]:
    """The plan's placement with the contexts of the ladder that are below its own, largest first."""
    settings = plan.chosen.settings
    own = settings.slot_limit or settings.context_per_slot
    contexts = sorted({rung.context for rung in plan.ladder if rung.context < own})
    for context in contexts[: -_MOST_SMALLER - 1 : -1]:
        smaller = replace(
            settings,
            context=context * (settings.context // own),
            slot_limit=None if settings.slot_limit is None else context,
        )
        used = footprint(
            task.table, smaller, task.machine, task.beyond, margin_bytes=task.wishes.margin_bytes
        )
        made, _ = writer.command(task, replace(plan, chosen=judged(task, smaller, used)))
        yield SmallerContext(
            context=context,
            argv=_with_absolute(address.of(made).argv, paths),
            gpu_need_bytes=_gpu_needs(used, task.machine),
            ram_need_bytes=used.pools[0].used_bytes,
        )


def _gpu_needs(used: Footprint, machine: Machine) -> tuple[int, ...]:
    """What is taken of each card of its own memory; of shared memory the RAM tells."""
    return tuple(0 if machine.unified else device.peak_bytes for device in used.devices)


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`


def _with_absolute(argv: Sequence[str], paths: set[str]) -> tuple[str, ...]:
    """A launcher is run from anywhere: files and a program that is named by its path."""
    program = _absolute(argv[0]) if "/" in argv[0] or "\\" in argv[0] else argv[0]
    return (program, *(_absolute(word) if word in paths else word for word in argv[1:]))


def _name(made: Recipe) -> str:
    """What clients call the model: its file without ending and number."""
    stem = Path(made.needs.files[0].path).stem if made.needs.files else "model"
    head, dash, tail = stem.partition("-00001-of-")
    return head if dash and tail.isdigit() else stem


def launcher_files(spec: ModelSpec) -> tuple[ModelFile, ...]:
    """The files that must be there in full when the launcher runs; 0 bytes where the size is not known.

    Raises UsageError where the names are not known before the download.
    """
    seen = launcher_files(spec.projector) if spec.projector else ()
    return (*_files(spec), *seen)


def _files(spec: ModelSpec) -> tuple[ModelFile, ...]:
    if spec.files:
        return tuple(ModelFile(path=path, size_bytes=size) for path, size in spec.files)
    if unknown := names_unknown(spec):
        text, fix = unknown
        raise UsageError(f"--write: {text}", hint=fix)
    if spec.download is None or spec.made_with:
        return (ModelFile(path=spec.path, size_bytes=0),) if spec.path else ()
    folder = Path(spec.download.path).parent
    return tuple(ModelFile(path=str(folder / Path(name).name), size_bytes=0) for name in spec.download.files)
