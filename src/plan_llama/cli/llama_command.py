"""The llama-server command of a plan, for the build that is to run it."""

from __future__ import annotations

from plan_llama.cli.target import engine_of, target_build
from plan_llama.engines import architectures, llama_server, memory_rules, older_builds
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import InstalledEngine
from plan_llama.solver.search import Task
from plan_llama.solver.types import Plan


def make(
    task: Task,
    plan: Plan,
    build: int | None,
    installed: InstalledEngine | None = None,
    *,
    name_projector: bool = True,
) -> tuple[LaunchCommand, list[Finding]]:
    """The command for the installed build, or for the one asked for, or b11434.

    `name_projector` is False where words for the projector are there already.
    """
    spec, machine = task.table.spec, task.machine
    said: list[Finding] = []
    if installed is None:
        installed = engine_of(machine)
    target = target_build(machine, build, installed)
    path = spec.path or (spec.download.path if spec.download else None) or f"{spec.name}.gguf"
    executable = installed.path if installed else "llama-server"
    command = llama_server.command(
        plan.chosen.settings,
        model=spec,
        machine=machine,
        model_path=path,
        executable=executable,
        sampling=spec.sampling,
        mmproj_path=spec.projector.path if spec.projector and name_projector else None,
        # a plan without a GPU must hold on a machine that has one: unasked, the engine would use it
        extra=("--device", "none") if machine.simulated and not machine.gpus else (),
    )
    if installed is None and not machine.simulated and machine.engines:
        said.append(
            Finding(
                id="engine-not-installed",
                severity="note",
                text="llama-server was not found on PATH, only other engines",
                fix="--engine-path names it",
            )
        )
    if installed is not None and installed.arguments and build in (None, installed.build):
        command, lost = older_builds.adapt(command, installed.arguments, target)
        own = FlagTable.of_program(installed.build, installed.arguments)
        command, refused = older_builds.without_refused_values(command, own)
        said += [*lost, *refused]
        command = older_builds.with_template(command, own)
    elif target != llama_server.BUILD:
        command, lost = older_builds.for_build(command, target)
        said += lost
        command = older_builds.with_template(command, FlagTable.load(target))
    if too_old := architectures.finding(target, spec):
        said.append(too_old)
    said += memory_rules.findings(target, spec, plan.chosen.settings)
    return command, said
