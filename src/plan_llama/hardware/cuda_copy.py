"""How fast a CUDA card is fed: real copies from and to pinned memory, through the driver's library alone.

libcuda comes with NVIDIA's driver; no toolkit is needed. The functions take the library, so that tests replay one.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plan_llama.hardware.types import ProbeNote
from plan_llama.units import MIB

_SIZE = 256 * MIB
_REPEATS = 4
_LIBRARIES = {"win32": ("nvcuda.dll",), "linux": ("libcuda.so.1", "libcuda.so")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Bytes per second to the card on a PCI bus id, and back."""

    bus_id: str
    to_gpu_bytes_per_s: float
    from_gpu_bytes_per_s: float


class _CudaError(Exception):
    """A call of the driver failed; the message names it."""


def load() -> Any | ProbeNote:
    """The driver's library, or why there is none."""
    for name in _LIBRARIES.get(sys.platform, ()):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return ProbeNote(probe="pcie", reason="no CUDA driver library (libcuda) on this machine")


def copies(
    library: Any, *, size: int = _SIZE, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[Copy], list[ProbeNote]]:
    """The rates of every card that CUDA shows to this process. Never raises for a card that fails."""
    found: list[Copy] = []
    notes: list[ProbeNote] = []
    try:
        _call(library, "cuInit", 0)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
    except _CudaError as error:
        return [], [ProbeNote(probe="pcie", reason=f"CUDA does not start: {error}")]
    for index in range(count.value):
        try:
            found.append(_card(library, index, size, clock))
        except _CudaError as error:
            reason = f"card {index} of CUDA cannot be measured: {error}"
            notes.append(ProbeNote(probe="pcie", reason=reason, unlock="free 256 MiB on it"))
    return found, notes


def _call(library: Any, name: str, *arguments: Any) -> None:
    result = getattr(library, name)(*arguments)
    if result:
        raise _CudaError(f"{name} failed with error {result}")


def _card(library: Any, index: int, size: int, clock: Callable[[], float]) -> Copy:
    device = ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    bus = ctypes.create_string_buffer(32)
    _call(library, "cuDeviceGetPCIBusId", bus, len(bus), device)
    context, host, memory = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    _call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call(library, "cuCtxSetCurrent", context)
        _call(library, "cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(size), 0)
        try:
            _call(library, "cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
            try:
                bytes_ = ctypes.c_size_t(size)
                to_gpu = _rate(lambda: _call(library, "cuMemcpyHtoD_v2", memory, host, bytes_), size, clock)
                from_gpu = _rate(lambda: _call(library, "cuMemcpyDtoH_v2", host, memory, bytes_), size, clock)
            finally:
                _call(library, "cuMemFree_v2", memory)
        finally:
            _call(library, "cuMemFreeHost", host)
    finally:
        _call(library, "cuDevicePrimaryCtxRelease_v2", device)
    return Copy(
        bus_id=bus.value.decode("ascii", "replace").lower(),
        to_gpu_bytes_per_s=to_gpu,
        from_gpu_bytes_per_s=from_gpu,
    )


def _rate(copy: Callable[[], None], size: int, clock: Callable[[], float]) -> float:
    """The best of a few copies, after one that wakes the link (an idle card lowers its generation)."""
    copy()
    seconds = []
    for _ in range(_REPEATS):
        began = clock()
        copy()
        seconds.append(clock() - began)
    return size / max(min(seconds), 1e-9)
