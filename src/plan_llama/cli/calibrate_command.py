"""Measures this machine, keeps the figures for its plans, and shows them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plan_llama.cli.screen import Screen, print_json
from plan_llama.errors import EXIT_OK, InputError, PlanLlamaError
from plan_llama.hardware import bandwidth, calibration, cuda_copy, diskread
from plan_llama.hardware.calibration import Calibration
from plan_llama.hardware.disk import probe as probe_disk
from plan_llama.hardware.probe import probe
from plan_llama.hardware.types import Machine, ProbeNote
from plan_llama.models.locate import download_folder
from plan_llama.units import gib, seconds

_ENOUGH = 0.95  # of the best rate: more threads bring nothing


def run(path: str | None, *, show: bool, json: bool) -> int:
    """Measures and stores, or shows what is stored. Raises InputError where nothing could be measured, or is known."""
    began = time.perf_counter()
    place = Path(path) if path is not None else download_folder("")
    if path is not None and not place.exists():
        raise InputError(
            f"--path {path}: is not there", hint="name the folder of your models, or a model's file"
        )
    machine = probe(model_path=str(place))
    key = calibration.machine_key(machine.cpu, machine.ram)
    notes: list[ProbeNote] = []
    if not show:
        notes = _measure(machine, key, place)
    known = calibration.load(key)
    if known == Calibration():
        if notes:
            raise InputError(f"nothing could be measured: {notes[0].reason}", hint=notes[0].unlock)
        raise InputError("this machine was not measured yet", hint="plan-llama calibrate measures it")
    took_s = None if show else time.perf_counter() - began
    if json:
        print_json(_json(known, key, notes, took_s))
    else:
        screen = Screen()
        screen.write("\n".join(_text(screen, machine, known, key, notes, took_s)) + "\n")
    return EXIT_OK


def _measure(machine: Machine, key: str, place: Path) -> list[ProbeNote]:
    """Measures one thing after the other, keeps what there is, and says what could not be measured."""
    notes = _busy(machine)
    memory = None
    try:
        memory = bandwidth.by_threads(machine.cpu, machine.ram)
    except PlanLlamaError as error:
        notes.append(ProbeNote(probe="memory", reason=error.message, unlock=error.hint))
    links, more = _links(machine)
    notes += more
    disks = []
    try:
        read = diskread.measure(place)
        mount = probe_disk(str(place))[0].mount
        if mount is None:
            notes.append(
                ProbeNote(probe="disk", reason="this system does not tell which drive a folder is on")
            )
        else:
            method = f"{read.method}, {diskread.READERS} readers, {gib(read.size_bytes)} of {read.what}"
            disks = [
                calibration.DiskRead(
                    mount=mount, read_bytes_per_s=read.bytes_per_s, method=method, date=calibration.today()
                )
            ]
    except PlanLlamaError as error:
        notes.append(ProbeNote(probe="disk", reason=error.message, unlock=error.hint))
    build = next((engine.build for engine in machine.engines if engine.build), None)
    if memory or links or disks:
        written = calibration.store(
            key, machine=machine.name, engine_build=build, memory=memory, links=links, disks=disks
        )
        if written is None:
            raise InputError(
                f"{calibration.path(key)}: cannot be written", hint="PLAN_LLAMA_CACHE names another folder"
            )
    return notes


def _busy(machine: Machine) -> list[ProbeNote]:
    """Other programs that run meanwhile make every figure too low."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < machine.cpu.physical_cores / 2:
        return []
    reason = f"other programs were running (load {load:.1f} on {machine.cpu.physical_cores} cores): the figures are low"
    return [ProbeNote(probe="load", reason=reason, unlock="measure again when the machine is idle")]


def _links(machine: Machine) -> tuple[list[calibration.Link], list[ProbeNote]]:
    """The way from memory to every card with its own."""
    cards = [gpu for gpu in machine.gpus if not gpu.integrated]
    notes = [
        ProbeNote(
            probe="PCIe", reason=f"{gpu.name}: only CUDA cards can be measured; the link it reports is used"
        )
        for gpu in cards
        if gpu.vendor != "nvidia"
    ]
    own = {gpu.pci_bus_id: gpu for gpu in cards if gpu.vendor == "nvidia"}
    if not own:
        return [], notes
    library = cuda_copy.load()
    if isinstance(library, ProbeNote):
        return [], [*notes, library]
    copies, more = cuda_copy.copies(library)
    links = [
        calibration.Link(
            bus_id=copy.bus_id,
            gpu=own[copy.bus_id].name,
            to_gpu_bytes_per_s=copy.to_gpu_bytes_per_s,
            from_gpu_bytes_per_s=copy.from_gpu_bytes_per_s,
            date=calibration.today(),
        )
        for copy in copies
        if copy.bus_id in own
    ]
    return links, [*notes, *more]


def _text(
    screen: Screen,
    machine: Machine,
    known: Calibration,
    key: str,
    notes: list[ProbeNote],
    took_s: float | None,
) -> Iterator[str]:
    yield screen.style(machine.name, "bold")
    yield ""
    if known.memory:
        yield f"Memory  {screen.style(_rate(known.memory.bytes_per_s), 'bold')} read  ({known.memory.date})"
        for count, rate in known.memory.by_threads:
            yield f"  {count:>4} thread{' ' if count == 1 else 's'}  {_rate(rate):>12}"
        enough = _enough(known)
        if enough and len(known.memory.by_threads) > 1:
            yield f"  {enough} thread{'' if enough == 1 else 's'} reach{'es' if enough == 1 else ''} it"
    for link in known.links:
        yield (
            f"PCIe    {screen.style(_rate(link.to_gpu_bytes_per_s), 'bold')} to {link.gpu} ({link.bus_id}), "
            f"{_rate(link.from_gpu_bytes_per_s)} back  ({link.date})"
        )
    for disk in known.disks:
        yield f"Disk    {screen.style(_rate(disk.read_bytes_per_s), 'bold')} read of {disk.mount}  ({disk.date})"
        yield from screen.wrap(disk.method, indent=2, style="dim")
    if notes:
        yield ""
        yield "To know:"
        for note in notes:
            text = f"{note.probe}: {note.reason}" + (
                f" {screen.glyph('→')} {note.unlock}" if note.unlock else ""
            )
            yield from screen.wrap(text, indent=2)
    yield ""
    by = f"plan-llama {known.plan_llama}" + (
        f", llama.cpp b{known.engine_build}" if known.engine_build else ""
    )
    yield from screen.wrap(f"kept in {calibration.path(key)} ({by}); plans on this machine use it", indent=0)
    if took_s is not None:
        yield screen.style(f"took {seconds(took_s)}", "dim")


def _enough(known: Calibration) -> int | None:
    """The fewest threads that read about as fast as the best number of them."""
    assert known.memory is not None  # noqa: S101
    best = known.memory.bytes_per_s
    return min((count for count, rate in known.memory.by_threads if rate >= _ENOUGH * best), default=None)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.1f} GB/s"


def _json(known: Calibration, key: str, notes: list[ProbeNote], took_s: float | None) -> dict[str, Any]:
    return {
        **calibration.as_table(known),
        "engine_build": known.engine_build,
        "memory": calibration.as_table(known).get("memory"),
        "file": str(calibration.path(key)),
        "notes": [{"what": note.probe, "reason": note.reason, "unlock": note.unlock} for note in notes],
        "took_s": took_s,
    }
