"""What is measured of a machine: kept in its file, used by its probe, and read past the page cache."""

from __future__ import annotations

import ctypes
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plan_llama.errors import InputError
from plan_llama.hardware import bandwidth, calibration, cuda_copy, diskread
from plan_llama.hardware.calibration import Bandwidth, Calibration, DiskRead, Link
from plan_llama.hardware.probe import calibrated
from plan_llama.hardware.types import Cpu, Disk, Gpu, Machine, ProbeNote, Ram
from plan_llama.memory.types import Settings
from plan_llama.speed.constants import shipped
from plan_llama.speed.rates import Assumptions, disk_rate, link_rate
from plan_llama.units import GIB, MIB

MEMORY = Bandwidth(bytes_per_s=71.5e9, threads=8, date="2026-11-01", by_threads=((4, 60e9), (8, 71.5e9)))
LINK = Link(
    bus_id="0000:01:00.0",
    gpu="NVIDIA GeForce RTX 4090",
    to_gpu_bytes_per_s=12.4e9,
    from_gpu_bytes_per_s=12.9e9,
    date="2026-11-02",
)
DISK = DiskRead(mount="/", read_bytes_per_s=3.1e9, method="O_DIRECT", date="2026-11-02")
CPU = Cpu(name="A CPU", physical_cores=8, logical_cores=16)
RAM = Ram(
    total_bytes=64 * GIB,
    available_bytes=60 * GIB,
    bandwidth_bytes_per_s=71.5e9,
    sources={"bandwidth_bytes_per_s": "measured"},
)
CARD = Gpu(
    name="NVIDIA GeForce RTX 4090",
    vendor="nvidia",
    total_bytes=24 * GIB,
    free_bytes=24 * GIB,
    pci_bus_id="0000:01:00.0",
    pcie_gen=4,
    pcie_width=16,
)
MACHINE = Machine(name="A machine", ram=RAM, cpu=CPU, gpus=(CARD,), disk=Disk(path="/models", mount="/"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(tmp_path / "kept"))


def test_measurements_add_up_in_one_file_per_machine() -> None:
    first = calibration.store("a", machine="A", memory=MEMORY, disks=[DISK])
    calibration.store("a", machine="A", engine_build=11434, links=[LINK])
    calibration.store("b", machine="B", memory=MEMORY)
    assert first is not None
    assert [file.name for file in sorted(first.parent.iterdir())] == ["a.toml", "b.toml"]
    known = calibration.load("a")
    assert (known.memory, known.links, known.disks, known.engine_build) == (MEMORY, (LINK,), (DISK,), 11434)
    assert known.plan_llama
    newer = replace(DISK, read_bytes_per_s=1e9)
    calibration.store("a", machine="A", disks=[newer, replace(DISK, mount="/data")])
    assert calibration.load("a").disk("/") == newer
    assert len(calibration.load("a").disks) == 2
    assert calibration.load("a").memory == MEMORY


@pytest.mark.parametrize(
    "text",
    [
        "damaged [",
        "schema = 2",
        'schema = 1\nmachine = "A"\nplan_llama = "1"\n[memory]\nbytes_per_s = -1.0\nthreads = 1\ndate = ""',
        'schema = 1\nmachine = "A"\nplan_llama = "1"\n[memory]\nbytes_per_s = nan\nthreads = 1\ndate = ""',
        'schema = 1\nmachine = "A"\nplan_llama = "1"\n[[disk]]\nmount = "/"',
        'schema = 1\nmachine = "A"\nplan_llama = "1"\nlink = 3',
    ],
)
def test_a_senseless_file_counts_as_none(text: str) -> None:
    calibration.path("a").parent.mkdir(parents=True)
    calibration.path("a").write_text(text)
    assert calibration.load("a") == Calibration()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(tmp_path / "file"))
    assert calibration.store("a", machine="A", memory=MEMORY) is None


def test_the_machine_is_known_by_its_measurements() -> None:
    assert calibrated(MACHINE) == MACHINE
    key = calibration.machine_key(CPU, RAM)
    calibration.store(key, machine="A", memory=MEMORY, links=[LINK], disks=[DISK])
    known = calibrated(MACHINE)
    assert known.gpus[0].link_bytes_per_s == 12.4e9
    assert known.gpus[0].sources["link_bytes_per_s"] == "measured"
    assert known.disk is not None
    assert (known.disk.read_bytes_per_s, known.disk.sources["read_bytes_per_s"]) == (3.1e9, "measured")
    assert known.calibrated == (
        "memory 71.5 GB/s, PCIe to gpu0 12.4 GB/s, disk 3.1 GB/s (2026-11-01 to 2026-11-02)"
    )
    elsewhere = replace(MACHINE, disk=Disk(path="/mnt/a", mount="/mnt"), gpus=())
    assert calibrated(elsewhere).calibrated == "memory 71.5 GB/s (2026-11-01)"


def test_speed_is_worked_out_with_what_was_measured() -> None:
    key = calibration.machine_key(CPU, RAM)
    calibration.store(key, machine="A", links=[LINK], disks=[DISK])
    known, k = calibrated(MACHINE), shipped()
    pinned, mapped = (
        link_rate(known, 0, Settings(context=4096, load_mode=mode), k, Assumptions())
        for mode in ("none", "mmap")
    )
    assert pinned == 12.4e9
    assert mapped == min(12.4e9, k.link_pageable_bytes_per_s) < pinned
    assert link_rate(MACHINE, 0, Settings(context=4096, load_mode="none"), k, Assumptions()) > 2 * pinned
    assert disk_rate(known, k) == 3.1e9


