"""llama.cpp's buffers for one placement: weights, context and compute of every device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plan_llama.memory import compute, context, weights
from plan_llama.memory.scheduler import CUDA_KIND, BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers, DeviceBytes, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What the engine asks of a device before it places anything."""

    free_bytes: int
    kind: BackendKind = CUDA_KIND


def buffers(table: ModelTable, settings: Settings, devices: Sequence[DeviceMemory]) -> Buffers:
    """The buffers that llama.cpp b11434 reserves. Raises UsageError for settings that cannot be read."""
    placement = weights.place(table, settings, [device.free_bytes for device in devices])
    batch = context.reserved_batch(settings, table.windows.cells)
    kinds = [device.kind for device in devices]
    weight = weights.weight_bytes(table, placement, dict(enumerate(kinds)))
    layers = context.table_layers(table, batch.kv_type_k, batch.kv_type_v)
    cache = context.context_bytes(layers, batch, placement.layer_device, dict(enumerate(kinds)))
    work = compute.compute_bytes(table, settings, batch, placement, kinds)
    return Buffers(
        devices=tuple(
            DeviceBytes(weights_bytes=weight[i], context_bytes=cache[i], compute_bytes=work[i])
            for i in range(len(devices))
        ),
        host=DeviceBytes(weights_bytes=weight[HOST], context_bytes=cache[HOST], compute_bytes=work[-1]),
    )
