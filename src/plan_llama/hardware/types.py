"""Frozen facts about a machine. Unknown is None, never 0; `sources` says how each field is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

# How a number is known (design: provenance). "assumed" is always shown to the user.
Source = Literal["file", "catalog", "probe", "measured", "modelled", "assumed", "user"]
Vendor = Literal["nvidia", "amd", "intel", "apple", "unknown"]
Backend = Literal["cuda", "rocm", "vulkan", "metal", "sycl"]

_NO_SOURCES: Mapping[str, Source] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory of a card."""

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `bandwidth_bytes_per_s` and `fp16_flops_per_s` (dense) are peaks from the vendor's data sheet.

    `pcie_gen` × `pcie_width` is the link that binds: the best both ends can negotiate (an idle card reports a
    lower generation at the moment, which is kept in `pcie_gen_now`).
    """

    name: str
    vendor: Vendor = "unknown"
    backend: Backend = "cuda"
    integrated: bool = False  # shares the RAM: no memory of its own
    total_bytes: int
    free_bytes: int
    reserved_bytes: int = 0  # kept for something else by the user's wish (--reserve gpu0=4GiB)
    uuid: str | None = None
    pci_bus_id: str | None = None
    compute_capability: str | None = None  # "8.9"
    gfx_target: str | None = None  # "gfx1100"
    bandwidth_bytes_per_s: float | None = None
    fp16_flops_per_s: float | None = None
    pcie_gen: int | None = None
    pcie_width: int | None = None
    pcie_gen_now: int | None = None
    pcie_width_now: int | None = None
    link_bytes_per_s: float | None = None  # measured: what the card gets from pinned host memory
    driver: str | None = None
    display: bool | None = None  # a monitor hangs on it
    processes: tuple[GpuProcess, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=lambda: _NO_SOURCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Something that binds memory below what the machine has: a cgroup, WSL2's .wslconfig, …"""

    kind: str  # "cgroup v2", "wsl2", …
    limit_bytes: int
    used_bytes: int | None
    where: str  # the file or setting a user would change


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """System memory. `available_bytes` is already the least of what the kernel and every limit leave."""

    total_bytes: int
    available_bytes: int
    reserved_bytes: int = 0  # --reserve ram=24GiB
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    memlock_bytes: int | None = None  # RLIMIT_MEMLOCK; None = unlimited or not applicable (see sources)
    limits: tuple[Limit, ...] = ()
    type: str | None = None  # "DDR5"
    speed_mt_s: int | None = None
    channels: int | None = None
    bandwidth_bytes_per_s: float | None = None
    thread_bytes_per_s: float | None = None  # what one thread gets of a measured bandwidth
    sources: Mapping[str, Source] = field(default_factory=lambda: _NO_SOURCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor. Counts are of this machine (or container), over all sockets."""

    name: str | None = None
    architecture: str = "x86_64"
    physical_cores: int
    performance_cores: int | None = None  # physical ones, where the CPU has two kinds
    logical_cores: int
    usable_cores: int | None = None  # by affinity and cgroup quota, where fewer
    sockets: int = 1
    numa_nodes: int = 1
    isa: tuple[str, ...] = ()  # llama.cpp's names: avx2, f16c, fma, avx512, avx512_vnni, amx, neon, …
    sources: Mapping[str, Source] = field(default_factory=lambda: _NO_SOURCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The drive that holds (or will hold) the model."""

    path: str
    free_bytes: int | None = None
    total_bytes: int | None = None
    kind: Literal["nvme", "ssd", "hdd", "network", "unknown"] = "unknown"
    filesystem: str | None = None
    mount: str | None = None
    read_bytes_per_s: float | None = None
    sources: Mapping[str, Source] = field(default_factory=lambda: _NO_SOURCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledEngine:
    """An inference engine that is on the machine."""

    engine: Literal["llama.cpp", "ik_llama.cpp", "ollama", "vllm"]
    path: str
    version: str | None = None
    build: int | None = None  # llama.cpp's build number; 0 is one built without a number
    commit: str | None = None
    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # lines of --list-devices
    arguments: tuple[str, ...] = ()  # what its --help lists: "-fa,--flash-attn [on|off|auto]"
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNote:
    """What a probe could not find out, why, and what would unlock it."""

    probe: str
    reason: str
    unlock: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine, this one or a described one (`simulated`).

    `unified` is one pool: device and host bytes add up against `ram`.
    """

    name: str
    simulated: bool = False
    os: str = "linux"  # linux | darwin | windows
    wsl: bool = False
    container: str | None = None
    unified: bool = False
    gpus: tuple[Gpu, ...] = ()
    ram: Ram
    cpu: Cpu
    disk: Disk | None = None
    engines: tuple[InstalledEngine, ...] = ()
    rocm_version: str | None = None
    calibrated: str | None = None  # what of it was measured and when, in words
    notes: tuple[ProbeNote, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=lambda: _NO_SOURCES)
