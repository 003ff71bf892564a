"""How fast this machine reads its memory: measured once, kept with its calibration.

What is measured: threads that each run C's `memchr` over a buffer of their own, larger than the caches, for a
byte that is not there. It is a pure sequential read (the GIL is not held meanwhile), as reading weights is;
the sum over the threads is the read bandwidth. It is below the bus's peak, as every program's is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plan_llama.errors import InputError
from plan_llama.hardware import calibration
from plan_llama.hardware.calibration import Bandwidth
from plan_llama.hardware.types import Cpu, Ram
from plan_llama.units import GIB

_MOST_BYTES = 2 * GIB  # all buffers together
_LEAST_PER_THREAD = 16 * 1024**2


def measure(cpu: Cpu, ram: Ram, *, budget_s: float = 3.0) -> Bandwidth:
    """Measure the read bandwidth in at most about `budget_s` seconds, an eighth of the free memory or 2 GiB.

    As many threads as physical cores, and half as many; the better counts. Raises InputError where the memory
    for it is not there.
    """
    cores = _most_threads(cpu, ram)
    return _measure(ram, [cores, max(1, cores // 2)] if cores > 1 else [1], budget_s)


def by_threads(cpu: Cpu, ram: Ram, *, budget_s: float = 12.0) -> Bandwidth:
    """The bandwidth of 1, 2, 4, ... threads up to the physical cores, each measured for the same time.

    Raises InputError where the memory for it is not there.
    """
    cores = _most_threads(cpu, ram)
    counts = [cores]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    return _measure(ram, counts, budget_s)


def _most_threads(cpu: Cpu, ram: Ram) -> int:
    total = min(_MOST_BYTES, ram.available_bytes // 8)
    if total < _LEAST_PER_THREAD:
        raise InputError("too little free memory to measure its bandwidth", hint="give --ram-bandwidth GBPS")
    return max(1, min(cpu.usable_cores or cpu.physical_cores, total // _LEAST_PER_THREAD))


def _measure(ram: Ram, counts: Sequence[int], budget_s: float) -> Bandwidth:
    from plan_llama.hardware import memread  # ctypes and threads, which a plan from the cache does not need

    total = min(_MOST_BYTES, ram.available_bytes // 8)
    deadline = time.perf_counter() + budget_s
    window = min(0.5, budget_s / (3 * len(counts)))  # filling the buffers takes as long again, or less
    rates: dict[int, float] = {}
    for count in counts:
        if rates and time.perf_counter() + 2 * window > deadline:
            break
        rates[count] = memread.rate(count, total, window)
    best = max(rates, key=lambda count: rates[count])
    return Bandwidth(
        bytes_per_s=rates[best],
        threads=best,
        date=calibration.today(),
        by_threads=tuple(sorted(rates.items())),
    )


def kept_or_measure(
    cpu: Cpu,
    ram: Ram,
    *,
    again: bool = False,
    budget_s: float = 1.0,
    sysroot: Path = Path("/"),
    measurer: Callable[..., Bandwidth] = measure,
) -> Bandwidth:
    """The kept measurement; else, or with `again`, a new one, which is then kept. Raises InputError."""
    key = calibration.machine_key(cpu, ram, sysroot)
    found = None if again else calibration.load(key).memory
    if found is None:
        found = measurer(cpu, ram, budget_s=budget_s)
        calibration.store(key, machine=cpu.name or "", memory=found)
    return found
