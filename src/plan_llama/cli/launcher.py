"""Write the launcher of a plan, and say which files must be there when it runs."""

from __future__ import annotations

from pathlib import Path

from plan_llama.cli.plan_command import names_unknown
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import UsageError
from plan_llama.launchers import posix
from plan_llama.launchers.posix import ModelFile
from plan_llama.models.types import ModelSpec
from plan_llama.solver.search import Task
from plan_llama.solver.types import Plan


def write_launcher(folder: Path, task: Task, plan: Plan, command: LaunchCommand, *, force: bool) -> Path:
    """The shell launcher, which checks at start what the plan took for granted."""
    spec, machine, used = task.table.spec, task.machine, plan.chosen.footprint
    settings = plan.chosen.settings
    files = launcher_files(spec)
    gpus = tuple(
        posix.GpuNeed(
            index=sum(1 for other in machine.gpus[:index] if other.vendor == gpu.vendor),
            name=gpu.name,
            backend=gpu.backend,
            uuid=gpu.uuid,
            pci_bus_id=gpu.pci_bus_id,
            need_bytes=0 if machine.unified else device.peak_bytes,
            planned_free_bytes=gpu.free_bytes,
        )
        for index, (gpu, device) in enumerate(zip(machine.gpus, used.devices, strict=True))
    )
    locks = settings.load_mode in ("mlock", "mmap+mlock")
    needs = posix.LaunchNeeds(
        files=files,
        gpus=gpus,
        ram_need_bytes=used.pools[0].used_bytes,
        planned_ram_bytes=machine.ram.available_bytes,
        pageable=settings.load_mode == "mmap",
        locked_bytes=used.host.weights_bytes if locks else 0,
    )
    title = f"{spec.name} {spec.quant} on {machine.name}"
    return posix.write(folder, posix.shell_launcher(command, needs, title=title), force=force)


def write_files(folder: Path, command: LaunchCommand, *, force: bool) -> list[Path]:
    """The files that go with a command of an engine for which no launcher is made (a Modelfile)."""
    return [posix.write(folder, item.text, name=item.name, force=force, mode=0o644) for item in command.files]


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
