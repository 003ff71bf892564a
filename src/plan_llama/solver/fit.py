"""What llama.cpp's own `--fit` makes of a command: an approximation of common/fit.cpp, b11434.

It first shrinks a context that was not given until everything fits, but not below its minimum; then, unless layers, a
split or overrides were given, it puts the experts of as many layers as needed on the host, or leaves whole layers
there. Which layers it picks differs from ours; how many does not, by more than one or two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import device_memory
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.solver.place import Filler

_CELLS = 256


@dataclass(frozen=True, slots=True)
class Fitted:
    """Settings after `--fit`, and what it changed in words."""

    settings: Settings
    changes: tuple[str, ...]


def apply(
    table: ModelTable,
    filler: Filler,
    settings: Settings,
    *,
    user_set: frozenset[Any],
    targets_bytes: tuple[int, ...],
    minimum_context: int | None,
) -> Fitted:
    """The settings that the engine would really run with. `targets_bytes` stays free per device."""
    devices = device_memory(filler.machine)
    if not devices:
        return Fitted(settings, ())
    targets = [targets_bytes[min(i, len(targets_bytes) - 1)] for i in range(len(devices))]

    def over(candidate: Settings) -> bool:
        made = buffers(table, candidate, devices, filler.machine.cpu.isa)
        return any(
            part.total_bytes > device.free_bytes - target
            for part, device, target in zip(made.devices, devices, targets, strict=True)
        )

    changes: list[str] = []
    if not over(settings):
        return Fitted(settings, ())
    # the minimum is of one stream, and slots that do not share a cache have one each (n_ctx_min_total)
    least = (minimum_context or 0) * (1 if settings.kv_unified else settings.parallel)
    if "ctx" not in user_set and minimum_context is not None and settings.context > least:
        low, high = least // _CELLS, settings.context // _CELLS
        while low < high:
            middle = (low + high + 1) // 2
            if over(replace(settings, context=middle * _CELLS)):
                high = middle - 1
            else:
                low = middle
        changes.append(f"the context becomes {low * _CELLS:,} instead of {settings.context:,} tokens")
        settings = replace(settings, context=low * _CELLS)
    if not user_set & {"ngl", "ts", "ot"} and over(settings):
        filled = filler.best(settings)
        if filled is not None:
            made = filled.settings
            if made.gpu_layers < settings.gpu_layers:
                changes.append(f"{made.gpu_layers} instead of {settings.gpu_layers} layers go to the GPU")
            if made.overrides != settings.overrides:
                changes.append("the experts of some layers stay on the CPU")
            settings = made
    return Fitted(settings, tuple(changes))
