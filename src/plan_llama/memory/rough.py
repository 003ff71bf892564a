"""An upper bound of the compute buffers of a graph that is not described: what each part could need at once.

Nothing of it is a simulation. It is for architectures whose graph the walk cannot build, or builds without some of
their tensors; it was held against the real engine (b11434) for latent attention, sliding windows, Mamba 2 and gated
delta nets, and is never below what was measured there, at the price of being often twice as much.
"""

from __future__ import annotations

from collections.abc import Sequence

from plan_llama.memory.batch import Batch, padded
from plan_llama.memory.caches import CacheLayer
from plan_llama.memory.context import table_layers
from plan_llama.memory.recurrent import recurrent_layers
from plan_llama.memory.scheduler import OFFLOAD_MIN_BATCH, PIPELINE_COPIES, BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST
from plan_llama.memory.weights import Placement
from plan_llama.models.spec import is_expert
from plan_llama.models.types import Tensor

_F32 = 4
_INDEX = 8
_Q8_1_RATIO = 36 / 32  # block_q8_1: activations on the way into a quantised product
_STREAM_ROWS = 4  # residual, its norm, the branch and their sum
_STATE_COPIES = 4  # gathered, updated and written back
_MIXED_COPIES = 9  # hyper-connections: their streams normed, in f32, spread again, joined one by one, moved
_POOLS = 64  # pooled keys are padded to it (kpool_pad)
_POOL_SCORES = 2  # of every token for every pooled key, and their order
_SELECTED_COPIES = 4  # the cells as numbers and as floats, which are real, and the mask before it is opened
_POOL_INDICES = 32  # bytes for each: its cell, its members, where it is written
_MASKS = 2  # one for full attention, one for windows or an indexer
_CHUNKED = 4  # a delta net or scan works on several chunked copies of its rows
_FUSED_COPIES, _FUSED_ROUTER = 2, 12
_POOL_COPIES = 8  # keys and gates gathered, weighed, turned and summed
_CHECKPOINT_COPIES = 3  # the stack of them, the stack that grows by one, its norm
_SLACK_BYTES = 1 << 20  # positions, ids, alignment


