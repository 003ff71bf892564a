"""The GPU table against rules of hardware and against figures typed from vendors' sheets."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plan_llama import catalog
from plan_llama.hardware import described, gpu_table
from plan_llama.hardware.gpu_table import GpuFacts
from plan_llama.units import GIB

VENDORS = ("nvidia", "amd", "intel", "apple")


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_LLAMA_PROFILES", str(tmp_path))


TABLES: dict[str, list[dict[str, Any]]] = {
    vendor: catalog.load(catalog.root() / "gpus" / f"{vendor}.toml")["gpu"] for vendor in VENDORS
}
ROWS = [row for table in TABLES.values() for row in table]
BY_ID = {row["id"]: row for row in ROWS}

# Generation of PCIe of NVIDIA's chips by compute capability (CUDA GPUs list, architecture papers).
PCIE_GEN = {"5": 3, "6": 3, "7": 3, "8": 4, "9": 5, "10": 5, "12": 5}
# Marketing families and the chips that are in them: CUDA GPUs list, ROCm hardware specifications.
FAMILIES = (
    (r"GeForce GTX 10", "6.1"),
    (r"GeForce GTX 16|GeForce RTX 20|Quadro RTX", "7.5"),
    (r"GeForce RTX 30|NVIDIA RTX A\d", "8.6"),
    (r"GeForce RTX 40|Ada Generation|NVIDIA L4", "8.9"),
    (r"NVIDIA H[12]00|GH200", "9.0"),
    (r"GeForce RTX 50|RTX PRO", "12.0"),
    (r"RX 6[89]\d\d|W6800", "gfx1030"),
    (r"RX 67", "gfx1031"),
    (r"RX 66|W6600", "gfx1032"),
    (r"RX 79|W7[89]00", "gfx1100"),
    (r"RX 7[78]|W7700", "gfx1101"),
    (r"RX 76|W7600", "gfx1102"),
    (r"RX 9060", "gfx1200"),
    (r"RX 9070|R9700", "gfx1201"),
    (r"MI300|MI325", "gfx942"),
    (r"MI35\d", "gfx950"),
)

# id, GiB, GB/s, dense FP16 TFLOPS, capability or gfx target, where the figures stand.
SHEETS = (
    ("p100-pcie-16gb", 16, 732, 18.7, "6.0", "Tesla P100 PCIe data sheet"),
    ("v100-sxm2-32gb", 32, 900, 125, "7.0", "V100 data sheet"),
    ("rtx-2080-ti", 11, 616, 107.6, "7.5", "Turing architecture paper, reference card"),
    ("quadro-rtx-8000", 48, 672, 130.5, "7.5", "Quadro RTX 8000 data sheet"),
    ("rtx-3060", 12, 360, None, "8.6", "GeForce comparison: 192 bits at 15 Gbps"),
    ("rtx-3080", 10, 760, 119, "8.6", "GA102 architecture paper"),
    ("rtx-3090", 24, 936, 142, "8.6", "GA102 architecture paper"),
    ("rtx-a6000", 48, 768, 154.8, "8.6", "RTX A6000 data sheet (309.7 with sparsity)"),
    ("a100-pcie-40gb", 40, 1555, 312, "8.0", "A100 data sheet"),
    ("a100-sxm4-80gb", 80, 2039, 312, "8.0", "A100 data sheet"),
    ("rtx-4060-ti-16gb", 16, 288, None, "8.9", "GeForce comparison: 128 bits at 18 Gbps"),
    ("rtx-4090", 24, 1008, 330.3, "8.9", "Ada architecture paper"),
    ("rtx-4090-laptop", 16, 576, None, "8.9", "GeForce laptops comparison: 256 bits at 18 Gbps"),
    ("l4", None, 300, 121, "8.9", "L4 product page (242 with sparsity)"),
    ("rtx-6000-ada", 48, 960, 364.2, "8.9", "RTX 6000 Ada data sheet (1457 FP8 with sparsity)"),
    ("h100-sxm", 80, 3350, 989, "9.0", "H100 product page (1979 with sparsity)"),
    ("h200", 141, 4800, 989, "9.0", "H200 product page"),
    ("rtx-5090", 32, 1792, 419, "12.0", "RTX Blackwell architecture paper"),
    ("rtx-pro-6000-blackwell-workstation", 96, 1792, 503.8, "12.0", "RTX PRO Blackwell architecture paper"),
    ("gb10", 128, 273, None, "12.1", "DGX Spark product page"),
    ("rx-6900-xt", 16, 512, 46.1, "gfx1030", "AMD product page"),
    ("rx-7900-xtx", 24, 960, 122.8, "gfx1100", "AMD product page"),
    ("rx-7900-xt", 20, 800, 103.2, "gfx1100", "AMD product page"),
    ("rx-9070-xt", 16, 640, 195, "gfx1201", "AMD product page"),
    ("mi100", 32, 1228.8, 184.6, "gfx908", "AMD Instinct MI100 brochure"),
    ("mi300x", 192, 5300, 1307.4, "gfx942", "AMD Instinct MI300X data sheet"),
    ("8060s", 128, 256, None, "gfx1151", "Ryzen AI Max+ 395: 256 bits of LPDDR5X-8000"),
    ("b580", 12, 456, None, None, "Intel product page"),
    ("a770", 16, 560, None, None, "Intel product page"),
    ("m1-max", 64, 400, 10.4, None, "Apple newsroom, October 2021"),
    ("m2-ultra", 192, 800, 27.2, None, "Apple newsroom, June 2023"),
    ("m3-ultra", 512, 819, None, None, "Apple newsroom, March 2025"),
    ("m4-max", 128, 546, None, None, "Apple newsroom, October 2024"),
)


def test_there_are_many_cards_and_each_id_once() -> None:
    assert len(ROWS) >= 80
    assert [card for card, count in Counter(row["id"] for row in ROWS).items() if count > 1] == []
    assert [card for card in BY_ID if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card)] == []


def test_the_loader_accepts_every_row() -> None:
    assert {row.id for row in gpu_table.rows()} >= set(BY_ID)


@pytest.mark.parametrize("vendor", VENDORS)
def test_rows_are_in_the_file_of_their_vendor_and_cite_a_page(vendor: str) -> None:
    for row in TABLES[vendor]:
        assert row["vendor"] == vendor
        assert re.fullmatch(r"https://[a-z0-9.-]+/[!-~]*", row["source_url"]), row["id"]


def test_names_differ_unless_the_memory_does() -> None:
    known_as = [
        (known.lower(), row["memory_gib"]) for row in ROWS for known in {row["name"], *row.get("aliases", ())}
    ]
    assert [pair for pair, count in Counter(known_as).items() if count > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_numbers_are_in_proportion(row: dict[str, Any]) -> None:
    """Wrong units, or a figure with sparsity, leave the range that memory and matrix units can have."""
    per_gib = row["bandwidth_gb_s"] / row["memory_gib"]
    # GDDR5 in clamshell mode (M40) is the least per GiB, fast GDDR6X on small cards (3070 Ti, 3080) the most.
    assert 0.75 <= per_gib <= 80 if row.get("unified") else 8 <= per_gib <= 80
    if "fp16_tflops" in row:
        flop_per_byte = row["fp16_tflops"] * 1e12 / (row["bandwidth_gb_s"] * 1e9)
        assert 8 <= flop_per_byte <= 480
    assert ("pcie_gen" in row) == ("pcie_width" in row)
    assert ("pcie_gen" in row) != bool(row.get("unified"))
    if "pcie_gen" in row:
        assert row["pcie_gen"] in (3, 4, 5)
        assert row["pcie_width"] in (4, 8, 16)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_chips_belong_to_their_family(row: dict[str, Any]) -> None:
    chip = row.get("compute_capability") or row.get("gfx")
    assert (chip is None) == (row["vendor"] in ("intel", "apple"))
    for pattern, expected in FAMILIES:
        if re.search(pattern, row["name"]):
            assert chip == expected
            break
    if row["vendor"] == "nvidia" and "pcie_gen" in row:
        assert row["pcie_gen"] == PCIE_GEN[row["compute_capability"].split(".")[0]]


def test_pci_ids_name_the_vendor() -> None:
    prefixes = {"amd": "1002:", "intel": "8086:", "nvidia": "10de:"}
    for row in ROWS:
        for pci_id in row.get("pci_ids", ()):
            assert re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", pci_id), row["id"]
            assert pci_id.startswith(prefixes[row["vendor"]]), row["id"]


@pytest.mark.parametrize(
    ("card", "gib", "gb_s", "tflops", "chip", "source"), SHEETS, ids=[sheet[0] for sheet in SHEETS]
)
def test_figures_are_those_of_the_sheet(
    card: str, gib: float | None, gb_s: float, tflops: float | None, chip: str | None, source: str
) -> None:
    row = BY_ID[card]
    if gib is not None:  # None: the driver reports less than the sheet (error correction)
        assert row["memory_gib"] == gib, source
    assert row["bandwidth_gb_s"] == pytest.approx(gb_s, rel=0.003), source
    if tflops is not None:
        assert row["fp16_tflops"] == pytest.approx(tflops, rel=0.005), source
    assert (row.get("compute_capability") or row.get("gfx")) == chip, source


# nvidia-smi of each card with factory settings, MiB: error correction takes its part on the first five.
@pytest.mark.parametrize(
    ("card", "mib"),
    [
        ("p40", 22919),
        ("t4", 15360),
        ("a10", 23028),
        ("l40s", 46068),
        ("a40", 46068),
        ("b300-sxm6-ac", 275040),
    ],
)
def test_memory_is_what_the_driver_reports_where_that_is_less(card: str, mib: int) -> None:
    facts = next(row for row in gpu_table.rows("nvidia") if row.id == card)
    assert facts.memory_bytes == pytest.approx(mib * 1024**2, rel=0.001)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_driver_name_with_its_memory_finds_its_row(vendor: str) -> None:
    for row in TABLES[vendor]:
        found = gpu_table.lookup(row["name"], memory_bytes=round(row["memory_gib"] * GIB))
        assert isinstance(found, GpuFacts), row["name"]
        assert (found.name, found.bandwidth_bytes_per_s) == (row["name"], row["bandwidth_gb_s"] * 1e9)


# GiB of RAM, its bytes per second (mega-transfers × 8 bytes × channels), and the cards.
MACHINES = {
    "rx7900xtx-256": (256, 89.6e9, ("AMD Radeon RX 7900 XTX",)),
    "rtx3090-64": (64, 51.2e9, ("NVIDIA GeForce RTX 3090",)),
    "rtx4090-128": (128, 89.6e9, ("NVIDIA GeForce RTX 4090",)),
    "rtx5090-192": (192, 89.6e9, ("NVIDIA GeForce RTX 5090",)),
    "2x3090-128": (128, 51.2e9, ("NVIDIA GeForce RTX 3090",) * 2),
    "4x3090-256": (256, 204.8e9, ("NVIDIA GeForce RTX 3090",) * 4),
    "4090-3060-64": (64, 96e9, ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060")),
    "desktop-64": (64, 89.6e9, ()),
    "rtx3060-32": (32, 51.2e9, ("NVIDIA GeForce RTX 3060",)),
    "laptop-4060-32": (32, 83.2e9, ("NVIDIA GeForce RTX 4060 Laptop GPU",)),
    "rtx-pro-6000-512": (512, 307.2e9, ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition",)),
    "epyc-9554-768-cpu-only": (768, 460.8e9, ()),
    "strix-halo-128": (128, 256e9, ("AMD Radeon 8060S",)),
    "mac-studio-m3-ultra-512": (512, 819e9, ("Apple M3 Ultra",)),
    "gb10-128": (128, 273e9, ("NVIDIA GB10",)),
    "8xh100-2tb": (2048, 614.4e9, ("NVIDIA H100 80GB HBM3",) * 8),
    "8xmi300x-2tb": (2048, 614.4e9, ("AMD Instinct MI300X",) * 8),
}


def shipped_machines() -> set[str]:
    return {path.stem for path in (catalog.root() / "hardware").glob("*.toml")}


def test_every_shipped_machine_is_checked() -> None:
    assert shipped_machines() == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_described_machines_load_with_their_cards_and_memory(name: str) -> None:
    ram_gib, ram_bandwidth, cards = MACHINES[name]
    machine = described.load(name)
    assert machine.simulated
    assert machine.ram.total_bytes == ram_gib * GIB
    assert machine.ram.bandwidth_bytes_per_s == pytest.approx(ram_bandwidth, rel=0.001)
    assert tuple(gpu.name for gpu in machine.gpus) == cards
    assert machine.unified == name.startswith(("strix", "mac", "gb10"))
    for gpu in machine.gpus:
        by_name = [row for row in ROWS if row["name"] == gpu.name]
        assert gpu.bandwidth_bytes_per_s in [row["bandwidth_gb_s"] * 1e9 for row in by_name]
        assert gpu.integrated == machine.unified
        if not gpu.integrated:
            assert gpu.total_bytes in [row["memory_gib"] * GIB for row in by_name]
            assert gpu.pcie_gen
            assert gpu.pcie_width
        else:
            assert gpu.total_bytes < machine.ram.total_bytes
    # Hyper-threads double the cores at most, and memory channels divide evenly over the sockets.
    assert machine.cpu.physical_cores <= machine.cpu.logical_cores <= 2 * machine.cpu.physical_cores
    assert machine.cpu.isa
    assert (machine.ram.channels or 0) % machine.cpu.sockets == 0


def test_the_smaller_of_two_cards_of_a_name_is_not_taken_for_the_larger() -> None:
    mixed = described.load("4090-3060-64").gpus[1]
    assert (mixed.total_bytes, mixed.bandwidth_bytes_per_s) == (12 * GIB, 360e9)


def test_a_name_with_a_size_is_the_card_whose_own_name_begins_so() -> None:
    """The driver calls the SXM card NVIDIA H100 80GB HBM3, and the one with a PCIe edge NVIDIA H100 PCIe."""
    for written, meant in (("H100 80GB", "h100-sxm"), ("H100 PCIe 80GB", "h100-pcie"), ("H100", "h100-pcie")):
        found = gpu_table.lookup(written)
        assert found is not None
        assert found.id == meant
