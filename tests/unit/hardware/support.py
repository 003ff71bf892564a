"""Captured machines, a small GPU table, and an NVML that answers from recorded figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

CAPTURES = Path(__file__).parents[2] / "captures"

GIB = 1024**3
MIB = 1024**2
KIB = 1024

# Rows with figures of the vendors' data sheets (NVIDIA's product pages, AMD's and Apple's specifications).
GPU_TABLE = """
[[gpu]]
id = "rtx-3090"
name = "NVIDIA GeForce RTX 3090"
vendor = "nvidia"
memory_gib = 24.0
bandwidth_gb_s = 936.2
fp16_tflops = 142.0
compute_capability = "8.6"
pcie_gen = 4
pcie_width = 16

[[gpu]]
id = "rtx-4090"
name = "NVIDIA GeForce RTX 4090"
vendor = "nvidia"
memory_gib = 24.0
bandwidth_gb_s = 1008
fp16_tflops = 330.3
compute_capability = "8.9"
pcie_gen = 4
pcie_width = 16

[[gpu]]
id = "rtx-4090-laptop"
name = "NVIDIA GeForce RTX 4090 Laptop GPU"
vendor = "nvidia"
memory_gib = 16.0
bandwidth_gb_s = 576

[[gpu]]
id = "rtx-3060-12gb"
name = "NVIDIA GeForce RTX 3060"
vendor = "nvidia"
memory_gib = 12.0
bandwidth_gb_s = 360
pcie_gen = 4
pcie_width = 16

[[gpu]]
id = "rtx-3060-8gb"
name = "NVIDIA GeForce RTX 3060"
vendor = "nvidia"
memory_gib = 8.0
bandwidth_gb_s = 240

[[gpu]]
id = "rtx-4070"
name = "NVIDIA GeForce RTX 4070"
vendor = "nvidia"
memory_gib = 12.0
bandwidth_gb_s = 504.2

[[gpu]]
id = "rtx-4070-ti-super"
name = "NVIDIA GeForce RTX 4070 Ti SUPER"
vendor = "nvidia"
memory_gib = 16.0
bandwidth_gb_s = 672.3

[[gpu]]
id = "rtx-2080-ti"
name = "NVIDIA GeForce RTX 2080 Ti"
vendor = "nvidia"
memory_gib = 11.0
bandwidth_gb_s = 616

[[gpu]]
id = "a100-80gb-pcie"
name = "NVIDIA A100 80GB PCIe"
vendor = "nvidia"
memory_gib = 80.0
bandwidth_gb_s = 1935

[[gpu]]
id = "a100-sxm4-80gb"
name = "NVIDIA A100-SXM4-80GB"
vendor = "nvidia"
memory_gib = 80.0
bandwidth_gb_s = 2039

[[gpu]]
id = "gb10"
name = "NVIDIA GB10"
aliases = ["DGX Spark"]
vendor = "nvidia"
memory_gib = 128.0
bandwidth_gb_s = 273
compute_capability = "12.1"
unified = true

[[gpu]]
id = "rx-7900-xtx"
name = "AMD Radeon RX 7900 XTX"
vendor = "amd"
memory_gib = 24.0
bandwidth_gb_s = 960
gfx = "gfx1100"
pcie_gen = 4
pcie_width = 16
pci_ids = ["1002:744c"]

[[gpu]]
id = "rx-7900-xt"
name = "AMD Radeon RX 7900 XT"
vendor = "amd"
memory_gib = 20.0
bandwidth_gb_s = 800
pci_ids = ["1002:744c"]

[[gpu]]
id = "8060s"
name = "AMD Radeon 8060S"
aliases = ["Strix Halo"]
vendor = "amd"
memory_gib = 128.0
bandwidth_gb_s = 256
unified = true
pci_ids = ["1002:1586"]

[[gpu]]
id = "b580"
name = "Intel Arc B580"
vendor = "intel"
memory_gib = 12.0
bandwidth_gb_s = 456
pci_ids = ["8086:e20b"]

[[gpu]]
id = "m2-max"
name = "Apple M2 Max"
vendor = "apple"
memory_gib = 96.0
bandwidth_gb_s = 400
unified = true
"""


class NvmlError(Exception):
    """Stands for pynvml.NVMLError."""


class FakeNvml:
    """The functions of pynvml that are used: one dict a card, what is missing in it is "not supported"."""

    NVMLError = NvmlError

    def __init__(self, cards: list[dict[str, Any]], driver: str = "580.95.05") -> None:
        self._cards, self._driver = cards, driver

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # pynvml's names
        return len(self._cards)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self._driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13000

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        if self._cards[index].get("lost"):
            raise NvmlError("GPU is lost")
        return self._cards[index]

    def nvmlDeviceGetMemoryInfo(  # noqa: N802
        self, card: dict[str, Any], version: int | None = None
    ) -> SimpleNamespace:
        if "memory_v2" in card and version is not None:
            total, reserved, free, used = card["memory_v2"]
            return SimpleNamespace(total=total, reserved=reserved, free=free, used=used)
        if "memory" in card and version is None:
            total, free, used = card["memory"]
            return SimpleNamespace(total=total, free=free, used=used)
        raise NvmlError("Not Supported")

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], index: int) -> dict[str, Any]:  # noqa: N802
        instances: list[dict[str, Any]] = card["instances"]
        if index >= len(instances):
            raise NvmlError("Not Found")
        return instances[index]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def answer(card: dict[str, Any], *args: Any) -> Any:
            key = name.removeprefix("nvmlDeviceGet")
            if key not in card:
                raise NvmlError("Not Supported")
            return card[key]

        return answer


def nvidia_card(name: str, total_mib: int, free_mib: int, bus: str, **answers: Any) -> dict[str, Any]:
    """A card as NVML describes it on Linux; memory in MiB with 300 MiB of the driver's own."""
    reserved = 300 * MIB
    total, free = total_mib * MIB, free_mib * MIB
    return {
        "Name": name,
        "UUID": f"GPU-{bus[9:11]}7c2f3e-1111-2222-3333-444455556666",
        "PciInfo": SimpleNamespace(busId=bus),
        "memory_v2": (total, reserved, free, total - reserved - free),
        "CudaComputeCapability": (8, 6),
        "MaxPcieLinkGeneration": 4,
        "CurrPcieLinkGeneration": 1,
        "MaxPcieLinkWidth": 16,
        "CurrPcieLinkWidth": 16,
        "DisplayActive": 0,
        "MigMode": (0, 0),
        "ComputeRunningProcesses": [],
        "GraphicsRunningProcesses": [],
        **answers,
    }
