"""AMD GPUs from the kernel: amdgpu's sysfs (Documentation/gpu/amdgpu) and KFD's topology. No ROCm needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plan_llama.hardware import gpu_table, nvml
from plan_llama.hardware.sysfs import fields, integer, numbered, text, under
from plan_llama.hardware.types import Gpu, ProbeNote, Ram, Source
from plan_llama.units import gib

VENDOR_ID = 0x1002
_GEN_BY_GT_S = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}
# A desktop CPU's display block has 1 or 2 compute units (4 SIMDs); from 8 units on it is worth computing on.
_FEWEST_SIMDS = 16

NameReader = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A GPU node of KFD: what ROCm sees."""

    gfx_target: str | None
    simds: int | None


def gfx_name(version: int) -> str | None:
    """LLVM's target of KFD's number: 110000 is gfx1100, 90010 is gfx90a (the stepping is hexadecimal)."""
    if version <= 0:
        return None
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _kfd(sysroot: Path) -> dict[str, _Node]:
    """KFD's GPU nodes by PCI address. CPUs are nodes with gpu_id 0."""
    found: dict[str, _Node] = {}
    for _, folder in numbered(under(sysroot, "/sys/class/kfd/kfd/topology/nodes"), r"(\d+)"):
        properties = fields(text(folder / "properties"), " ")

        def number(key: str, of: dict[str, str] = properties) -> int:
            return int(of[key]) if of.get(key, "").isdigit() else 0

        if not integer(folder / "gpu_id"):
            continue
        location = number("location_id")  # bus << 8 | device << 3 | function
        address = (
            f"{number('domain'):04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
        )
        found[address] = _Node(
            gfx_target=gfx_name(number("gfx_target_version")), simds=number("simd_count") or None
        )
    return found


def _link(device: Path, prefix: str) -> tuple[int | None, int | None]:
    """(generation, width) of `16.0 GT/s PCIe` and `16`; 0 or `Unknown` is None."""
    speed = (text(device / f"{prefix}_link_speed", 64) or "").split()
    width = integer(device / f"{prefix}_link_width")
    return _GEN_BY_GT_S.get(speed[0]) if speed else None, width if width and width <= 16 else None


def _binding_link(device: Path) -> tuple[int | None, int | None]:
    """The link that binds: the card's best, narrowed by every bridge above it.

    Cards since Vega 10 sit behind two bridges of their own and report the inner link, which is always wide;
    what the slot gives is the link of a bridge further up. An idle link lowers its generation, not its width.
    """
    gen, width = _link(device, "max")
    now_gen, now_width = _link(device, "current")
    widths, gens = [width, now_width], [gen]
    for folder in device.resolve().parents:
        if (folder / "current_link_speed").exists():
            gens.append(_link(folder, "max")[0])
            widths.append(_link(folder, "current")[1])
    known_gens, known_widths = [value for value in gens if value], [value for value in widths if value]
    return min(known_gens, default=now_gen), min(known_widths, default=None)


def pyamdgpuinfo_name(pci_address: str) -> str | None:
    """The marketing name from pyamdgpuinfo (the extra `amd`, which the user installs), None without it."""
    try:
        import pyamdgpuinfo

        for index in range(pyamdgpuinfo.detect_gpus()):
            gpu = pyamdgpuinfo.get_gpu(index)
            if pci_address and pci_address in str(gpu.pci_slot):
                return str(gpu.name) if gpu.name else None
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None
    return None


def rocm_version(sysroot: Path) -> str | None:
    """The installed ROCm (`cat /opt/rocm/.info/version`)."""
    return text(under(sysroot, "/opt/rocm/.info/version"), 64) or None


def _permission_note(sysroot: Path) -> ProbeNote | None:
    """A device node that is there but closed to this user is why ROCm or Vulkan find no card."""
    nodes = [under(sysroot, "/dev/kfd")]
    nodes += [path for _, path in numbered(under(sysroot, "/dev/dri"), r"renderD(\d+)")]
    closed = [node for node in nodes if node.exists() and not os.access(node, os.R_OK | os.W_OK)]
    if not closed:
        return None
    names = ", ".join("/" + str(node.relative_to(sysroot)) for node in closed)
    unlock = "sudo usermod -aG render,video $USER, then log in again"
    return ProbeNote(
        probe="amd", reason=f"no permission for {names}: the GPU cannot be used by this user", unlock=unlock
    )


def _is_apu(facts: gpu_table.GpuFacts | None, device: Path) -> bool:
    """Whether the GPU sits in the processor: the table says so, or amdgpu knows no maker of its memory
    chips.
    """
    if facts is not None:
        return facts.unified
    return text(device / "mem_info_vram_vendor", 64) in (None, "unknown")


def _shared_memory(device: Path, vram: int, vram_free: int, ram: Ram) -> tuple[int, int] | None:
    """(total, free) of an APU that shares the RAM: its small carve-out and GTT, the RAM that it may map.

    None where the firmware keeps more for the GPU than GTT adds: that carve-out is a memory of its own.
    """
    gtt = integer(device / "mem_info_gtt_total")
    if gtt is None or gtt < vram:
        return None
    gtt_free = min(gtt - (integer(device / "mem_info_gtt_used") or 0), ram.available_bytes)
    return vram + gtt, vram_free + max(0, gtt_free)


