"""ggml's backend scheduler and graph allocator, for the sizes of the compute buffers.

Mirrors ggml_backend_sched_split_graph (ggml/src/ggml-backend.cpp) and ggml_gallocr (ggml/src/ggml-alloc.c) of
llama.cpp b11434 under the assumption that every GPU supports every op. Like the engine's own dry run
(ggml_backend_sched_reserve_size, which --fit and llama-fit-params use) it forgets the nodes that llama.cpp pins to a
device; a real load may need up to one activation less per card boundary. Backends are numbered as llama.cpp orders
them: the GPUs, then the CPU as the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plan_llama.memory.cuda_fusion import Uses, kept, uses
from plan_llama.memory.cuda_pool import Chip, Operations, operations_of
from plan_llama.memory.ggml import INPLACE_OPS, VIEW_OPS, Graph, Node
from plan_llama.memory.replay import Tape
from plan_llama.models.types import TensorType

PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES
OFFLOAD_MIN_BATCH = 32  # ggml_backend_cuda_device_offload_op; GGML_OP_OFFLOAD_MIN_BATCH overrides it
_NOT_FROM_WEIGHTS = frozenset({"ROPE", "FLASH_ATTN_EXT"})
_CUDA_ROW_PADDING = 512  # MATRIX_ROW_PADDING
_CUDA_F16_PADDING = 128


@dataclass(frozen=True, slots=True)
class BackendKind:
    """How a backend sizes and aligns a tensor."""

    alignment: int
    cuda_sizes: bool
    chip: Chip | None = None  # of a CUDA or HIP device: what its kernels take beside the buffers follows it

    @property
    def graph(self) -> tuple[int, bool, bool]:
        """What of it decides what a graph's buffer goes through: which chip it is does not."""
        return self.alignment, self.cuda_sizes, self.chip is not None


CPU_KIND = BackendKind(alignment=32, cuda_sizes=False)  # TENSOR_ALIGNMENT of ggml-cpu
CUDA_KIND = BackendKind(alignment=128, cuda_sizes=True, chip=Chip(""))  # also HIP and MUSA: the same source
OTHER_GPU_KIND = BackendKind(alignment=128, cuda_sizes=False)  # Vulkan, Metal: plain sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """What the scheduler is created with. `kinds` has one entry per backend, the CPU last."""

    kinds: Sequence[BackendKind]
    op_offload: bool = True
    offload_min_batch: int = OFFLOAD_MIN_BATCH
    copies: int = 1  # PIPELINE_COPIES under pipeline parallelism


