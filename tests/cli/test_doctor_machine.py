"""plan-llama doctor without a log: this machine, captured machines, and machines made for one trouble each."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.cli import doctor_machine
from plan_llama.doctor import report, rules
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.hardware import kernel_log
from plan_llama.hardware.probe import probe
from plan_llama.hardware.types import Cpu, Gpu, GpuProcess, InstalledEngine, Machine, Ram
from tests.cli.conftest import GIB, Cli

CAPTURES = Path(__file__).parents[1] / "captures"
CARD = Gpu(
    name="RTX 3090",
    vendor="nvidia",
    total_bytes=24 * GIB,
    free_bytes=24 * GIB,
    pcie_width=16,
    pcie_width_now=16,
)
BOX = Machine(
    name="box",
    gpus=(CARD,),
    ram=Ram(total_bytes=64 * GIB, available_bytes=60 * GIB),
    cpu=Cpu(physical_cores=8, logical_cores=16),
)


def found(machine: Machine, sysroot: Path, log: str = "") -> dict[str, report.Found]:
    reader = LogReader(Book(rules.templates()))
    reader.feed(log.encode().splitlines(), "log")
    doctor_machine.observe(reader, machine, sysroot=sysroot)
    evidence = reader.finish()
    return {item.id: item for item in report.findings(evidence, diagnose(evidence, rules.load()))}


def test_this_machine_is_looked_at_and_what_is_unknown_is_said(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_machine, "probe", lambda: probe(sysroot=CAPTURES / "xeon-4509y-2s"))
    monkeypatch.setattr(kernel_log, "lines", lambda: ([], []))
    monkeypatch.setattr(doctor_machine, "_rights", lambda *_: None)
    ended = cli("doctor")
    assert ended.code == 0
    assert "NOTHING WRONG FOUND" in ended.out
    assert "this machine, as it is now" in ended.out
    assert "not known: " in ended.out
    answer = cli("doctor", "--json").json
    assert {item["name"] for item in answer["observed"]} >= {"ram_total_bytes", "usable_cores"}
    assert answer["engine"] is None  # that none is on PATH names none


@pytest.mark.parametrize("folder", sorted(path.name for path in CAPTURES.iterdir() if path.is_dir()))
def test_nothing_is_wrong_with_captured_machines(folder: str, tmp_path: Path) -> None:
    """Healthy machines, with cards or without: notes alone."""
    items = found(probe(sysroot=CAPTURES / folder), tmp_path)
    assert [item.id for item in items.values() if item.severity != "note"] == []
    assert ("wsl2-memory-limit" in items) is folder.startswith("wsl2")


def test_a_group_that_limits_memory_is_a_note(tmp_path: Path) -> None:
    assert (
        found(probe(sysroot=CAPTURES / "docker-cgroup-v2"), tmp_path)["container-memory-limit"].severity
        == "note"
    )


def test_a_healthy_box_has_no_findings(tmp_path: Path) -> None:
    assert found(BOX, tmp_path) == {}


def test_a_link_with_lanes_missing(tmp_path: Path) -> None:
    item = found(replace(BOX, gpus=(CARD, replace(CARD, pcie_width_now=8))), tmp_path)["pcie-narrow-link"]
    assert item.severity == "slow"
    assert "8 of the 16 lanes" in item.cause
    assert "gpu1" in item.evidence[0].text


def test_what_holds_the_memory_of_a_card(tmp_path: Path) -> None:
    holder = GpuProcess(pid=77, name="/usr/bin/blender", used_bytes=9 * GIB)
    card = replace(CARD, free_bytes=14 * GIB, processes=(holder,))
    item = found(replace(BOX, gpus=(card,)), tmp_path)["vram-held-by-other-process"]
    assert item.severity == "note"
    assert "10.0 GiB of a card are taken now, by blender (77, 9.0 GiB)" in item.cause


def test_an_engine_that_sees_no_card(tmp_path: Path) -> None:
    blind = InstalledEngine(engine="llama.cpp", path="/usr/bin/llama-server", build=11434, backends=("CPU",))
    assert "build-without-gpu" in found(replace(BOX, engines=(blind,)), tmp_path)
    seeing = replace(blind, path="/opt/llama-server", devices=("CUDA0: RTX 3090",))
    assert found(replace(BOX, engines=(blind, seeing)), tmp_path) == {}
    assert found(replace(BOX, engines=(blind,), gpus=()), tmp_path) == {}


def test_nodes_that_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kfd", "nvidia0", "nvidiactl"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert found(BOX, tmp_path) == {}
    monkeypatch.setattr(os, "access", lambda *_: False)
    items = found(BOX, tmp_path)
    assert "/dev/kfd" in items["rocm-no-access"].cause
    assert "/dev/nvidiactl, /dev/nvidia0" in items["cuda-init-failed"].cause


@pytest.mark.parametrize(
    ("container", "driver", "ident"),
    [(None, "nvidia", "cuda-init-failed"), ("docker", "nvidia", "container-no-gpu"), (None, "vfio-pci", "")],
)
def test_a_card_whose_driver_does_not_answer(
    tmp_path: Path, container: str | None, driver: str, ident: str
) -> None:
    slot = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    slot.mkdir(parents=True)
    (slot / "vendor").write_text("0x10de\n")
    (slot / "class").write_text("0x030000\n")
    (slot / "driver").symlink_to(tmp_path / driver)
    items = found(replace(BOX, gpus=(), container=container), tmp_path)
    assert list(items) == ([ident] if ident else [])
    assert found(BOX, tmp_path) == {}


def test_threads_of_a_log_are_held_against_this_machine(tmp_path: Path) -> None:
    log = (
        "system_info: n_threads = 16 (n_threads_batch = 16) / 16 | CPU : AVX2 = 1 |\n"
        "load_tensors:   CPU_Mapped model buffer size =  4000.00 MiB\n"
    )
    quota = replace(BOX, cpu=replace(BOX.cpu, usable_cores=4))
    assert "threads-oversubscribed" in found(quota, tmp_path, log)
    assert found(quota, tmp_path, log.replace("n_threads = 16", "n_threads = 4")) == {}


KILL = "Out of memory: Killed process 4711 (llama-server) total-vm:70000000kB, anon-rss:60000000kB"
XID = "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def test_the_kernel_tells_of_yesterday_at_most(tmp_path: Path) -> None:
    """Records as Documentation/ABI/testing/dev-kmsg has them: priority, sequence, microseconds, flags; text."""
    kmsg = tmp_path / "kmsg"
    browser = KILL.replace("llama-server", "firefox")
    kmsg.write_text(f"3,1,1000000,-;{KILL}\n SUBSYSTEM=x\n3,2,2000000,-;{browser}\n3,3,3000000,-;{XID}\n")
    assert kernel_log.lines(kmsg=kmsg, now_s=10.0) == ([KILL, XID], [])
    assert kernel_log.lines(kmsg=kmsg, now_s=86402.5) == ([XID], [])


def test_a_log_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lines, notes = kernel_log.lines(kmsg=tmp_path / "kmsg")
    assert lines == []
    assert notes[0].probe == "kernel log"
    assert "dmesg" in notes[0].unlock


def test_live_adds_the_machine_to_a_log(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("srv  llama_server: listening on http://127.0.0.1:8080\n", encoding="utf-8")
    monkeypatch.setattr(doctor_machine, "probe", lambda: probe(sysroot=CAPTURES / "xeon-4509y-2s"))
    monkeypatch.setattr(kernel_log, "lines", lambda: ([KILL], []))
    assert cli("doctor", "--log", str(log), "--json").json["observed"] == []
    ended = cli("doctor", "--live", "--log", str(log), "--json")
    assert ended.code == 4
    assert [item["id"] for item in ended.json["findings"] if item["severity"] != "note"] == [
        "host-oom-killed"
    ]
    assert ended.json["log"]["state"] == "served"
    names = {item["name"] for item in ended.json["observed"]}
    assert "ram_now_bytes" in names
    assert "ram_free_bytes" not in names
