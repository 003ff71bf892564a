"""How many tensors a model's graph has, and how many llama.cpp makes room for.

The room follows the number of weights (llama_context::graph_max_nodes, src/llama-context.cpp, b11434). A graph that has
more ends the program: where a node is added (ggml_visit_parents_graph, ggml/src/ggml.c) or where the scheduler's table
of nodes and leafs is full (ggml_hash_find_or_insert, ggml/src/ggml-impl.h). Models with few and large weights, as
Phi-4, come near it.
"""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.errors import ModelError
from plan_llama.memory.batch import Batch
from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.compute import kind_of_batch, variables
from plan_llama.memory.graphs import GRAPHS, graph_of
from plan_llama.memory.quantity import Guards
from plan_llama.memory.repeats import stretches
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST

# of graph_max_nodes: nodes per token of the micro-batch, and per weight
_USUAL = (0, 8)
_ROOMY = {
    **dict.fromkeys(("kimi-k3", "glm5-next"), (160, 64)),
    "hrm_text": (80, 64),
    **dict.fromkeys(
        (
            *("qwen3next", "kimi-linear", "bailingmoe3", "qwen35", "qwen35moe", "clef", "qwen4exp"),
            *("deepseek4", "nanbeige", "minimax-01", "minimax-m3", "hy_v4"),
        ),
        (40, 32),
    ),
}
_LEAST = 1024
_PRIMES = (1031, 2053, 4099, 8209, 16411, 32771, 65537, 131101, 262147, 524309, 1048583, 2097169)


@dataclass(frozen=True, slots=True)
class Count:
    """What a graph consists of."""

    nodes: int
    leafs: int


def count(table: ModelTable, batch: Batch) -> Count:
    """Nodes and leafs of the graph for a batch. Raises UndescribedGraph, or KeyError for an architecture that is not
    described."""
    spec, windowed = table.spec, table.windows.layers
    homes = dict.fromkeys(range(table.blocks), HOST)
    builder = Builder(spec, batch, {tensor.name: HOST for tensor in spec.tensors}, homes, 0)
    graph, g = graph_of(spec.architecture)(builder), builder.g
    x = graph.inputs()
    nodes = leafs = 0
    for stretch in stretches([(table.kinds[il], il in windowed) for il in range(table.layers)]):
        built = stretch.first + stretch.built
        for il in range(stretch.first, built):
            if il == built - stretch.period:
                g.expand(x)
                before = len(g.nodes), len(g.leafs)
            x = graph.block(x, il, last=il == table.layers - 1)
        g.expand(x)
        nodes += stretch.left_out * (len(g.nodes) - before[0])
        leafs += stretch.left_out * (len(g.leafs) - before[1])
    graph.head(x)
    return Count(nodes + len(g.nodes), leafs + len(g.leafs))


def counted(table: ModelTable, batch: Batch) -> Count:
    """As `count`, remembered for all batches whose graph is built alike."""
    values = batch.tokens, batch.cells, batch.window_cells
    known = table.counts.setdefault(kind_of_batch(table, batch), [])
    for guards, found in known:
        if guards.hold(values):
            return found
    guards = Guards(values)
    found = count(table, variables(batch, guards))
    known.append((guards, found))
    return found


def room(table: ModelTable, tokens: int) -> int:
    """Nodes that the engine makes room for."""
    per_token, per_weight = _ROOMY.get(table.spec.architecture, _USUAL)
    weights = sum(table.loaded(draft_layers=False))
    return max(tokens * per_token or _LEAST, per_weight * weights)


def missing(table: ModelTable, batch: Batch) -> tuple[int, int] | None:
    """How many tensors the graph for a batch has, and the fewer that there is room for; None where all have room, or
    where the graph is not known."""
    if table.spec.architecture not in GRAPHS:
        return None
    try:
        found, most = counted(table, batch), room(table, batch.tokens)
    except (UndescribedGraph, ModelError):
        return None
    for tensors, places in ((found.nodes, most), (found.nodes + found.leafs, _table_size(most))):
        if tensors > places:
            return tensors, places
    return None


def _table_size(least: int) -> int:
    """ggml_hash_size: the next prime after a power of two."""
    return next(prime for prime in _PRIMES if prime >= least)
