"""GPUs: NVML replayed, AMD and Intel from captured sysfs, Apple's sysctl, and names of the table."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from plan_llama.errors import ProfileError
from plan_llama.hardware import amd, gpu_table, nvml, other_gpus
from plan_llama.hardware.types import Gpu, ProbeNote, Ram
from tests.unit.hardware.support import CAPTURES, GIB, MIB, FakeNvml, nvidia_card

pytestmark = pytest.mark.usefixtures("small_table")
RAM = Ram(total_bytes=128 * GIB, available_bytes=117 * GIB)
NONE = Path("/nonexistent")


def nvidia(fake: FakeNvml, **environment: str) -> tuple[list[Gpu], list[ProbeNote]]:
    return nvml.gpus(fake, RAM, sysroot=NONE, environment=environment)


def two_3090() -> FakeNvml:
    return FakeNvml(
        [
            nvidia_card("NVIDIA GeForce RTX 3090", 24576, 22110, "00000000:01:00.0", DisplayActive=1),
            nvidia_card("NVIDIA GeForce RTX 3090", 24576, 24140, "00000000:61:00.0", CurrPcieLinkWidth=4),
        ]
    )


def mixed() -> FakeNvml:
    return FakeNvml(
        [
            nvidia_card("NVIDIA GeForce RTX 3060", 12288, 11900, "00000000:01:00.0"),
            nvidia_card(
                "NVIDIA GeForce RTX 4090", 24564, 24000, "00000000:41:00.0", CudaComputeCapability=(8, 9)
            ),
        ]
    )


def test_two_cards_with_their_links_and_data_sheet() -> None:
    gpus, notes = nvidia(two_3090())
    first, second = gpus
    assert (first.pci_bus_id, second.pci_bus_id) == ("0000:01:00.0", "0000:61:00.0")
    # The driver keeps 300 MiB of each card: CUDA does not see them.
    assert (first.total_bytes, first.free_bytes) == (24276 * MIB, 22110 * MIB)
    assert (first.compute_capability, first.driver, first.display) == ("8.6", "580.95.05", True)
    # Idle cards lower the generation; the width is what the slot gives.
    assert (first.pcie_gen, first.pcie_width, first.pcie_gen_now) == (4, 16, 1)
    assert (second.pcie_gen, second.pcie_width) == (4, 4)
    assert first.bandwidth_bytes_per_s == 936.2e9
    assert (first.sources["total_bytes"], first.sources["bandwidth_bytes_per_s"]) == ("probe", "catalog")
    assert [note.reason for note in notes] == ["NVIDIA GeForce RTX 3090 runs on 4 of 16 PCIe lanes"]


def test_cards_of_one_name_are_told_apart_by_memory() -> None:
    card = nvidia_card("NVIDIA GeForce RTX 3060", 8192, 8000, "00000000:01:00.0")
    assert nvidia(FakeNvml([card]))[0][0].bandwidth_bytes_per_s == 240e9
    assert nvidia(mixed())[0][0].bandwidth_bytes_per_s == 360e9


def test_a_card_with_other_chips_soldered_on_keeps_its_bus() -> None:
    card = nvidia_card("NVIDIA GeForce RTX 2080 Ti", 22528, 22000, "00000000:01:00.0")
    (gpu,) = nvidia(FakeNvml([card]))[0]
    assert (gpu.total_bytes, gpu.bandwidth_bytes_per_s) == (22228 * MIB, 616e9)


@pytest.mark.parametrize("answers", [{"memory": (0, 0, 0)}, {}], ids=["zero", "not supported"])
def test_no_memory_of_its_own_means_unified(answers: dict[str, tuple[int, ...]]) -> None:
    """GB10 answers "not supported", Jetson 0: both share the system's memory."""
    card = {"Name": b"NVIDIA GB10", "UUID": b"GPU-1", "CudaComputeCapability": (12, 1), **answers}
    (gpu,), notes = nvidia(FakeNvml([card]))
    assert gpu.integrated
    assert (gpu.total_bytes, gpu.free_bytes) == (RAM.total_bytes, RAM.available_bytes)
    assert (gpu.name, gpu.compute_capability, gpu.pcie_gen) == ("NVIDIA GB10", "12.1", None)
    assert gpu.bandwidth_bytes_per_s == 273e9
    assert notes == []