def _card(
    device: Path,
    ram: Ram,
    nodes: Mapping[str, _Node],
    read_name: NameReader,
    notes: list[ProbeNote],
) -> Gpu | None:
    device_id, revision = integer(device / "device") or 0, integer(device / "revision")
    pci_id = f"1002:{device_id:04x}"
    address = fields(text(device / "uevent"), "=").get("PCI_SLOT_NAME", "")
    node = nodes.get(address)
    vram = integer(device / "mem_info_vram_total")
    if vram is None:
        reason = f"AMD GPU [{pci_id}] has no mem_info_vram_total: the driver is not amdgpu"
        notes.append(ProbeNote(probe="amd", reason=reason, unlock="modprobe amdgpu, or --gpu NAME"))
        return None
    facts = gpu_table.by_pci_id(pci_id, memory_bytes=vram) or gpu_table.by_pci_id(pci_id)
    read = read_name(address) if facts is None else None
    if facts is None and read:
        facts = gpu_table.lookup(read, vendor="amd", memory_bytes=vram) or gpu_table.lookup(
            read, vendor="amd"
        )
    name = facts.name if facts else read or f"AMD GPU [{pci_id}]"
    apu = _is_apu(facts, device)
    if apu and facts is None and (node is None or (node.simds or 0) < _FEWEST_SIMDS):
        reason = f"{name} is the processor's small display GPU; plans leave it out"
        notes.append(ProbeNote(probe="amd", reason=reason, unlock="--gpu NAME --unified plans with it"))
        return None
    total, free = vram, max(0, vram - (integer(device / "mem_info_vram_used") or 0))
    shared = _shared_memory(device, vram, free, ram) if apu else None
    if shared:
        total, free = shared
    elif apu:
        reason = f"the firmware keeps {gib(vram)} for {name} alone: planned as a card of its own"
        unlock = "the smallest UMA frame buffer in the firmware, and ttm.pages_limit, make it one pool"
        notes.append(ProbeNote(probe="amd", reason=reason, unlock=unlock))
    gen, width = (None, None) if apu else _binding_link(device)
    now = (None, None) if apu else _link(device, "current")
    if facts is None:
        reason = f"no data sheet for {name} (revision {revision or 0:#x}): its speed is unknown"
        unlock = "pip install plan-llama[amd] reads the name; or a row with pci_ids in your profiles"
        notes.append(ProbeNote(probe="gpu table", reason=reason, unlock=unlock))
    # /sys/class/drm holds the connectors of a card beside it: card0-DP-1, card0-HDMI-A-1.
    connectors = device.parent.parent.glob(f"{device.parent.name}-*")
    connected = any(text(connector / "status", 32) == "connected" for connector in connectors)
    known: dict[str, Source] = dict.fromkeys(("total_bytes", "free_bytes", "display"), "probe")
    known["name"] = "catalog" if facts else "probe"
    known |= dict.fromkeys(("pcie_gen", "pcie_width"), "probe") if gen and width else {}
    known |= {"gfx_target": "probe"} if node and node.gfx_target else {}
    gpu = Gpu(
        name=name,
        vendor="amd",
        backend="rocm",
        integrated=shared is not None,
        total_bytes=total,
        free_bytes=min(free, total),
        uuid=text(device / "unique_id", 64),
        pci_bus_id=address or None,
        gfx_target=node.gfx_target if node else None,
        pcie_gen=gen,
        pcie_width=width,
        pcie_gen_now=now[0],
        pcie_width_now=now[1],
        driver="amdgpu",
        display=connected,
        sources=known,
    )
    return gpu_table.fill(gpu, facts)


def gpus(
    ram: Ram, *, sysroot: Path, environment: Mapping[str, str], read_name: NameReader = pyamdgpuinfo_name
) -> tuple[list[Gpu], list[ProbeNote]]:
    """The AMD GPUs worth computing on, in PCI order; small display GPUs and closed device nodes become
    notes.
    """
    notes: list[ProbeNote] = []
    nodes: dict[str, _Node] | None = None
    found: list[Gpu] = []
    for _, card in numbered(under(sysroot, "/sys/class/drm"), r"card(\d+)"):
        device = card / "device"
        if integer(device / "vendor") != VENDOR_ID:
            continue
        nodes = _kfd(sysroot) if nodes is None else nodes
        gpu = _card(device, ram, nodes, read_name, notes)
        if gpu is not None:
            found.append(gpu)
    found.sort(key=lambda gpu: gpu.pci_bus_id or "")
    if nodes is not None and (note := _permission_note(sysroot)):
        notes.append(note)
    if found and not nodes:
        reason = "KFD lists no GPU (/dev/kfd): ROCm will not see the card, Vulkan may"
        notes.append(
            ProbeNote(
                probe="amd",
                reason=reason,
                unlock="a kernel with CONFIG_HSA_AMD, or --device=/dev/kfd in a container",
            )
        )
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        found, said = nvml.visible(found, environment, variable)
        notes += said
    return found, notes
