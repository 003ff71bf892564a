"""CPU, memory and their limits from captured trees. tests/captures/README.md says how each came about."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from plan_llama.hardware import dmi, host, limits
from plan_llama.hardware.types import ProbeNote
from tests.unit.hardware.support import CAPTURES, GIB, KIB

# physical, performance, logical, usable, sockets, NUMA nodes: Intel ARK and AMD's product pages.
CPUS = {
    "ryzen-7950x-rx7900xtx": (16, None, 32, None, 1, 1),
    "strix-halo-128": (16, None, 32, None, 1, 1),
    "i7-13700k-hybrid": (16, 8, 24, None, 1, 1),
    "xeon-4509y-2s": (16, None, 32, None, 2, 2),
    "docker-cgroup-v2": (16, None, 32, 6, 1, 1),  # cpu.max 600000 100000
    "slurm-cgroup-v1": (16, None, 32, 8, 2, 2),  # allowed on the CPUs of one socket
    "wsl2-laptop": (7, None, 14, None, 1, 1),
    "real-epyc-vm-2": (2, None, 2, None, 1, 1),
}
# What llama.cpp's documentation and AMD's and Intel's instruction set references give these processors.
ISA = {
    "ryzen-7950x-rx7900xtx": "avx2 f16c fma bmi2 avx512 avx512_vbmi avx512_vnni avx512_bf16",
    "strix-halo-128": "avx2 f16c fma bmi2 avx512 avx512_vbmi avx512_vnni avx512_bf16 avx_vnni",
    "i7-13700k-hybrid": "avx2 f16c fma bmi2 avx_vnni",
    "xeon-4509y-2s": "avx2 f16c fma bmi2 avx512 avx512_vbmi avx512_vnni avx512_bf16 avx_vnni amx",
}


@pytest.mark.parametrize("machine", CPUS)
def test_cores_of_captured_machines(machine: str) -> None:
    cpu, notes = host.cpu(CAPTURES / machine, "x86_64")
    found = (
        cpu.physical_cores,
        cpu.performance_cores,
        cpu.logical_cores,
        cpu.usable_cores,
        cpu.sockets,
        cpu.numa_nodes,
    )
    assert found == CPUS[machine]
    assert notes == []


@pytest.mark.parametrize("machine", ISA)
def test_instruction_sets_by_the_names_of_llama_cpp(machine: str) -> None:
    assert host.cpu(CAPTURES / machine, "x86_64")[0].isa == tuple(ISA[machine].split())


def test_arm_has_its_own_words_and_two_kinds_of_cores(tmp_path: Path) -> None:
    """As a GB10 shows itself: ten Cortex-X925 and ten Cortex-A725, no model name, no core ids in cpuinfo."""
    records = "".join(
        f"processor\t: {n}\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd evtstrm aes sha1 crc32 atomics fphp "
        f"asimdhp asimdrdm asimddp sve i8mm bf16\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU part\t: {'0xd85' if n % 10 < 5 else '0xd87'}\nCPU revision\t: 1\n\n"
        for n in range(20)
    )
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(records)
    for n in range(20):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{n}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/core_id").write_text(f"{n}\n")
        (folder / "topology/physical_package_id").write_text("0\n")
        (folder / "cpu_capacity").write_text("1024\n" if n % 10 < 5 else "718\n")
    cpu, _ = host.cpu(tmp_path, "aarch64")
    assert (cpu.physical_cores, cpu.performance_cores, cpu.logical_cores) == (20, 10, 20)
    assert cpu.isa == ("neon", "dotprod", "i8mm", "sve")
    assert cpu.name == "ARM implementer 0x41 part 0xd85"


def test_memory_of_a_desktop_is_what_the_kernel_has_available() -> None:
    ram, notes = host.ram(CAPTURES / "ryzen-7950x-rx7900xtx")
    assert (ram.total_bytes, ram.available_bytes) == (65011712 * KIB, 55811204 * KIB)
    assert (ram.swap_total_bytes, ram.swap_free_bytes) == (8388604 * KIB, 8388604 * KIB)
    assert ram.memlock_bytes == 8 * 1024**2
    assert ram.limits == ()
    assert [note.probe for note in notes] == ["memory type"]


def test_a_container_leaves_its_limit_less_what_it_uses_without_page_cache() -> None:
    ram, _ = host.ram(CAPTURES / "docker-cgroup-v2")
    (limit,) = ram.limits
    assert (limit.kind, limit.where) == ("cgroup v2 memory.max", "/sys/fs/cgroup/memory.max")
    assert limit.limit_bytes == 32 * GIB
    # memory.current is 5 GiB, of which 3 GiB are inactive page cache.
    assert limit.used_bytes == 2 * GIB
    assert ram.available_bytes == 30 * GIB
    assert ram.total_bytes == 131811204 * KIB
    assert ram.swap_free_bytes == 0  # memory.swap.max is 0


def test_cgroup_v1_binds_at_its_tightest_level_and_knows_unlimited() -> None:
    ram, _ = host.ram(CAPTURES / "slurm-cgroup-v1")
    assert [limit.limit_bytes for limit in ram.limits] == [64 * GIB, 128 * GIB]
    # The step uses 20 GiB, of which 10 GiB are inactive page cache: 54 GiB are left.
    assert ram.available_bytes == 54 * GIB
    assert ram.memlock_bytes is None


def test_a_container_without_a_cgroup_namespace_finds_its_files(tmp_path: Path) -> None:
    """The path of /proc/self/cgroup is the host's, the mount shows the container's part of the tree only."""
    (tmp_path / "proc/self").mkdir(parents=True)
    place = "/system.slice/docker-0123.scope"
    (tmp_path / "proc/self/cgroup").write_text(f"0::{place}\n")
    mount = f"1216 1215 0:28 {place} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(mount)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, value in (("memory.max", 8 * GIB), ("memory.high", 6 * GIB), ("memory.current", GIB)):
        (group / name).write_text(f"{value}\n")
    found = limits.memory_limits(tmp_path, 64 * GIB, 60 * GIB)
    assert [limit.limit_bytes for limit in found] == [8 * GIB, 6 * GIB]
    assert limits.available_bytes(60 * GIB, found) == 5 * GIB
    assert limits.container(tmp_path) == "docker"


def test_wsl_says_what_limits_it_and_where() -> None:
    ram, _ = host.ram(CAPTURES / "wsl2-laptop")
    (limit,) = ram.limits
    assert limit.kind == "wsl2"
    assert ".wslconfig" in limit.where
    assert ram.available_bytes == 15011204 * KIB


def test_address_space_limit_binds(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    line = f"{'Max address space':<25} {16 * GIB:<20} {'unlimited':<20} bytes\n"
    (tmp_path / "proc/self/limits").write_text(line)
    assert limits.available_bytes(60 * GIB, limits.memory_limits(tmp_path, 64 * GIB, 60 * GIB)) == 16 * GIB


def test_root_may_lock_beyond_the_limit() -> None:
    assert limits.memlock_bytes(CAPTURES / "xeon-4509y-2s") is None
    assert limits.memlock_bytes(CAPTURES / "i7-13700k-hybrid") == 8 * 1024**2


def test_real_machine_without_limits() -> None:
    """cgroup v1 with LONG_MAX rounded to pages everywhere, read from a real virtual machine."""
    ram, notes = host.ram(CAPTURES / "real-epyc-vm-2")
    assert ram.limits == ()
    assert ram.total_bytes == 24684092 * KIB
    assert "SMBIOS" in notes[0].reason


def test_an_empty_tree_gives_notes_and_no_exception(tmp_path: Path) -> None:
    ram, ram_notes = host.ram(tmp_path)
    cpu, cpu_notes = host.cpu(tmp_path, "x86_64")
    assert (ram.total_bytes, ram.available_bytes) == (0, 0)
    assert cpu.physical_cores >= 1
    assert {note.probe for note in (*ram_notes, *cpu_notes)} == {"memory", "memory type", "cpu"}


def smbios_memory(slot: str, bank: str, *, kind: int, speed: int, size_mib: int, bits: int = 64) -> bytes:
    """A type 17 structure of SMBIOS 3.2 (DSP0134, 7.18), 84 bytes formatted."""
    area = bytearray(84)
    area[0:4] = struct.pack("<BBH", 17, 84, 0x11)
    struct.pack_into("<HH", area, 0x08, bits, bits)
    struct.pack_into("<H", area, 0x0C, min(32767, size_mib))
    area[0x10], area[0x11], area[0x12] = 1, 2, kind
    struct.pack_into("<H", area, 0x15, speed)
    struct.pack_into("<I", area, 0x1C, size_mib)
    struct.pack_into("<H", area, 0x20, speed)
    return bytes(area) + slot.encode() + b"\0" + bank.encode() + b"\0\0"


END = bytes((127, 4, 0, 0, 0, 0))


AM5 = [("DIMM 0", "P0 CHANNEL A"), ("DIMM 1", "P0 CHANNEL A"), ("DIMM 0", "P0 CHANNEL B")]
INTEL = [("Controller0-ChannelA-DIMM0", "BANK 0"), ("Controller1-ChannelA-DIMM0", "BANK 0")]
SUPERMICRO = [(f"P1-DIMM{c}1", f"P0_Node0_Channel{n}_Dimm0") for n, c in enumerate("ABCDEFGHIJKL")]
ASUS = [("DIMM_A2", "BANK 1"), ("DIMM_B2", "BANK 3")]
UNNAMED = [("Top - Slot 1", "System"), ("Top - Slot 2", "System")]


@pytest.mark.parametrize(
    ("slots", "kind", "speed", "expected"),
    [
        (AM5, 0x22, 3600, ("DDR5", 3600, 2)),
        (INTEL, 0x22, 5600, ("DDR5", 5600, 2)),
        (SUPERMICRO, 0x22, 4800, ("DDR5", 4800, 12)),
        (ASUS, 0x1A, 3200, ("DDR4", 3200, 2)),
        (UNNAMED, 0x1A, 2667, ("DDR4", 2667, None)),
    ],
    ids=["am5", "intel", "supermicro", "asus", "unnamed"],
)
def test_modules_tell_type_speed_and_channels(
    slots: list[tuple[str, str]], kind: int, speed: int, expected: tuple[str, int, int | None]
) -> None:
    table = b"".join(
        smbios_memory(slot, bank, kind=kind, speed=speed, size_mib=32768) for slot, bank in slots
    )
    found = dmi.parse(table + END)
    assert found is not None
    assert (found.type, found.speed_mt_s, found.channels) == expected
    assert found.modules == len(slots)


def test_soldered_memory_counts_its_data_lines() -> None:
    """Eight packages of 32 bits are 256 bits: four channels of 64."""
    table = b"".join(
        smbios_memory(f"DIMM {n}", f"P0 CHANNEL {c}", kind=0x23, speed=8000, size_mib=16384, bits=32)
        for n, c in enumerate("ABCDEFGH")
    )
    found = dmi.parse(table + END)
    assert found is not None
    assert (found.type, found.channels) == ("LPDDR5", 4)


@pytest.mark.parametrize(
    ("kind", "speed", "size"), [(0x07, 0, 16384), (0x22, 0, 16384), (0x22, 5600, 0), (0x02, 4800, 16384)]
)
def test_nonsense_of_virtual_machines_is_not_believed(kind: int, speed: int, size: int) -> None:
    """QEMU states RAM at no speed, others leave the speed or the size empty."""
    assert dmi.parse(smbios_memory("DIMM 0", "", kind=kind, speed=speed, size_mib=size) + END) is None


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_cut_table_is_no_error(cut: int) -> None:
    table = b"".join(
        smbios_memory("DIMM 0", f"P0 CHANNEL {c}", kind=0x22, speed=5600, size_mib=1) for c in "AB"
    )
    found = dmi.parse(table[:cut])
    assert found is None or found.speed_mt_s == 5600


def test_a_readable_table_gives_the_bus_peak(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 65011712 kB\nMemAvailable: 60011712 kB\n")
    folder = tmp_path / "sys/firmware/dmi/tables"
    folder.mkdir(parents=True)
    modules = [
        smbios_memory("DIMM 1", f"P0 CHANNEL {c}", kind=0x22, speed=6000, size_mib=32768) for c in "AB"
    ]
    (folder / "DMI").write_bytes(b"".join(modules) + END)
    ram, notes = host.ram(tmp_path)
    assert ram.bandwidth_bytes_per_s == 96e9  # DDR5-6000 in two channels
    assert ram.sources["bandwidth_bytes_per_s"] == "modelled"
    assert notes == []
    assert not isinstance(dmi.read(tmp_path), ProbeNote)
