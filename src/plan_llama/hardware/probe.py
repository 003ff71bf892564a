"""This machine, from all probes together.

What a probe cannot find out becomes a note, and the rest goes on.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from plan_llama.errors import PlanLlamaError
from plan_llama.hardware import (
    amd,
    bandwidth,
    calibration,
    engines,
    host,
    limits,
    nvml,
    other_gpus,
    ram_speed,
)
from plan_llama.hardware import disk as disk_probe
from plan_llama.hardware.sysfs import text, under
from plan_llama.hardware.types import Cpu, Disk, Gpu, InstalledEngine, Machine, ProbeNote, Ram, Source

_ROOT = Path("/")
_MEMORY_SPEED = ("memory type", "memory channels", "memory bandwidth")  # what a measurement answers


def _linux_gpus(ram: Ram, sysroot: Path, notes: list[ProbeNote]) -> list[Gpu]:
    live = sysroot == _ROOT
    found: list[Gpu] = []
    # A captured tree has no driver to ask, and its cards are not chosen by this process's environment.
    environment = dict(os.environ) if live else {}
    if live:
        library = nvml.load()
        if isinstance(library, ProbeNote):
            if under(sysroot, "/proc/driver/nvidia").exists() or library.unlock:
                notes.append(library)
        else:
            cards, more = nvml.gpus(library, ram, sysroot=sysroot, environment=environment)
            found += cards
            notes += more
    if not found and (jetson := other_gpus.jetson(ram, sysroot=sysroot)):
        found.append(jetson)
    cards, more = amd.gpus(ram, sysroot=sysroot, environment=environment)
    found += cards
    notes += more
    cards, more = other_gpus.intel(sysroot=sysroot)
    notes += more
    return found + cards


def without_idle_integrated(gpus: list[Gpu]) -> tuple[list[Gpu], list[ProbeNote]]:
    """Beside a card with its own memory an integrated GPU is left out, as llama.cpp does (llama.cpp,
    devices).
    """
    if all(gpu.integrated for gpu in gpus) or not any(gpu.integrated for gpu in gpus):
        return gpus, []
    left_out = ", ".join(gpu.name for gpu in gpus if gpu.integrated)
    reason = f"{left_out} shares the memory and is left out beside a card with its own"
    return [gpu for gpu in gpus if not gpu.integrated], [ProbeNote(probe="gpu", reason=reason)]


def _with_bandwidth(
    ram: Ram, cpu: Cpu, gpus: list[Gpu], measure: bool, sysroot: Path, notes: list[ProbeNote]
) -> Ram:
    """A measurement beats the modules' peak, that beats the GPU's data sheet where the memory is one;
    else assumed.
    """
    if sysroot == _ROOT:
        if measure:
            try:
                return _measured_ram(ram, bandwidth.kept_or_measure(cpu, ram, again=True, budget_s=3.0))
            except PlanLlamaError as error:
                notes.append(ProbeNote(probe="memory bandwidth", reason=error.message, unlock=error.hint))
        elif known := calibration.load(calibration.machine_key(cpu, ram)).memory:
            return _measured_ram(ram, known)
    shared = next((gpu.bandwidth_bytes_per_s for gpu in gpus if gpu.integrated), None)
    if ram.bandwidth_bytes_per_s is not None:
        return ram
    if shared is not None:
        return replace(
            ram, bandwidth_bytes_per_s=shared, sources={**ram.sources, "bandwidth_bytes_per_s": "catalog"}
        )
    assumed = ram_speed.assumed_bytes_per_s()
    reason = f"unknown; {ram_speed.assumption()} is assumed ({assumed / 1e9:.1f} GB/s)"
    unlock = "plan-llama calibrate (kept), or --ram-type and --ram-channels, or --ram-bandwidth"
    notes.append(ProbeNote(probe="memory bandwidth", reason=reason, unlock=unlock))
    return replace(
        ram, bandwidth_bytes_per_s=assumed, sources={**ram.sources, "bandwidth_bytes_per_s": "assumed"}
    )


def _measured_ram(ram: Ram, found: calibration.Bandwidth) -> Ram:
    sources: dict[str, Source] = {**ram.sources, "bandwidth_bytes_per_s": "measured"}
    one = dict(found.by_threads).get(1)
    return replace(ram, bandwidth_bytes_per_s=found.bytes_per_s, thread_bytes_per_s=one, sources=sources)


def measured(machine: Machine, *, budget_s: float = 1.0) -> Machine:
    """This machine with a measured memory bandwidth in place of an assumed one, and a note that says so.

    From the cache, else measured once in about `budget_s` seconds and kept. Any other machine is returned
    as it is.
    """
    if machine.simulated or machine.ram.sources.get("bandwidth_bytes_per_s") != "assumed":
        return machine
    try:
        found = bandwidth.kept_or_measure(machine.cpu, machine.ram, budget_s=budget_s)
    except PlanLlamaError as error:
        note = ProbeNote(probe="memory bandwidth", reason=error.message, unlock=error.hint)
        return replace(machine, notes=(*machine.notes, note))
    rate = f"{found.bytes_per_s / 1e9:.1f} GB/s with {found.threads} threads"
    note = ProbeNote(probe="memory bandwidth", reason=f"measured once, {rate}, and kept for later plans")
    notes = [note for note in machine.notes if note.probe not in _MEMORY_SPEED]
    return replace(machine, ram=_measured_ram(machine.ram, found), notes=(*notes, note))


def _os() -> str:
    return {"darwin": "darwin", "win32": "windows"}.get(sys.platform, "linux")


def _architecture(sysroot: Path) -> str:
    if sysroot != _ROOT:
        # A captured tree may be of another architecture: ARM's cpuinfo speaks of implementers.
        return (
            "aarch64"
            if "CPU implementer" in (text(under(sysroot, "/proc/cpuinfo"), 16384) or "")
            else "x86_64"
        )
    if hasattr(os, "uname"):
        return os.uname().machine
    return {"AMD64": "x86_64", "ARM64": "aarch64"}.get(os.environ.get("PROCESSOR_ARCHITECTURE", ""), "x86_64")


def _name(cpu: Cpu, gpus: list[Gpu], sysroot: Path) -> str:
    """`this machine` is said by the CLI; the name tells what it is: product, or processor and cards."""
    product = text(under(sysroot, "/sys/class/dmi/id/product_name"), 256)
    parts = (
        [product]
        if product and "to be filled" not in product.lower() and product != "System Product Name"
        else []
    )
    parts += [cpu.name] if cpu.name and not parts else []
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    parts += [f"{count} × {name}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(parts) or "this machine"


def _disk(path: str | None, sysroot: Path, notes: list[ProbeNote]) -> Disk:
    found, more = disk_probe.probe(path or ".", sysroot=sysroot)
    notes += more if path is not None else []
    return found


def _unified(gpus: list[Gpu]) -> bool:
    return bool(gpus) and all(gpu.integrated for gpu in gpus)


def probe(
    *,
    model_path: str | None = None,
    sysroot: Path = _ROOT,
    measure_bandwidth: bool = False,
    engine_path: str | None = None,
    with_gpus: bool = True,
    with_engines: bool = True,
) -> Machine:
    """This machine, or the one whose /proc and /sys were captured below `sysroot` (then no driver, engine or
    cache is asked).

    `model_path` is where the model is or will be (for the disk); `measure_bandwidth` measures the memory anew
    (3 s). Raises InputError only where `engine_path` is not there; all else that fails is a note.
    """
    notes: list[ProbeNote] = []
    system = "linux" if sysroot != _ROOT else _os()
    architecture = _architecture(sysroot)
    gpus: list[Gpu] = []
    if system == "linux":
        cpu, more = host.cpu(sysroot, architecture)
        ram, ram_notes = host.ram(sysroot)
        notes += more + ram_notes
        if with_gpus:
            gpus = _linux_gpus(ram, sysroot, notes)
    else:
        cpu, ram, gpus = _portable(system, architecture, with_gpus, notes)
    gpus, more = without_idle_integrated(gpus)
    notes += more
    ram = _with_bandwidth(ram, cpu, gpus, measure_bandwidth, sysroot, notes)
    if ram.sources.get("bandwidth_bytes_per_s") in ("measured", "catalog"):
        notes = [note for note in notes if note.probe not in _MEMORY_SPEED]
    installed: list[InstalledEngine] = []
    if with_engines and sysroot == _ROOT:
        installed, more = engines.installed(engine_path)
        notes += more
    wsl = limits.is_wsl(sysroot)
    if wsl:
        reason = "WSL 2 gives Linux a part of Windows' memory (half of it by default)"
        notes.append(
            ProbeNote(probe="wsl", reason=reason, unlock="[wsl2] memory= in %UserProfile%\\.wslconfig")
        )
    machine = Machine(
        name=_name(cpu, gpus, sysroot),
        os=system,
        wsl=wsl,
        container=limits.container(sysroot),
        unified=_unified(gpus),
        gpus=tuple(gpus),
        ram=ram,
        cpu=cpu,
        disk=_disk(model_path, sysroot, notes),
        engines=tuple(installed),
        rocm_version=amd.rocm_version(sysroot),
        notes=tuple(dict.fromkeys(notes)),
        sources={"name": "probe"},
    )
    return calibrated(machine) if sysroot == _ROOT else machine


def calibrated(machine: Machine) -> Machine:
    """This machine with what was measured of its links and its drive, and a word on all that was measured."""
    known = calibration.load(calibration.machine_key(machine.cpu, machine.ram))
    said: dict[str, str] = {}
    if known.memory and machine.ram.sources.get("bandwidth_bytes_per_s") == "measured":
        said[f"memory {known.memory.bytes_per_s / 1e9:.1f} GB/s"] = known.memory.date
    gpus = []
    for index, gpu in enumerate(machine.gpus):
        link = known.link(gpu.pci_bus_id)
        if link is not None and not gpu.integrated:
            rate = link.to_gpu_bytes_per_s
            said[f"PCIe to gpu{index} {rate / 1e9:.1f} GB/s"] = link.date
            gpu = replace(gpu, link_bytes_per_s=rate, sources={**gpu.sources, "link_bytes_per_s": "measured"})
        gpus.append(gpu)
    disk = machine.disk
    read = known.disk(disk.mount) if disk else None
    if disk is not None and read is not None:
        said[f"disk {read.read_bytes_per_s / 1e9:.1f} GB/s"] = read.date
        sources: dict[str, Source] = {**disk.sources, "read_bytes_per_s": "measured"}
        disk = replace(disk, read_bytes_per_s=read.read_bytes_per_s, sources=sources)
    if not said:
        return machine
    dates = sorted(set(said.values()))
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    notes = tuple(note for note in machine.notes if read is None or note.probe != "disk")
    return replace(
        machine, gpus=tuple(gpus), disk=disk, notes=notes, calibrated=f"{', '.join(said)} ({when})"
    )


def _portable(
    system: str, architecture: str, with_gpus: bool, notes: list[ProbeNote]
) -> tuple[Cpu, Ram, list[Gpu]]:
    """macOS and Windows: psutil for the host, sysctl and NVML for the GPUs."""
    ram = host.portable_ram()
    name = cores = None
    gpus: list[Gpu] = []
    if system == "darwin":
        name = other_gpus.sysctl("machdep.cpu.brand_string")
        cores = other_gpus.sysctl("hw.perflevel0.physicalcpu")
        apple = other_gpus.apple(ram) if with_gpus else None
        gpus += [apple] if apple else []
    else:
        name = os.environ.get("PROCESSOR_IDENTIFIER")
        reason = "Windows tells no vector instructions; none are counted on"
        notes.append(ProbeNote(probe="cpu", reason=reason, unlock="--cpu-isa avx2,fma,f16c"))
        library = nvml.load() if with_gpus else None
        if isinstance(library, ProbeNote):
            notes.append(library)
        elif library is not None:
            gpus, more = nvml.gpus(library, ram, sysroot=_ROOT, environment=dict(os.environ))
            notes += more
    performance = int(cores) if cores and cores.isdigit() else None
    return host.portable_cpu(architecture, name, performance), ram, gpus
