"""Which fused operations the engine goes on with: flash attention with `--flash-attn auto`, and the one that spreads
residual streams.

The engine builds the graph of one token per sequence and gives an operation up, for all layers, if the scheduler would
run one of them on another device than its layer's (resolve_fused_ops, src/llama-context.cpp, b11434). For attention
that happens where its weights were moved away from their layer; in some graphs with the cache in system memory; and in
a model with recurrent layers between two devices, where the states of the next layer are read before a layer is done.
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
from plan_llama.memory.recurrent import HYBRID
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, SchedulerOptions, assigned
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Settings
from plan_llama.memory.weights import Placement

# The engine calls the result of their layers `l_out`; that of DeepSeek-V4 is `l_last`, and pinned.
_NOT_PINNED = frozenset({"glm5-next"})
# Something of a layer is computed before all of the layers in front of it are.
_APART = HYBRID | {"graniteswitch"}
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
    architecture = placement.table.spec.architecture
    apart = architecture in _APART and len(_devices(placement)) > 1
    return moved or apart or not settings.kv_offload or architecture in _OFFLOADS


def settled(
    table: ModelTable, settings: Settings, batch: Batch, placement: Placement, kinds: Sequence[BackendKind]
) -> Batch:
    """The batch with what the engine goes on with; nothing is given up in a graph that is not described."""
    if (
        table.spec.architecture in _NOT_PINNED
        and HOST in (devices := _devices(placement))
        and len(devices) > 1
    ):
        # what follows the last layer on the host is on a card, and takes that layer's last operation along
        batch = replace(batch, plain_spread=True)
    if table.spec.architecture not in GRAPHS or not in_question(settings, batch, placement):
        return batch
    key = (
        replace(batch, tokens=0, cells=0, window_cells=0, outputs=0),
        placement.kinds_of_layers,
        placement.output_device,
        len(kinds),
    )
    if key not in table.probed:
        try:
            table.probed[key] = _elsewhere(table, settings, batch, placement, kinds)
        except (UndescribedGraph, ModelError):
            table.probed[key] = False
    return replace(batch, flash_attn=False, given_up=True) if table.probed[key] else batch


def _devices(placement: Placement) -> frozenset[int]:
    """Where layers and the output are."""
    layers = placement.layer_device[: placement.table.layers]
    return frozenset((*layers, placement.output_device))


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
    # attention before the first layer is a last layer's (graniteswitch); norms there are of none, and not pinned
    for early in (x, *graph.early):
        _label(early, builder.backend(placement.layer_device[-1]), homes)
    before = frozenset(homes)
    for il in range(spec.layers):
        x = graph.block(x, il, last=il == spec.layers - 1)
        # told apart without expanding: some operations of the next layer come before the last ones of this layer
        _label(x, builder.backend(placement.layer_device[il]), homes)
    graph.head(x)
    # graph_get_cb pins a layer's norms to its device when there are so few tokens
    norms = {node: home for node, home in homes.items() if node.op in ("RMS_NORM", "NORM")}
    pinned = {node: home for node, home in norms.items() if node not in before}
    options = SchedulerOptions(kinds=(*kinds, CPU_KIND), op_offload=settings.op_offload)
    assigned(builder.g, options, pinned)
    return any(node.backend != home for node, home in homes.items() if node.op == "FLASH_ATTN_EXT")


def _label(x: Node, home: int, homes: dict[Node, int]) -> None:
    """Gives everything that a node is made of, and that no layer before it is made of, to the layer's device."""
    waiting = [x]
    while waiting:
        node = waiting.pop()
        if node not in homes:
            homes[node] = home
            waiting += node.src
