"""How fast this machine reads its memory: measured once, cached.

What is measured: threads that each run C's `memchr` over a buffer of their own, larger than the caches, for a
byte that is not there. It is a pure sequential read (the GIL is not held meanwhile), as reading weights is;
the sum over the threads is the read bandwidth. It is below the bus's peak, as every program's is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plan_llama.errors import InputError
from plan_llama.hardware import cache
from plan_llama.hardware.sysfs import text, under
from plan_llama.hardware.types import Cpu, Ram
from plan_llama.units import GIB

_TOPIC = "bandwidth"
_MOST_BYTES = 2 * GIB  # all buffers together
_LEAST_PER_THREAD = 16 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """A measured read bandwidth in bytes per second, the threads that reached it, and the day (ISO date)."""

    bytes_per_s: float
    threads: int
    date: str


def machine_key(cpu: Cpu, ram: Ram, sysroot: Path = Path("/")) -> str:
    """What a measurement is valid for: this machine (by a hash of its id), CPU and memory, over reboots."""
    import hashlib

    identity = text(under(sysroot, "/etc/machine-id"), 256) or ""
    parts = (
        identity,
        cpu.name or "",
        str(cpu.physical_cores),
        str(cpu.usable_cores),
        str(round(ram.total_bytes / GIB)),
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def measure(cpu: Cpu, ram: Ram, *, budget_s: float = 3.0) -> Bandwidth:
    """Measure the read bandwidth in at most about `budget_s` seconds, an eighth of the free memory or 2 GiB.

    As many threads as physical cores, and half as many; the better counts. Raises InputError where the memory
    for it is not there.
    """
    from datetime import UTC, datetime

    from plan_llama.hardware import memread  # ctypes and threads, which a plan from the cache does not need

    total = min(_MOST_BYTES, ram.available_bytes // 8)
    cores = max(1, min(cpu.usable_cores or cpu.physical_cores, total // _LEAST_PER_THREAD))
    if total < _LEAST_PER_THREAD:
        raise InputError("too little free memory to measure its bandwidth", hint="give --ram-bandwidth GBPS")
    deadline = time.perf_counter() + budget_s
    counts = [cores, max(1, cores // 2)] if cores > 1 else [1]
    window = min(0.5, budget_s / (3 * len(counts)))  # filling the buffers takes as long again, or less
    best = (0.0, 1)
    for count in counts:
        if best[0] and time.perf_counter() + 2 * window > deadline:
            break
        best = max(best, (memread.rate(count, total, window), count))
    today = datetime.now(UTC).date().isoformat()
    return Bandwidth(bytes_per_s=best[0], threads=best[1], date=today)


def cached(key: str) -> Bandwidth | None:
    """The measurement of an earlier run, None where there is none that makes sense."""
    entry = cache.read(_TOPIC).get(key)
    if not isinstance(entry, dict):
        return None
    rate, threads, date = entry.get("bytes_per_s"), entry.get("threads"), entry.get("date")
    if (
        not isinstance(rate, float)
        or not 1e8 <= rate <= 1e14
        or not isinstance(threads, int)
        or not isinstance(date, str)
    ):
        return None
    return Bandwidth(bytes_per_s=rate, threads=threads, date=date)


def cached_or_measure(
    cpu: Cpu,
    ram: Ram,
    *,
    again: bool = False,
    budget_s: float = 1.0,
    sysroot: Path = Path("/"),
    measurer: Callable[..., Bandwidth] = measure,
) -> Bandwidth:
    """The cached measurement; else, or with `again`, a new one, which is then cached. Raises InputError."""
    key = machine_key(cpu, ram, sysroot)
    found = None if again else cached(key)
    if found is None:
        found = measurer(cpu, ram, budget_s=budget_s)
        entry = {"bytes_per_s": found.bytes_per_s, "threads": found.threads, "date": found.date}
        cache.write(_TOPIC, key, entry)
    return found
