"""What a layer's attention keeps and reads per cached token, from the header."""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.models.types import ModelSpec


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's cache per token: elements of K and of V, index elements, flops of a query over one cell."""

    k_elements: int
    v_elements: int
    flops: float
    most_cells: int | None = None
    index_elements: int = 0
    index_flops: float = 0.0
    heads: int = 0


def window_of(spec: ModelSpec, layer: int) -> int | None:
    """The header's own statement of a sliding window on this layer: a flag per layer, or one layer in N is
    full."""
    size = spec.hparams.get("attention.sliding_window")
    pattern = spec.hparams.get("attention.sliding_window_pattern")
    if not isinstance(size, int) or not size or pattern is None:
        return None
    if isinstance(pattern, tuple):
        return size if layer < len(pattern) and pattern[layer] else None
    return size if isinstance(pattern, int) and pattern > 1 and (layer + 1) % pattern else None


def attention_of(spec: ModelSpec, layer: int, kinds: set[str], window: int | None) -> Attention:
    """The cache of one layer: nothing on recurrent layers, the latent row with MLA, K and V rows
    elsewhere."""
    recurrent = any(kind.startswith("ssm_") for kind in kinds)
    heads = spec.int_param("attention.head_count", 0, layer=layer)
    heads_kv = spec.int_param("attention.head_count_kv", heads, layer=layer)
    if (recurrent and "attn_k.weight" not in kinds) or not heads_kv:
        return Attention(0, 0, 0.0)
    k_row, v_row = spec.head_sizes(layer)
    flops = 2.0 * heads * (k_row + v_row)
    if spec.int_param("attention.key_length_mla", 0):
        # llama_hparams::is_mla: one latent row of key_length; every head attends to it and reads
        # kv_lora_rank of it.
        flops = 2.0 * heads * (k_row + spec.int_param("attention.kv_lora_rank", 0))
        index = spec.int_param("attention.indexer.key_length", 0)
        index_heads = spec.int_param("attention.indexer.head_count", 0)
        top = spec.int_param("attention.indexer.top_k", 0) or None
        most = top if index else window
        return Attention(k_row, 0, flops, most, index, 2.0 * index_heads * index, heads)
    return Attention(heads_kv * k_row, heads_kv * v_row, flops, window, heads=heads)
