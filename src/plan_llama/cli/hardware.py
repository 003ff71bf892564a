"""How `plan-llama hardware` shows a machine: every value with how it is known, and what would tell more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from plan_llama.hardware.types import Cpu, Disk, Gpu, Machine, Ram, Source
from plan_llama.units import gib

_KNOWN: Mapping[str | None, str] = {
    "file": "from the file",
    "catalog": "data sheet",
    "probe": "probed",
    "measured": "measured",
    "modelled": "computed",
    "assumed": "ASSUMED",
    "user": "as given",
}
_LABEL = 14
_VALUE = 46  # with the longest word on how it is known 80 columns


def _row(label: str, value: str, source: Source | None = None) -> str:
    known = f"[{_KNOWN[source]}]" if source else ""
    return f"  {label:<{_LABEL}}{value:<{_VALUE}} {known}".rstrip()


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.1f} GB/s"


def _gpu(index: int, gpu: Gpu) -> Iterator[str]:
    yield f"GPU {index}: {gpu.name}"
    known = gpu.sources.get
    if gpu.integrated:
        yield _row("memory", f"shares the RAM, up to {gib(gpu.total_bytes)}", known("total_bytes"))
    else:
        yield _row("memory", gib(gpu.total_bytes), known("total_bytes"))
    yield _row("free", gib(gpu.free_bytes), known("free_bytes"))
    if gpu.reserved_bytes:
        yield _row("reserved", gib(gpu.reserved_bytes), known("reserved_bytes"))
    rate, flops = gpu.bandwidth_bytes_per_s, gpu.fp16_flops_per_s
    yield _row("bandwidth", _rate(rate) if rate else "unknown", known("bandwidth_bytes_per_s"))
    yield _row("FP16", f"{flops / 1e12:,.1f} TFLOP/s" if flops else "unknown", known("fp16_flops_per_s"))
    if gpu.pcie_gen or gpu.pcie_width:
        now = ""
        if gpu.pcie_gen_now and gpu.pcie_gen_now != gpu.pcie_gen:
            now = f" (idle now: {gpu.pcie_gen_now}.0)"
        yield _row("PCIe", f"{gpu.pcie_gen or '?'}.0 ×{gpu.pcie_width or '?'}{now}", known("pcie_width"))
    if gpu.link_bytes_per_s:
        yield _row("from memory", _rate(gpu.link_bytes_per_s), known("link_bytes_per_s"))
    target = gpu.compute_capability or gpu.gfx_target
    if target:
        key = "compute_capability" if gpu.compute_capability else "gfx_target"
        yield _row("target", f"{gpu.backend} {target}", known(key))
    if gpu.driver:
        yield _row("driver", gpu.driver, known("driver"))
    if gpu.display:
        yield _row("display", "a monitor hangs on it", known("display"))
    for process in gpu.processes:
        used = gib(process.used_bytes) if process.used_bytes is not None else "an unknown amount"
        yield _row("used by", f"{process.name or 'unnamed'} (pid {process.pid}): {used}", "probe")


def _ram(ram: Ram, unified: bool) -> Iterator[str]:
    yield "Memory (one pool with the GPU)" if unified else "Memory"
    known = ram.sources.get
    yield _row("total", gib(ram.total_bytes), known("total_bytes"))
    yield _row("available", gib(ram.available_bytes), known("available_bytes"))
    if ram.reserved_bytes:
        yield _row("reserved", gib(ram.reserved_bytes), known("reserved_bytes"))
    if ram.type and ram.speed_mt_s:
        channels = f", {ram.channels} channels" if ram.channels else ""
        yield _row("type", f"{ram.type}-{ram.speed_mt_s}{channels}", known("type"))
    rate = ram.bandwidth_bytes_per_s
    yield _row("bandwidth", _rate(rate) if rate else "unknown", known("bandwidth_bytes_per_s"))
    if ram.swap_total_bytes:
        yield _row(
            "swap", f"{gib(ram.swap_total_bytes)}, {gib(ram.swap_free_bytes)} free", known("total_bytes")
        )
    if ram.memlock_bytes is not None:
        yield _row("lockable", f"{gib(ram.memlock_bytes)} (ulimit -l)", known("memlock_bytes"))
    for limit in ram.limits:
        used = f", {gib(limit.used_bytes)} used" if limit.used_bytes is not None else ""
        yield _row("limit", f"{gib(limit.limit_bytes)}{used}: {limit.kind}")
        yield _row("", limit.where)


def _cpu(cpu: Cpu) -> Iterator[str]:
    yield f"CPU: {cpu.name or 'unknown'}"
    known = cpu.sources.get
    cores = f"{cpu.physical_cores} physical, {cpu.logical_cores} logical"
    if cpu.performance_cores is not None:
        cores += f", {cpu.performance_cores} of them fast"
    yield _row("cores", cores, known("physical_cores"))
    if cpu.usable_cores is not None:
        yield _row("usable", f"{cpu.usable_cores} (affinity or cgroup quota)", known("physical_cores"))
    if cpu.sockets > 1 or cpu.numa_nodes > 1:
        yield _row("sockets", f"{cpu.sockets}, {cpu.numa_nodes} NUMA nodes", known("physical_cores"))
    yield _row("instructions", " ".join(cpu.isa) or "unknown", known("isa"))


def _disk(disk: Disk) -> Iterator[str]:
    yield f"Disk: {disk.path or 'described'}"
    free = gib(disk.free_bytes) if disk.free_bytes is not None else "unknown"
    yield _row("free", free, disk.sources.get("free_bytes"))
    kind = f"{disk.kind} ({disk.filesystem})" if disk.filesystem else disk.kind
    yield _row("kind", kind, disk.sources.get("kind"))
    if disk.read_bytes_per_s:
        yield _row("read", _rate(disk.read_bytes_per_s), disk.sources.get("read_bytes_per_s"))


def render(machine: Machine) -> str:
    """The machine as text for people; one value a line, in brackets how it is known."""
    title = f"{machine.name} (not this machine)" if machine.simulated else machine.name
    where = [
        machine.os,
        *(["WSL 2"] if machine.wsl else []),
        *([machine.container] if machine.container else []),
    ]
    lines = [title, f"  {', '.join(where)}", ""]
    for index, gpu in enumerate(machine.gpus):
        lines += [*_gpu(index, gpu), ""]
    if not machine.gpus:
        lines += ["GPU: none", ""]
    lines += [*_ram(machine.ram, machine.unified), "", *_cpu(machine.cpu), ""]
    if machine.disk:
        lines += [*_disk(machine.disk), ""]
    for engine in machine.engines:
        backends = f", {' '.join(engine.backends)}" if engine.backends else ""
        build = f"b{engine.build}" if engine.build is not None else engine.version or "of unknown version"
        lines.append(f"{engine.engine} {build}{backends}: {engine.path}")
        lines += [f"  {device}" for device in engine.devices]
    if machine.engines:
        lines.append("")
    if machine.notes:
        lines.append("Not known, and what would tell:")
        for note in machine.notes:
            lines.append(f"  {note.probe}: {note.reason}" + (f" → {note.unlock}" if note.unlock else ""))
    return "\n".join(_printable(line) for line in lines).rstrip() + "\n"


def _printable(line: str) -> str:
    """Names come from firmware and drivers: a control character in one must not reach the terminal."""
    return "".join(c if c.isprintable() else "�" for c in line)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def as_json(machine: Machine) -> dict[str, Any]:
    """The machine as plain JSON values: bytes as integers, rates as floats, unknown as null."""
    plain: dict[str, Any] = _plain(machine)
    return plain
