"""The processor and the memory, from /proc and /sys (Linux) or psutil (macOS, Windows)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from plan_llama.hardware import dmi, limits
from plan_llama.hardware.ram_speed import peak_bytes_per_s
from plan_llama.hardware.sysfs import cpu_list, fields, integer, numbered, text, under
from plan_llama.hardware.types import Cpu, ProbeNote, Ram, Source

_KIB = 1024
_CPU = "/sys/devices/system/cpu"

# llama.cpp's names (ggml-cpu.cpp, ggml_backend_cpu_get_features, b11434; `amx` is its AMX_INT8) by the flags
# of /proc/cpuinfo that must all be there (arch/x86/include/asm/cpufeatures.h, arch/arm64/kernel/cpuinfo.c).
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "f16c": ("f16c",),
    "fma": ("fma",),
    "bmi2": ("bmi2",),
    "avx512": ("avx512f",),
    "avx512_vbmi": ("avx512vbmi",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx_vnni": ("avx_vnni",),
    "amx": ("amx_tile", "amx_int8"),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "sve": ("sve",),
}


def isa_of(flags: Iterable[str]) -> tuple[str, ...]:
    """llama.cpp's names of what the CPU flags of /proc/cpuinfo offer."""
    have = set(flags)
    return tuple(name for name, needed in ISA_FLAGS.items() if have.issuperset(needed))


def _cpu_name(info: dict[str, str]) -> str | None:
    if name := info.get("model name") or info.get("Model"):
        return " ".join(name.split())
    if "CPU part" in info:
        return f"ARM implementer {info.get('CPU implementer', '?')} part {info['CPU part']}"
    return None


def _topology(sysroot: Path) -> dict[int, tuple[int, int]]:
    """(package, core) of every online CPU, from sysfs, else from all of /proc/cpuinfo."""
    found: dict[int, tuple[int, int]] = {}
    for number, folder in numbered(under(sysroot, _CPU), r"cpu(\d+)"):
        core = integer(folder / "topology/core_id")
        package = integer(folder / "topology/physical_package_id")
        if core is not None:
            # Cores on an ARM board without packages say -1; clusters may repeat core ids.
            cluster = integer(folder / "topology/cluster_id") if (package or 0) < 0 else None
            found[number] = (package or 0, core if cluster is None or cluster < 0 else cluster * 65536 + core)
    if found:
        return found
    whole = text(under(sysroot, "/proc/cpuinfo")) or ""
    for number, block in enumerate(re.split(r"\n\s*\n", whole)):
        info = fields(block)
        if "processor" in info:
            place = info.get("physical id", "0"), info.get("core id", str(number))
            if place[0].isdigit() and place[1].isdigit():
                found[number] = (int(place[0]), int(place[1]))
    return found


def _performance_cpus(sysroot: Path) -> frozenset[int] | None:
    """The CPUs of the faster kind, None where there is one kind only."""
    fast = cpu_list(text(under(sysroot, "/sys/devices/cpu_core/cpus")))
    slow = cpu_list(text(under(sysroot, "/sys/devices/cpu_atom/cpus")))
    if fast and slow:
        return fast
    capacity = {
        number: value
        for number, folder in numbered(under(sysroot, _CPU), r"cpu(\d+)")
        if (value := integer(folder / "cpu_capacity")) is not None
    }
    # Cores of one kind differ by some per cent in their boost clock; kinds differ by more than a quarter.
    most = max(capacity.values(), default=0)
    fast = frozenset(number for number, value in capacity.items() if value >= 0.75 * most)
    return fast if capacity and len(fast) < len(capacity) else None


def _numa_nodes(sysroot: Path) -> int:
    """Nodes that have CPUs; a node of memory alone (CXL, HBM, a GPU's) is not a place for threads."""
    nodes = numbered(under(sysroot, "/sys/devices/system/node"), r"node(\d+)")
    return sum(1 for _, folder in nodes if cpu_list(text(folder / "cpulist"))) or 1


