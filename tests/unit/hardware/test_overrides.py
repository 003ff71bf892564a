"""The hardware options: what each replaces, what it makes an assumption, and what contradicts what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.errors import UsageError
from plan_llama.hardware import overrides
from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Cpu, Disk, Gpu, Limit, Machine, ProbeNote, Ram
from tests.unit.hardware.support import GIB

pytestmark = pytest.mark.usefixtures("small_table")

THIS = Machine(
    name="this",
    gpus=(
        Gpu(
            name="NVIDIA GeForce RTX 4090",
            vendor="nvidia",
            total_bytes=24 * GIB,
            free_bytes=21 * GIB,
            pcie_gen=3,
            pcie_width=8,
            driver="580",
        ),
    ),
    ram=Ram(
        total_bytes=64 * GIB,
        available_bytes=20 * GIB,
        swap_total_bytes=8 * GIB,
        memlock_bytes=8 * 1024**2,
        limits=(Limit(kind="cgroup v2", limit_bytes=32 * GIB, used_bytes=0, where="x"),),
        bandwidth_bytes_per_s=70e9,
        sources={"bandwidth_bytes_per_s": "measured"},
    ),
    cpu=Cpu(name="Xeon", physical_cores=16, logical_cores=32, usable_cores=6, sockets=2, isa=("avx2",)),
    notes=(
        ProbeNote(probe="nvidia", reason="old driver"),
        ProbeNote(probe="memory type", reason="root only"),
        ProbeNote(probe="disk", reason="virtual"),
    ),
)


def test_no_option_is_this_machine() -> None:
    assert resolve(HardwareChoice(), base=THIS) is not None
    assert resolve(HardwareChoice(), base=THIS) == THIS


@pytest.mark.parametrize(
    "share",
    [
        HardwareChoice(reserve="ram=4GiB"),
        HardwareChoice(gpu_free=("3GiB",)),
        HardwareChoice(ram_available="2GiB"),
    ],
)
def test_a_share_of_this_machine_is_this_machine(share: HardwareChoice) -> None:
    here = replace(THIS, calibrated="memory 110.6 GB/s", disk=Disk(path="/", read_bytes_per_s=1e9))
    machine = resolve(share, base=here)
    assert (machine.simulated, machine.name, machine.calibrated) == (False, THIS.name, here.calibrated)
    assert (machine.cpu, machine.disk) == (THIS.cpu, here.disk)


def test_named_cards_replace_all_with_links_and_drivers() -> None:
    machine = resolve(HardwareChoice(gpu=("RTX 3090*2", "24GiB")), base=THIS)
    assert machine.simulated
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GeForce RTX 3090"] * 2 + ["GPU with 24.0 GiB"]
    named, _, bare = machine.gpus
    assert (named.total_bytes, named.free_bytes) == (24 * GIB, 24 * GIB)
    assert (named.pcie_gen, named.pcie_width, named.driver, named.display) == (4, 16, None, False)
    assert {named.sources[key] for key in ("free_bytes", "pcie_gen", "pcie_width", "display")} == {"assumed"}
    assert (bare.backend, bare.integrated, bare.free_bytes) == ("cuda", False, 24 * GIB)
    assert bare.bandwidth_bytes_per_s is None
    # The memory and the CPU stay this machine's; the note about the driver is gone.
    assert (machine.ram, machine.cpu) == (THIS.ram, THIS.cpu)
    assert [note.probe for note in machine.notes] == ["memory type", "disk"]


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("3090", ["NVIDIA GeForce RTX 3090"]),
        ("RTX 3090 * 3", ["NVIDIA GeForce RTX 3090"] * 3),
        ("16 GiB*2", ["GPU with 16.0 GiB"] * 2),
        ("rx 7900 xtx×2", ["AMD Radeon RX 7900 XTX"] * 2),
    ],
)
def test_how_cards_are_written(written: str, names: list[str]) -> None:
    assert [gpu.name for gpu in resolve(HardwareChoice(gpu=(written,)), base=THIS).gpus] == names


def test_a_modified_card_has_the_written_size() -> None:
    (gpu,) = resolve(HardwareChoice(gpu=("RTX 2080 Ti 22GB",)), base=THIS).gpus
    assert (gpu.total_bytes, gpu.bandwidth_bytes_per_s) == (22 * GIB, 616e9)
    assert gpu.sources["total_bytes"] == "user"


def test_ram_replaces_every_limit_and_leaves_two_per_cent() -> None:
    ram = resolve(HardwareChoice(ram="256GiB"), base=THIS).ram
    assert ram.total_bytes == 256 * GIB
    assert round(ram.available_bytes / GIB) == 251
    assert (ram.limits, ram.memlock_bytes, ram.swap_total_bytes) == ((), None, 0)
    # This machine's measurement is not the other memory's: 5600 MT/s × 8 bytes × 2 channels.
    assert ram.bandwidth_bytes_per_s == pytest.approx(89.6e9)
    assert ram.sources["bandwidth_bytes_per_s"] == "assumed"


def test_an_assumed_memory_speed_is_said() -> None:
    notes = resolve(HardwareChoice(ram="256GiB"), base=THIS).notes
    assert any(note.probe == "memory bandwidth" and "89.6 GB/s" in note.reason for note in notes)
    assert not any(note.probe == "memory type" for note in notes)


@pytest.mark.parametrize(
    ("choice", "rate", "source"),
    [
        (HardwareChoice(ram_type="DDR5-4800", ram_channels=12), 460.8e9, "modelled"),  # AMD: EPYC 9004
        (HardwareChoice(ram_type="DDR4-3200", ram_channels=8), 204.8e9, "modelled"),  # AMD: EPYC 7003
        (HardwareChoice(ram_type="ddr5-6000"), 96e9, "assumed"),
        (HardwareChoice(ram_channels=4), 179.2e9, "assumed"),
        (HardwareChoice(ram_bandwidth=150.0), 150e9, "user"),
        (HardwareChoice(ram_bandwidth=150.0, ram_type="DDR5-6000"), 150e9, "user"),
        (HardwareChoice(ram_available="10GiB"), 70e9, "measured"),
    ],
)
def test_memory_bandwidth_by_its_options(choice: HardwareChoice, rate: float, source: str) -> None:
    ram = resolve(choice, base=THIS).ram
    assert ram.bandwidth_bytes_per_s == pytest.approx(rate)
    assert ram.sources["bandwidth_bytes_per_s"] == source


def test_a_described_machine_with_more_memory_keeps_its_channels(small_table: Path) -> None:
    text = (
        'schema = 1\n[ram]\ntotal = "384GiB"\ntype = "DDR5-4800"\nchannels = 12\n[cpu]\nphysical_cores = 64\n'
    )
    (small_table / "hardware/epyc.toml").write_text(text)
    machine = resolve(HardwareChoice(hardware="epyc", ram="768GiB", gpu=("RTX 4090",)))
    assert machine.ram.total_bytes == 768 * GIB
    assert machine.ram.bandwidth_bytes_per_s == pytest.approx(460.8e9)
    assert machine.cpu.physical_cores == 64
    assert machine.gpus[0].total_bytes == 24 * GIB


def test_free_memory_per_card() -> None:
    machine = resolve(HardwareChoice(gpu=("RTX 3090*2",), gpu_free=("20GiB",)), base=THIS)
    assert [gpu.free_bytes for gpu in machine.gpus] == [20 * GIB, 24 * GIB]
    assert resolve(HardwareChoice(gpu_free=("3GiB",)), base=THIS).gpus[0].driver == "580"


def test_one_pool() -> None:
    machine = resolve(HardwareChoice(gpu=("64GiB",), ram="128GiB", unified=True), base=THIS)
    (gpu,) = machine.gpus
    assert machine.unified
    assert gpu.integrated
    assert (gpu.total_bytes, gpu.free_bytes) == (128 * GIB, machine.ram.available_bytes)
    assert (gpu.pcie_gen, gpu.pcie_width) == (None, None)
    assert gpu.bandwidth_bytes_per_s == machine.ram.bandwidth_bytes_per_s


def test_a_named_gpu_that_shares_memory_makes_one_pool() -> None:
    machine = resolve(HardwareChoice(gpu=("Strix Halo",), ram="128GiB"), base=THIS)
    assert machine.unified
    assert machine.gpus[0].total_bytes == 128 * GIB
    assert machine.ram.bandwidth_bytes_per_s == 256e9
    mac = resolve(HardwareChoice(gpu=("M2 Max",), ram="96GiB"), base=THIS)
    assert (mac.os, mac.gpus[0].backend, mac.gpus[0].total_bytes) == ("darwin", "metal", 72 * GIB)


def test_a_described_gpu_keeps_its_own_limit_of_the_pool(small_table: Path) -> None:
    text = 'schema = 1\n[[gpu]]\nname = "Strix Halo"\ntotal = "120GiB"\n[ram]\ntotal = "128GiB"\n'
    (small_table / "hardware/halo.toml").write_text(text + "[cpu]\nphysical_cores = 16\n")
    (gpu,) = resolve(HardwareChoice(hardware="halo", ram_available="50GiB")).gpus
    assert (gpu.total_bytes, gpu.free_bytes) == (120 * GIB, 50 * GIB)


def test_no_gpu() -> None:
    unified = replace(THIS, unified=True)
    machine = resolve(HardwareChoice(no_gpu=True), base=unified)
    assert (machine.gpus, machine.unified) == ((), False)


def test_cpu_options() -> None:
    machine = resolve(HardwareChoice(cpu="EPYC 9554", cpu_cores=64, cpu_isa="AMX, avx512"), base=THIS)
    assert (machine.cpu.name, machine.cpu.physical_cores, machine.cpu.usable_cores) == ("EPYC 9554", 64, None)
    # AMX processors have all of these (Intel's instruction set reference).
    assert {"amx", "avx512", "avx512_vnni", "avx512_bf16", "avx2", "fma", "f16c"} <= set(machine.cpu.isa)
    named = resolve(HardwareChoice(cpu="EPYC 9554"), base=THIS)
    assert named.cpu.physical_cores == 16
    assert any("--cpu-cores" in note.unlock for note in named.notes)


def test_reserve() -> None:
    machine = resolve(HardwareChoice(reserve="gpu0=4GiB, ram=24GiB"), base=THIS)
    assert (machine.gpus[0].reserved_bytes, machine.ram.reserved_bytes) == (4 * GIB, 24 * GIB)
    assert not machine.simulated


def test_decimal_units_are_read_as_binary_and_said() -> None:
    machine = resolve(HardwareChoice(gpu=("24GB*2",), ram="128GB"), base=THIS)
    assert (machine.gpus[0].total_bytes, machine.ram.total_bytes) == (24 * GIB, 128 * GIB)
    (note,) = [note for note in machine.notes if note.probe == "sizes"]
    assert "128GB, 24GB" in note.reason


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (HardwareChoice(no_gpu=True, gpu=("3090",)), "--no-gpu contradicts --gpu"),
        (HardwareChoice(no_gpu=True, unified=True), "--no-gpu contradicts --unified"),
        (HardwareChoice(no_gpu=True, gpu_free=("1GiB",)), "--no-gpu contradicts --gpu-free"),
        (HardwareChoice(gpu_free=("1GiB", "1GiB")), "given 2 times for 1 cards"),
        (HardwareChoice(gpu_free=("25GiB",)), "more than card 0 has"),
        (HardwareChoice(gpu=("RTX 3900",)), "nearest: "),
        (HardwareChoice(gpu=("24",)), "no card is called '24'"),
        (HardwareChoice(gpu=("",)), "expected NAME or SIZE"),
        (HardwareChoice(gpu=("3090*0",)), "expected NAME or SIZE"),
        (HardwareChoice(gpu=("3090*65",)), "expected NAME or SIZE"),
        (HardwareChoice(gpu=("3090*64", "3090")), "more than 64 cards"),
        (HardwareChoice(gpu=("0GiB",)), "has some memory"),
        (HardwareChoice(gpu=("3090", "Strix Halo")), "shares the system's memory"),
        (HardwareChoice(ram="0GiB"), "has some memory"),
        (HardwareChoice(ram="-1GiB"), "--ram: expected a size"),
        (HardwareChoice(ram="32GiB", ram_available="33GiB"), "more than the memory"),
        (HardwareChoice(ram_type="DDR5"), "DDR5-5600"),
        (HardwareChoice(ram_type="SRAM-5600"), "DDR5-5600"),
        (HardwareChoice(ram_channels=0), "1 to 64 channels"),
        (HardwareChoice(ram_bandwidth=float("nan")), "expected GB/s"),
        (HardwareChoice(ram_bandwidth=-1.0), "expected GB/s"),
        (HardwareChoice(cpu_cores=0), "1 to 4096"),
        (HardwareChoice(cpu_isa="avx1024"), "known: avx2"),
        (HardwareChoice(reserve="gpu1=1GiB"), "there is no gpu1"),
        (HardwareChoice(reserve="gpu0"), "expected gpu0=4GiB"),
        (HardwareChoice(reserve="vram=1GiB"), "expected gpu0=4GiB"),
        (HardwareChoice(reserve="ram=1GiB,ram=2GiB"), "given twice"),
        (HardwareChoice(reserve="ram=65GiB"), "more than ram has"),
    ],
)
def test_contradictions_are_one_line(choice: HardwareChoice, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(choice, base=THIS)
    assert message in caught.value.line()
    assert "\n" not in caught.value.line()


def test_isa_names_of_other_tools_are_understood() -> None:
    assert "amx" in overrides.parse_isa("AMX_INT8")
    assert overrides.parse_isa("i8mm") == ("neon", "dotprod", "i8mm")
    assert overrides.parse_isa("") == ()
