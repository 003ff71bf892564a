"""Which fused operations the engine goes on with: flash attention with `--flash-attn auto`, and the one that spreads
residual streams.

The engine builds the graph of one token per sequence and gives an operation up, for all layers, if the scheduler would
run one of them on another device than its layer's (resolve_fused_ops, src/llama-context.cpp, b11434). For attention
that happens where its weights were moved away from their layer, and, in some graphs, with the cache in system memory.
For streams it happens between a layer on the host and one on a card, where the last operation of a layer is not pinned.
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

_ATTENTION, _SPREADING = "FLASH_ATTN_EXT", "DSV4_HC_POST"
# The engine calls the result of their layers `l_out`; that of DeepSeek-V4 is `l_last`, and pinned.
_NOT_PINNED = frozenset({"glm5-next"})
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


def settled(
    table: ModelTable, settings: Settings, batch: Batch, placement: Placement, kinds: Sequence[BackendKind]
) -> Batch:
    """The batch with what the engine goes on with; nothing is given up in a graph that is not described."""
    architecture = table.spec.architecture
    asked = {_ATTENTION} if in_question(settings, batch, placement) else set()
    if architecture in _NOT_PINNED and len(set(placement.layer_device)) > 1:
        asked.add(_SPREADING)
    if architecture not in GRAPHS or not asked:
        return batch
    key = (
        replace(batch, tokens=0, cells=0, window_cells=0, outputs=0),
        placement.kinds_of_layers,
        len(kinds),
    )
    if key not in table.probed:
        try:
            table.probed[key] = _elsewhere(table, settings, batch, placement, kinds)
        except (UndescribedGraph, ModelError):
            table.probed[key] = frozenset()
    gone = asked & table.probed[key]
    if _ATTENTION in gone:
        batch = replace(batch, flash_attn=False, given_up=True)
    return replace(batch, plain_spread=True) if _SPREADING in gone else batch


def _elsewhere(
    table: ModelTable, settings: Settings, batch: Batch, placement: Placement, kinds: Sequence[BackendKind]
) -> frozenset[str]:
    """The operations of which one would run on another device than its layer's own."""
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
    return frozenset(node.op for node, home in homes.items() if node.backend != home)
