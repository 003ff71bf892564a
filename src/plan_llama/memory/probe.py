"""Whether `--flash-attn auto` ends with flash attention.

The engine builds the graph of one token per sequence and gives flash attention up if the scheduler would run one on
another device than its layer's (resolve_fused_ops, src/llama-context.cpp, b11434). That happens where weights of
attention were moved away from their layer, and, in some graphs, with the cache in system memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from plan_llama.errors import ModelError
from plan_llama.memory.batch import Batch
from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs import GRAPHS, graph_of
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, SchedulerOptions, assigned
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.memory.weights import Placement

# Their layers' attention also reads products with a whole text, long enough to be offloaded from the host.
_OFFLOADS = frozenset({"t5"})


def in_question(settings: Settings, batch: Batch, placement: Placement) -> bool:
    """Whether flash attention could be given up. A quantised V cache cannot do without (llama_init_from_model)."""
    if not (settings.flash_attn_auto and batch.flash_attn) or batch.kv_type_v.quantised:
        return False
    moved = any(
        device != placement.layer_device[il]
        for il, tensors in enumerate(placement.moves.by_block)
        for _, device in tensors
    )
    return moved or not settings.kv_offload or placement.table.spec.architecture in _OFFLOADS


def gives_up(
    table: ModelTable, settings: Settings, batch: Batch, placement: Placement, kinds: Sequence[BackendKind]
) -> bool:
    """Whether the engine goes on without flash attention; not known of a graph that is not described."""
    if table.spec.architecture not in GRAPHS or not in_question(settings, batch, placement):
        return False
    key = (
        replace(batch, tokens=0, cells=0, window_cells=0, outputs=0),
        placement.kinds_of_layers,
        len(kinds),
    )
    if key not in table.probed:
        try:
            table.probed[key] = _elsewhere(table, settings, batch, placement, kinds)
        except (UndescribedGraph, ModelError):
            table.probed[key] = False
    return table.probed[key]


def _elsewhere(
    table: ModelTable, settings: Settings, batch: Batch, placement: Placement, kinds: Sequence[BackendKind]
) -> bool:
    """Whether a layer's attention would run on another device than the layer's own."""
    spec = table.spec
    one_each = replace(batch, tokens=batch.sequences, outputs=batch.sequences)
    device_of = {
        tensor.name: device
        for tensor, device in zip(spec.tensors, placement.device_of, strict=True)
        if device is not None
    }
    builder = Builder(spec, one_each, device_of, dict(enumerate(placement.layer_device)), len(kinds))
    builder.output_device = placement.output_device
    builder.probing = True
    graph = graph_of(spec.architecture)(builder)
    x = graph.inputs()
    homes: dict[Node, int] = {}
    for il in range(spec.layers):
        before = len(builder.g.nodes)
        x = graph.block(x, il, last=il == spec.layers - 1)
        builder.g.expand(x)
        home = builder.backend(placement.layer_device[il])
        homes |= dict.fromkeys(builder.g.nodes[before:], home)
    graph.head(x)
    # graph_get_cb pins a layer's norms to its device when there are so few tokens
    pinned = {node: home for node, home in homes.items() if node.op in ("RMS_NORM", "NORM")}
    options = SchedulerOptions(kinds=(*kinds, CPU_KIND), op_offload=settings.op_offload)
    assigned(builder.g, options, pinned)
    return any(node.backend != home for node, home in homes.items() if node.op == "FLASH_ATTN_EXT")
