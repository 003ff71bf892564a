"""This machine as evidence: its memory and limits, cards, rights, engines, and what the kernel wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from plan_llama.cli import doctor_cards
from plan_llama.doctor.evidence import MACHINE, Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.hardware import kernel_log
from plan_llama.hardware.probe import probe
from plan_llama.hardware.sysfs import integer, numbered, text, under
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.units import gib

KERNEL = "the kernel's log"
_ROOT = Path("/")
_NVIDIA = 0x10DE
_DISPLAY = 0x03  # the class of a display controller (pci_ids.h)
_GPU_BACKENDS = frozenset(("cuda", "rocm", "hip", "vulkan", "metal", "sycl", "musa", "cann", "opencl"))


def gathered(reader: LogReader, *, alone: bool) -> None:
    """Probes it and feeds the reader. Beside a log (not `alone`) what is free now does not count: the log is older."""
    lines, notes = kernel_log.lines()
    if lines:
        reader.feed([line.encode() for line in lines], KERNEL)
    machine = probe()
    notes = [*machine.notes, *notes]
    # a driver's refusal is a line that rules know; that no engine is on PATH is no line of an engine
    if alone:
        said = [f"{item.probe}: {item.reason}".encode() for item in notes if item.probe != "engine"]
        reader.feed(said, MACHINE)
    observe(reader, machine, memory=alone)
    cards = doctor_cards.watch()
    cards.look()
    doctor_cards.observe(reader, cards)
    for number, item in enumerate(notes):
        hint = f" ({item.unlock})" if item.unlock else ""
        words = f"not known: {item.probe}: {item.reason}{hint}"
        reader.observe(f"probe_{number}", Fact(item.probe, Line(0, words, MACHINE)))


def observe(reader: LogReader, machine: Machine, *, memory: bool = True, sysroot: Path = _ROOT) -> None:
    """A probed machine, as facts."""

    def fact(name: str, value: Value, words: str) -> None:
        reader.observe(name, Fact(value, Line(0, words, MACHINE)))

    ram, cpu = machine.ram, machine.cpu
    words = f"RAM: {gib(ram.total_bytes)}, of which {gib(ram.available_bytes)} are available"
    if memory:
        fact("ram_total_bytes", ram.total_bytes, words)
        fact("ram_free_bytes", ram.available_bytes, words)
    else:
        fact("ram_now_bytes", ram.available_bytes, words)
    bound = min((item for item in ram.limits), key=lambda item: item.limit_bytes, default=None)
    if bound is not None:
        words = f"{bound.kind} limits memory to {gib(bound.limit_bytes)} ({bound.where})"
        fact("machine_limit_bytes", bound.limit_bytes, words)
    if ram.memlock_bytes is not None:
        words = f"limit of locked memory (ulimit -l): {gib(ram.memlock_bytes)}"
        fact("machine_memlock_bytes", ram.memlock_bytes, words)
    words = f"processor: {cpu.name or 'unknown'}, {cpu.physical_cores} cores, {cpu.logical_cores} threads"
    words += f", {cpu.usable_cores} of them for this process" if cpu.usable_cores is not None else ""
    fact("usable_cores", cpu.usable_cores or cpu.logical_cores, words)
    if cpu.performance_cores is not None:
        fact(
            "performance_cores", cpu.performance_cores, f"{words}; {cpu.performance_cores} performance cores"
        )
    for name, there in (("wsl", machine.wsl), ("container", machine.container)):
        if there:
            fact(
                name,
                True,
                "Windows Subsystem for Linux" if there is True else f"inside a container ({there})",
            )
    for number, gpu in enumerate(machine.gpus):
        fact(f"gpu_{number}", gpu.name, _about(number, gpu))
    _links(reader, machine)
    _holders(reader, machine)
    _rights(reader, machine, sysroot)
    _engines(reader, machine)


def _about(number: int, gpu: Gpu) -> str:
    words = f"gpu{number}: {gpu.name}, {gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free"
    words += f", {gpu.gfx_target}" if gpu.gfx_target else ""
    words += f", driver {gpu.driver}" if gpu.driver else ""
    return words + (f", PCIe {gpu.pcie_gen or '?'}.0 x{gpu.pcie_width_now}" if gpu.pcie_width_now else "")


def _links(reader: LogReader, machine: Machine) -> None:
    """The link that has the fewest of the lanes that card and slot could have."""
    cards = [
        (gpu.pcie_width_now / gpu.pcie_width, number, gpu)
        for number, gpu in enumerate(machine.gpus)
        if gpu.pcie_width and gpu.pcie_width_now and not gpu.integrated
    ]
    if not cards:
        return
    _, number, gpu = min(cards, key=lambda item: item[:2])
    # NVML's width is the present one; what card and slot could have is told with the card's state (doctor_cards)
    possible = f", x{gpu.pcie_width} possible" if gpu.pcie_width != gpu.pcie_width_now else ""
    line = Line(0, f"gpu{number}: PCIe x{gpu.pcie_width_now} now{possible}", MACHINE)
    reader.observe("pcie_width_now", Fact(gpu.pcie_width_now or 0, line))
    reader.observe("pcie_width_best", Fact(gpu.pcie_width or 0, line))


def _holders(reader: LogReader, machine: Machine) -> None:
    """Who holds the memory of the card that has the least free of its own."""
    cards = [gpu for gpu in machine.gpus if not gpu.integrated and gpu.total_bytes]
    if not cards:
        return
    gpu = min(cards, key=lambda item: item.free_bytes / item.total_bytes)
    held = gpu.total_bytes - gpu.free_bytes
    most = sorted(gpu.processes, key=lambda item: -(item.used_bytes or 0))[:4]
    names = ", ".join(
        f"{(item.name or '?').rpartition('/')[2]} ({item.pid}, {gib(item.used_bytes) if item.used_bytes else '?'})"
        for item in most
    )
    words = f"{gpu.name}: {gib(held)} of {gib(gpu.total_bytes)} are taken"
    words += f", by {names}" if names else ""
    reader.observe("held_share", Fact(held / gpu.total_bytes, Line(0, words, MACHINE)))
    reader.observe("held_bytes", Fact(held))
    reader.observe("held_by", Fact(names or "processes that this user cannot see"))


def _rights(reader: LogReader, machine: Machine, sysroot: Path) -> None:
    """Device nodes that are closed to this user, and an NVIDIA card without a driver."""
    nodes = {
        "closed_amd": [under(sysroot, "/dev/kfd")]
        + [path for _, path in numbered(under(sysroot, "/dev/dri"), r"renderD(\d+)")],
        "closed_nvidia": [under(sysroot, "/dev/nvidiactl"), under(sysroot, "/dev/nvidia-uvm")]
        + [path for _, path in numbered(under(sysroot, "/dev"), r"nvidia(\d+)")],
    }
    for name, paths in nodes.items():
        closed = [path for path in paths if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
        if closed:
            words = ", ".join("/" + str(path.relative_to(sysroot)) for path in closed)
            reader.observe(name, Fact(words, Line(0, f"no right to use {words}", MACHINE)))
    cards = [folder for folder in _displays(sysroot) if integer(folder / "vendor") == _NVIDIA]
    given_away = [(folder / "driver").resolve().name.startswith("vfio") for folder in cards]
    if cards and not all(given_away) and not any(gpu.vendor == "nvidia" for gpu in machine.gpus):
        words = f"an NVIDIA card is in PCI slot {cards[0].name}, and its driver does not answer"
        reader.observe("nvidia_unanswered", Fact(True, Line(0, words, MACHINE)))


def _displays(sysroot: Path) -> Iterator[Path]:
    try:
        folders = sorted(under(sysroot, "/sys/bus/pci/devices").iterdir())
    except OSError:
        return
    for folder in folders:
        kind = text(folder / "class", 16) or ""
        if kind.startswith(f"0x{_DISPLAY:02x}"):
            yield folder


def _engines(reader: LogReader, machine: Machine) -> None:
    for number, item in enumerate(machine.engines):
        version = f"b{item.build}" if item.build else item.version or "version unknown"
        words = f"{item.engine} {version}: {item.path}, for {', '.join(item.backends) or 'the CPU'}"
        reader.observe(f"engine_{number}", Fact(item.engine, Line(0, words, MACHINE)))
    ours = [item for item in machine.engines if item.engine in ("llama.cpp", "ik_llama.cpp")]
    blind = all(
        not item.devices and not _GPU_BACKENDS & {name.lower() for name in item.backends} for item in ours
    )
    if ours and blind and machine.gpus:
        words = f"{ours[0].path} lists no GPU, and this machine has {machine.gpus[0].name}"
        reader.observe("engine_without_gpu", Fact(True, Line(0, words, MACHINE)))
