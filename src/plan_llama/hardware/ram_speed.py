"""What type, speed and channels of memory say about its bandwidth, and what is assumed where nobody says."""

from __future__ import annotations

import re

from plan_llama.errors import UsageError

# A channel is 64 data bits wide here, also for DDR5 (two sub-channels of 32) and LPDDR (16- or 32-bit ones).
BYTES_PER_TRANSFER = 8

# What is assumed of memory about which only the size is known: a desktop board with both channels filled.
# Visible wherever it is used (source "assumed"). Four DIMMs of DDR5 (192 GiB and more) often run slower.
ASSUMED_TYPE = "DDR5"
ASSUMED_MT_S = 5600
ASSUMED_CHANNELS = 2

_TYPE = re.compile(r"((?:LP)?DDR[2-6]X?)[ -]?(\d{3,5})(?: ?MT/s)?", re.IGNORECASE)


def parse_type(written: str, *, what: str = "--ram-type") -> tuple[str, int]:
    """`DDR5-5600` as ("DDR5", 5600): the kind, and mega-transfers per second. Raises UsageError."""
    match = _TYPE.fullmatch(written.strip())
    if not match or not 200 <= int(match[2]) <= 20000:
        raise UsageError(f"{what}: expected kind and speed such as DDR5-5600 or DDR4-3200, found {written!r}")
    return match[1].upper(), int(match[2])


def peak_bytes_per_s(mt_s: int, channels: int) -> float:
    """The peak of the memory bus in bytes per second: transfers per second × 8 bytes × channels."""
    return mt_s * 1e6 * BYTES_PER_TRANSFER * channels


def assumed_bytes_per_s() -> float:
    """The peak of the assumed memory (two channels of DDR5-5600), bytes per second."""
    return peak_bytes_per_s(ASSUMED_MT_S, ASSUMED_CHANNELS)


def assumption() -> str:
    """The assumption in words, for notes."""
    return f"{ASSUMED_CHANNELS} channels of {ASSUMED_TYPE}-{ASSUMED_MT_S}"
