"""What is said beside the numbers: each finding once and in order, and those about the machine."""

from __future__ import annotations

from collections.abc import Iterable

from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine

_ORDER = {"error": 0, "warning": 1, "note": 2}


def in_order(items: Iterable[Finding]) -> list[Finding]:
    """Each finding once, the worst first."""
    once = list(dict.fromkeys(items))
    ids = {item.id for item in once}
    texts = tuple(item.text for item in once)
    bandwidth_said = any(text.startswith("memory bandwidth: ") for text in texts)
    kept = []
    for item in once:
        if item.id == "assumption":
            if bandwidth_said and item.text.startswith("RAM bandwidth assumed"):
                continue  # the machine's own note says the same, and what to do
            if "mmap-paging-thrash" in ids and item.text.startswith("host weights exceed"):
                continue
        kept.append(item)
    return sorted(kept, key=lambda item: _ORDER[item.severity])


def machine_notes(machine: Machine) -> list[Finding]:
    """Assumptions and unread values of a described machine that change the numbers."""
    cpu = machine.cpu
    borrowed = machine.simulated and cpu.sources.get("physical_cores") == "probe"
    said = []
    if borrowed:
        name = f"{cpu.name}, " if cpu.name else ""
        cores = f"{cpu.physical_cores} core{'s' if cpu.physical_cores != 1 else ''}"
        said.append(
            Finding(
                id="cpu-of-this-machine",
                severity="note",
                text=f"the processor is taken from this machine: {name}{cores}",
                fix="--cpu-cores, --cpu and --cpu-isa describe another",
            )
        )
    if machine.calibrated:
        text = f"measured on this machine: {machine.calibrated}"
        said.append(
            Finding(id="calibration", severity="note", text=text, fix="plan-llama calibrate measures again")
        )
    return said + [
        Finding(
            id="hardware-unknown",
            severity="note",
            text=f"{note.probe}: {note.reason}",
            fix=note.unlock,
        )
        for note in machine.notes
        if not _said_otherwise(note.probe, machine)
    ]


def _said_otherwise(probe: str, machine: Machine) -> bool:
    """Notes that say nothing about these numbers: engines of another machine, and the DIMMs beside their bandwidth."""
    if probe == "engine":
        return machine.simulated
    return probe == "memory type" and any(note.probe == "memory bandwidth" for note in machine.notes)
