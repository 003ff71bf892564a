"""The compute buffers: the model's graph for the reserved batch, walked by the scheduler and allocator.

Layers that are like the one before are built a few times and then left out, so that the work depends on the number of
different layers, not on their count.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from plan_llama.memory.blocks import Batch, Builder, UndescribedGraph
from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs import GRAPHS, graph_of
from plan_llama.memory.rough import upper_bound
from plan_llama.memory.scheduler import (
    CPU_KIND,
    PIPELINE_COPIES,
    BackendKind,
    SchedulerOptions,
    compute_sizes,
)
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.memory.weights import Placement
from plan_llama.models.types import ModelSpec

# llama_init_from_model switches it off for these (src/llama-context.cpp, b11434)
_NO_FLASH_ATTENTION = frozenset({"grok"})
# Layers of a run of equal ones that are built in full before the rest is left out. With two, a peak could come out an
# activation short (DeepSeek-V3 over four cards, Qwen3.5's runs of three); with three it is as with all, where measured.
_KEPT_ALIKE = 3


def is_described(spec: ModelSpec) -> bool:
    """Whether the architecture's own graph is known; if not, its compute buffers are an upper bound."""
    return spec.architecture in GRAPHS


def _signatures(table: ModelTable, placement: Placement) -> list[tuple[object, ...]]:
    """What makes two layers alike: tensors, types and shapes, the devices of the layer and of its tensors, a window."""
    behind = table.windows.layers
    found: list[tuple[object, ...]] = []
    for il in range(table.layers):
        home = placement.layer_device[il]
        moved = tuple(
            (position, placement.device_of[i])
            for position, i in enumerate(table.block_tensors[il])
            if placement.device_of[i] != home
        )
        found.append((table.kinds[il], home, moved, il in behind))
    return found


def compute_bytes(
    table: ModelTable,
    settings: Settings,
    batch: Batch,
    placement: Placement,
    kinds: Sequence[BackendKind],
) -> tuple[int, ...]:
    """Bytes of the compute buffer of each GPU and, last, of the host.

    An upper bound where the graph is not known, or where the file lacks a tensor that it needs.
    """
    if table.spec.architecture in _NO_FLASH_ATTENTION:
        batch = replace(batch, flash_attn=False)
    devices = len(kinds)
    signatures = _signatures(table, placement)
    pipelined = (
        devices > 1
        and settings.gpu_layers > table.blocks
        and settings.split_mode == "layer"
        and settings.kv_offload
        and not placement.overridden
    )
    key = (batch, tuple(signatures), tuple(kinds), placement.output_device, pipelined, settings.op_offload)
    if key in table.compute_cache:
        return table.compute_cache[key]
    made: tuple[int, ...] | None = None
    if is_described(table.spec):
        with suppress(UndescribedGraph):
            made = _walk(table, settings, batch, placement, kinds, signatures, pipelined=pipelined)
    if made is None:
        made = upper_bound(
            table, batch, placement, kinds, op_offload=settings.op_offload, pipelined=pipelined
        )
    table.compute_cache[key] = made
    return made


def _walk(
    table: ModelTable,
    settings: Settings,
    batch: Batch,
    placement: Placement,
    kinds: Sequence[BackendKind],
    signatures: Sequence[object],
    *,
    pipelined: bool,
) -> tuple[int, ...]:
    """Builds the graph and has the scheduler and the allocator go through it."""
    spec = table.spec
    builder = Builder(
        spec,
        batch,
        {
            tensor.name: device
            for tensor, device in zip(spec.tensors, placement.device_of, strict=True)
            if device is not None
        },
        dict(enumerate(placement.layer_device)),
        len(kinds),
    )
    builder.output_device = placement.output_device
    graph = graph_of(spec.architecture)(builder)
    x = graph.inputs()
    alike = 0
    constants: list[Node] = []
    for il in range(spec.layers):
        last = il == spec.layers - 1
        alike = alike + 1 if il and signatures[il] == signatures[il - 1] else 0
        if alike >= _KEPT_ALIKE and not last:
            builder.skip(constants)
            continue
        builder.constants = []
        x = graph.block(x, il, last=last)
        constants = builder.constants
    graph.head(x)
    options = SchedulerOptions(
        kinds=(*kinds, CPU_KIND),
        op_offload=settings.op_offload,
        copies=PIPELINE_COPIES if pipelined else 1,
    )
    return compute_sizes(builder.g, options)