def cpu(sysroot: Path, architecture: str) -> tuple[Cpu, list[ProbeNote]]:
    """The processor of a Linux machine (`lscpu`)."""
    notes: list[ProbeNote] = []
    # The first record has all that we need; on hundreds of cores the whole file takes the kernel many ms.
    head = text(under(sysroot, "/proc/cpuinfo"), 16 * _KIB) or ""
    info = fields(head)
    isa = isa_of((info.get("flags") or info.get("Features") or "").split())
    topology = _topology(sysroot)
    if not topology:
        from os import cpu_count

        notes.append(
            ProbeNote(
                probe="cpu", reason="neither /proc/cpuinfo nor sysfs lists the cores", unlock="--cpu-cores"
            )
        )
        topology = {number: (0, number) for number in range(cpu_count() or 1)}
    if not isa:
        reason = "/proc/cpuinfo lists no vector instructions known to llama.cpp"
        notes.append(ProbeNote(probe="cpu", reason=reason, unlock="--cpu-isa"))
    physical = len(set(topology.values()))
    fast = _performance_cpus(sysroot)
    performance = len({topology[number] for number in fast if number in topology}) if fast else None
    allowed = cpu_list(fields(text(under(sysroot, "/proc/self/status"))).get("Cpus_allowed_list"))
    usable = len({place for number, place in topology.items() if number in allowed}) if allowed else physical
    quota = limits.cpu_quota(sysroot)
    if quota is not None:
        usable = min(usable, max(1, int(quota)))
    known: dict[str, Source] = dict.fromkeys(("name", "physical_cores", "logical_cores", "isa"), "probe")
    return (
        Cpu(
            name=_cpu_name(info),
            architecture=architecture,
            physical_cores=physical,
            performance_cores=performance,
            logical_cores=len(topology),
            usable_cores=usable if 0 < usable < physical else None,
            sockets=len({package for package, _ in topology.values()}),
            numa_nodes=_numa_nodes(sysroot),
            isa=isa,
            sources=known,
        ),
        notes,
    )


def ram(sysroot: Path) -> tuple[Ram, list[ProbeNote]]:
    """The memory of a Linux machine, with every limit on it (`free -b`, `dmidecode -t memory`)."""
    info = fields(text(under(sysroot, "/proc/meminfo")))

    def size(key: str) -> int | None:
        word = info.get(key, "").split()[:1]
        return int(word[0]) * _KIB if word and word[0].isdigit() else None

    total, available = size("MemTotal"), size("MemAvailable")
    notes: list[ProbeNote] = []
    if total is None:
        total = available = 0
        reason = "/proc/meminfo cannot be read; the memory counts as 0"
        notes.append(ProbeNote(probe="memory", reason=reason, unlock="--ram SIZE"))
    if available is None:  # kernels before 3.14
        available = min(total, sum(size(key) or 0 for key in ("MemFree", "Buffers", "Cached")))
    bounds = limits.memory_limits(sysroot, total, available)
    swap_total, swap_free = size("SwapTotal") or 0, size("SwapFree") or 0
    swap_limit = limits.swap_limit_bytes(sysroot)
    if swap_limit is not None:
        swap_total, swap_free = min(swap_total, swap_limit), min(swap_free, swap_limit)
    sources: dict[str, Source] = dict.fromkeys(("total_bytes", "available_bytes", "memlock_bytes"), "probe")
    modules = dmi.read(sysroot)
    kind = speed = channels = bandwidth = None
    if isinstance(modules, ProbeNote):
        notes.append(modules)
    else:
        kind, speed, channels = modules.type, modules.speed_mt_s, modules.channels
        sources |= dict.fromkeys(("type", "speed_mt_s", "channels"), "probe")
        if channels is None:
            reason = f"the names of the {modules.modules} slots do not tell the channels"
            notes.append(
                ProbeNote(probe="memory channels", reason=reason, unlock="--ram-channels N, or measure")
            )
        else:
            bandwidth = peak_bytes_per_s(speed, channels)
            sources["bandwidth_bytes_per_s"] = "modelled"
    return (
        Ram(
            total_bytes=total,
            available_bytes=limits.available_bytes(available, bounds),
            swap_total_bytes=swap_total,
            swap_free_bytes=swap_free,
            memlock_bytes=limits.memlock_bytes(sysroot),
            limits=bounds,
            type=kind,
            speed_mt_s=speed,
            channels=channels,
            bandwidth_bytes_per_s=bandwidth,
            sources=sources,
        ),
        notes,
    )


def portable_ram() -> Ram:
    """The memory where there is no /proc (macOS, Windows)."""
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Ram(
        total_bytes=memory.total,
        available_bytes=memory.available,
        swap_total_bytes=swap.total,
        swap_free_bytes=swap.free,
        sources={"total_bytes": "probe", "available_bytes": "probe"},
    )


def portable_cpu(architecture: str, name: str | None, performance_cores: int | None) -> Cpu:
    """The processor where there is no /proc. Apple's have NEON and dot products since the M1."""
    import psutil

    logical = psutil.cpu_count() or 1
    arm = architecture in ("arm64", "aarch64")
    sources: dict[str, Source] = {"physical_cores": "probe", "logical_cores": "probe"}
    if arm and sys.platform == "darwin":
        sources["isa"] = "assumed"
    return Cpu(
        name=name,
        architecture=architecture,
        physical_cores=psutil.cpu_count(logical=False) or logical,
        performance_cores=performance_cores,
        logical_cores=logical,
        isa=("neon", "dotprod") if arm and sys.platform == "darwin" else (),
        sources=sources,
    )
