"""A real H200 at rest and at work (tests/data/nvml): what is read of it, and said, is what nvidia-smi -q shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from plan_llama.cli import doctor_cards, doctor_machine
from plan_llama.doctor import report, rules
from plan_llama.doctor.evidence import Evidence
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.hardware import card_state, nvml
from plan_llama.hardware.card_state import CardState, CardWatch
from plan_llama.hardware.types import Cpu, Gpu, Machine, Ram
from plan_llama.units import GIB, MIB
from tests.unit.hardware.support import NvmlError

DATA = Path(__file__).parents[2] / "data" / "nvml"
Kind = Literal["idle", "busy"]
KINDS: tuple[Kind, ...] = ("idle", "busy")
RAM = Ram(total_bytes=128 * GIB, available_bytes=100 * GIB)
MEANING = {
    "SW Power Cap": "power-cap",
    "SW Thermal Slowdown": "heat",
    "HW Thermal Slowdown": "heat",
    "HW Slowdown": "hardware",
    "HW Power Brake Slowdown": "hardware",
}


def shown(kind: Kind) -> dict[tuple[str, ...], str]:
    """What nvidia-smi -q shows, by the headings above a line and its name."""
    found: dict[tuple[str, ...], str] = {}
    above: list[tuple[int, str]] = []
    for line in (DATA / f"h200-{kind}-smi.txt").read_text(encoding="utf-8").splitlines():
        key, _, value = line.strip().partition(" : ")
        indent = len(line) - len(line.lstrip())
        above = [item for item in above if 0 < item[0] < indent]
        above.append((indent, key.strip()))
        found[tuple(name for _, name in above)] = value.strip()
    return found


def number(kind: Kind, *path: str) -> float:
    """The number of such a line, without its unit."""
    return float(shown(kind)[path].split()[0].rstrip("x"))


class Recorded:
    """NVML as it answered; what nobody asked it then is taken from nvidia-smi, or not supported."""

    NVMLError = NvmlError

    def __init__(self, kind: Kind, **changed: Any) -> None:
        stored = json.loads((DATA / f"h200-{kind}.json").read_text(encoding="utf-8"))
        memory = {
            name: int(number(kind, "FB Memory Usage", name.capitalize())) * MIB
            for name in ("total", "reserved", "used", "free")
        }
        stored[f"nvmlDeviceGetMemoryInfo[{nvml._MEMORY_V2}]"] = memory
        if kind == "busy":
            used = int(number(kind, "Processes", "Process ID", "Used GPU Memory")) * MIB
            process = {"pid": int(number(kind, "Processes", "Process ID")), "usedGpuMemory": used}
            stored["nvmlDeviceGetComputeRunningProcesses"] = [SimpleNamespace(**process)]
        self._answers: Mapping[str, Any] = {**stored, **changed}
        self._shown = shown(kind)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # pynvml's names
        return int(self._shown["Attached GPUs",])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self._shown["Driver Version",]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def answer(_handle: int, *arguments: int) -> Any:
            key = f"{name}{list(arguments) if arguments else ''}"
            found = self._answers.get(key, {"error": "Not Supported"})
            if isinstance(found, dict) and "error" in found:
                raise NvmlError(found["error"])
            return SimpleNamespace(**found) if isinstance(found, dict) else found

        return answer


def state(kind: Kind, **changed: Any) -> CardState:
    (card,) = card_state.nvidia(Recorded(kind, **changed))
    return card


def evidence(*looks: Recorded) -> Evidence:
    """What doctor has after looking so often."""
    left = list(looks)
    watch = CardWatch(lambda: card_state.nvidia(left.pop(0)))
    for _ in looks:
        watch.look()
    reader = LogReader(Book(rules.templates()))
    reader.feed([b""], "machine")
    doctor_cards.observe(reader, watch)
    return reader.finish()


def findings(found: Evidence) -> dict[str, report.Found]:
    return {item.id: item for item in report.findings(found, diagnose(found, rules.load()))}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_what_nvidia_smi_shows(kind: Kind) -> None:
    card, smi = state(kind), shown(kind)
    assert card.name == f"gpu0 {smi['Product Name',]}"
    assert card.busy_percent == number(kind, "Utilization", "GPU")
    assert f"P{card.performance_state}" == smi["Performance State",]
    power = "GPU Power Readings"
    assert card.limit_w == number(kind, power, "Current Power Limit")
    assert card.default_limit_w == number(kind, power, "Default Power Limit")
    assert card.power_w == pytest.approx(number(kind, power, "Average Power Draw"), rel=0.05)
    link = ("PCI", "GPU Link Info")
    for found, word in ((card.link, "Current"), (card.link_most, "Max")):
        assert found[0] == number(kind, *link, "PCIe Generation", word)
        assert found[1] == number(kind, *link, "Link Width", word)
    held = {
        MEANING.get(path[-1])
        for path, value in smi.items()
        if path[0] == "Clocks Event Reasons" and value == "Active"
    }
    assert card.held == held - {None}
    for errors, counter in ((card.uncorrected, "Volatile"), (card.uncorrected_ever, "Aggregate")):
        lines = [path for path in smi if path[:2] == ("ECC Errors", counter) and "Uncorrectable" in path[-1]]
        assert len(lines) >= 3
        assert errors == sum(number(kind, *path) for path in lines)
    assert card.bad_rows == number(kind, "Remapped Rows", "Uncorrectable Error")
    assert card.repair_pending == (smi["Remapped Rows", "Pending"] == "Yes")
    assert card.repair_failed == (smi["Remapped Rows", "Remapping Failure Occurred"] == "Yes")
    if kind == "busy":  # the other two are minutes apart
        assert card.temperature_c == number(kind, "Temperature", "GPU Current Temp")


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_is_what_nvidia_smi_shows(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "proc" / "1218").mkdir(parents=True)
    (tmp_path / "proc" / "1218" / "comm").write_text("llama-server\n", encoding="utf-8")
    (card,), notes = nvml.gpus(Recorded(kind), RAM, sysroot=tmp_path, environment={})
    smi, memory = shown(kind), "FB Memory Usage"
    assert notes == []
    assert (card.name, card.driver) == (smi["Product Name",], smi["Driver Version",])
    assert card.total_bytes / MIB == number(kind, memory, "Total") - number(kind, memory, "Reserved")
    assert card.free_bytes / MIB == pytest.approx(number(kind, memory, "Free"), abs=1)
    assert card.display == (smi["Display Active",] == "Enabled")
    assert (card.pcie_gen, card.pcie_width) == (5, 16)
    assert findings(of_machine(card)) == {}
    said = [
        fact.line.text
        for name, fact in of_machine(card).observed.items()
        if name == "held_share" and fact.line
    ]
    if kind == "busy":
        assert said == ["NVIDIA H200: 7.0 GiB of 139.8 GiB are taken, by llama-server (1218, 7.0 GiB)"]
        assert number(kind, memory, "Used") / 1024 == pytest.approx(7.0, abs=0.05)
    else:
        assert smi["Processes",] == "None"
        assert said == ["NVIDIA H200: 0 of 139.8 GiB are taken"]


def test_memory_of_a_driver_that_does_not_tell_what_it_reserves() -> None:
    """Its used memory has both; the sizes are those of nvidia-smi all the same."""
    old = {f"nvmlDeviceGetMemoryInfo[{nvml._MEMORY_V2}]": {"error": "Function Not Found"}}
    (card,), _ = nvml.gpus(Recorded("busy", **old), RAM, sysroot=Path("/nowhere"), environment={})
    assert card.total_bytes / MIB == pytest.approx(number("busy", "FB Memory Usage", "Total"), abs=1)
    assert card.free_bytes / MIB == pytest.approx(number("busy", "FB Memory Usage", "Free"), abs=1)


def of_machine(card: Gpu) -> Evidence:
    """What doctor has of a machine with that card."""
    machine = Machine(name="box", gpus=(card,), ram=RAM, cpu=Cpu(physical_cores=16, logical_cores=16))
    reader = LogReader(Book(rules.templates()))
    reader.feed([b""], "machine")
    doctor_machine.observe(reader, machine, sysroot=Path("/nowhere"))
    return reader.finish()


def test_a_healthy_card_is_not_accused() -> None:
    """At rest its clocks are at 345 of 1,980 MHz, in P0, and the driver calls that a reason for lower clocks: idle."""
    assert number("idle", "Clocks", "SM") < number("idle", "Max Clocks", "SM")
    idle, busy = Recorded("idle"), Recorded("busy")
    for looks in ((idle,), (busy,), (idle, busy, idle)):
        assert findings(evidence(*looks)) == {}


def test_what_is_said_of_it() -> None:
    (line,) = (
        fact.line.text for fact in evidence(Recorded("idle"), Recorded("busy")).observed.values() if fact.line
    )
    name, _, parts = line.partition(": ")
    assert name == "gpu0 NVIDIA H200"
    assert parts.split(", ") == [
        "90 % busy",
        "power state P0",
        "43 °C",
        "466 W of 700 W",
        "PCIe 5.0 x16 of 5.0 x16",
        "0 uncorrected memory errors",
    ]


def test_power_at_the_makers_limit_is_a_note() -> None:
    """The busy card as it is at its 700 W: SW Power Cap is Active then."""
    full = {"nvmlDeviceGetCurrentClocksEventReasons": 4, "nvmlDeviceGetPowerUsage": 698_900}
    (item,) = findings(evidence(Recorded("busy", **full))).values()
    assert (item.id, item.severity) == ("gpu-power-or-clock-limited", "note")


def test_lanes_that_are_missing() -> None:
    """NVML's present width against what card and slot could have; it is no matter of load."""
    lost = Recorded("idle", nvmlDeviceGetCurrPcieLinkWidth=8)
    (item,) = findings(evidence(lost)).values()
    assert item.id == "pcie-narrow-link"
    assert "8 of the 16 lanes" in item.cause
