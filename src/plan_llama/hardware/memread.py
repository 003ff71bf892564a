"""The reading threads behind the bandwidth measurement (bandwidth.py says what is measured and why)."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import time
from contextlib import suppress

from plan_llama.errors import InputError
from plan_llama.units import MIB

_LEAST_BYTES = 16 * MIB  # per thread
_MOST_BYTES = 256 * MIB
_CHUNK = 8 * MIB  # one call of memchr: a few ms, so that all threads end together


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)


def _reader(
    size: int, start: threading.Barrier, window_s: float, rates: list[float], failed: list[BaseException]
) -> None:
    """One thread: fill a buffer (its own first touch places it on its NUMA node), wait for all, then read."""
    try:
        library = _library()
        library.memchr.restype = ctypes.c_void_p
        library.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        library.memset.restype = ctypes.c_void_p
        library.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        with mmap.mmap(-1, size) as area:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without transparent huge pages
                    area.madvise(mmap.MADV_HUGEPAGE)
            view = ctypes.c_char.from_buffer(area)
            address = ctypes.addressof(view)
            # Untouched pages are all the same page of zeros, which stays in the cache.
            library.memset(address, 1, size)
            start.wait(timeout=30)
            begin = now = time.perf_counter()
            done = 0
            while now - begin < window_s:
                library.memchr(address + done % size, 0, _CHUNK)
                done += _CHUNK
                now = time.perf_counter()
            rates.append(done / (now - begin))
            del view  # the mapping cannot be closed while it is exported
    except BaseException as error:  # noqa: BLE001  # handed to the caller below
        failed.append(error)
        start.abort()


def rate(threads: int, total_bytes: int, window_s: float) -> float:
    """Bytes per second that so many threads read together, over `total_bytes` of buffers.

    Raises InputError where the memory for them cannot be had.
    """
    each = min(_MOST_BYTES, max(_LEAST_BYTES, total_bytes // threads)) // _CHUNK * _CHUNK
    start = threading.Barrier(threads)
    rates: list[float] = []
    failed: list[BaseException] = []
    workers = [
        threading.Thread(target=_reader, args=(each, start, window_s, rates, failed), daemon=True)
        for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise InputError(
            f"the memory bandwidth cannot be measured ({failed[0]})", hint="give --ram-bandwidth GBPS"
        ) from failed[0]
    return sum(rates)
