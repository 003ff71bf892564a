"""Memory modules from the firmware's table (SMBIOS type 17, DMTF DSP0134), which only root may read."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from plan_llama.hardware.sysfs import under
from plan_llama.hardware.types import ProbeNote

_TABLE = "/sys/firmware/dmi/tables/DMI"
_MOST_BYTES = 1 << 20
# DSP0134 7.18.2, memory device types that a bandwidth can be taken from.
_TYPES = {0x18: "DDR3", 0x1A: "DDR4", 0x1D: "LPDDR3", 0x1E: "LPDDR4", 0x22: "DDR5", 0x23: "LPDDR5"}
_UNLOCK = "run once as root, or give --ram-type and --ram-channels, or measure: plan-llama hardware --measure"
_UNLOCK_VM = _UNLOCK.removeprefix("run once as root, or ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the modules say together. `channels` of 64 bits, None where the slots' names do not tell."""

    type: str
    speed_mt_s: int
    channels: int | None
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Module:
    type: str
    speed_mt_s: int
    data_bits: int
    slot: str
    bank: str


def _structures(data: bytes) -> list[tuple[int, bytes, list[str]]]:
    """(type, formatted area, strings) of each structure; stops at the first malformed one."""
    found: list[tuple[int, bytes, list[str]]] = []
    offset = 0
    while offset + 4 <= len(data):
        kind, length = data[offset], data[offset + 1]
        if length < 4 or offset + length > len(data):
            break
        end = data.find(b"\0\0", offset + length)
        if end < 0:
            break
        strings = [part.decode("latin-1").strip() for part in data[offset + length : end].split(b"\0")]
        found.append((kind, data[offset : offset + length], strings))
        offset = end + 2
        if kind == 127:
            break
    return found


def _module(area: bytes, strings: list[str]) -> _Module | None:
    """A populated module with a plausible type and speed. Virtual machines state 0, or `RAM` at no speed."""

    def word(at: int) -> int:
        return int(struct.unpack_from("<H", area, at)[0]) if at + 2 <= len(area) else 0

    def dword(at: int) -> int:
        return int(struct.unpack_from("<I", area, at)[0]) if at + 4 <= len(area) else 0

    def string(at: int) -> str:
        index = area[at] if at < len(area) else 0
        return strings[index - 1] if 0 < index <= len(strings) else ""

    kind = _TYPES.get(area[0x12]) if len(area) > 0x12 else None
    size = word(0x0C)
    # What it runs at (configured) counts, not what it could do; 0xFFFF points to the extended fields.
    speeds = [
        dword(0x58) if word(0x20) == 0xFFFF else word(0x20),
        dword(0x54) if word(0x15) == 0xFFFF else word(0x15),
    ]
    speed = next((value for value in speeds if value), 0)
    if kind is None or size in (0, 0xFFFF) or not 400 <= speed <= 20000:
        return None
    return _Module(
        type=kind,
        speed_mt_s=speed,
        data_bits=word(0x0A),
        slot=string(0x10).upper(),
        bank=string(0x11).upper(),
    )


def _channel(module: _Module) -> str | None:
    """The channel that a module sits in, by the spellings of AMI, AMD, Intel, Supermicro and Asus boards."""
    for name in (module.bank, module.slot):
        if match := re.search(r"^(.*?)CHANNEL[ _-]?([A-P]|\d+)", name):
            return f"{match[1]}{match[2]}"
    for name in (module.slot, module.bank):
        if match := re.search(r"^(.*?)DIMM[ _-]?([A-P])[ _-]?\d?", name):
            return f"{match[1]}{match[2]}"
        if match := re.fullmatch(r"(?:CPU|P)?\d?[ _-]?([A-P])\d{1,2}", name):
            return name.rstrip("0123456789")
    return None


def parse(data: bytes) -> Memory | None:
    """Type, slowest speed and channels of the populated modules; None where the table tells nothing
    usable.
    """
    modules = [
        module
        for kind, area, strings in _structures(data)
        if kind == 17 and (module := _module(area, strings)) is not None
    ]
    if not modules:
        return None
    first = modules[0]
    channels: int | None
    if first.type.startswith("LPDDR"):
        # Soldered packages: every one has its own data lines.
        channels = sum(module.data_bits for module in modules) // 64 or None
    else:
        named = [_channel(module) for module in modules]
        channels = None if None in named else len(set(named))
        if len(modules) == 1:
            channels = 1
    return Memory(
        type=first.type,
        speed_mt_s=min(module.speed_mt_s for module in modules),
        channels=channels,
        modules=len(modules),
    )


def read(sysroot: Path) -> Memory | ProbeNote:
    """The memory's type, speed and channels, or the reason why they are unknown."""
    try:
        with under(sysroot, _TABLE).open("rb") as stream:
            data = stream.read(_MOST_BYTES)
    except PermissionError:
        return ProbeNote(probe="memory type", reason=f"{_TABLE} is readable by root only", unlock=_UNLOCK)
    except OSError:
        return ProbeNote(probe="memory type", reason="this machine has no SMBIOS table", unlock=_UNLOCK_VM)
    found = parse(data)
    if found is None:
        reason = "the firmware's table states no memory type or speed (usual in virtual machines)"
        return ProbeNote(probe="memory type", reason=reason, unlock=_UNLOCK_VM)
    return found