class _Bounds:
    def __init__(
        self,
        table: ModelTable,
        batch: Batch,
        placement: Placement,
        kinds: Sequence[BackendKind],
        *,
        op_offload: bool,
        pipelined: bool,
    ) -> None:
        self.table, self.spec, self.batch = table, table.spec, batch
        self.placement, self.kinds = placement, kinds
        self.offload = bool(kinds) and op_offload and batch.tokens >= OFFLOAD_MIN_BATCH
        self.copies = PIPELINE_COPIES if pipelined else 1
        self.width = self.spec.int_param("embedding_length")
        self.streams = max(1, self.spec.int_param("hyper_connection.count", 0))
        self.used = max(1, self.spec.int_param("expert_used_count", 0))
        self.caches = {layer.layer: layer for layer in table_layers(table, batch)}
        self.recurrent = recurrent_layers(self.spec)
        self.value_row = max(
            (layer.rows[-1].elements for layer in self.caches.values() if layer.rows), default=0
        )

    def all(self) -> tuple[int, ...]:
        """Every GPU, then the host."""
        return tuple(self.of(device) for device in (*range(len(self.kinds)), HOST))

    def of(self, device: int) -> int:
        """The sum of the parts that a device could need at once; 0 for a card that nothing runs on."""
        work = max((self.layer(il, device) for il in range(self.table.layers)), default=0)
        head = self.head(device)
        if device != HOST and not work and not head:
            return 0
        return max(work, head) + self.inputs(device) + _SLACK_BYTES

    # -- parts --------------------------------------------------------------------------------------------------------

    def runs(self, where: set[int], home: int, device: int) -> bool:
        """Whether a device computes for a layer or head: its home, its own weights, or the host's by offload."""
        if device == HOST:
            return home == HOST or (HOST in where and not self.offload) or not self.batch.kv_offload
        return device == home or device in where or (device == 0 and HOST in (*where, home) and self.offload)

    def inputs(self, device: int) -> int:
        """Masks and embeddings; under pipeline parallelism every copy of them."""
        batch, copies = self.batch, self.copies + (self.copies > 1 and device == HOST)
        element = 2 if batch.flash_attn else _F32
        masks = _MASKS * batch.cells * batch.tokens * (element if device != HOST else _F32)
        if batch.v_transposed:  # the transposed V cache is written element by element: an index for each
            masks += _MASKS * batch.tokens * self.value_row * _INDEX
        rows = batch.tokens * self.streams * self.width * _F32
        pools = self.pools * (batch.tokens * _F32 + _POOL_INDICES) + self.selected * batch.tokens * _F32
        return copies * (masks + 2 * rows + pools) + 2 * rows + self.constants(device)

    def constants(self, device: int) -> int:
        """What an indexer's selection opens the mask with: zeros that every layer has from the start."""
        most = self.spec.int_param("attention.indexer.top_k", 0)
        layers = sum(home == device for home in self.placement.layer_device[: self.table.layers])
        return layers * min(most, self.batch.cells) * self.batch.tokens * _F32

    @property
    def pools(self) -> int:
        """Keys that an indexer makes of several cells each, for every sequence of its own (kpool_state of
        src/llama-memory-hybrid-idx.cpp): all of them at once when the engine reserves.
        """
        size = self.spec.int_param("attention.indexer.kpool", 0)
        return padded(self.batch.cells // size * self.batch.sequences + 1, _POOLS) if size else 0

    @property
    def selected(self) -> int:
        """Cells that such an indexer selects for a token."""
        size = self.spec.int_param("attention.indexer.kpool", 0)
        most = self.spec.int_param("attention.indexer.top_k", 0)
        return size * (1 + min(self.pools, most // size)) if size else 0

    def pooling(self) -> int:
        """What is gathered for these keys, their scores, and the mask that is opened where they are best."""
        size = self.spec.int_param("attention.indexer.kpool", 0)
        key = self.spec.int_param("attention.indexer.key_length", 0)
        of_tokens = _POOL_SCORES * self.pools + _SELECTED_COPIES * self.selected
        return (_POOL_COPIES * size * key * self.pools + of_tokens * self.batch.tokens) * _F32

    def head(self, device: int) -> int:
        """The logits, and the head's matrix where it is copied to be multiplied."""
        if not self.runs(set(), self.placement.output_device, device):
            return 0
        vocabulary = self.spec.vocab_size
        logits = self.batch.outputs * (vocabulary + 2 * self.width) * _F32
        name = "output.weight" if self.table.has_output else "token_embd.weight"
        index = self.table.by_name.get(name)
        moved = index is not None and device not in (HOST, self.placement.output_device)
        return logits + (self.spec.tensors[index].nbytes if index is not None and moved else 0)

    def layer(self, il: int, device: int) -> int:
        """One layer's activations, attention, state and copied weights on a device."""
        tensors = [(self.spec.tensors[i], self.placement.device_of[i]) for i in self.table.block_tensors[il]]
        where = {place for _, place in tensors if place is not None}
        if not self.runs(where, self.placement.layer_device[il], device):
            return 0
        rows = sum(self.row(tensor) for tensor, _ in tensors) + self.checkpoint_row
        streams = _MIXED_COPIES * self.spec.int_param("hyper_connection.count", 0)
        moved = sorted((tensor.nbytes for tensor, place in tensors if place == HOST), reverse=True)
        rows += self.latent_row(il) + (_STREAM_ROWS + streams) * self.width
        total = self.batch.tokens * rows * _F32
        if device != HOST:
            total += sum(moved[:2])
        layer = self.caches.get(il)
        if layer is not None:
            total += self.attention(layer, device)
            if layer.rows:
                total += self.pooling()
        if il in self.recurrent:
            total += (_CHUNKED - 1) * self.batch.tokens * self.dense_row(tensors) * _F32
        return total

    def row(self, tensor: Tensor) -> int:
        """Elements per token of a product with a weight."""
        if len(tensor.shape) < 2:
            return 0
        if is_expert(tensor):
            return tensor.shape[1] * self.used
        return tensor.shape[1] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)

    def dense_row(self, tensors: Sequence[tuple[Tensor, int | None]]) -> int:
        """The same over a layer's weights that are no experts."""
        return sum(self.row(tensor) for tensor, _ in tensors if not is_expert(tensor))

    def latent_row(self, il: int) -> int:
        """Elements per token that latent attention has beside its products: queries put together, and what they find;
        an indexer's scores of all cells.
        """
        latent = self.spec.int_param("attention.kv_lora_rank", 0)
        row = 0
        if latent:
            heads = self.spec.int_param("attention.head_count", 0, layer=il)
            row += 2 * heads * (latent + self.spec.int_param("rope.dimension_count", 0))
        if self.spec.int_param("attention.indexer.top_k", 0):
            row += 4 * self.batch.cells  # scores, the mask closed, opened and added, a copy between devices
        return row

    @property
    def checkpoint_row(self) -> int:
        """Elements per token of the residuals that every so many layers are kept for all layers behind (kimi-k3)."""
        every = self.spec.int_param("attn_res.block_size", 0)
        return _CHECKPOINT_COPIES * -(-self.spec.layers // every) * self.width if every else 0

    def attention(self, layer: CacheLayer, device: int) -> int:
        """Scores without flash attention, caches that are copied or converted, and recurrent states."""
        batch, total = self.batch, 0
        cells = batch.cells * batch.streams
        home = self.placement.layer_device[layer.layer] if batch.kv_offload else HOST
        latent = self.spec.int_param("attention.kv_lora_rank", 0)
        for row in layer.rows:
            if device != home:
                # a latent K is copied once more, as V, which is the front of it
                total += (2 if latent else 1) * row.type.nbytes(row.elements) * cells
            if row.type.name != "f16":
                total += 2 * row.elements * cells
        heads = self.spec.int_param("attention.head_count", 0, layer=layer.layer)
        if layer.rows and not batch.flash_attn:
            total += 2 * heads * batch.cells * batch.tokens * _F32
            total += max(row.elements for row in layer.rows) * cells * _F32
        return total + _STATE_COPIES * sum(layer.states) * batch.sequences * _F32


def upper_bound(
    table: ModelTable,
    batch: Batch,
    placement: Placement,
    kinds: Sequence[BackendKind],
    *,
    op_offload: bool,
    pipelined: bool,
) -> tuple[int, ...]:
    """Bytes of the compute buffer of each GPU and, last, of the host, none too small."""
    return _Bounds(table, batch, placement, kinds, op_offload=op_offload, pipelined=pipelined).all()


def fused_bound(table: ModelTable, batch: Batch) -> int:
    """At most what a CUDA device's compute buffer is larger by for its fused kernels (cuda_fusion.py): the results of
    all experts that a token uses, twice, and what is kept of the router."""
    used = table.spec.int_param("expert_used_count", 0)
    experts = table.spec.int_param("expert_count", 0)
    if not used or not experts:
        return 0
    width = table.spec.int_param("embedding_length", 0)
    return batch.tokens * _F32 * (_FUSED_COPIES * (used + 1) * width + _FUSED_ROUTER * experts)


def pool_bound(table: ModelTable, batch: Batch) -> int:
    """What the pool of temporary buffers of a CUDA device (cuda_pool.py) grows to, without a graph.

    The quantised activations of the widest product, for experts once per used expert; without flash attention also a
    copy of one layer's K in f32 and of its scores in f16.
    """
    spec = table.spec
    used = max(1, spec.int_param("expert_used_count", 0))
    widest = max(
        spec.int_param("expert_feed_forward_length", 0) * used,
        spec.int_param("feed_forward_length", 0),
        spec.int_param("embedding_length"),
    )
    quantised = int(2 * batch.tokens * widest * _Q8_1_RATIO)
    if batch.flash_attn:
        return quantised
    heads = max((spec.int_param("attention.head_count", 0, layer=il) for il in range(spec.layers)), default=0)
    rows = [row.elements for layer in table_layers(table, batch) for row in layer.rows]
    copies = batch.cells * (max(rows, default=0) * _F32 + batch.tokens * heads * (_F32 // 2))
    return max(quantised, copies)
