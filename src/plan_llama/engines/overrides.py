"""Names of devices and of their buffers, as `--device` and `-ot` take them, and what moves tensors to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from plan_llama.engines import values as cxx
from plan_llama.engines.commandline import ParsedArgument
from plan_llama.errors import InputError
from plan_llama.hardware.types import Gpu
from plan_llama.memory import patterns
from plan_llama.memory.types import HOST, Override

HOST_BUFFER = "CPU"
Say = Callable[[str, Any, str, str], None]  # id, severity, text and fix of a finding
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


def read(
    items: Sequence[ParsedArgument],
    names: Sequence[str],
    say: Say,
    *,
    bench: bool = False,
    draft: bool = False,
) -> tuple[Override, ...]:
    """In the order of the command line, environment first; llama-bench puts -ncmoe behind -ot. `draft`: those of the
    model that drafts."""
    all_experts, some_experts, some_ffn, tensors = (
        ("-cmoed", "-ncmoed", "", "-otd") if draft else ("-cmoe", "-ncmoe", "-ncffn", "-ot")
    )
    found: list[Override] = []
    late: list[Override] = []
    for item in items:
        taken = item.argument.names if item.argument else ()
        if all_experts in taken:
            found.append(patterns.cpu_moe())
        elif some_experts in taken or some_ffn in taken:
            count = max(cxx.ranges(item.values[0]) or (0,)) if bench else cxx.to_int(item.values[0]) or 0
            make = patterns.n_cpu_moe if some_experts in taken else patterns.n_cpu_ffn
            (late if bench else found).extend(make(min(count, patterns.MOST_OVERRIDES)))
        elif tensors in taken:
            text = item.values[0].split(",")[0].replace(";", ",") if bench else item.values[0]
            for part in text.split(","):
                found += _override(part, tensors, names, say)
    found += late
    if len(found) > patterns.MOST_OVERRIDES:
        text = f"{len(found)} tensor overrides: the engine holds {patterns.MOST_OVERRIDES}"
        say("too-many-tensor-overrides", "error", text, "write one pattern with alternatives")
    return tuple(found[: patterns.MOST_OVERRIDES])


def _override(part: str, flag: str, names: Sequence[str], say: Say) -> list[Override]:
    pattern, equals, buffer = part.partition("=")
    if not equals:
        return []
    device, accepted = device_of(buffer, names)
    if not accepted:
        known = ", ".join(filter(None, (HOST_BUFFER, *names)))
        text = f"{flag} {part}: no buffer type '{buffer}'"
        say("unknown-buffer-type", "error", text, f"it knows {known}")
    if trouble := pattern_problem(pattern):
        text, fix = f"{flag} {part}: {trouble}", "a comma always separates overrides"
        say("bad-override-pattern", "error", text, fix)
        return []
    return [] if device is None else [Override(pattern=pattern, device=device)]
