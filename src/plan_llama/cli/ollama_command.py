"""A plan for Ollama: what it leaves no choice in, its Modelfile and commands, and what to expect of `ollama ps`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli import llama_command
from plan_llama.cli.engine_choice import refuse_types
from plan_llama.cli.launcher import launcher_files
from plan_llama.cli.model_notes import names_unknown
from plan_llama.engines import architectures, llama_server, memory_rules, older_builds, ollama
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.ollama_facts import facts
from plan_llama.engines.ollama_runner import reads_directly
from plan_llama.errors import UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.models.types import ModelSpec
from plan_llama.solver.search import Task
from plan_llama.solver.types import Candidate, Plan, Wishes
from plan_llama.units import gib, publisher_gb


@dataclass(frozen=True, slots=True)
class Ollama:
    """Ollama, of the version that is described."""

    def wishes(self, wanted: Wishes, spec: ModelSpec, machine: Machine, /) -> Wishes:
        """Slots apart, one batch, the memory of its llama-server; one slot where it allows no more."""
        refuse_types(spec, "llama.cpp")
        if "batch" in wanted.pins:
            raise UsageError(
                "--pin batch: Ollama gives llama-server one number for batch and micro-batch",
                hint="--pin ubatch=N sets it",
            )
        if isinstance(wanted.context, int) and spec.context_train and wanted.context > spec.context_train:
            raise UsageError(
                f"--ctx {wanted.context}: Ollama gives a model no more than it was trained for, "
                f"{spec.context_train} tokens",
                hint="--engine llama.cpp does",
            )
        wanted = replace(
            wanted, older=memory_rules.older(facts().llama_cpp), slots_apart=True, one_batch=True
        )
        if spec.architecture in facts().one_slot:
            wanted = replace(wanted, parallel=1, users=None)
        if reads_directly(machine, machine.gpus):
            if wanted.pins.get("load_mode", "dio") != "dio":
                raise UsageError(
                    f"--pin load-mode={wanted.pins['load_mode']}: on an integrated GPU Ollama reads with direct I/O",
                    hint="leave it out",
                )
            wanted = wanted.pinned(load_mode="dio")
        return wanted

    def command(self, task: Task, plan: Plan) -> tuple[LaunchCommand, list[Finding]]:
        """`ollama serve`, the Modelfile, `ollama create` and `run`, and the llama-server command beside them."""
        spec, machine, settings = task.table.spec, task.machine, plan.chosen.settings
        build = facts().llama_cpp
        server = llama_server.command(
            settings,
            model=spec,
            machine=machine,
            model_path="model.gguf",
            sampling={},
            mmproj_path=spec.projector.path if spec.projector else None,
        )
        server, lost = older_builds.adapt(server, FlagTable.load(build).listed("llama-server"), build)
        made, said = ollama.command(
            settings, model=spec, machine=machine, sources=sources(spec), server=server
        )
        beside, _ = llama_command.make(task, plan, None)
        said += lost
        if too_old := architectures.finding(build, spec):
            said.append(too_old)
        said += memory_rules.findings(build, spec, settings)
        said += [
            *_one_slot(task),
            *_import(spec, machine),
            _expected(plan.chosen),
            *_installed(machine),
        ]
        return ollama.with_server(made, beside), said


def sources(spec: ModelSpec) -> list[str]:
    """What FROM names: every file of the model and of its projector, by paths that hold in any folder."""
    if names_unknown(spec):  # all GGUF files of a folder are taken
        folder = str(Path(spec.path or (spec.download.path if spec.download else ".")).absolute())
        return [folder, *(sources(spec.projector) if spec.projector else [])]
    return [_absolute(item.path) for item in launcher_files(spec)]


def _absolute(path: str) -> str:
    foreign = re.match(r"[A-Za-z]:[\\/]", path)  # of a described Windows machine
    return path if foreign else str(Path(path).absolute())


def _one_slot(task: Task) -> list[Finding]:
    if task.table.spec.architecture not in facts().one_slot:
        return []
    text = f"Ollama serves {task.table.spec.architecture} with one slot, whatever OLLAMA_NUM_PARALLEL says"
    return [
        Finding(
            id="ollama-one-slot",
            severity="note",
            text=f"{text}: requests wait for each other",
            fix="llama-server serves several at once",
        )
    ]


def _import(spec: ModelSpec, machine: Machine) -> list[Finding]:
    """What `ollama create` costs."""
    if spec.path and re.search(r"[/\\]blobs[/\\]sha256-", spec.path):
        return []  # it is in the store
    parts = len(spec.files or (spec.download.files if spec.download else ()))
    text = f"`ollama create` copies the file into Ollama's store ({publisher_gb(spec.file_bytes)} more on the disk"
    text += ", and as much again while it joins the parts)" if parts > 1 else ")"
    free = machine.disk.free_bytes if machine.disk and not machine.simulated else None
    short = free is not None and free < spec.file_bytes * (2 if parts > 1 else 1)
    return [
        Finding(
            id="ollama-import",
            severity="warning" if short else "note",
            text=text + (f"; {gib(free)} are free at {machine.disk.path}" if free and machine.disk else ""),
            fix="llama-server reads it where it is",
        )
    ]


def _expected(chosen: Candidate) -> Finding:
    """What `ollama ps` and the log say when it went as planned: sums of llama-server's buffers."""
    used, settings = chosen.footprint, chosen.settings
    cards = sum(d.weights_bytes + d.context_bytes + d.compute_bytes for d in used.devices)
    host = used.host.weights_bytes + used.host.context_bytes + used.host.compute_bytes
    share = round(100 * host / (host + cards)) if host + cards else 0
    shown = {0: "about 100% GPU", 100: "100% CPU"}.get(share, f"about {share}%/{100 - share}% CPU/GPU")
    if not cards:
        shown = "100% CPU"
    layers = ""
    if used.devices and settings.gpu_layers:
        layers = "; its log says `offloaded N/M layers to GPU` with N as num_gpu"
    return Finding(
        id="ollama-read-back",
        severity="note",
        text=f"`ollama ps` then shows PROCESSOR {shown} and CONTEXT {settings.context // settings.parallel}"
        f"{layers}, and the whole command behind `starting llama-server`",
    )


def _installed(machine: Machine) -> list[Finding]:
    """Versions that have runners of their own."""
    if machine.simulated:
        return []
    found = next((item for item in machine.engines if item.engine == "ollama"), None)
    if found is None:
        text, fix = "ollama was not found on PATH", "install it, or take the llama-server command"
        return [Finding(id="engine-not-installed", severity="note", text=text, fix=fix)]
    if found.version and _numbers(found.version) < _numbers(facts().first_with_llama_server):
        return [
            Finding(
                id="ollama-too-old",
                severity="error",
                text=f"Ollama {found.version} is installed: before {facts().first_with_llama_server} it had "
                "runners of its own, to which neither these numbers nor LLAMA_ARG_ variables apply",
                fix="update Ollama",
            )
        ]
    return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
