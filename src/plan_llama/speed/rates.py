"""What a machine can deliver: a card's bandwidth, arithmetic and link, and the host's memory and cores.

What is unknown is assumed, said, and widens the range of the estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from plan_llama.hardware.types import Machine
from plan_llama.memory.repack import interleaved_types
from plan_llama.memory.types import Settings
from plan_llama.speed.constants import Constants, Family

_UNKNOWN_ISA = ("avx2",)
_PINNED = ("none", "dio")  # load modes whose host weights lie in the driver's pinned memory
# Types whose products with many rows go tile by tile on x86 (ggml_tiled_supported, ggml-cpu/tiled/tiled.cpp, b11434).
_TILED = frozenset(
    {"q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_xs", "iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs", "iq2_s"}
    | {"iq1_s", "iq1_m"}
)
_X86 = frozenset({"avx", "avx2", "avx512", "avx512_vnni", "amx"})


@dataclass(slots=True)
class Assumptions:
    """What was assumed, and by what factor each assumption may be off."""

    texts: list[str] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)

    def add(self, text: str, factor: float) -> None:
        """Note an assumption once."""
        if text not in self.texts:
            self.texts.append(text)
            self.factors.append(factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRates:
    """One card: peaks in bytes and flops per second."""

    bandwidth: float
    flops: float
    family: Family


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """The CPU side: bytes per second that weights are read with, and its cores in units of one AVX2 core.

    `interleaved` types are read as fast as llama.cpp's interleaved ones: those that it interleaves, and with
    ik_llama.cpp's own kernels the same without that. `tiled` are those whose experts are multiplied tile by tile where
    many rows chose one.
    """

    ram: float
    cores_decode: float
    cores_prefill: float
    disk: float
    threads: int = 1
    interleaved: frozenset[str] = frozenset()
    own_kernels: bool = False  # ik_llama.cpp's
    tiled: frozenset[str] = frozenset()
    vnni: bool = False  # 8-bit dot products of AVX-512


def gpu_rates(machine: Machine, index: int, k: Constants, said: Assumptions) -> GpuRates:
    """What card `index` delivers. Unknown peaks fall back to the profile's assumptions."""
    gpu = machine.gpus[index]
    shared = gpu.integrated or machine.unified
    bandwidth = gpu.bandwidth_bytes_per_s
    if bandwidth is None and shared:
        bandwidth = ram_peak(machine, k, said)
    if bandwidth is None:
        bandwidth = k.assumed["gpu_bandwidth_bytes_per_s"]
        said.add(
            f"memory bandwidth of {gpu.name} unknown: {bandwidth / 1e9:.0f} GB/s assumed", k.widen["gpu"]
        )
    flops = gpu.fp16_flops_per_s
    if flops is None:
        flops = k.assumed["gpu_flops_per_byte"] * bandwidth
        said.add(f"arithmetic rate of {gpu.name} unknown: {flops / 1e12:.0f} TFLOP/s assumed", k.widen["gpu"])
    if gpu.sources.get("bandwidth_bytes_per_s") == "assumed":
        said.add(f"memory bandwidth of {gpu.name} assumed: {bandwidth / 1e9:.0f} GB/s", k.widen["gpu"])
    return GpuRates(bandwidth=bandwidth, flops=flops, family=k.family(gpu, machine.unified))


def link_rate(machine: Machine, index: int, settings: Settings, k: Constants, said: Assumptions) -> float:
    """Bytes per second that card `index` gets from host memory; a card that shares the memory reads it
    directly."""
    gpu = machine.gpus[index]
    if gpu.integrated or machine.unified:
        return gpu.bandwidth_bytes_per_s or ram_peak(machine, k, said)
    # A mapped file is pageable: one thread of the driver copies it to a pinned buffer first, however fast the link.
    pinned = settings.load_mode in _PINNED
    if gpu.link_bytes_per_s is not None:
        return gpu.link_bytes_per_s if pinned else min(gpu.link_bytes_per_s, k.link_pageable_bytes_per_s)
    generation, width = gpu.pcie_gen, gpu.pcie_width
    if generation is None or width is None:
        generation = int(k.assumed["pcie_gen"]) if generation is None else generation
        width = int(k.assumed["pcie_width"]) if width is None else width
        said.add(f"PCIe link of {gpu.name} unknown: {generation}.0 x{width} assumed", k.widen["link"])
    best = max(k.link_bytes_per_s, key=int)
    lane = k.link_bytes_per_s.get(str(generation), k.link_bytes_per_s[best])
    rate = lane * width * k.link_pinned
    return rate if pinned else min(rate, k.link_pageable_bytes_per_s)


