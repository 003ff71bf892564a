"""How a card is doing while it works: what holds its clocks down, power, heat, its link, and errors of its memory.

NVIDIA's by NVML (nvml.h: clocks event reasons, ECC counters, row remapping, page retirement), AMD's by amdgpu's sysfs
(hwmon, gpu_busy_percent, and gpu_metrics, kgd_pp_interface.h). Whatever a card does not tell is None.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plan_llama.hardware.amd import VENDOR_ID
from plan_llama.hardware.sysfs import integer, numbered, under

_ROOT = Path("/")
# nvmlClocksEventReasons; the same values are called ThrottleReasons in older drivers
_SW_POWER_CAP, _HW_SLOWDOWN, _SW_THERMAL, _HW_THERMAL, _POWER_BRAKE = 0x04, 0x08, 0x20, 0x40, 0x80
_UNCORRECTED, _VOLATILE, _AGGREGATE = 1, 0, 1
_DOUBLE_BIT = 1  # NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR
_UNKNOWN_STATE = 32
_BUSY = 20  # per cent: below it a card rests, and what slows it down then slows nothing
# SMU_THROTTLER_*: bits 0 to 7 are power, 16 to 23 current, 32 to 47 heat (amdgpu_smu.h)
_AMD_POWER, _AMD_HEAT = 0x00FF00FF, 0xFFFF << 32
# where indep_throttle_status stands, by the table's format and content revision
_AMD_THROTTLE_AT = {(1, 3): 112, (2, 2): 120, (2, 3): 120, (2, 4): 120}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """One card. `held` are reasons for lower clocks: heat, power-cap, hardware; counts of errors are None unless told.

    `performance_state` 0 is the fastest. `link` is (generation, width) now, `link_most` what card and slot can have.
    """

    name: str
    busy_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    limit_w: float | None = None
    default_limit_w: float | None = None
    performance_state: int | None = None
    held: frozenset[str] = frozenset()
    link: tuple[int | None, int | None] = (None, None)
    link_most: tuple[int | None, int | None] = (None, None)
    uncorrected: int | None = None  # errors since the driver was loaded
    uncorrected_ever: int | None = None
    bad_rows: int | None = None  # remapped rows, or retired pages on older cards
    repair_pending: bool = False  # only a reset puts the repair into effect
    repair_failed: bool = False

    @property
    def works(self) -> bool:
        """Whether it is busy enough for its clocks and its link to matter."""
        return self.busy_percent is not None and self.busy_percent >= _BUSY


def nvidia(nvml: Any) -> list[CardState]:
    """All cards that NVML lists. Never raises for what it cannot answer."""
    found: list[CardState] = []
    try:
        count = int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return found
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError:
            continue
        found.append(_nvidia_card(nvml, handle, index))
    return found


def cuda_version(nvml: Any) -> tuple[int, int] | None:
    """The newest CUDA that the driver is for: NVML's 12040 is 12.4."""
    try:
        number = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    except (nvml.NVMLError, AttributeError):
        return None
    return number // 1000, number % 1000 // 10


def _nvidia_card(nvml: Any, handle: Any, index: int) -> CardState:
    def ask(function: str, *args: Any) -> Any:
        call: Callable[..., Any] | None = getattr(nvml, function, None)
        try:
            return None if call is None else call(handle, *args)
        except (nvml.NVMLError, UnicodeDecodeError):
            return None

    def watts(function: str) -> float | None:
        value = ask(function)
        return None if value is None else int(value) / 1000

    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons") if reasons is None else reasons
    rates = ask("nvmlDeviceGetUtilizationRates")
    state = ask("nvmlDeviceGetPerformanceState")
    name = ask("nvmlDeviceGetName")
    rows = ask("nvmlDeviceGetRemappedRows")
    pages = ask("nvmlDeviceGetRetiredPages", _DOUBLE_BIT) if rows is None else None
    pending = ask("nvmlDeviceGetRetiredPagesPendingStatus") if rows is None else None
    return CardState(
        name=f"gpu{index} {name.decode('utf-8', 'replace') if isinstance(name, bytes) else name or 'NVIDIA GPU'}",
        busy_percent=None if rates is None else int(rates.gpu),
        temperature_c=ask("nvmlDeviceGetTemperature", 0),
        power_w=watts("nvmlDeviceGetPowerUsage"),
        limit_w=watts("nvmlDeviceGetEnforcedPowerLimit"),
        default_limit_w=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        performance_state=None if state is None or int(state) >= _UNKNOWN_STATE else int(state),
        held=_held(int(reasons or 0)),
        link=(ask("nvmlDeviceGetCurrPcieLinkGeneration"), ask("nvmlDeviceGetCurrPcieLinkWidth")),
        link_most=(ask("nvmlDeviceGetMaxPcieLinkGeneration"), ask("nvmlDeviceGetMaxPcieLinkWidth")),
        uncorrected=ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
        uncorrected_ever=ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _AGGREGATE),
        bad_rows=int(rows[1]) if rows is not None else None if pages is None else len(pages),
        repair_pending=bool(rows[2]) if rows is not None else bool(pending),
        repair_failed=bool(rows[3]) if rows is not None else False,
    )


