"""The compute buffers: the model's graph for the reserved batch, walked by the scheduler and allocator.

Layers that are like the one before are built a few times and then left out, so that the work depends on the number of
different layers, not on their count; the allocations of the last one are gone through again for those that follow.
What the allocator goes through is recorded with sizes that follow the batch: another context or micro-batch, or another
number of equal layers, is worked out from the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from operator import add
from typing import TYPE_CHECKING

from plan_llama.errors import ModelError
from plan_llama.memory.batch import Batch
from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.flash_attention import SWITCHED_OFF
from plan_llama.memory.graphs import GRAPHS, graph_of
from plan_llama.memory.probe import in_question
from plan_llama.memory.quantity import Guards
from plan_llama.memory.recording import Recording
from plan_llama.memory.replay import BATCH, CELLS, TOKENS, WINDOW
from plan_llama.memory.scheduler import CPU_KIND, PIPELINE_COPIES, BackendKind, SchedulerOptions, record
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.memory.weights import NOT_REPACKED, Placement, Repacked
from plan_llama.models.types import ModelSpec

if TYPE_CHECKING:
    from plan_llama.memory.graphs.decoder import Decoder

# their graphs grow with the positions in the cache, which is empty when the engine reserves
GROWING = frozenset({"minimax-m3"})
# A load reserves for these once more, as if all tokens were of one sequence (TAG_RESERVE_DIAG_DECAY in
# llama_context::sched_reserve, b11434); the dry run of --fit and llama-fit-params does not look at that.
_ALSO_ONE_SEQUENCE = frozenset({"kimi-linear", "minimax-01"})


def is_described(spec: ModelSpec) -> bool:
    """Whether the architecture's own graph is known; if not, its compute buffers are an upper bound."""
    return spec.architecture in GRAPHS


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes of the compute buffer of each GPU and, last, of the host; of each GPU's pool of temporary buffers; what the
    host's buffer grows by while the engine runs; and what each GPU's is larger by for fused kernels."""

    buffers: tuple[int, ...]
    pools: tuple[int, ...]
    fused: tuple[int, ...]
    host_growth: int = 0

    def growing(self, later: Work) -> Work:
        """With what the buffers grow by while the engine runs counted with the pools."""
        more = _each(lambda b, a: max(0, b - a), later.buffers[:-1], self.buffers[:-1])
        return Work(
            self.buffers,
            _each(add, self.pools, more),
            self.fused,
            self.host_growth + max(0, later.buffers[-1] - self.buffers[-1]),
        )

    def largest(self, other: Work) -> Work:
        """Enough for either of two graphs of one context."""
        return Work(
            _each(max, self.buffers, other.buffers),
            _each(max, self.pools, other.pools),
            _each(max, self.fused, other.fused),
            max(self.host_growth, other.host_growth),
        )

    def beside(self, other: Work) -> Work:
        """Two contexts at once."""
        return Work(
            _each(add, self.buffers, other.buffers),
            _each(add, self.pools, other.pools),
            _each(add, self.fused, other.fused),
            self.host_growth + other.host_growth,
        )


def _each(
    joined: Callable[[int, int], int], some: tuple[int, ...], others: tuple[int, ...]
) -> tuple[int, ...]:
    return tuple(joined(a, b) for a, b in zip(some, others, strict=True))


def work_bytes(
    table: ModelTable,
    settings: Settings,
    batch: Batch,
    placement: Placement,
    kinds: Sequence[BackendKind],
    repacked: Repacked = NOT_REPACKED,
    *,
    draft: bool = False,
) -> Work:
    """What computing takes on each device; `draft`: in the context of the block for drafting.

    An upper bound where the graph is not known, or where the file lacks a tensor or a number that it needs.
    """
    if table.spec.architecture in SWITCHED_OFF:
        batch = replace(batch, flash_attn=False)
    devices = len(kinds)
    pipelined = (
        devices > 1
        and settings.gpu_layers > table.blocks
        and settings.split_mode == "layer"
        and settings.kv_offload
        and not placement.overridden
    )
    if is_described(table.spec):
        with suppress(UndescribedGraph, ModelError):
            made = _walked(
                table, settings, batch, placement, kinds, repacked, pipelined=pipelined, draft=draft
            )
            if (
                table.spec.architecture in _ALSO_ONE_SEQUENCE
                and batch.sequences > 1
                and settings.program != "llama-fit-params"
            ):
                batch = replace(batch, one_sequence=True)
                other = _walked(
                    table, settings, batch, placement, kinds, repacked, pipelined=pipelined, draft=draft
                )
                made = made.largest(other)
            return made
    # most graphs are described: this is not loaded at the start
    from plan_llama.memory.rough import fused_bound, pool_bound, upper_bound

    # With weights that only the CPU can work with: what is offloaded and what is not, each at its most. With flash
    # attention that may be given up, the same.
    unsure = in_question(settings, batch, placement)
    bounds = [
        upper_bound(table, chosen, placement, kinds, op_offload=offload, pipelined=pipelined)
        for offload in {settings.op_offload, settings.op_offload and not repacked.names}
        for chosen in (batch, *((replace(batch, flash_attn=False, given_up=True),) if unsure else ()))
    ]
    return Work(
        tuple(map(max, zip(*bounds, strict=True))),
        tuple(pool_bound(table, batch) if kind.chip is not None else 0 for kind in kinds),
        tuple(fused_bound(table, batch) if kind.chip is not None else 0 for kind in kinds),
    )


def _walked(
    table: ModelTable,
    settings: Settings,
    batch: Batch,
    placement: Placement,
    kinds: Sequence[BackendKind],
    repacked: Repacked,
    *,
    pipelined: bool,
    draft: bool,
) -> Work:
    """The sizes from a recording of the graph; it is made where there is none for this kind of placement and batch."""
    left_out = () if draft else placement.left_out
    key = (
        kind_of_batch(table, batch),
        placement.draft_shape if draft else placement.shape,
        tuple(kind.graph for kind in kinds),
        placement.output_device,
        tuple(placement.moves.loose.items()),
        pipelined,
        settings.op_offload,
        repacked.isa,
    )
    values = (batch.tokens, batch.cells, batch.window_cells, *left_out)
    recordings = table.recordings.setdefault(key, [])
    for recording in recordings:
        if recording.admits(values):
            break
    else:
        recording = _record(
            table, settings, batch, placement, kinds, repacked, values, pipelined=pipelined, draft=draft
        )
        recordings.append(recording)
    sizes = recording.sizes(values)
    pools = recording.pool_sizes(values, [kind.chip for kind in kinds])
    return Work(sizes, pools, recording.held_sizes(values, sizes))


def kind_of_batch(table: ModelTable, batch: Batch) -> int:
    """A number for all of a batch that is no variable of a recording."""
    if batch not in table.batches:
        all_rows = batch.outputs == batch.tokens
        rest = replace(
            batch,
            tokens=0,
            cells=0,
            window_cells=min(1, batch.window_cells),
            outputs=0 if all_rows else batch.outputs,
        )
        table.batches[batch] = table.batch_kinds.setdefault((rest, all_rows), len(table.batch_kinds))
    return table.batches[batch]


def variables(batch: Batch, guards: Guards) -> Batch:
    """The batch with variables in place of the numbers that a recording is not for."""
    tokens = guards.variable(TOKENS)
    return replace(
        batch,
        tokens=tokens,
        cells=guards.variable(CELLS),
        window_cells=guards.variable(WINDOW) if batch.window_cells else 0,
        outputs=tokens if batch.outputs == batch.tokens else batch.outputs,
    )


def _record(
    table: ModelTable,
    settings: Settings,
    batch: Batch,
    placement: Placement,
    kinds: Sequence[BackendKind],
    repacked: Repacked,
    values: Sequence[int],
    *,
    pipelined: bool,
    draft: bool,
) -> Recording:
    """Builds the graph and has the scheduler and the allocator go through it: with every layer, for these values alone,
    where layers that seem alike do not allocate alike."""
    options = SchedulerOptions(
        kinds=(*kinds, CPU_KIND),
        op_offload=settings.op_offload,
        copies=PIPELINE_COPIES if pipelined else 1,
    )
    for every in (False, True):
        guards = Guards(values)
        builder = _builder(table.spec, variables(batch, guards), placement, len(kinds))
        builder.fixed = repacked.names
        graph = graph_of(table.spec.architecture)(builder)
        if draft:
            # as the modules of graphs: not loaded at the start
            from plan_llama.memory.graphs import drafting

            drafting.build(graph.drafting()(builder), table.spec.layers)
            repeats = []
        else:
            repeats = _build(graph, builder, placement, guards, every=every)
        recorded = record(builder.g, options)
        tapes = (*recorded.tapes, *(recorded.fused or ()))
        if all(tape.repeat(mark, place) for mark, place in repeats for tape in tapes):
            break
    return Recording(guards, recorded.tapes, recorded.fused, recorded.operations)


def _builder(spec: ModelSpec, batch: Batch, placement: Placement, cards: int) -> Builder:
    builder = Builder(
        spec,
        batch,
        {
            tensor.name: device
            for tensor, device in zip(spec.tensors, placement.device_of, strict=True)
            if device is not None
        },
        dict(enumerate(placement.layer_device)),
        cards,
    )
    builder.output_device = placement.output_device
    return builder


def _build(
    graph: Decoder, builder: Builder, placement: Placement, guards: Guards, *, every: bool
) -> list[tuple[int, int]]:
    """The whole model without the layers that are like others, unless `every`. For those that are left out: the mark of
    the last repeat that is built, and the number of the variable that counts them."""
    x = graph.inputs()
    places = count(BATCH)
    last = placement.table.layers - 1
    repeats = []
    for stretch in placement.stretches:
        built = stretch.first + stretch.built
        if stretch.left_out and every:
            built += int(guards.variable(next(places))) * stretch.period
        for il in range(stretch.first, built):
            if il == built - stretch.period:
                builder.constants = []  # those of the last repeat are what the left-out ones have
            if (il - stretch.first) % stretch.period == 0:
                builder.g.mark += 1
            x = graph.block(x, il, last=il == last)
        if stretch.left_out and not every:
            place = next(places)
            repeats.append((builder.g.mark, place))
            builder.g.mark += 1
            builder.skip(guards.variable(place))
    builder.g.mark += 1
    graph.head(x)
    return repeats