def ram_peak(machine: Machine, k: Constants, said: Assumptions) -> float:
    """Bytes per second that the memory can deliver to the CPU of one socket, before any efficiency.

    Two sockets are charged as one: a thread reads half of its weights over the link between them.
    """
    ram, cpu = machine.ram, machine.cpu
    sockets = max(1, cpu.sockets)
    if ram.bandwidth_bytes_per_s is not None:
        if ram.sources.get("bandwidth_bytes_per_s") == "assumed":
            said.add(f"RAM bandwidth assumed: {ram.bandwidth_bytes_per_s / 1e9:.0f} GB/s", k.widen["ram"])
        return ram.bandwidth_bytes_per_s / sockets
    speed = ram.speed_mt_s
    missing = [name for name, value in (("channels", ram.channels), ("speed", speed)) if value is None]
    if speed is None:
        old = (ram.type or "").upper().endswith("DDR4")
        speed = int(k.assumed["ddr4_mt_s" if old else "ddr5_mt_s"])
    peak = 8e6 * speed * _channels(machine, k)
    if missing:
        factor = k.widen["ram" if len(missing) == 2 else "ram_partly"]
        said.add(f"RAM {' and '.join(missing)} unknown: {peak / 1e9:.0f} GB/s assumed", factor)
    return peak


def _channels(machine: Machine, k: Constants) -> float:
    """Channels of one socket's memory, where unknown as its cores suggest."""
    if machine.ram.channels is not None:
        return machine.ram.channels / max(1, machine.cpu.sockets)
    server = _cores_per_socket(machine) > k.assumed["desktop_cores"]
    return k.assumed["server_channels" if server else "desktop_channels"]


def _ram_share(machine: Machine, k: Constants) -> float:
    """What of the memory's peak the cores get: two channels are filled better than many. A peak that is stated without
    its channels is taken for one of many."""
    if machine.ram.sources.get("bandwidth_bytes_per_s") == "measured":
        return k.ram_measured
    known = machine.ram.channels is not None or machine.ram.bandwidth_bytes_per_s is None
    return k.ram_peak_two if known and _channels(machine, k) <= 2 else k.ram_peak


def _cores_per_socket(machine: Machine) -> int:
    cpu = machine.cpu
    return max(1, (cpu.performance_cores or cpu.physical_cores) // max(1, cpu.sockets))


def host_rates(
    machine: Machine, settings: Settings, k: Constants, said: Assumptions, *, engine: str, repacked: bool
) -> HostRates:
    """What the CPU side delivers: the cores that count are the threads given, at most those of one socket."""
    peak = ram_peak(machine, k, said)
    measured = machine.ram.sources.get("bandwidth_bytes_per_s") == "measured"
    one = machine.ram.thread_bytes_per_s if measured else None
    cores = _cores_per_socket(machine)
    if machine.cpu.usable_cores:
        cores = min(cores, machine.cpu.usable_cores)
    isa_decode, isa_prefill = k.isa_factors(machine.cpu)
    if machine.cpu.sockets > 1:
        said.add(f"{machine.cpu.sockets} sockets counted as one", k.widen["sockets"])
    if not machine.cpu.isa:
        said.add("CPU instruction set unknown: AVX2 assumed", k.widen["isa"])
    own_kernels = engine == "ik_llama.cpp"
    own_layouts = repacked and own_kernels
    decode_cores = min(cores, settings.threads or cores)
    prefill_cores = min(cores, settings.threads_batch or settings.threads or cores)
    if one is not None:  # few threads do not keep the memory busy
        peak = min(peak, one * decode_cores)
    isa = machine.cpu.isa or _UNKNOWN_ISA
    interleaved = interleaved_types(isa) if repacked or own_kernels else frozenset()
    return HostRates(
        ram=peak * _ram_share(machine, k),
        cores_decode=max(1, decode_cores) ** k.cores_exponent
        * isa_decode
        * k.engine_core_decode.get(engine, 1.0)
        * (k.repacked_core_decode if own_layouts else 1.0),
        cores_prefill=max(1, prefill_cores) ** k.cores_exponent
        * isa_prefill
        * k.engine_core_prefill.get(engine, 1.0)
        * (k.repacked_core_prefill if own_layouts else 1.0),
        disk=disk_rate(machine, k),
        threads=max(1, decode_cores),
        own_kernels=own_kernels,
        interleaved=interleaved,
        vnni=bool({"avx512_vnni", "amx"}.intersection(isa)),
        tiled=frozenset() if own_kernels or not _X86.intersection(isa) else _TILED - interleaved,
    )


def disk_rate(machine: Machine, k: Constants) -> float:
    """Bytes per second that the model's drive is read with; by its kind where nobody measured it."""
    if machine.disk and machine.disk.read_bytes_per_s:
        return machine.disk.read_bytes_per_s
    return k.disk_bytes_per_s[machine.disk.kind if machine.disk else "unknown"]


def widened(spread: float, factors: Iterable[float]) -> float:
    """One factor for several independent uncertainties (their logarithms add in quadrature)."""
    from math import exp, log

    return exp(sum(log(f) ** 2 for f in (spread, *factors)) ** 0.5)
