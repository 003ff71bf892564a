"""Names of devices and of their buffers, as `--device` and `-ot` take them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plan_llama.errors import InputError
from plan_llama.hardware.types import Gpu
from plan_llama.memory.types import HOST

HOST_BUFFER = "CPU"
_PREFIX = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan", "metal": "MTL", "sycl": "SYCL"}


def device_names(gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """llama.cpp's names of the devices and of their buffers: CUDA0, CUDA1, ROCm0, Vulkan0, MTL0, SYCL0."""
    count: dict[str, int] = {}
    names = []
    for gpu in gpus:
        index = count.get(gpu.backend, 0)
        count[gpu.backend] = index + 1
        names.append(f"{_PREFIX[gpu.backend]}{index}")
    return tuple(names)


def buffer_name(device: int, names: Sequence[str]) -> str:
    """What stands behind `=` in `-ot`."""
    if device == HOST:
        return HOST_BUFFER
    if not 0 <= device < len(names):
        raise InputError(f"a tensor override names device {device}", hint=f"the machine has {len(names)}")
    return names[device]


def device_of(buffer: str, names: Sequence[str]) -> tuple[int | None, bool]:
    """The device that a buffer name means, and whether this machine's engine would accept the name.

    `-ot` knows only each device's own buffer (CPU, CUDA0, …): CUDA_Host and CPU_REPACK are refused, though
    meant as the host. Another backend's name (ROCm0 on a CUDA build) is refused, and read as the device of
    that number.
    """
    if buffer == HOST_BUFFER:
        return HOST, True
    if buffer in names:
        return names.index(buffer), True
    if buffer.endswith("_Host") or buffer.startswith("CPU"):
        return HOST, False
    match = re.fullmatch(r"[A-Za-z]+(\d{1,3})(?:\[.*\])?", buffer)
    if match and int(match[1]) < len(names):
        return int(match[1]), False
    return None, False


def pattern_problem(pattern: str) -> str | None:
    """Why the engine cannot use a pattern (an ECMAScript regular expression of std::regex), or None."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression ({error})"
    if extension := re.search(r"\(\?(?![:=!])", pattern):
        return (
            f"'{pattern[extension.start() : extension.start() + 4]}…' is not known to C++ regular expressions"
        )
    return None
