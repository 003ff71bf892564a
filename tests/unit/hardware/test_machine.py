"""The rest of the probe: drives, engines, the bandwidth and its cache, the whole machine, its output."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from plan_llama.cli.hardware import as_json, render
from plan_llama.errors import InputError
from plan_llama.hardware import bandwidth, cache, disk, engines, memread, nvml
from plan_llama.hardware.calibration import Bandwidth
from plan_llama.hardware.probe import measured, probe, without_idle_integrated
from plan_llama.hardware.types import Cpu, Disk, Gpu, Machine, ProbeNote, Ram
from tests.unit.hardware.support import CAPTURES, GIB, MIB, FakeNvml, nvidia_card

RAM = Ram(total_bytes=64 * GIB, available_bytes=60 * GIB)
CPU = Cpu(name="A CPU", physical_cores=2, logical_cores=2)

# --- drives ---


def drive(path: str, machine: str) -> Disk:
    return disk.probe(path, sysroot=CAPTURES / machine, free=lambda _: (5 * GIB, 9 * GIB))[0]


def test_the_root_of_a_desktop_is_nvme() -> None:
    found = drive("/nowhere/at/all.gguf", "ryzen-7950x-rx7900xtx")
    assert (found.kind, found.filesystem, found.path) == ("nvme", "ext4", "/")
    assert (found.free_bytes, found.total_bytes) == (5 * GIB, 9 * GIB)


@pytest.mark.parametrize(
    ("mount", "kind", "filesystem"),
    [("/mnt/archive", "hdd", "ext4"), ("/mnt/nas models", "network", "nfs4"), ("/data", "ssd", "btrfs")],
)
def test_kinds_of_mounted_drives(
    mount: str, kind: str, filesystem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    found = drive(f"{mount}/models/a.gguf", "ryzen-7950x-rx7900xtx")
    assert (found.kind, found.filesystem) == (kind, filesystem)


@pytest.mark.parametrize(
    ("machine", "filesystem"), [("docker-cgroup-v2", "overlay"), ("real-epyc-vm-2", "ext4")]
)
def test_what_hides_its_drive_is_unknown_and_said(machine: str, filesystem: str) -> None:
    found, notes = disk.probe("/", sysroot=CAPTURES / machine, free=lambda _: (1, 2))
    assert (found.kind, found.filesystem) == ("unknown", filesystem)
    assert notes


def test_windows_drives_in_wsl_are_as_slow_as_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    assert drive("/mnt/c/models", "wsl2-laptop").kind == "network"


def test_free_space_of_a_real_folder(tmp_path: Path) -> None:
    found, _ = disk.probe(str(tmp_path / "not" / "yet" / "there.gguf"))
    assert found.path == str(tmp_path.resolve())
    assert found.free_bytes is not None
    assert found.total_bytes is not None
    assert 0 <= found.free_bytes <= found.total_bytes


# --- engines ---

# Printed by llama-server b11434, by a CUDA build of b6407 and by Ollama 0.12.3 without its server.
NEW = "version: 0.6.0-dev (build 11434, commit unknown)\nbuilt with GNU 12.2.0 for Linux x86_64\n"
OLD = (
    "ggml_cuda_init: found 1 CUDA devices:\n"
    "version: 6407 (1a2b3c4d)\nbuilt with cc (GCC) 13.3.0 for x86_64-linux-gnu\n"
)
DEVICES = (
    "Available devices:\n"
    "  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23810 MiB free)\n"
    "  RPC0: 10.0.0.2:50052 (1 MiB, 1 MiB free)\n"
)
NONE = "Available devices:\n  (none)\n"
OLLAMA = "Warning: could not connect to a running Ollama instance\nWarning: client version is 0.12.3\n"


def test_builds_of_both_spellings() -> None:
    new = engines.parse_llama(NEW, NONE, ["libggml-base.so", "libggml-cpu-haswell.so", "libggml-rpc.so.0"])
    assert (new["version"], new["build"]) == ("0.6.0-dev", 11434)
    assert (new.get("commit"), new["devices"], new["backends"]) == (None, [], ["rpc"])
    old = engines.parse_llama(OLD, DEVICES)
    assert (old["build"], old["commit"], old["backends"]) == (6407, "1a2b3c4d", ["cuda", "rpc"])
    assert old["devices"][0] == "CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23810 MiB free)"
    assert engines.parse_llama("Segmentation fault", "") == {"devices": [], "backends": []}


class Program:
    """Answers like a program, counting how often it was started."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []

    def __call__(self, argv: list[str]) -> str:
        self.started.append(argv)
        if argv[0].endswith("ollama"):
            return OLLAMA
        return NEW if argv[1] == "--version" else NONE


