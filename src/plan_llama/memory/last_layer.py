"""Which weights of the last layer a prompt needs only for the tokens whose output is asked for.

Behind the last layer's attention most graphs go on with these rows alone (inp_out_ids, src/models/*.cpp, b11434). Of a
prompt llama-server asks for one, at its end (tools/server/server-context.cpp), llama-bench for one at the end of each
batch (llama_batch_allocr::init takes the last token where nothing is said): micro-batches before it compute nothing
there, and copy nothing for it. A graph that keeps the hidden state of every token for the block that drafts
(embeddings_nextn) picks the rows later: with some architectures whenever it is not masked, so that there all is
computed for all tokens.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from plan_llama.errors import ModelError
from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.context import reserved_batch
from plan_llama.memory.graphs import GRAPHS, graph_of
from plan_llama.memory.types import Settings
from plan_llama.memory.windows import windows
from plan_llama.models.types import ModelSpec

# Sizes that nothing else in a graph has.
_TOKENS, _OUTPUTS = 509, 499


def for_outputs(spec: ModelSpec) -> frozenset[int]:
    """The tensors, by index; none where the graph is not known."""
    architecture = spec.architecture
    if architecture not in GRAPHS or graph_of(architecture).late_rows or not spec.layers:
        return frozenset()
    with suppress(UndescribedGraph, ModelError):
        return _of_graph(spec)
    return frozenset()


def _of_graph(spec: ModelSpec) -> frozenset[int]:
    last = spec.layers - 1
    batch = reserved_batch(Settings(context=4096), windows(spec))
    builder = Builder(
        spec,
        replace(batch, tokens=_TOKENS, outputs=_OUTPUTS),
        {tensor.name: 0 for tensor in spec.tensors},
        dict.fromkeys(range(spec.blocks), 0),
        1,
    )
    builder.output_device = 0
    graph = graph_of(spec.architecture)(builder)
    builder.g.expand(graph.block(graph.inputs(), last, last=True))
    numbers = {
        tensor.name: i for i, tensor in enumerate(spec.tensors) if tensor.name.startswith(f"blk.{last}.")
    }
    weights = {id(builder.w(name)): index for name, index in numbers.items()}
    few: set[int] = set()
    many: set[int] = set()
    for node in builder.g.nodes:
        for source in node.src:
            if (index := weights.get(id(source))) is not None:
                (few if _OUTPUTS in node.ne[1:] else many).add(index)
    return frozenset(few - many)