def test_memory_of_an_old_driver() -> None:
    card = {"Name": "NVIDIA GeForce RTX 3090", "memory": (24 * GIB, 20 * GIB, 4 * GIB)}
    (gpu,), _ = nvidia(FakeNvml([card]))
    assert (gpu.total_bytes, gpu.free_bytes, gpu.integrated) == (24 * GIB, 20 * GIB, False)


def test_processes_are_named_where_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "proc/811").mkdir(parents=True)
    (tmp_path / "proc/811/comm").write_text("Xorg\n")
    card = nvidia_card("NVIDIA GeForce RTX 3090", 24576, 22000, "00000000:01:00.0")
    card["GraphicsRunningProcesses"] = [SimpleNamespace(pid=811, usedGpuMemory=412 * MIB)]
    card["ComputeRunningProcesses"] = [SimpleNamespace(pid=99, usedGpuMemory=None)]
    (gpu,), _ = nvml.gpus(FakeNvml([card]), RAM, sysroot=tmp_path, environment={})
    assert [(p.pid, p.name, p.used_bytes) for p in gpu.processes] == [
        (99, None, None),
        (811, "Xorg", 412 * MIB),
    ]


@pytest.mark.parametrize(
    ("written", "buses"),
    [
        ("1", ["0000:41:00.0"]),
        ("1,0", ["0000:41:00.0", "0000:01:00.0"]),
        ("0,7,1", ["0000:01:00.0"]),  # CUDA stops at the first that does not exist
        ("GPU-417c", ["0000:41:00.0"]),
        ("-1", []),
        ("", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does_and_said(written: str, buses: list[str]) -> None:
    gpus, notes = nvidia(mixed(), CUDA_VISIBLE_DEVICES=written)
    assert [gpu.pci_bus_id for gpu in gpus] == buses
    assert f"leaves {len(buses)} of 2 cards" in notes[-1].reason
    assert "fastest card first" in notes[-1].reason
    ordered = nvidia(mixed(), CUDA_VISIBLE_DEVICES=written, CUDA_DEVICE_ORDER="PCI_BUS_ID")[1]
    assert "fastest card first" not in ordered[-1].reason


def test_of_mig_instances_the_largest_counts() -> None:
    instances = [
        {"Name": "NVIDIA A100 80GB PCIe MIG 1g.10gb", "memory_v2": (10 * GIB, 0, 9 * GIB, GIB)},
        {"Name": "NVIDIA A100 80GB PCIe MIG 3g.40gb", "memory_v2": (40 * GIB, 0, 39 * GIB, GIB)},
    ]
    card = nvidia_card("NVIDIA A100 80GB PCIe", 81920, 80000, "00000000:01:00.0")
    card |= {"MigMode": (1, 1), "MaxMigDeviceCount": 7, "instances": instances}
    (gpu,), notes = nvidia(FakeNvml([card]))
    assert gpu.total_bytes == 40 * GIB
    assert "MIG" in notes[0].reason


def test_a_lost_card_is_a_note_and_the_rest_goes_on() -> None:
    lost = {"lost": True}
    good = nvidia_card("NVIDIA GeForce RTX 3090", 24576, 24000, "00000000:01:00.0")
    gpus, notes = nvidia(FakeNvml([lost, good]))
    assert len(gpus) == 1
    assert "GPU is lost" in notes[0].reason


def test_the_real_binding_has_what_is_asked_of_it() -> None:
    """The fake above answers any name: the names and the structure's version must be nvidia-ml-py's."""
    import pynvml

    source = Path(nvml.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"nvml(?:Device|System)[A-Z]\w+", source))
    assert len(names) > 15
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
    assert pynvml.nvmlMemory_v2 == nvml._MEMORY_V2


def test_without_a_driver_the_reason_is_told() -> None:
    found = nvml.load()
    assert isinstance(found, ProbeNote) or hasattr(found, "nvmlDeviceGetCount")


# --- AMD, Intel, Apple ---


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (110000, "gfx1100"),
        (90010, "gfx90a"),
        (110501, "gfx1151"),
        (90402, "gfx942"),
        (120001, "gfx1201"),
        (0, None),
    ],
)
def test_kfd_versions_as_llvm_targets(version: int, name: str | None) -> None:
    assert amd.gfx_name(version) == name


