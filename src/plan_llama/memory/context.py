"""The KV cache and what the reserved batch looks like.

Source: src/llama-context.cpp, src/llama-kv-cache*.cpp, b11434.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from plan_llama.memory.batch import Batch, padded
from plan_llama.memory.caches import CacheLayer, Row, cache_layers, draft_layers, kv_type
from plan_llama.memory.ggml import F32
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, padded_bytes
from plan_llama.memory.table import CacheKey, ModelTable
from plan_llama.memory.types import HOST, Program, Settings
from plan_llama.memory.weights import Placement
from plan_llama.memory.windows import NO_WINDOWS, Windows
from plan_llama.models.types import ModelSpec

_CELLS = 256  # the context is padded to this
# set in load_arch_hparams of these (src/models/*.cpp, b11434), whatever the header says
_ENCODERS = frozenset({"t5", "t5encoder", "eagle3", "dflash"})  # llama_model_has_encoder, src/llama-model.cpp
_NOT_CAUSAL = frozenset({"dream", "gemma-embedding", "llada", "llada-moe", "rnd1"})


def is_causal(spec: ModelSpec) -> bool:
    """Whether a token sees only those before it; if not, a batch may be longer than the context that is asked for
    (llama_context cuts it only where attention is causal, src/llama-context.cpp, b11434).
    """
    return spec.architecture not in _NOT_CAUSAL and bool(spec.hparams.get("attention.causal", True))


def outputs_reserved(
    program: Program, tokens: int, batch: int, parallel: int, *, drafts: int = 0, per_slot: bool = True
) -> int:
    """Output rows of the reserved graph: one per slot in llama-server and one per drafted token, which the same batch
    verifies; one per token elsewhere and in older builds.

    Source: tools/server/server-context.cpp (n_outputs_max) and llama_context::sched_reserve.
    """
    by_slot = program == "llama-server" and per_slot
    most = max(1, min(batch, parallel * (1 + drafts))) if by_slot else batch
    return min(tokens, most)


def encodes(spec: ModelSpec) -> bool:
    """Whether the model encodes a text before it writes: every token of a batch may then be an output."""
    return spec.architecture in _ENCODERS


def reserved_batch(settings: Settings, behind: Windows = NO_WINDOWS, *, all_outputs: bool = False) -> Batch:
    """The worst-case batch that sched_reserve builds its graph for; `behind` are the model's sliding windows, and
    `all_outputs` is whether it encodes.

    Source: llama_context and llama_kv_cache_iswa, src/llama-context.cpp and src/llama-kv-cache-iswa.cpp, b11434.
    """
    sequences = settings.parallel
    context = padded(settings.context, _CELLS)
    unified = settings.kv_unified or "one-pool" in settings.older
    if unified:
        cells = context
    else:
        cells = padded(context // sequences, _CELLS)
        context = cells * sequences
    batch = min(context, settings.batch)
    ubatch = min(batch, settings.ubatch or batch)
    tokens = padded(min(context, ubatch), sequences)
    drafts = settings.draft_tokens if settings.draft_layers else settings.kept_tokens
    return Batch(
        tokens=tokens,
        outputs=outputs_reserved(
            settings.program,
            min(context, ubatch),
            batch,
            sequences,
            drafts=max(drafts, settings.verified_tokens),
            per_slot="outputs-per-token" not in settings.older and not all_outputs,
        ),
        sequences=sequences,
        streams=1 if unified else sequences,
        cells=cells,
        drafts=drafts,
        flash_attn=settings.flash_attn,
        kv_type_k=kv_type(settings.kv_type_k),
        kv_type_v=kv_type(settings.kv_type_v),
        kv_offload=settings.kv_offload,
        older=settings.older,
        window_cells=_window_cells(behind, cells, ubatch, settings) if behind.cells else 0,
    )


def _window_cells(behind: Windows, cells: int, ubatch: int, settings: Settings) -> int:
    if settings.swa_full or "no-window-cache" in settings.older:
        return cells
    sequences = settings.parallel if settings.kv_unified and not behind.own_streams else 1
    return padded(min(cells, behind.cells * sequences + ubatch), _CELLS)


def table_layers(table: ModelTable, batch: Batch) -> tuple[CacheLayer, ...]:
    """The caches of a table's model, remembered in it: a search asks for them hundreds of times."""
    key = _cache_key(batch)
    if key not in table.cache_layers:
        table.cache_layers[key] = cache_layers(
            table.spec,
            batch.kv_type_k,
            batch.kv_type_v,
            flash_attn=not batch.v_transposed,
            latent_v=key[3],
            drafts=batch.drafts,
        )
    return table.cache_layers[key]