def test_bandwidth_of_one_to_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from plan_llama.hardware import memread

    monkeypatch.setattr(memread, "rate", lambda threads, *_: min(threads, 5) * 10e9)
    found = bandwidth.by_threads(CPU, RAM)
    assert found.by_threads == ((1, 10e9), (2, 20e9), (4, 40e9), (8, 50e9))
    assert (found.bytes_per_s, found.threads) == (50e9, 8)


# --- the drive ---


def test_a_written_file_is_read_and_removed(tmp_path: Path) -> None:
    """No drive reads slower than 1 MB/s; a terabyte per second would be the page cache of a fast machine."""
    found = diskread.measure(tmp_path / "not" / "there", budget_s=0.5, written_bytes=32 * MIB)
    assert 1e6 < found.bytes_per_s < 1e12
    assert found.size_bytes % (8 * MIB) == 0
    assert 8 * MIB <= found.size_bytes <= 32 * MIB
    assert found.method
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_models_own_file_is_read_where_it_is_large_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskread, "_LEAST", 16 * MIB)
    model = tmp_path / "owner/repo/quant/model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(bytes(range(256)) * (24 * MIB // 256))
    with (tmp_path / "sparse.gguf").open("wb") as sparse:
        sparse.truncate(GIB)
    found = diskread.measure(tmp_path, budget_s=0.5)
    assert found.what == str(model)
    assert found.size_bytes == 24 * MIB


def test_a_full_drive_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too little free disk"):
        diskread.measure(tmp_path, written_bytes=1 << 60)


def test_reading_ends_with_its_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 64 * MIB)
    ticks = iter(range(10_000))
    with file.open("rb") as opened:
        done, seconds = diskread._race(opened.fileno(), 64 * MIB, 3.0, clock=lambda: float(next(ticks)))
    assert 8 * MIB <= done <= 6 * 8 * MIB
    assert seconds > 3


# --- PCIe ---


class Driver:
    """libcuda as far as it is called: two cards, of which copies take the time that a link of theirs would."""

    def __init__(self, rates: tuple[tuple[float, float], ...], refuse: str = "", card: int = 0) -> None:
        self.rates, self.refuse, self.card = rates, refuse, card
        self.now, self.device = 0.0, 0
        self.held: list[str] = []

    def clock(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.refuse and self.device == self.card:
                return 2  # CUDA_ERROR_OUT_OF_MEMORY
            if own := type(self).__dict__.get(f"_{name}"):
                own(self, *arguments)
            return 0

        return call

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802 - the driver's names
        count._obj.value = len(self.rates)

    def _cuDeviceGet(self, device: Any, index: int) -> None:  # noqa: N802
        self.device = device._obj.value = index

    def _cuDeviceGetPCIBusId(self, text: Any, _length: int, device: Any) -> None:  # noqa: N802
        text.value = f"0000:0{device.value + 1}:00.0".encode()

    def _cuDevicePrimaryCtxRetain(self, *_: Any) -> None:  # noqa: N802
        self.held.append("context")

    def _cuMemHostAlloc(self, *_: Any) -> None:  # noqa: N802
        self.held.append("host")

    def _cuMemAlloc_v2(self, *_: Any) -> None:  # noqa: N802
        self.held.append("memory")

    def _cuMemFree_v2(self, *_: Any) -> None:  # noqa: N802
        self.held.remove("memory")

    def _cuMemFreeHost(self, *_: Any) -> None:  # noqa: N802
        self.held.remove("host")

    def _cuDevicePrimaryCtxRelease_v2(self, *_: Any) -> None:  # noqa: N802
        self.held.remove("context")

    def _cuMemcpyHtoD_v2(self, _to: Any, _from: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        self.now += size.value / self.rates[self.device][0]

    def _cuMemcpyDtoH_v2(self, _to: Any, _from: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        self.now += size.value / self.rates[self.device][1]


def test_copies_are_timed_on_every_card() -> None:
    driver = Driver(((24e9, 25e9), (6e9, 6.5e9)))
    found, notes = cuda_copy.copies(driver, size=MIB, clock=driver.clock)
    assert notes == []
    assert [copy.bus_id for copy in found] == ["0000:01:00.0", "0000:02:00.0"]
    assert [copy.to_gpu_bytes_per_s for copy in found] == pytest.approx([24e9, 6e9])
    assert [copy.from_gpu_bytes_per_s for copy in found] == pytest.approx([25e9, 6.5e9])
    assert driver.held == []


@pytest.mark.parametrize("name", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuMemcpyHtoD_v2"])
def test_a_card_without_room_is_said_and_the_other_measured(name: str) -> None:
    driver = Driver(((24e9, 25e9), (6e9, 6.5e9)), refuse=name)
    found, notes = cuda_copy.copies(driver, size=MIB, clock=driver.clock)
    assert [copy.bus_id for copy in found] == ["0000:02:00.0"]
    assert f"{name} failed with error 2" in notes[0].reason
    assert driver.held == []


def test_a_driver_that_does_not_start_is_said() -> None:
    found, notes = cuda_copy.copies(Driver((), refuse="cuInit"))
    assert found == []
    assert "does not start" in notes[0].reason


def test_a_machine_without_the_driver_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert isinstance(cuda_copy.load(), ProbeNote)


def test_the_file_is_toml_that_people_can_read() -> None:
    written = calibration.store(
        "a", machine="A", engine_build=11434, memory=MEMORY, links=[LINK], disks=[DISK]
    )
    assert written is not None
    table = tomllib.loads(written.read_text())
    assert table["engine_build"] == 11434
    assert table["memory"]["by_threads"][1] == {"threads": 8, "bytes_per_s": 71.5e9}
    assert table["disk"][0]["mount"] == "/"
    assert table["link"][0]["date"] == "2026-11-02"
