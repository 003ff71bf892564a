"""NVIDIA cards: the one door to NVML (module `pynvml` of nvidia-ml-py), the library below `nvidia-smi`.

The functions take the module, so that tests replay recorded answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plan_llama.hardware import gpu_table
from plan_llama.hardware.sysfs import text, under
from plan_llama.hardware.types import Gpu, GpuProcess, ProbeNote, Ram, Source

# nvmlMemory_v2 tells what the driver keeps for itself (`reserved`) apart from what is used.
_MEMORY_V2 = 0x02000028
_UNLOCK = "install NVIDIA's driver, or run the container with --gpus all; --gpu NAME plans without it"


def load() -> Any | ProbeNote:
    """The initialised NVML module, or why there is none (which is normal without an NVIDIA driver)."""
    try:
        import pynvml
    except ImportError:
        return ProbeNote(
            probe="nvidia", reason="the module pynvml is missing", unlock="pip install nvidia-ml-py"
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if isinstance(error, pynvml.NVMLError_LibraryNotFound):
            return ProbeNote(probe="nvidia", reason="no NVIDIA driver library (libnvidia-ml) on this machine")
        reason = f"NVML does not start: {error}"
        unlock = "the kernel module and the library must be of one version: reboot after a driver update"
        return ProbeNote(probe="nvidia", reason=reason, unlock=unlock)
    return pynvml


def _word(value: Any) -> str | None:
    """Old bindings answer bytes, new ones str."""
    if value is None:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Card:
    """Questions to one card; what a card cannot answer ("not supported") is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def ask(self, function: str, *args: Any) -> Any:
        call: Callable[..., Any] | None = getattr(self._nvml, function, None)
        if call is None:
            return None
        try:
            return call(self._handle, *args)
        except (self._nvml.NVMLError, UnicodeDecodeError):
            return None

    def memory(self) -> tuple[int, int] | None:
        """(total without the driver's own, free), None where the GPU has no memory of its own."""
        found = self.ask("nvmlDeviceGetMemoryInfo", _MEMORY_V2)
        reserved = int(getattr(found, "reserved", 0) or 0)
        if found is None:  # drivers before R510
            found = self.ask("nvmlDeviceGetMemoryInfo")
        if found is None or not found.total:
            return None
        return int(found.total) - reserved, int(found.free)

    def processes(self, sysroot: Path) -> tuple[GpuProcess, ...]:
        """Who holds memory of the card (`nvidia-smi --query-compute-apps=pid,name,used_memory`, and
        graphics).
        """
        found: dict[int, GpuProcess] = {}
        for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            for process in self.ask(function) or ():
                pid = int(process.pid)
                used = process.usedGpuMemory
                if pid not in found:
                    found[pid] = GpuProcess(
                        pid=pid,
                        name=text(under(sysroot, f"/proc/{pid}/comm"), 256),
                        used_bytes=int(used) if used is not None else None,
                    )
        return tuple(found.values())


def _gpu(card: _Card, driver: str | None, ram: Ram, sysroot: Path) -> tuple[Gpu, list[ProbeNote]]:
    notes: list[ProbeNote] = []
    name = _word(card.ask("nvmlDeviceGetName")) or "NVIDIA GPU"
    memory = card.memory()
    # GB10, Jetson and Thor answer "not supported" or 0: they share the system's memory.
    integrated = memory is None
    total, free = memory or (ram.total_bytes, ram.available_bytes)
    capability = card.ask("nvmlDeviceGetCudaComputeCapability")
    pci = card.ask("nvmlDeviceGetPciInfo")
    bus_id = (_word(getattr(pci, "busId", None)) or "").lower() or None
    if bus_id and (match := re.fullmatch(r"0{4}([0-9a-f]{4}:.+)", bus_id)):
        bus_id = match[1]  # NVML writes the domain with eight digits, the kernel with four
    width_now, width_most = (
        card.ask("nvmlDeviceGetCurrPcieLinkWidth"),
        card.ask("nvmlDeviceGetMaxPcieLinkWidth"),
    )
    # An idle card lowers the generation, not the width; the maximum is already that of card and slot
    # together.
    gen_most = card.ask("nvmlDeviceGetMaxPcieLinkGeneration")
    gen_now = card.ask("nvmlDeviceGetCurrPcieLinkGeneration")
    if width_now and width_most and width_now < width_most and not integrated:
        reason = f"{name} runs on {width_now} of {width_most} PCIe lanes"
        notes.append(
            ProbeNote(
                probe="pcie",
                reason=reason,
                unlock="another slot may have all lanes; experts on the CPU stream over it",
            )
        )
    display = card.ask("nvmlDeviceGetDisplayActive")
    values: dict[str, Any] = {
        "uuid": _word(card.ask("nvmlDeviceGetUUID")),
        "pci_bus_id": bus_id,
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
        "pcie_gen": (gen_most or None) if not integrated else None,
        "pcie_width": (width_now or None) if not integrated else None,
        "pcie_gen_now": (gen_now or None) if not integrated else None,
        "pcie_width_now": (width_now or None) if not integrated else None,
        "driver": driver,
        "display": bool(display) if display is not None else None,
    }
    known: dict[str, Source] = dict.fromkeys(
        ["name", "total_bytes", "free_bytes", *(key for key, value in values.items() if value is not None)],
        "probe",
    )
    gpu = Gpu(
        name=name,
        vendor="nvidia",
        backend="cuda",
        integrated=integrated,
        total_bytes=total,
        free_bytes=min(free, total),
        processes=card.processes(sysroot),
        sources=known,
        **values,
    )
    facts = gpu_table.lookup(name, vendor="nvidia", memory_bytes=None if integrated else total)
    # A card with chips of another size soldered on, or a part of one, has the same bus.
    facts = facts or gpu_table.lookup(name, vendor="nvidia")
    if facts is None:
        unlock = "a row in a TOML file under the gpus folder of your profiles"
        notes.append(
            ProbeNote(
                probe="gpu table", reason=f"no data sheet for {name!r}: its speed is unknown", unlock=unlock
            )
        )
    return gpu_table.fill(gpu, facts), notes


