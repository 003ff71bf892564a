"""Intel's, Apple's and Jetson's GPUs: named even where little more is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plan_llama.hardware import gpu_table
from plan_llama.hardware.sysfs import fields, integer, numbered, text, under
from plan_llama.hardware.types import Gpu, ProbeNote, Ram, Source
from plan_llama.units import GIB, MIB

Sysctl = Callable[[str], str | None]
_INTEL = 0x8086


def intel(*, sysroot: Path) -> tuple[list[Gpu], list[ProbeNote]]:
    """Intel cards (i915 and xe). Their sysfs tells no memory: only cards of the table are planned for, all
    free.

    Processor graphics become a note: llama.cpp gains little from them, and nothing tells their speed.
    """
    found: list[Gpu] = []
    notes: list[ProbeNote] = []
    for _, card in numbered(under(sysroot, "/sys/class/drm"), r"card(\d+)"):
        device = card / "device"
        if integer(device / "vendor") != _INTEL:
            continue
        pci_id = f"8086:{integer(device / 'device') or 0:04x}"
        slot = fields(text(device / "uevent"), "=")
        facts = gpu_table.by_pci_id(pci_id)
        if facts is None or facts.unified or facts.memory_bytes is None:
            name = facts.name if facts else f"Intel GPU [{pci_id}]"
            reason = f"{name} ({slot.get('DRIVER', 'no driver')}): memory and speed cannot be read"
            notes.append(
                ProbeNote(
                    probe="intel", reason=reason, unlock="--gpu NAME, with --unified for processor graphics"
                )
            )
            continue
        sources: dict[str, Source] = {"name": "catalog", "total_bytes": "catalog", "free_bytes": "assumed"}
        gpu = Gpu(
            name=facts.name,
            vendor="intel",
            backend="sycl",
            total_bytes=facts.memory_bytes,
            free_bytes=facts.memory_bytes,
            pci_bus_id=slot.get("PCI_SLOT_NAME"),
            driver=slot.get("DRIVER"),
            sources=sources,
        )
        found.append(gpu_table.fill(gpu, facts))
        reason = f"{facts.name}: the driver does not tell its free memory; all of it is taken as free"
        notes.append(ProbeNote(probe="intel", reason=reason, unlock="--gpu-free SIZE"))
    return found, notes


def jetson(ram: Ram, *, sysroot: Path) -> Gpu | None:
    """An NVIDIA Jetson whose NVML does not answer, by its device tree; the memory is the system's."""
    model = text(under(sysroot, "/proc/device-tree/model"), 256) or ""
    if "jetson" not in model.lower():
        return None
    name = model.removeprefix("NVIDIA ").split(" Developer Kit")[0]
    gpu = Gpu(
        name=name,
        vendor="nvidia",
        backend="cuda",
        integrated=True,
        total_bytes=ram.total_bytes,
        free_bytes=ram.available_bytes,
        sources={"name": "probe", "total_bytes": "probe", "free_bytes": "probe"},
    )
    return gpu_table.fill(gpu, gpu_table.lookup(name, vendor="nvidia"))


def sysctl(name: str) -> str | None:
    """A value of macOS's `sysctl -n NAME`, None where it does not exist."""
    import subprocess

    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def metal_limit_bytes(ram_bytes: int, wired_limit_mb: int = 0) -> int:
    """What Metal lets a process keep resident (recommendedMaxWorkingSetSize).

    `iogpu.wired_limit_mb` where the user set it; else macOS's default of two thirds of the memory up to 36
    GiB and three quarters above.
    """
    if wired_limit_mb > 0:
        return min(wired_limit_mb * MIB, ram_bytes)
    return ram_bytes * 2 // 3 if ram_bytes <= 36 * GIB else ram_bytes * 3 // 4


def apple(ram: Ram, read: Sysctl = sysctl) -> Gpu | None:
    """The GPU of an Apple chip (`sysctl machdep.cpu.brand_string hw.memsize`), None on an Intel Mac."""
    name = read("machdep.cpu.brand_string")
    if not name or not name.startswith("Apple"):
        return None
    wired = read("iogpu.wired_limit_mb") or ""
    total = metal_limit_bytes(ram.total_bytes, int(wired) if wired.isdigit() else 0)
    gpu = Gpu(
        name=name,
        vendor="apple",
        backend="metal",
        integrated=True,
        total_bytes=total,
        free_bytes=min(total, ram.available_bytes),
        sources={"name": "probe", "total_bytes": "modelled", "free_bytes": "modelled"},
    )
    return gpu_table.fill(gpu, gpu_table.lookup(name, vendor="apple"))
