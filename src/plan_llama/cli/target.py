"""Which build of the engine an answer is for."""

from __future__ import annotations

from plan_llama.engines import llama_server
from plan_llama.hardware.types import InstalledEngine, Machine


def engine_of(machine: Machine) -> InstalledEngine | None:
    """The llama.cpp that is on the machine; of a described one nothing is known."""
    if machine.simulated:
        return None
    return next((item for item in machine.engines if item.engine == "llama.cpp"), None)


def target_build(machine: Machine, build: int | None, installed: InstalledEngine | None) -> int:
    """The build that a plan is for: the one asked for, the installed one, or the one that is modelled."""
    if build is not None:
        return build
    installed = installed or engine_of(machine)
    return installed.build if installed and installed.build is not None else llama_server.BUILD
