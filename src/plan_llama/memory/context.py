"""The KV cache and what the reserved batch looks like.

Source: src/llama-context.cpp, src/llama-kv-cache*.cpp, b11434.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plan_llama.errors import UsageError
from plan_llama.memory.blocks import Batch, padded
from plan_llama.memory.ggml import F32
from plan_llama.memory.recurrent import recurrent_layers, state_elements
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, padded_bytes
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Program, Settings
from plan_llama.memory.windows import cached_layers, windows
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, TensorType

# arg.cpp kv_cache_types, b11434
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_CELLS = 256  # the context is padded to this


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One layer's caches: the rows that a cell takes, one per tensor (K, V, index keys), and its state.

    `states` are the elements (f32) that a recurrent layer keeps per sequence, one entry per tensor.
    """

    layer: int
    rows: tuple[tuple[TensorType, int], ...]  # type and elements
    states: tuple[int, ...] = ()
    windowed: bool = False  # behind a sliding window: its cells do not grow with the context

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell of one stream."""
        return sum(kind.nbytes(elements) for kind, elements in self.rows)


def kv_type(name: str) -> TensorType:
    """The ggml type of a cache. Raises UsageError for one that the engine does not take."""
    if name not in KV_TYPES:
        raise UsageError(f"KV cache type {name!r} is not one of {', '.join(KV_TYPES)}")
    return by_name(name)


def outputs_reserved(program: Program, tokens: int, batch: int, parallel: int) -> int:
    """Output rows of the reserved graph: one per slot in llama-server, one per token elsewhere.

    Source: tools/server/server-context.cpp (n_outputs_max) and llama_context::sched_reserve.
    """
    most = max(1, min(batch, parallel)) if program == "llama-server" else batch
    return min(tokens, most)


def reserved_batch(settings: Settings, window: int = 0) -> Batch:
    """The worst-case batch that sched_reserve builds its graph for; `window` is the model's sliding window.

    Source: llama_context and llama_kv_cache_iswa, src/llama-context.cpp and src/llama-kv-cache-iswa.cpp, b11434.
    """
    sequences = settings.parallel
    context = padded(settings.context, _CELLS)
    if settings.kv_unified:
        cells = context
    else:
        cells = padded(context // sequences, _CELLS)
        context = cells * sequences
    batch = min(context, settings.batch)
    ubatch = min(batch, settings.ubatch or batch)
    tokens = padded(min(context, ubatch), sequences)
    return Batch(
        tokens=tokens,
        outputs=outputs_reserved(settings.program, min(context, ubatch), batch, sequences),
        sequences=sequences,
        streams=1 if settings.kv_unified else sequences,
        cells=cells,
        flash_attn=settings.flash_attn,
        kv_type_k=kv_type(settings.kv_type_k),
        kv_type_v=kv_type(settings.kv_type_v),
        kv_offload=settings.kv_offload,
        window_cells=_window_cells(window, cells, ubatch, settings) if window else 0,
    )


def _window_cells(window: int, cells: int, ubatch: int, settings: Settings) -> int:
    if settings.swa_full:
        return cells
    sequences = settings.parallel if settings.kv_unified else 1
    return padded(min(cells, window * sequences + ubatch), _CELLS)


def cache_layers(spec: ModelSpec, k: TensorType, v: TensorType) -> tuple[CacheLayer, ...]:
    """Bytes per cell of every layer that has a cache, and the states of recurrent ones.

    Latent attention (MLA) keeps K only: latent and rope part in one row; an indexer (DSA) its own keys beside it.
    Layers behind a sliding window are marked; where an architecture's windows are not known none is, which is never
    too little.
    """
    latent = spec.int_param("attention.kv_lora_rank", 0)
    names = {tensor.name for tensor in spec.tensors}
    recurrent = recurrent_layers(spec)
    behind = windows(spec).layers
    layers = []
    for il in range(min(spec.layers, cached_layers(spec))):
        states: tuple[int, ...] = state_elements(spec, il) if il in recurrent else ()
        rows: list[tuple[TensorType, int]] = []
        if il in recurrent and f"blk.{il}.attn_k.weight" not in names:
            pass  # a hybrid's recurrent layer has no cache of cells
        elif latent and spec.int_param("attention.key_length_mla", 0):
            rows = [(k, latent + spec.int_param("rope.dimension_count"))]
            if f"blk.{il}.indexer.attn_k.weight" in names:
                rows.append((k, spec.int_param("attention.indexer.key_length")))
        else:
            windowed = il in behind if behind else None
            rows = [(k, _row(spec, il, "key", windowed)), (v, _row(spec, il, "value", windowed))]
            if f"blk.{il}.indexer.k_proj.weight" in names:  # a cache of one head beside it, K and V
                size = spec.int_param("attention.indexer.key_length")
                rows += [(k, size), (v, spec.int_param("attention.value_length", size))]
        rows = [row for row in rows if row[1]]
        states = tuple(elements for elements in states if elements)
        if rows or states:
            layers.append(CacheLayer(il, tuple(rows), states, il in behind))
    return tuple(layers)


def table_layers(table: ModelTable, k: TensorType, v: TensorType) -> tuple[CacheLayer, ...]:
    """cache_layers, remembered in the table: a search asks for them hundreds of times."""
    key = k.name, v.name
    if key not in table.cache_layers:
        table.cache_layers[key] = cache_layers(table.spec, k, v)
    return table.cache_layers[key]


def _row(spec: ModelSpec, layer: int, half: str, windowed: bool | None) -> int:
    """Elements of K or V per cell: heads times head size. Windowed layers may have a head size of their own; where it
    is not known which layers those are (None), the larger one.
    """
    heads = spec.int_param("attention.head_count", 0, layer=layer)
    kv_heads = spec.int_param("attention.head_count_kv", heads, layer=layer)
    default = spec.int_param("embedding_length") // max(1, heads)
    size = spec.int_param(f"attention.{half}_length", default)
    own = spec.int_param(f"attention.{half}_length_swa", 0)
    if windowed is None:
        return kv_heads * max(size, own)
    return kv_heads * (own if windowed and own else size)


def bytes_per_token(spec: ModelSpec, k: str = "f16", v: str = "f16") -> int:
    """What one more token of context costs over all layers; those behind a full window cost nothing more."""
    layers = cache_layers(spec, kv_type(k), kv_type(v))
    return sum(layer.cell_bytes for layer in layers if not layer.windowed)


def checkpoint_bytes(layers: Sequence[CacheLayer], batch: Batch) -> int:
    """One context checkpoint of one slot: what of its memory cannot be rolled back, kept in system memory.

    These are the cells of windowed layers and the states of recurrent ones (common_prompt_checkpoint with
    LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, tools/server/server-context.cpp, b11434); 0 for a model without either.
    """
    windowed = sum(layer.cell_bytes for layer in layers if layer.windowed) * batch.window_cells
    return windowed + F32.nbytes(sum(sum(layer.states) for layer in layers))


def context_bytes(
    layers: Sequence[CacheLayer], batch: Batch, layer_device: Sequence[int], kinds: Mapping[int, BackendKind]
) -> dict[int, int]:
    """Bytes of the caches by device (HOST included), each tensor padded and aligned as its backend does."""
    total = dict.fromkeys((*kinds, HOST), 0)
    for layer in layers:
        device = layer_device[layer.layer] if batch.kv_offload else HOST
        kind = kinds.get(device, CPU_KIND)
        cells = batch.window_cells if layer.windowed and batch.window_cells else batch.cells
        for row_type, elements in layer.rows:
            size = row_type.nbytes(elements) * cells * batch.streams
            total[device] += padded_bytes(size, row_type, elements, kind)
        for elements in layer.states:
            total[device] += padded_bytes(F32.nbytes(elements) * batch.sequences, F32, elements, kind)
    return total
