"""Parse and print sizes. The only place that knows 1024 and 10**9."""

from __future__ import annotations

import re

from plan_llama.errors import UsageError

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4
GB = 10**9

_FACTORS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?B?)\s*", re.IGNORECASE)
_MOST_BYTES = 1 << 60


def parse_size(text: str, *, what: str = "size") -> int:
    """Bytes of a size as people write it of memory: `24GiB`, `24GB` and `24G` all mean 24 × 2**30.

    Raises UsageError for anything without a unit (a bare 24 is ambiguous), negative or absurd.
    """
    match = _SIZE.fullmatch(text)
    if not match or not (match[2] or match[3]):
        raise UsageError(f"{what}: expected a size such as 24GiB or 512MiB, found {text!r}")
    value = round(float(match[1]) * _FACTORS[match[2].upper()])
    if not 0 <= value <= _MOST_BYTES:
        raise UsageError(f"{what}: {text!r} is outside what a machine can have (0 to 2**60 bytes)")
    return value


def uses_decimal_spelling(text: str) -> bool:
    """Whether a size was written with MB/GB, which is read as the binary unit here (and must be said)."""
    match = _SIZE.fullmatch(text)
    return bool(match and match[2] and match[3].upper() == "B")


def gib(size_bytes: float) -> str:
    """`22.1 GiB`; MiB below one GiB, TiB from 10 TiB on."""
    if abs(size_bytes) >= 10 * TIB:
        return f"{size_bytes / TIB:.1f} TiB"
    if abs(size_bytes) >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    if abs(size_bytes) >= MIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / KIB:.1f} KiB" if size_bytes else "0"


def mib_exact(size_bytes: float) -> str:
    """`12,622.3 MiB`, the unit of llama.cpp's own logs."""
    return f"{size_bytes / MIB:,.1f} MiB"


def publisher_gb(size_bytes: float) -> str:
    """File sizes as publishers state them: `236.0 GB` of 10**9 bytes."""
    return f"{size_bytes / GB:.1f} GB"


def rate(value: float) -> str:
    """A rate in tokens per second with as many digits as mean something: 87, 3.5, 0.24."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def seconds(value: float) -> str:
    """A time as people say it: `2.7 s`, `54 s`, `5 min`, `6.7 h`."""
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    if value >= 120:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def tokens(count: int) -> str:
    """`32K` for 32,768, else the number with thousands separators."""
    return f"{count // 1024}K" if count and count % 1024 == 0 else f"{count:,}"