def _held(reasons: int) -> frozenset[str]:
    """HW slowdown stands beside the reason of its own where that is known (nvml.h)."""
    found = set()
    if reasons & (_SW_THERMAL | _HW_THERMAL):
        found.add("heat")
    if reasons & _POWER_BRAKE or (reasons & _HW_SLOWDOWN and not reasons & _HW_THERMAL):
        found.add("hardware")
    if reasons & _SW_POWER_CAP:
        found.add("power-cap")
    return frozenset(found)


def amd(sysroot: Path = _ROOT) -> list[CardState]:
    """All cards of amdgpu."""
    found: list[CardState] = []
    for number, card in numbered(under(sysroot, "/sys/class/drm"), r"card(\d+)"):
        device = card / "device"
        if integer(device / "vendor") != VENDOR_ID or integer(device / "mem_info_vram_total") is None:
            continue
        monitor = next((folder for _, folder in numbered(device / "hwmon", r"hwmon(\d+)")), device)

        def scaled(name: str, unit: float, of: Path = monitor) -> float | None:
            value = integer(of / name)
            return None if value is None else value / unit

        heat = scaled("temp1_input", 1e3)
        power = scaled("power1_average", 1e6)
        found.append(
            CardState(
                name=f"card{number} (amdgpu)",
                busy_percent=integer(device / "gpu_busy_percent"),
                temperature_c=None if heat is None else int(heat),
                power_w=scaled("power1_input", 1e6) if power is None else power,
                limit_w=scaled("power1_cap", 1e6),
                default_limit_w=scaled("power1_cap_default", 1e6),
                held=_amd_held(device / "gpu_metrics"),
                uncorrected=_amd_errors(device),
            )
        )
    return found


def _amd_held(table: Path) -> frozenset[str]:
    try:
        data = table.read_bytes()[:4096]
    except OSError:
        return frozenset()
    place = _AMD_THROTTLE_AT.get((data[2], data[3])) if len(data) >= 4 else None
    if place is None or len(data) < place + 8:
        return frozenset()
    (bits,) = struct.unpack_from("<Q", data, place)
    if bits == (1 << 64) - 1:  # not filled in by this driver
        return frozenset()
    return frozenset(name for name, mask in (("heat", _AMD_HEAT), ("power-cap", _AMD_POWER)) if bits & mask)


def _amd_errors(device: Path) -> int | None:
    """Uncorrected errors of the memory controller: `ue: 0` in ras/umc_err_count."""
    try:
        words = (device / "ras/umc_err_count").read_text(encoding="utf-8").split()
        return int(words[words.index("ue:") + 1])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(slots=True)
class CardWatch:
    """Cards that are looked at again and again: what held them while they worked, and their best link."""

    ask: Callable[[], Sequence[CardState]]
    cuda: tuple[int, int] | None = None  # the newest that the driver is for
    cards: dict[str, CardState] = field(default_factory=dict)

    def look(self) -> None:
        """Once more."""
        for now in self.ask():
            before = self.cards.get(now.name)
            self.cards[now.name] = now if before is None else _joined(before, now)

    def all(self) -> Iterable[CardState]:
        """Each card as the watch saw it."""
        return self.cards.values()


def _joined(before: CardState, now: CardState) -> CardState:
    """The busier look counts, with the reasons of both where both worked; errors are the latest."""
    busier, other = (now, before) if (now.busy_percent or 0) >= (before.busy_percent or 0) else (before, now)
    return replace(
        busier,
        held=busier.held | other.held if other.works else busier.held,
        link=(_most(before.link[0], now.link[0]), _most(before.link[1], now.link[1])),
        uncorrected=now.uncorrected,
        uncorrected_ever=now.uncorrected_ever,
        bad_rows=now.bad_rows,
        repair_pending=now.repair_pending,
        repair_failed=now.repair_failed,
    )


def _most(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return max(known, default=None)
