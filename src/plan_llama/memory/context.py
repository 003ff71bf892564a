"""The KV cache and what the reserved batch looks like. Source: src/llama-context.cpp, src/llama-kv-cache*.cpp, b11434."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plan_llama.errors import UsageError
from plan_llama.memory.blocks import Batch, padded
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, padded_bytes
from plan_llama.memory.types import HOST, Program, Settings
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, TensorType

# arg.cpp kv_cache_types, b11434
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_CELLS = 256  # the context is padded to this


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One layer's caches: the rows that a cell takes, one per tensor (K, V, index keys)."""

    layer: int
    rows: tuple[tuple[TensorType, int], ...]  # type and elements

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


def reserved_batch(settings: Settings) -> Batch:
    """The worst-case batch that sched_reserve builds its graph for."""
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
    )


def cache_layers(spec: ModelSpec, k: TensorType, v: TensorType) -> tuple[CacheLayer, ...]:
    """Bytes per cell of every layer that has a cache.

    Latent attention (MLA) keeps K only: latent and rope part in one row; an indexer (DSA) its own keys beside it.
    """
    latent = spec.int_param("attention.kv_lora_rank", 0)
    names = {tensor.name for tensor in spec.tensors}
    layers = []
    for il in range(spec.layers):
        if latent and spec.int_param("attention.key_length_mla", 0):
            rows = [(k, latent + spec.int_param("rope.dimension_count"))]
            if f"blk.{il}.indexer.attn_k.weight" in names:
                rows.append((k, spec.int_param("attention.indexer.key_length")))
        else:
            heads = spec.int_param("attention.head_count", layer=il)
            kv_heads = spec.int_param("attention.head_count_kv", heads, layer=il)
            default = spec.int_param("embedding_length") // max(1, heads)
            key = spec.int_param("attention.key_length", default)
            value = spec.int_param("attention.value_length", default)
            rows = [(k, key * kv_heads), (v, value * kv_heads)]
        if rows[0][1]:
            layers.append(CacheLayer(il, tuple(rows)))
    return tuple(layers)


def bytes_per_token(spec: ModelSpec, k: str = "f16", v: str = "f16") -> int:
    """What one token of context costs over all layers."""
    return sum(layer.cell_bytes for layer in cache_layers(spec, kv_type(k), kv_type(v)))


def context_bytes(
    layers: Sequence[CacheLayer], batch: Batch, layer_device: Sequence[int], kinds: Mapping[int, BackendKind]
) -> dict[int, int]:
    """Bytes of the caches by device (HOST included), each tensor padded and aligned as its backend does."""
    total = dict.fromkeys((*kinds, HOST), 0)
    for layer in layers:
        device = layer_device[layer.layer] if batch.kv_offload else HOST
        kind = kinds.get(device, CPU_KIND)
        for row_type, elements in layer.rows:
            size = row_type.nbytes(elements) * batch.cells * batch.streams
            total[device] += padded_bytes(size, row_type, elements, kind)
    return total
