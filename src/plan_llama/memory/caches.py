"""What each layer caches per token and per sequence.

Source: llama_model::create_memory (src/llama-model.cpp), the constructors in src/llama-kv-cache*.cpp and
src/llama-memory-*.cpp, and llama_hparams (src/llama-hparams.cpp), b11434.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from plan_llama.errors import UsageError
from plan_llama.memory.recurrent import (
    HYBRID,
    RECURRENT,
    kv_heads,
    recurrent_layers,
    state_elements,
    states_kept,
)
from plan_llama.memory.windows import cached_layers, windows
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, TensorType

# arg.cpp kv_cache_types, b11434
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
# Encoders, and models that make text by diffusion: they keep nothing between two batches.
_NO_MEMORY = frozenset(
    {
        "bert",
        "clef",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "wavtokenizer-dec",
    }
)
# Their caches have a place for the blocks for drafting as well.
_DRAFTS_CACHED = frozenset({"deepseek4", "hy_v4", "minimax-m3", "jamba", "plamo2", *HYBRID}) - {
    "glm5-next",
    "minimax-01",
    "nemotron_h",
    "nemotron_h_moe",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "qwen4exp",
}
# DeepSeek-V4 keeps one row for so many tokens: compressed sparse and heavily compressed attention.
_SPARSE_RATIO, _HEAVY_RATIO = 4, 128
# Rows of an indexer that pools blocks of keys: key, gate and pooled key, or key and pooled key.
_POOLED_ROWS = {"glm5-next": 3, "qwen4exp": 2}
_GLM_5_2_CONTEXT = 1048576  # from there on only some layers own an indexer, whether the header says so or not


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of a cache: what a cell takes in it."""

    type: TensorType
    elements: int
    windowed: bool = False  # behind a sliding window: its cells do not grow with the context
    ratio: int = 1  # tokens per cell, in a compressed cache


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One layer's caches (K, V, index keys), and its state: elements (f32) per sequence, one entry per tensor."""

    layer: int
    rows: tuple[Row, ...]
    states: tuple[int, ...] = ()
    kept: int = 1  # states of a sequence
    own_streams: bool = False  # every sequence has cells of its own, also in a unified cache

    @property
    def token_bytes(self) -> float:
        """Bytes that one more token of a long context takes."""
        return sum(row.type.nbytes(row.elements) / row.ratio for row in self.rows if not row.windowed)

    @property
    def window_cell_bytes(self) -> int:
        """Bytes of one cell behind the window."""
        return sum(row.type.nbytes(row.elements) for row in self.rows if row.windowed)


def kv_type(name: str) -> TensorType:
    """The ggml type of a cache. Raises UsageError for one that the engine does not take."""
    if name not in KV_TYPES:
        raise UsageError(f"KV cache type {name!r} is not one of {', '.join(KV_TYPES)}")
    return by_name(name)


def cache_layers(
    spec: ModelSpec,
    k: TensorType,
    v: TensorType,
    *,
    flash_attn: bool = True,
    latent_v: bool = False,
    drafts: int = 0,
) -> tuple[CacheLayer, ...]:
    """The caches of every layer that has some. Without flash attention V is kept transposed, and as wide in every
    layer as in the widest. `latent_v`: an older build, which keeps V of latent attention too; `drafts`: of
    how many tokens the model's own drafts are.
    """
    if spec.architecture in _NO_MEMORY:
        return ()
    compressed = spec.architecture == "deepseek4"
    found = _compressed(spec, k) if compressed else _layers(spec, k, v, flash_attn, latent_v)
    kept = states_kept(spec, drafts)
    return tuple(replace(layer, kept=kept) if layer.states and kept > 1 else layer for layer in found)


def bytes_per_token(spec: ModelSpec, k: str = "f16", v: str = "f16") -> int:
    """What one more token of context costs over all layers; those behind a full window cost nothing more."""
    return ceil(sum(layer.token_bytes for layer in cache_layers(spec, kv_type(k), kv_type(v))))


def draft_layers(
    spec: ModelSpec, k: TensorType, v: TensorType, *, flash_attn: bool = True
) -> tuple[CacheLayer, ...]:
    """The caches of the blocks for drafting, in a context of their own: without an indexer, except where it pools."""
    behind = windows(spec).layers
    latent = _is_latent(spec)
    blocks = range(spec.layers, spec.int_param("block_count"))
    widest = (
        0 if flash_attn else max((_elements(spec, il, "value", il in behind) for il in blocks), default=0)
    )
    found = []
    for il in blocks:
        windowed = il in behind
        rows = [Row(k, _elements(spec, il, "key", windowed), windowed)]
        if not latent:
            rows.append(Row(v, widest or _elements(spec, il, "value", windowed), windowed))
        if spec.architecture in _POOLED_ROWS:
            rows += _index_rows(spec, il, k, v)
        found.append(CacheLayer(il, tuple(row for row in rows if row.elements)))
    return tuple(found)


def _is_latent(spec: ModelSpec) -> bool:
    """llama_hparams::is_mla: a cache of K only."""
    return bool(spec.int_param("attention.key_length_mla", 0)) and bool(
        spec.int_param("attention.value_length_mla", 0)
    )