def alloc_size(node: Node, kind: BackendKind) -> int:
    """ggml_backend_buft_get_alloc_size: on CUDA, quantised rows are padded and flash attention keeps f16 copies.

    Source: ggml_backend_cuda_buffer_type_get_alloc_size, ggml/src/ggml-cuda/ggml-cuda.cu, b11434.
    """
    size = node.nbytes
    if not kind.cuda_sizes:
        return size
    if node.op == "FLASH_ATTN_EXT":
        k, v = node.src[1], node.src[2]
        v_is_k = v.view_src is not None and (v.view_src is k or v.view_src is k.view_src)
        if k.type.name != "f16":
            size = -(-size // _CUDA_F16_PADDING) * _CUDA_F16_PADDING + 2 * _elements(k)
        if v.type.name != "f16" and not v_is_k:
            size = -(-size // _CUDA_F16_PADDING) * _CUDA_F16_PADDING + 2 * _elements(v)
    return size + _row_padding(node.type, node.ne[0])


def _row_padding(kind: TensorType, row: int) -> int:
    """What CUDA adds once after a quantised tensor's last row, so that kernels may read whole 512s."""
    return kind.nbytes(-row % _CUDA_ROW_PADDING) if kind.quantised else 0


def padded_bytes(size: int, kind: TensorType, row: int, backend: BackendKind) -> int:
    """What a weight or cache tensor of `size` bytes with rows of `row` elements takes in a backend's buffer."""
    if backend.cuda_sizes:
        size += _row_padding(kind, row)
    return -(-size // backend.alignment) * backend.alignment


def _elements(node: Node) -> int:
    return node.ne[0] * node.ne[1] * node.ne[2] * node.ne[3]


@dataclass(frozen=True, slots=True)
class _Part:
    """The nodes that a backend runs in a row, or (None) the copies that are made for the next ones."""

    nodes: Sequence[Node]
    backend: int | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What each backend's compute buffer goes through for a graph (ggml_backend_sched_reserve_size); the same where
    CUDA's fused kernels hold tensors longer (None: they hold nothing); and the GPUs' operations, which take more."""

    tapes: tuple[Tape, ...]
    fused: tuple[Tape, ...] | None
    operations: tuple[Operations, ...]


def record(graph: Graph, options: SchedulerOptions) -> Recorded:
    """Has the scheduler and the allocator go through a graph."""
    counted = uses(graph.nodes) if any(kind.chip is not None for kind in options.kinds) else {}
    _assign(graph, options)
    parts, leafs = _split(graph, options)
    nodes = [node for part in parts for node in part.nodes]
    allocator = _Allocator(options)
    tapes = allocator.run(nodes, leafs)
    longer = _fused(parts, options, counted)
    fused = None
    if longer is not None:
        for node in (*nodes, *leafs):
            node.allocated, node.children, node.views = False, 0, 0
        fused = allocator.run(longer, leafs)
    return Recorded(tapes, fused, operations_of(nodes, len(options.kinds) - 1))


def _fused(parts: Sequence[_Part], options: SchedulerOptions, counted: Uses) -> list[Node] | None:
    """The nodes as the cards' backends arrange them; None where they leave them alone."""
    made: list[Node] = []
    count = 0
    for part in parts:
        card = part.backend is not None and options.kinds[part.backend].chip is not None
        made += kept(part.nodes, counted) if card else part.nodes
        count += len(part.nodes)
    return made if len(made) > count else None


def assigned(graph: Graph, options: SchedulerOptions, pinned: Mapping[Node, int]) -> None:
    """Notes in each node the backend that would run it; `pinned` are those that the engine sets beforehand."""
    _assign(graph, options, pinned)


def compute_sizes(graph: Graph, options: SchedulerOptions) -> tuple[int, ...]:
    """Bytes of each backend's compute buffer for a graph of plain numbers."""
    return tuple(tape.run(()).size_bytes for tape in record(graph, options).tapes)


# -- which backend runs what ------------------------------------------------------------------------------------


def _home(node: Node) -> int | None:
    return node.view_src.buffer if node.view_src is not None else node.buffer


def _wants_offload(node: Node, options: SchedulerOptions) -> bool:
    """ggml_backend_cuda_device_offload_op with get_op_batch_size."""
    if not options.op_offload or node.op == "GET_ROWS":
        return False
    if node.op == "MUL_MAT":
        batch = node.ne[1]
    elif node.op in ("MUL_MAT_ID", "ROPE"):
        batch = node.ne[2]
    else:
        batch = node.ne[1] * node.ne[2] * node.ne[3]
    return batch >= options.offload_min_batch


def _is_refused(node: Node, options: SchedulerOptions) -> bool:
    return node.cpu_only and options.kinds[0].chip is not None


def _from_current(node: Node, options: SchedulerOptions, cpu: int) -> int:
    """ggml_backend_sched_backend_id_from_cur."""
    root = node.view_src
    home = node.buffer if root is None else root.buffer
    if home is not None:
        return home
    if node.cpu_only and _is_refused(node, options):
        return cpu if any(s.is_weight and s.buffer == cpu for s in node.src) else -1
    if node.is_input:
        return cpu
    if node.op not in _NOT_FROM_WEIGHTS:
        for source in node.src:
            if source.is_weight and source.buffer is not None:
                movable = source.buffer == cpu and cpu > 0 and not source.is_fixed
                if movable and _wants_offload(node, options):
                    return 0
                return source.buffer
    return -1


def _assign(graph: Graph, options: SchedulerOptions, pinned: Mapping[Node, int] | None = None) -> None:
    cpu = len(options.kinds) - 1
    for leaf in graph.leafs:
        leaf.backend = leaf.buffer if leaf.buffer is not None else cpu if leaf.is_input else -1
    for node in graph.nodes:
        node.backend = _from_current(node, options, cpu)
    for node, backend in (pinned or {}).items():
        node.backend = backend
    active = [node for node in graph.nodes if node.op not in VIEW_OPS]
    for ordered in (active, active[::-1]):  # expand the GPUs down, then up; the CPU ends a run
        current = -1
        for node in ordered:
            if node.backend != -1:
                current = -1 if node.backend == cpu else node.backend
            elif current != -1 and not (node.cpu_only and _is_refused(node, options)):
                node.backend = current
    for ordered in (active, active[::-1]):  # expand what is left
        current = -1
        for node in ordered:
            if node.backend != -1:
                current = node.backend
            elif current != -1 and (current == cpu or not _is_refused(node, options)):
                node.backend = current
    for node in graph.nodes:
        if node.twin is not None:
            node.backend = node.twin.backend
        if node.view_src is not None and node.backend == -1:
            node.backend = node.view_src.backend
        for source in node.src:
            if source.backend == -1:
                source.backend = source.view_src.backend if source.view_src is not None else node.backend
        if node.backend == -1:
            node.backend = cpu if _is_refused(node, options) else 0


def _copy_of(node: Node) -> Node:
    """ggml_dup_tensor_layout: the same strides, so the same span of bytes."""
    return Node("NONE", node.type, node.ne, [], nb=node.nb)


def _readable(node: Node, backend: int) -> bool:
    """Whether a backend can read where the tensor lies (ggml_backend_sched_buffer_supported)."""
    home = _home(node)
    if home is None:
        home = node.backend
        if home == -1 and node.view_src is not None:
            home = node.view_src.backend
    return home == backend


def _split(graph: Graph, options: SchedulerOptions) -> tuple[list[_Part], list[Node]]:
    """Splits the graph by backend and inserts the copies; returns what is copied and what is run of each split in turn,
    and the leafs as the allocator gets them."""
    cpu = len(options.kinds) - 1
    copies: dict[tuple[int, int], list[Node]] = {}
    parts: list[_Part] = []
    split_leafs: list[Node] = []
    inputs: list[Node] = []  # of the current split
    body: list[Node] = []
    current = next((n.backend for n in graph.nodes if n.op not in VIEW_OPS), cpu)

    def close() -> None:
        order: list[Node] = []
        for source in inputs:
            made = copies[id(source), current]
            # a view that keeps the source alive until the copy is made
            keep = Node("NONE", source.type, source.ne, [source], nb=source.nb, view_of=source)
            keep.backend = source.backend
            keep.mark = made[0].mark = body[0].mark if body else 0
            order.append(keep)
            order.append(made[0])
            if options.copies > 1:
                split_leafs.extend(made)
        parts.append(_Part(order, None))
        parts.append(_Part(body[:], current))
        inputs.clear()
        body.clear()

    for node in graph.nodes:
        if node.op in VIEW_OPS:
            body.append(node)
            continue
        fresh = node.backend != current
        if not fresh and inputs:
            # by starting a new split, the memory of the previously offloaded weights can be reused
            for source in node.src:
                if source.is_weight and source.backend != current and not _readable(source, current):
                    fresh = True
                    break
        if fresh:
            close()
            current = node.backend
        for j, source in enumerate(node.src):
            if source.backend == current or _readable(source, current):
                continue
            key = (id(source), current)
            if key not in copies:
                made = [_copy_of(source) for _ in range(options.copies)]
                for copy in made:
                    copy.backend = current
                    copy.is_input = copy.is_output = options.copies > 1
                copies[key] = made
                inputs.append(source)
            node.src[j] = copies[key][0]
        body.append(node)
    close()

    leafs: list[Node] = []
    if options.copies > 1:
        for leaf in graph.leafs:
            if leaf.is_input:
                leaf.is_output = True
                leafs.append(leaf)
                for _ in range(options.copies - 1):
                    copy = _copy_of(leaf)
                    copy.backend = leaf.backend
                    copy.is_input = copy.is_output = True
                    leafs.append(copy)
        leafs.extend(split_leafs)
    leafs.extend(graph.leafs)
    return parts, leafs


# -- the allocator ------------------------------------------------------------------------------------------------


class _Allocator:
    """ggml_gallocr_alloc_graph_impl; notes what is taken and given back instead of doing it."""

    def __init__(self, options: SchedulerOptions) -> None:
        self.kinds = options.kinds
        self.tapes: tuple[Tape, ...] = ()
        self._plain: dict[tuple[int, ...], int] = {}  # sizes by type and shape: many nodes share theirs
        # by the identity of nodes, where they run: the graph is gone through twice
        self._own: dict[int, int] = {}

    def run(self, nodes: list[Node], leafs: list[Node]) -> tuple[Tape, ...]:
        """The tapes of all backends. Inputs come first, as in the engine: all of them are leafs."""
        self.tapes = tapes = tuple(Tape(kind.alignment) for kind in self.kinds)
        place = self._place
        steps = [tape.steps for tape in tapes]
        # weights and caches (`buffer`) and views have their memory elsewhere and are never placed
        for leaf in leafs:
            if leaf.buffer is None and not leaf.allocated and leaf.view_src is None:
                place(leaf)
        for node in nodes:
            root = node.view_src
            if root is not None and node.op != "NONE":
                root.views += 1
            for source in node.src:
                source.children += 1
        mark = 0
        for node in nodes:
            if node.mark > mark:
                mark = node.mark
                for tape in tapes:
                    tape.section(mark)
            # what a HOLD gives back is as large as all layers that it stands for
            held = node.op == "HOLD"
            if node.view_src is None and not node.allocated and node.buffer is None and not held:
                place(node)
            for source in node.src:
                source.children = left = source.children - 1
                if left or source.views:
                    continue
                # nobody reads it any more: it gives its memory back; a view lets go of its root
                root = source.view_src
                if root is None:
                    root = source
                else:
                    root.views = left = root.views - 1
                    if left or root.children:
                        continue
                if root.allocated and not root.is_output:
                    root.allocated = False
                    if held:
                        tapes[root.home].give_back(root.block, held=True)
                    else:
                        steps[root.home].append((-1 - root.block, 0))
        return tapes

    def _place(self, node: Node) -> None:
        backend = node.backend
        node.allocated = True
        size = self._own.get(id(node))
        if size is None:
            size = self._own[id(node)] = self._size(node, backend)
        node.size = size
        if node.op in INPLACE_OPS and self._reuse(node, backend):
            return
        node.home = backend
        node.block = self.tapes[backend].take(size)

    def _size(self, node: Node, backend: int) -> int:
        kind = node.type
        if kind.block_elements > 1 or node.op == "FLASH_ATTN_EXT" or not node.fresh:
            return alloc_size(node, self.kinds[backend])
        a, b, c, d = node.ne
        # a size that depends on the batch is no key, but is its own
        key = (kind.id, id(a), id(b), id(c), id(d))
        size = self._plain.get(key)
        if size is None:
            size = self._plain[key] = node.nbytes
        return size

    def _reuse(self, node: Node, backend: int) -> bool:
        """Takes over the memory of a source that nobody else needs. A view is never taken over: gallocr marks only
        tensors with memory of their own as allocated."""
        for parent in node.src:
            if not parent.allocated or parent.is_output or not node.laid_out_as(parent):
                continue
            if parent.children == 1 and not parent.views:
                node.home, node.block = parent.home, parent.block
                parent.allocated = False
                # ggml_gallocr_free_extra_space
                if node.home != backend:
                    node.size = self._size(node, node.home)
                if parent.size > node.size:
                    self.tapes[node.home].shrink(node.block, node.size)
                return True
        return False