def test_a_radeon_beside_the_processors_display_gpu() -> None:
    gpus, notes = amd.gpus(
        RAM, sysroot=CAPTURES / "ryzen-7950x-rx7900xtx", environment={}, read_name=lambda _: None
    )
    (gpu,) = gpus
    assert (gpu.name, gpu.gfx_target, gpu.pci_bus_id) == ("AMD Radeon RX 7900 XTX", "gfx1100", "0000:03:00.0")
    assert (gpu.total_bytes, gpu.free_bytes) == (25753026560, 25753026560 - 1411203072)
    assert not gpu.integrated
    assert (gpu.pcie_gen, gpu.pcie_width, gpu.pcie_gen_now) == (4, 16, 1)
    assert gpu.display
    assert gpu.bandwidth_bytes_per_s == 960e9
    assert [note.reason for note in notes] == [
        "AMD GPU [1002:164e] is the processor's small display GPU; plans leave it out"
    ]


def test_an_apu_with_a_small_carve_out_shares_the_memory() -> None:
    (gpu,), notes = amd.gpus(
        RAM, sysroot=CAPTURES / "strix-halo-128", environment={}, read_name=lambda _: None
    )
    assert gpu.integrated
    assert (gpu.name, gpu.gfx_target) == ("AMD Radeon 8060S", "gfx1151")
    # 512 MiB of its own and the part of RAM that the kernel lets it map; free no more than RAM has.
    assert gpu.total_bytes == 536870912 + 125829120000
    assert gpu.free_bytes == 536870912 - 211203072 + min(125829120000 - 1120030720, RAM.available_bytes)
    assert gpu.pcie_gen is None
    assert notes == []


def copy_card(target: Path, **changes: str) -> Path:
    import shutil

    shutil.copytree(CAPTURES / "strix-halo-128", target)
    for name, value in changes.items():
        (target / "sys/class/drm/card1/device" / name).write_text(value + "\n")
    return target


def test_an_apu_with_a_large_carve_out_is_a_card_of_its_own(tmp_path: Path) -> None:
    root = copy_card(tmp_path / "a", mem_info_vram_total=str(96 * GIB), mem_info_gtt_total=str(15 * GIB))
    (gpu,), notes = amd.gpus(RAM, sysroot=root, environment={}, read_name=lambda _: None)
    assert (gpu.integrated, gpu.total_bytes) == (False, 96 * GIB)
    assert "96.0 GiB" in notes[0].reason


def test_an_unknown_card_is_named_by_its_id_or_by_pyamdgpuinfo(tmp_path: Path) -> None:
    root = copy_card(tmp_path / "a", device="0x9999", mem_info_vram_vendor="samsung")
    (gpu,), notes = amd.gpus(RAM, sysroot=root, environment={}, read_name=lambda _: None)
    assert gpu.name == "AMD GPU [1002:9999]"
    assert any("no data sheet" in note.reason for note in notes)
    (gpu,), _ = amd.gpus(RAM, sysroot=root, environment={}, read_name={"0000:c5:00.0": "Radeon Nova"}.get)
    assert gpu.name == "Radeon Nova"


def test_the_slot_binds_not_the_cards_inner_bridge(tmp_path: Path) -> None:
    """Navi cards report their inner link of 16 lanes; the bridge above has what the riser gives."""
    root = copy_card(tmp_path / "a", device="0x744c", mem_info_vram_total=str(24 * GIB))
    real = root / "sys/devices/bridge/card"
    real.parent.mkdir(parents=True)
    (root / "sys/class/drm/card1/device").rename(real)
    (root / "sys/class/drm/card1/device").symlink_to(real)
    for name, value in (
        ("current_link_speed", "8.0 GT/s PCIe"),
        ("max_link_speed", "8.0 GT/s PCIe"),
        ("current_link_width", "4"),
    ):
        (real.parent / name).write_text(value + "\n")
    (gpu,), _ = amd.gpus(RAM, sysroot=root, environment={}, read_name=lambda _: None)
    assert (gpu.pcie_gen, gpu.pcie_width) == (3, 4)


def test_a_closed_device_node_names_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_card(tmp_path / "a")
    (root / "dev/dri").mkdir(parents=True)
    (root / "dev/dri/renderD128").write_text("")
    monkeypatch.setattr(os, "access", lambda *_: False)
    _, notes = amd.gpus(RAM, sysroot=root, environment={}, read_name=lambda _: None)
    assert "/dev/dri/renderD128" in notes[0].reason
    assert "render,video" in notes[0].unlock


def test_rocm_version() -> None:
    assert amd.rocm_version(CAPTURES / "ryzen-7950x-rx7900xtx") == "6.4.3-128"
    assert amd.rocm_version(CAPTURES / "strix-halo-128") is None