def _layers(
    spec: ModelSpec, k: TensorType, v: TensorType, flash_attn: bool, latent_v: bool
) -> Iterator[CacheLayer]:
    blocks = spec.int_param("block_count")
    behind = windows(spec).layers
    recurrent = recurrent_layers(spec)
    latent = _is_latent(spec)
    widest = 0 if flash_attn else max(_elements(spec, il, "value", il in behind) for il in range(blocks))
    cached = min(blocks if spec.architecture in _DRAFTS_CACHED else spec.layers, cached_layers(spec))
    for il in range(blocks):
        states = state_elements(spec, il) if il in recurrent else ()
        rows: list[Row] = []
        if il < cached and _attends(spec, il, il in recurrent):
            windowed = il in behind
            rows.append(Row(k, _elements(spec, il, "key", windowed), windowed))
            if not latent or latent_v:
                rows.append(Row(v, widest or _elements(spec, il, "value", windowed), windowed))
            rows += _index_rows(spec, il, k, v)
        kept = tuple(row for row in rows if row.elements)
        states = tuple(elements for elements in states if elements)
        if kept or states:
            yield CacheLayer(il, kept, states)
    if spec.architecture == "graniteswitch":  # one of a single head, which chooses the adapter
        rows = [Row(k, _head_size(spec, "key", windowed=False))]
        rows.append(Row(v, widest or _head_size(spec, "value", windowed=False)))
        yield CacheLayer(blocks, tuple(rows))


def _attends(spec: ModelSpec, layer: int, recurrent: bool) -> bool:
    """Whether a layer has a cache of cells."""
    architecture = spec.architecture
    if architecture in RECURRENT:
        return False
    if architecture in ("nemotron_h", "nemotron_h_moe"):
        return not recurrent and not spec.int_param("feed_forward_length", 0, layer=layer)
    return architecture == "falcon-h1" or not recurrent


def _head_size(spec: ModelSpec, half: str, *, windowed: bool) -> int:
    heads = spec.int_param("attention.head_count", 0, layer=0)
    if not heads:
        return 0
    if half == "value" and spec.architecture in ("kimi-k3", "glm5-next"):  # whatever the header says
        size = spec.int_param("attention.kv_lora_rank")
    else:
        size = spec.int_param(f"attention.{half}_length", spec.int_param("embedding_length") // heads)
    return spec.int_param(f"attention.{half}_length_swa", size) if windowed else size


def _elements(spec: ModelSpec, layer: int, half: str, windowed: bool) -> int:
    """Elements of K or V per cell: heads times head size."""
    return kv_heads(spec, layer) * _head_size(spec, half, windowed=windowed)


def _index_rows(spec: ModelSpec, layer: int, k: TensorType, v: TensorType) -> list[Row]:
    """The keys of an indexer, in the layers that own one; MiniMax-M3's cache has room for values beside them."""
    architecture = spec.architecture
    size = spec.int_param("attention.indexer.key_length", 0)
    if architecture == "minimax-m3":
        dense = layer < spec.int_param("leading_dense_block_count", 0)
        return [] if dense else [Row(k, size), Row(v, _head_size(spec, "value", windowed=False))]
    if architecture in _POOLED_ROWS:
        pools = spec.int_param("attention.indexer.kpool", 0)
        if architecture == "qwen4exp":
            pools = spec.int_param("attention.compress_ratios", 0)
        owns = architecture == "qwen4exp" or owns_indexer(spec, layer)
        return [Row(k, size * (_POOLED_ROWS[architecture] if pools else 1))] if owns and size else []
    top = spec.int_param("attention.indexer.top_k", 0)
    if architecture in ("glm-dsa", "deepseek32", "dots3note") or (architecture == "hy_v4" and top):
        return [Row(k, size)] if owns_indexer(spec, layer) else []
    return []


def owns_indexer(spec: ModelSpec, layer: int) -> bool:
    """Whether a layer of sparse attention selects by itself; the others use the selection of a layer before."""
    listed = spec.hparams.get("attention.indexer.types")
    if isinstance(listed, tuple):
        return layer < len(listed) and bool(listed[layer])
    if spec.architecture == "glm-dsa" and spec.context_train >= _GLM_5_2_CONTEXT:
        return layer < 2 or layer % 4 == 2
    return spec.architecture in ("glm-dsa", "deepseek32", "glm5-next")


def _compressed(spec: ModelSpec, k: TensorType) -> Iterator[CacheLayer]:
    """DeepSeek-V4: K only. The window's cells, one row for 4 or 128 tokens, and what the compressor has seen of the
    tokens that do not fill a row yet. Every sequence has its own (llama_kv_cache_dsv4).
    """
    ratios = spec.hparams.get("attention.compress_ratios")
    index = spec.int_param("attention.indexer.key_length")
    for il in range(spec.int_param("block_count")):
        ratio = int(ratios[il]) if isinstance(ratios, tuple) and il < len(ratios) else 0
        size = _elements(spec, il, "key", windowed=True)
        head = _head_size(spec, "key", windowed=True)
        rows = [Row(k, size, windowed=True)]
        states: tuple[int, ...] = ()
        if ratio in (_SPARSE_RATIO, _HEAVY_RATIO):
            rows.append(Row(k, size, ratio=ratio))
            kept = 2 * _SPARSE_RATIO * 2 * head if ratio == _SPARSE_RATIO else _HEAVY_RATIO * head
            states = (kept, kept)
        if ratio == _SPARSE_RATIO:
            rows.append(Row(k, index, ratio=ratio))
            states += (2 * _SPARSE_RATIO * 2 * index,) * 2
        yield CacheLayer(il, tuple(rows), states if il < spec.layers else (), own_streams=True)