def _cache_key(batch: Batch) -> CacheKey:
    older = "latent-v-cache" in batch.older
    return batch.kv_type_k.name, batch.kv_type_v.name, not batch.v_transposed, older, batch.drafts


def row_cells(row: Row, batch: Batch) -> int:
    """Cells of one stream in a tensor of a cache."""
    if row.windowed and batch.window_cells:
        return batch.window_cells
    return batch.cells if row.ratio == 1 else padded(-(-batch.cells // row.ratio), _CELLS)


def checkpoint_bytes(layers: Sequence[CacheLayer], batch: Batch) -> int:
    """One context checkpoint of one slot: what of its memory cannot be rolled back, kept in system memory.

    These are the cells of windowed layers and the states of recurrent ones (common_prompt_checkpoint with
    LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, tools/server/server-context.cpp, b11434); 0 for a model without either.
    """
    windowed = sum(layer.window_cell_bytes for layer in layers) * batch.window_cells
    return windowed + F32.nbytes(sum(sum(layer.states) for layer in layers))


def context_bytes(
    table: ModelTable, batch: Batch, placement: Placement, kinds: Mapping[int, BackendKind]
) -> dict[int, int]:
    """Bytes of the caches by device (HOST included), each tensor padded and aligned as its backend does."""
    total = dict.fromkeys((*kinds, HOST), 0)
    for layer, members in _alike(table, batch):
        for first, end, home in placement.spans:
            count = bisect_left(members, end) - bisect_left(members, first)
            if count:
                device = home if batch.kv_offload else HOST
                total[device] += count * _layer_bytes(layer, batch, kinds.get(device, CPU_KIND))
    return total


def layer_bytes(table: ModelTable, batch: Batch, kind: BackendKind) -> list[int]:
    """Bytes of each block's caches on a device of this kind."""
    sizes = [0] * table.blocks
    for layer, members in _alike(table, batch):
        size = _layer_bytes(layer, batch, kind)
        for il in members:
            sizes[il] += size
    return sizes


def draft_bytes(
    table: ModelTable, batch: Batch, placement: Placement, kinds: Mapping[int, BackendKind]
) -> dict[int, int]:
    """The same of the context that runs the blocks for drafting."""
    total = dict.fromkeys((*kinds, HOST), 0)
    for layer in draft_layers(table.spec, batch.kv_type_k, batch.kv_type_v, flash_attn=batch.flash_attn):
        device = placement.layer_device[layer.layer] if batch.kv_offload else HOST
        total[device] += _layer_bytes(layer, batch, kinds.get(device, CPU_KIND))
    return total


def _alike(table: ModelTable, batch: Batch) -> tuple[tuple[CacheLayer, tuple[int, ...]], ...]:
    """One layer of each make of caches, and the numbers of all of that make."""
    key = _cache_key(batch)
    if key not in table.cache_makes:
        makes: dict[object, tuple[CacheLayer, list[int]]] = {}
        for layer in table_layers(table, batch):
            makes.setdefault((layer.rows, layer.states, layer.own_streams), (layer, []))[1].append(
                layer.layer
            )
        table.cache_makes[key] = tuple((layer, tuple(members)) for layer, members in makes.values())
    return table.cache_makes[key]


def _layer_bytes(layer: CacheLayer, batch: Batch, kind: BackendKind) -> int:
    streams = batch.sequences if layer.own_streams else batch.streams
    total = 0
    for row in layer.rows:
        size = row.type.nbytes(row.elements) * row_cells(row, batch) * streams
        total += padded_bytes(size, row.type, row.elements, kind)
    for elements in layer.states:
        total += padded_bytes(F32.nbytes(elements) * layer.kept * batch.sequences, F32, elements, kind)
    return total
