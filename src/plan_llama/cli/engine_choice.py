"""Which engine a plan is for, and what that engine does its own way: the one place where `--engine` is looked at.

An engine that runs ggml has llama.cpp's memory and placement, so that the plan is the same work and only a `Writer`
differs. One that does not makes a plan of its own: `plan_command.run` hands over to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from plan_llama.cli import llama_command
from plan_llama.cli.options import EngineOptions
from plan_llama.cli.target import target_build
from plan_llama.cli.wishes import engine_build
from plan_llama.engines import architectures, memory_rules
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.left_out import OFFLOAD_THRESHOLD_SINCE
from plan_llama.engines.refusals import unreadable
from plan_llama.errors import ModelError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.types import InstalledEngine, Machine
from plan_llama.models.types import ModelSpec
from plan_llama.solver.search import Task
from plan_llama.solver.types import Plan, Wishes

ENGINES = ("llama.cpp", "ik_llama.cpp", "ollama", "vllm")


class Writer(Protocol):
    """What an engine that runs ggml does its own way in a plan."""

    def wishes(self, wanted: Wishes, spec: ModelSpec, machine: Machine, /) -> Wishes:
        """The request with what the engine leaves no choice in.

        Raises UsageError for a wish that the engine cannot be told, or a model that it does not run.
        """
        ...

    def command(self, task: Task, plan: Plan) -> tuple[LaunchCommand, list[Finding]]:
        """The command of a plan, with its files and the commands around it, and what there is to say of them."""
        ...


def writer(options: EngineOptions, installed: InstalledEngine | None = None) -> Writer:
    """How a plan is written for the engine of the options. `installed` is the engine itself, if not the machine's.

    Raises UsageError for an engine that is not known, and for a misspelt build.
    """
    several = options.nodes > 1 or bool(options.node_address)
    if several and options.engine != "llama.cpp":
        raise UsageError(
            f"--nodes: {options.engine} is planned for one machine", hint="llama.cpp and vllm take several"
        )
    if options.engine == "llama.cpp":
        server = LlamaServer(engine_build(options), installed)
        if not several:
            return server
        from plan_llama.cli.nodes import RpcServers, private_nodes

        return RpcServers(server, private_nodes(options))
    if options.engine == "ik_llama.cpp":
        _refuse_build(options, "its arguments are known of one build")
        from plan_llama.cli.ik_command import IkLlama

        return IkLlama()
    if options.engine == "ollama":
        _refuse_build(options, "Ollama comes with a llama-server of its own")
        from plan_llama.cli.ollama_command import Ollama

        return Ollama()
    reason = "not for this command" if options.engine in ENGINES else "is not known"
    raise UsageError(f"--engine {options.engine}: {reason}", hint=f"it knows {', '.join(ENGINES)}")


def _refuse_build(options: EngineOptions, why: str) -> None:
    if options.engine_build is not None:
        raise UsageError(f"--engine-build {options.engine_build}: {why}", hint="leave it out")


def refuse_types(spec: ModelSpec, engine: str) -> None:
    """Raises ModelError for a file with tensor types that an engine does not know."""
    if wrong := unreadable(spec, engine):
        raise ModelError(wrong.text, hint=wrong.fix)


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """llama.cpp: the installed build, the one that was asked for, or the newest known."""

    build: int | None
    installed: InstalledEngine | None

    def wishes(self, wanted: Wishes, spec: ModelSpec, machine: Machine, /) -> Wishes:
        """What an older build does otherwise with memory, and whether it drafts with the model's own block."""
        refuse_types(spec, "llama.cpp")
        build = target_build(machine, self.build, self.installed)
        return replace(
            wanted,
            older=memory_rules.older(build),
            can_draft=architectures.drafts(build, spec.architecture),
            can_set_threshold=build <= 1 or build >= OFFLOAD_THRESHOLD_SINCE,
        )

    def command(self, task: Task, plan: Plan) -> tuple[LaunchCommand, list[Finding]]:
        """The llama-server command."""
        return llama_command.make(task, plan, self.build, self.installed)