def test_answers_are_kept_until_the_program_changes(tmp_path: Path) -> None:
    server = tmp_path / "ik_llama.cpp" / "llama-server"
    server.parent.mkdir()
    server.write_text("1")
    ollama = tmp_path / "ollama"
    ollama.write_text("2")
    runner = Program()
    paths = {"ollama": str(ollama)}
    found, notes = engines.installed(str(server.parent), runner=runner, which=paths.get)
    assert [(engine.engine, engine.version) for engine in found] == [
        ("ik_llama.cpp", "0.6.0-dev"),
        ("ollama", "0.12.3"),
    ]
    assert notes == []
    assert len(runner.started) == 4
    again, _ = engines.installed(str(server), runner=runner, which=paths.get)
    assert again == found
    assert len(runner.started) == 4
    server.write_text("a new build")
    engines.installed(str(server), runner=runner, which=paths.get)
    assert len(runner.started) == 7


def test_engines_that_fail_are_notes(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text("no program")

    def hang(argv: list[str]) -> str:
        raise TimeoutError("no answer in 20 s")

    (engine,), (note,) = engines.installed(str(server), runner=hang, which=lambda _: None)
    assert engine.build is None
    assert "no answer in 20 s" in note.reason
    (engine,), (note,) = engines.installed(str(server), which=lambda _: None)  # not executable
    assert "does not run" in note.reason
    assert engines.installed(which=lambda _: None)[1][0].probe == "engine"
    with pytest.raises(InputError, match="no such program"):
        engines.installed(str(tmp_path / "absent"))


def test_a_real_program_is_run_with_its_own_output(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint({NEW!r}, file=sys.stderr)\n")
    program.chmod(0o755)
    (engine,), _ = engines.installed(str(program), which=lambda _: None)
    assert engine.build == 11434


# --- bandwidth ---


def test_reading_threads_see_a_plausible_rate() -> None:
    """No memory reads slower than 0.5 GB/s today, none of this process's size faster than 2 TB/s."""
    assert 0.5e9 < memread.rate(1, 32 * MIB, 0.05) < 2e12


def test_measuring_keeps_to_its_time() -> None:
    started = time.perf_counter()
    found = bandwidth.measure(CPU, Ram(total_bytes=GIB, available_bytes=GIB), budget_s=0.3)
    assert time.perf_counter() - started < 3.0
    assert found.threads in (1, 2)
    with pytest.raises(InputError, match="too little free memory"):
        bandwidth.measure(CPU, Ram(total_bytes=GIB, available_bytes=MIB))


def test_a_measurement_is_taken_once_for_a_machine() -> None:
    counts = []

    def measurer(cpu: Cpu, ram: Ram, *, budget_s: float) -> Bandwidth:
        counts.append(budget_s)
        return Bandwidth(bytes_per_s=70e9 + len(counts), threads=2, date="2026-01-01")

    first = bandwidth.kept_or_measure(CPU, RAM, measurer=measurer)
    assert bandwidth.kept_or_measure(CPU, RAM, measurer=measurer) == first
    assert bandwidth.kept_or_measure(CPU, RAM, again=True, measurer=measurer) != first
    other = Cpu(name="Another", physical_cores=2, logical_cores=2)
    bandwidth.kept_or_measure(other, RAM, measurer=measurer)
    assert len(counts) == 3


def test_the_cache_keeps_the_latest_and_survives_a_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        assert cache.write("topic", str(number), {"n": number}, most_entries=3)
    assert list(cache.read("topic")) == ["2", "3", "4"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(tmp_path / "file"))
    assert not cache.write("topic", "a", {"n": 1})


# --- the whole machine ---


@pytest.mark.parametrize("machine", sorted(path.name for path in CAPTURES.iterdir() if path.is_dir()))
def test_every_captured_machine_is_probed_and_shown(machine: str) -> None:
    found = probe(sysroot=CAPTURES / machine, model_path="/models/a.gguf")
    assert found.ram.total_bytes > found.ram.available_bytes > 0
    assert found.ram.bandwidth_bytes_per_s
    assert found.engines == ()
    text = render(found)
    assert found.cpu.name is not None
    assert found.cpu.name in text
    for note in found.notes:
        assert note.reason in text
    plain = json.loads(json.dumps(as_json(found)))
    assert plain["ram"]["total_bytes"] == found.ram.total_bytes
    assert [gpu["name"] for gpu in plain["gpus"]] == [gpu.name for gpu in found.gpus]
    assert plain["simulated"] is False


def test_strix_halo_is_one_pool() -> None:
    found = probe(sysroot=CAPTURES / "strix-halo-128")
    assert found.unified
    assert found.ram.bandwidth_bytes_per_s == 256e9  # 256 bits of LPDDR5X-8000 (AMD's product page)


def test_wsl_and_containers_are_said() -> None:
    assert probe(sysroot=CAPTURES / "wsl2-laptop").wsl
    assert probe(sysroot=CAPTURES / "docker-cgroup-v2").container == "docker"
    assert probe(sysroot=CAPTURES / "i7-13700k-hybrid").container is None


def test_an_assumed_bandwidth_is_marked() -> None:
    found = probe(sysroot=CAPTURES / "i7-13700k-hybrid")
    assert found.ram.sources["bandwidth_bytes_per_s"] == "assumed"
    line = next(line for line in render(found).splitlines() if "89.6 GB/s  " in line)
    assert line.endswith("[ASSUMED]")


def test_an_assumed_bandwidth_is_replaced_by_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe(sysroot=CAPTURES / "i7-13700k-hybrid")
    kept = Bandwidth(bytes_per_s=71.5e9, threads=8, date="2026-01-01")
    monkeypatch.setattr(bandwidth, "kept_or_measure", lambda *_, **__: kept)
    known = measured(found)
    assert known.ram.bandwidth_bytes_per_s == 71.5e9
    assert known.ram.sources["bandwidth_bytes_per_s"] == "measured"
    assert "71.5 GB/s with 8 threads" in known.notes[-1].reason
    assert "memory type" not in {note.probe for note in known.notes}
    assert measured(known) == known


def test_an_integrated_gpu_is_left_out_beside_a_card() -> None:
    card = Gpu(name="Card", total_bytes=GIB, free_bytes=GIB)
    shared = Gpu(name="Shared", total_bytes=GIB, free_bytes=GIB, integrated=True)
    assert without_idle_integrated([shared]) == ([shared], [])
    kept, notes = without_idle_integrated([shared, card])
    assert kept == [card]
    assert "Shared" in notes[0].reason


def test_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything together on whatever runs the tests, with two cards of a replayed driver."""
    cards = [
        nvidia_card(
            "NVIDIA GeForce RTX 3090",
            24576,
            24000,
            bus,
            GraphicsRunningProcesses=[SimpleNamespace(pid=1, usedGpuMemory=MIB)],
        )
        for bus in ("00000000:01:00.0", "00000000:02:00.0")
    ]
    monkeypatch.setattr(nvml, "load", lambda: FakeNvml(cards))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = probe(model_path=str(tmp_path))
    assert [gpu.pci_bus_id for gpu in found.gpus if gpu.vendor == "nvidia"] == [
        "0000:01:00.0",
        "0000:02:00.0",
    ]
    assert "2 × NVIDIA GeForce RTX 3090" in found.name
    assert "(pid 1)" in render(found)
    assert probe(with_gpus=False).gpus == ()


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    card = nvidia_card("Evil \x1b[2J card", 24576, 24000, "00000000:01:00.0")
    gpus, notes = nvml.gpus(FakeNvml([card]), RAM, sysroot=Path("/nonexistent"), environment={})
    text = render(Machine(name="x", gpus=tuple(gpus), ram=RAM, cpu=CPU, notes=tuple(notes)))
    assert "\x1b" not in text


def test_a_missing_driver_is_a_note_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = ProbeNote(probe="nvidia", reason="NVML does not start", unlock="reboot")
    monkeypatch.setattr(nvml, "load", lambda: reason)
    monkeypatch.setattr(sys, "platform", "linux")
    assert reason in probe(with_engines=False).notes


def test_importing_the_probe_imports_nothing_heavy() -> None:
    code = "import plan_llama.hardware.probe, plan_llama.cli.hardware, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"psutil", "pynvml", "numpy", "platformdirs", "subprocess", "ctypes", "tomli_w", "pyamdgpuinfo"}
    assert heavy & set(done.stdout.split()) == set()