def test_intel_graphics_are_named(tmp_path: Path) -> None:
    gpus, notes = other_gpus.intel(sysroot=CAPTURES / "i7-13700k-hybrid")
    assert gpus == []
    assert notes[0].reason.startswith("Intel GPU [8086:a780] (i915)")
    device = tmp_path / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    (device / "device").write_text("0xe20b\n")
    (device / "uevent").write_text("DRIVER=xe\nPCI_SLOT_NAME=0000:03:00.0\n")
    (gpu,), notes = other_gpus.intel(sysroot=tmp_path)
    assert (gpu.name, gpu.backend, gpu.total_bytes) == ("Intel Arc B580", "sycl", 12 * GIB)
    assert gpu.sources["free_bytes"] == "assumed"
    assert notes


def test_a_server_management_chip_is_no_gpu() -> None:
    root = CAPTURES / "xeon-4509y-2s"
    assert other_gpus.intel(sysroot=root) == ([], [])
    assert amd.gpus(RAM, sysroot=root, environment={}) == ([], [])


def test_apple_shares_what_metal_lets_it_have() -> None:
    ram = Ram(total_bytes=96 * GIB, available_bytes=80 * GIB)
    gpu = other_gpus.apple(ram, {"machdep.cpu.brand_string": "Apple M2 Max", "iogpu.wired_limit_mb": "0"}.get)
    assert gpu is not None
    assert (gpu.total_bytes, gpu.free_bytes, gpu.backend) == (72 * GIB, 72 * GIB, "metal")
    assert gpu.bandwidth_bytes_per_s == 400e9
    raised = other_gpus.apple(
        ram, {"machdep.cpu.brand_string": "Apple M2 Max", "iogpu.wired_limit_mb": "90000"}.get
    )
    assert raised is not None
    assert (raised.total_bytes, raised.free_bytes) == (90000 * MIB, 80 * GIB)
    assert other_gpus.apple(ram, {"machdep.cpu.brand_string": "Intel(R) Core(TM) i9"}.get) is None


def test_jetson_by_its_device_tree(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    gpu = other_gpus.jetson(RAM, sysroot=tmp_path)
    assert gpu is not None
    assert (gpu.name, gpu.integrated) == ("Jetson AGX Orin", True)


# --- the table ---


@pytest.mark.parametrize(
    ("written", "card"),
    [
        ("RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("3090", "rtx-3090"),
        ("rtx3090", "rtx-3090"),
        ("RX 7900 XTX", "rx-7900-xtx"),
        ("7900xtx", "rx-7900-xtx"),
        ("Radeon RX 7900 XT", "rx-7900-xt"),
        ("A100 80GB", "a100-80gb-pcie"),
        ("A100 SXM4", "a100-sxm4-80gb"),
        ("RTX 4070", "rtx-4070"),
        ("RTX 4070 Ti SUPER", "rtx-4070-ti-super"),
        ("RTX 4090 Laptop", "rtx-4090-laptop"),
        ("RTX 4090 Mobile", "rtx-4090-laptop"),
        ("RTX 3060", "rtx-3060-12gb"),
        ("RTX 3060 8 GB", "rtx-3060-8gb"),
        ("DGX Spark", "gb10"),
        ("Apple M2 Max", "m2-max"),
        ("RTX 4070 Ti", None),
        ("RTX 3090 8GB", None),
        ("3", None),
        ("24GiB", None),
        ("NVIDIA", None),
        ("", None),
        ("\x00\x1b[31m", None),
    ],
)
def test_names_as_people_and_drivers_write_them(written: str, card: str | None) -> None:
    found = gpu_table.lookup(written)
    assert (found.id if found else None) == card


def test_cards_that_share_a_pci_id_are_told_apart_by_memory() -> None:
    xt = gpu_table.by_pci_id("1002:744C", memory_bytes=21458059264)  # what amdgpu reports of an XT
    assert xt is not None
    assert xt.id == "rx-7900-xt"
    assert gpu_table.by_pci_id("1002:0000") is None


def test_a_misspelt_row_names_its_place(small_table: Path) -> None:
    (small_table / "gpus/wrong.toml").write_text(
        '[[gpu]]\nid = "x"\nname = "X"\nvendor = "nvidia"\nmemory_gb = 3\n'
    )
    with pytest.raises(ProfileError, match=r"wrong\.toml.*gpu\[0\].*memory_gib"):
        gpu_table.lookup("3090")
