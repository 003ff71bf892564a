"""How cards are doing: NVML replayed, amdgpu's sysfs written out, and what a watch makes of several looks.

The values are NVIDIA's (nvml.h) and the kernel's (kgd_pp_interface.h, amdgpu_smu.h, Documentation/gpu/amdgpu/thermal).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plan_llama.cli import doctor_cards
from plan_llama.doctor import report, rules
from plan_llama.doctor.evidence import Fact
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.hardware import card_state
from plan_llama.hardware.card_state import CardState, CardWatch
from tests.unit.hardware.support import FakeNvml, NvmlError, nvidia_card

# An RTX 3090 that decodes, as nvidia-smi -q shows it: 98 % busy, P2, at its own limit of 350 W.
BUSY: dict[str, Any] = {
    "UtilizationRates": SimpleNamespace(gpu=98, memory=70),
    "PerformanceState": 2,
    "Temperature": 67,
    "PowerUsage": 312_456,
    "EnforcedPowerLimit": 350_000,
    "PowerManagementDefaultLimit": 350_000,
    "CurrentClocksEventReasons": 0,
    "CurrPcieLinkGeneration": 4,
}


def card(**answers: Any) -> dict[str, Any]:
    return nvidia_card("NVIDIA GeForce RTX 3090", 24576, 2000, "00000000:01:00.0", **{**BUSY, **answers})


def state(**answers: Any) -> CardState:
    (found,) = card_state.nvidia(FakeNvml([card(**answers)]))
    return found


def findings(*looks: dict[str, Any]) -> dict[str, report.Found]:
    """What is said of one card after some looks at it."""
    left = list(looks)
    watch = CardWatch(lambda: card_state.nvidia(FakeNvml([left.pop(0)])))
    for _ in looks:
        watch.look()
    reader = LogReader(Book(rules.templates()))
    reader.feed([b""], "machine")
    doctor_cards.observe(reader, watch)
    evidence = reader.finish()
    return {item.id: item for item in report.findings(evidence, diagnose(evidence, rules.load()))}


def test_the_binding_has_every_function_and_value() -> None:
    import pynvml

    source = Path(card_state.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"nvml(?:Device|System)[A-Z]\w+", source))
    assert len(names) > 14
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
    assert pynvml.nvmlClocksEventReasonSwPowerCap == card_state._SW_POWER_CAP
    assert pynvml.nvmlClocksEventReasonHwSlowdown == card_state._HW_SLOWDOWN
    assert pynvml.nvmlClocksEventReasonSwThermalSlowdown == card_state._SW_THERMAL
    assert pynvml.nvmlClocksEventReasonHwThermalSlowdown == card_state._HW_THERMAL
    assert pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown == card_state._POWER_BRAKE
    assert pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED == card_state._UNCORRECTED
    assert (pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC) == (
        card_state._VOLATILE,
        card_state._AGGREGATE,
    )
    assert pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR == card_state._DOUBLE_BIT
    assert pynvml.NVML_PSTATE_UNKNOWN == card_state._UNKNOWN_STATE


def test_what_a_card_tells() -> None:
    found = state(RemappedRows=(1, 2, 1, 0), TotalEccErrors=3)
    assert (found.busy_percent, found.performance_state, found.power_w) == (98, 2, 312.456)
    assert (found.limit_w, found.default_limit_w, found.link, found.link_most) == (
        350.0,
        350.0,
        (4, 16),
        (4, 16),
    )
    assert (found.uncorrected, found.bad_rows, found.repair_pending, found.repair_failed) == (
        3,
        2,
        True,
        False,
    )


def test_a_card_that_tells_nothing_is_none_the_worse() -> None:
    found = card_state.nvidia(FakeNvml([{"Name": b"Tesla K80"}, {"lost": True}]))
    assert [item.name for item in found] == ["gpu0 Tesla K80"]
    assert found[0] == CardState(name="gpu0 Tesla K80")
    assert findings({"Name": "Tesla K80"}) == {}


def test_a_card_of_older_drivers_and_older_cards() -> None:
    """Throttle reasons are the former name of event reasons; pages are retired where rows cannot be remapped."""
    answers = card(CurrentClocksThrottleReasons=0x20, RetiredPages=[1, 2], RetiredPagesPendingStatus=1)
    del answers["CurrentClocksEventReasons"]
    (found,) = card_state.nvidia(FakeNvml([answers]))
    assert (found.held, found.bad_rows, found.repair_pending) == (frozenset({"heat"}), 2, True)


@pytest.mark.parametrize(
    ("reasons", "more", "said"),
    [
        (0x20, {"Temperature": 88}, "slowed down by heat at 88 °C"),
        (0x40 | 0x08, {}, "slowed down by heat"),
        (0x80 | 0x08, {}, "slowed down by its hardware"),
        (0x04, {"EnforcedPowerLimit": 220_000}, "at a power limit of 220 W, 350 W being the maker's"),
        (0x00, {"PerformanceState": 5}, "stays in power state P5 while it is 98 % busy"),
        (
            0x24,
            {"EnforcedPowerLimit": 220_000},
            "by heat at 67 °C; gpu0 NVIDIA GeForce RTX 3090 is at a power limit",
        ),
    ],
)
def test_what_holds_a_card_that_works(reasons: int, more: dict[str, Any], said: str) -> None:
    items = findings(card(CurrentClocksEventReasons=reasons, **more))
    assert list(items) == ["gpu-power-or-clock-limited"]
    item = items["gpu-power-or-clock-limited"]
    assert item.severity == "slow"
    assert said in item.cause


@pytest.mark.parametrize(
    "answers",
    [
        card(),
        card(CurrentClocksEventReasons=0x01, UtilizationRates=SimpleNamespace(gpu=0), PerformanceState=8),
        card(CurrentClocksEventReasons=0x21, UtilizationRates=SimpleNamespace(gpu=3)),  # it cools down
        card(UtilizationRates=SimpleNamespace(gpu=5), PerformanceState=8, CurrPcieLinkGeneration=1),
        card(EnforcedPowerLimit=220_000),  # lowered, and not reached
        card(TotalEccErrors=0, RemappedRows=(0, 0, 0, 0)),
    ],
)
def test_a_healthy_card_has_no_findings(answers: dict[str, Any]) -> None:
    assert findings(answers) == {}


def test_a_card_at_its_makers_limit_is_a_note() -> None:
    assert findings(card(CurrentClocksEventReasons=0x04))["gpu-power-or-clock-limited"].severity == "note"


def test_a_link_that_stays_slow_under_load() -> None:
    items = findings(card(CurrPcieLinkGeneration=1), card(CurrPcieLinkGeneration=2))
    assert "runs at PCIe 2.0 where card and slot have 4.0" in items["pcie-narrow-link"].cause
    assert findings(card(CurrPcieLinkGeneration=1), card(CurrPcieLinkGeneration=4)) == {}


@pytest.mark.parametrize(
    ("answers", "severity", "said"),
    [
        ({"TotalEccErrors": 2}, "degraded", "2 uncorrected errors of its memory since"),
        ({"RemappedRows": (0, 1, 1, 0)}, "degraded", "waits for a reset"),
        ({"RemappedRows": (0, 8, 0, 1)}, "degraded", "could not be replaced"),
        ({"RemappedRows": (0, 1, 0, 0)}, "note", "1 rows or pages of its memory were replaced"),
    ],
)
def test_errors_of_memory(answers: dict[str, Any], severity: str, said: str) -> None:
    item = findings(card(**answers))["gpu-memory-errors"]
    assert item.severity == severity
    assert said in item.cause


def test_a_watch_keeps_what_was_seen_under_load() -> None:
    rest = card(UtilizationRates=SimpleNamespace(gpu=0), PerformanceState=8, Temperature=50)
    items = findings(rest, card(CurrentClocksEventReasons=0x40), card(), rest)
    assert "by heat at 67 °C" in items["gpu-power-or-clock-limited"].cause


def amd_card(root: Path, *, revision: tuple[int, int], bits: int, size: int, at: int, cap: int = 303) -> Path:
    device = root / "sys/class/drm/card1/device"
    (device / "hwmon/hwmon4").mkdir(parents=True)
    (device / "ras").mkdir()
    for name, text in (
        ("vendor", "0x1002"),
        ("mem_info_vram_total", "25753026560"),
        ("gpu_busy_percent", "97"),
        ("hwmon/hwmon4/temp1_input", "64000"),
        ("hwmon/hwmon4/power1_average", "250000000"),
        ("hwmon/hwmon4/power1_cap", f"{cap}000000"),
        ("hwmon/hwmon4/power1_cap_default", "303000000"),
        ("ras/umc_err_count", "ue: 0\nce: 2"),
    ):
        (device / name).write_text(text + "\n", encoding="utf-8")
    table = bytearray(size)
    struct.pack_into("<HBB", table, 0, size, *revision)
    struct.pack_into("<Q", table, at, bits)
    (device / "gpu_metrics").write_bytes(table)
    return root


@pytest.mark.parametrize(
    ("bits", "held"),
    [
        (0, set()),
        (1 << 36, {"heat"}),  # SMU_THROTTLER_TEMP_HOTSPOT_BIT
        (1 << 0 | 1 << 47, {"heat", "power-cap"}),  # PPT0, PROCHOT_GFX
        (1 << 16, {"power-cap"}),  # TDC_GFX
        (1 << 57, set()),  # FIT: a margin of the firmware's own
        ((1 << 64) - 1, set()),
    ],
)
@pytest.mark.parametrize(("revision", "size", "at"), [((1, 3), 120, 112), ((2, 2), 128, 120)])
def test_an_amd_card(
    tmp_path: Path, bits: int, held: set[str], revision: tuple[int, int], size: int, at: int
) -> None:
    (found,) = card_state.amd(amd_card(tmp_path, revision=revision, bits=bits, size=size, at=at))
    assert found.held == held
    assert (found.busy_percent, found.temperature_c, found.power_w) == (97, 64, 250.0)
    assert (found.limit_w, found.default_limit_w, found.uncorrected) == (303.0, 303.0, 0)


def test_a_table_that_is_unknown_or_cut_tells_nothing(tmp_path: Path) -> None:
    unknown = amd_card(tmp_path / "a", revision=(1, 8), bits=1 << 36, size=200, at=112)
    assert card_state.amd(unknown)[0].held == set()
    cut = amd_card(tmp_path / "b", revision=(1, 3), bits=1 << 36, size=120, at=112)
    table = cut / "sys/class/drm/card1/device/gpu_metrics"
    table.write_bytes(table.read_bytes()[:100])
    assert card_state.amd(cut)[0].held == set()
    assert card_state.amd(tmp_path / "none") == []


def test_the_driver_against_the_runtime() -> None:
    """13000 is CUDA 13.0 (nvmlSystemGetCudaDriverVersion); a runtime of a later major version needs a newer driver."""
    assert card_state.cuda_version(FakeNvml([])) == (13, 0)
    assert card_state.cuda_version(SimpleNamespace(NVMLError=NvmlError)) is None
    for runtime, expected in ((13, []), (12, []), (14, ["cuda-driver-too-old"])):
        reader = LogReader(Book(rules.templates()))
        reader.feed([b""], "machine")
        doctor_cards.observe(reader, CardWatch(list, (13, 0)))
        reader.observe("cuda_runtime_major", Fact(runtime))
        evidence = reader.finish()
        assert [item.rule.id for item in diagnose(evidence, rules.load())] == expected