def _instance(nvml: Any, handle: Any, name: str, notes: list[ProbeNote]) -> Any:
    """The handle to use of a card: itself, or with MIG the largest instance (CUDA gives a process one
    only).
    """
    card = _Card(nvml, handle)
    mode = card.ask("nvmlDeviceGetMigMode")
    if not mode or not mode[0]:
        return handle
    instances = []
    for index in range(card.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        instance = card.ask("nvmlDeviceGetMigDeviceHandleByIndex", index)
        memory = _Card(nvml, instance).memory() if instance is not None else None
        if memory:
            instances.append((memory[0], index, instance))
    reason = (
        f"{name} is in MIG mode: of its {len(instances)} instances a process can use one, the largest here"
    )
    notes.append(
        ProbeNote(
            probe="nvidia",
            reason=reason,
            unlock="CUDA_VISIBLE_DEVICES=MIG-… chooses; nvidia-smi -mig 0 ends it",
        )
    )
    return max(instances)[2] if instances else None


def visible(
    gpus: list[Gpu], environment: Mapping[str, str], variable: str
) -> tuple[list[Gpu], list[ProbeNote]]:
    """The cards that CUDA_VISIBLE_DEVICES (or HIP_VISIBLE_DEVICES) leaves, in its order, and a note that says
    so.

    As CUDA reads it: indices or UUID prefixes; the first that names no card ends the list.
    """
    written = environment.get(variable)
    if written is None or not gpus:
        return gpus, []
    chosen: list[Gpu] = []
    for part in (item.strip() for item in written.split(",")):
        match = [
            gpu
            for index, gpu in enumerate(gpus)
            if part == str(index) or (part.startswith("GPU-") and gpu.uuid and gpu.uuid.startswith(part))
        ]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen += match
    reason = f"{variable}={written!r} leaves {len(chosen)} of {len(gpus)} cards"
    if len({gpu.name for gpu in gpus}) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        reason += "; its indices are read in PCI order, CUDA itself counts the fastest card first"
        unlock = f"unset {variable}, or set CUDA_DEVICE_ORDER=PCI_BUS_ID as well"
    else:
        unlock = f"unset {variable} to plan with all"
    return chosen, [ProbeNote(probe="visible devices", reason=reason, unlock=unlock)]


def gpus(
    nvml: Any, ram: Ram, *, sysroot: Path, environment: Mapping[str, str]
) -> tuple[list[Gpu], list[ProbeNote]]:
    """All cards in PCI order, as an application will see them. Never raises for what NVML cannot answer."""
    notes: list[ProbeNote] = []
    found: list[Gpu] = []
    try:
        count = int(nvml.nvmlDeviceGetCount())
        driver = _word(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        return [], [ProbeNote(probe="nvidia", reason=f"NVML lists no cards: {error}", unlock=_UNLOCK)]
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:  # a card that fell off the bus, or one of another user
            unlock = "dmesg has the reason (Xid)"
            notes.append(
                ProbeNote(probe="nvidia", reason=f"card {index} does not answer: {error}", unlock=unlock)
            )
            continue
        name = _word(_Card(nvml, handle).ask("nvmlDeviceGetName")) or f"card {index}"
        instance = _instance(nvml, handle, name, notes)
        if instance is not None:
            gpu, more = _gpu(_Card(nvml, instance), driver, ram, sysroot)
            found.append(gpu)
            notes += [note for note in more if note not in notes]
    chosen, said = visible(found, environment, "CUDA_VISIBLE_DEVICES")
    return chosen, notes + said
