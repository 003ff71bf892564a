"""Families with sparse, compressed or windowed attention of their own: DeepSeek-V4, MiniMax-M3, Step-3.5, MiMo-V2."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.errors import ProfileError
from plan_llama.models.tables.hybrid import hyper_connections
from plan_llama.models.tables.pieces import (
    TRAIT,
    Block,
    Builder,
    Named,
    Shapes,
    attention,
    ends,
    experts,
    gated,
    nextn,
    qk_norm,
)

# Compression ratios that src/models/deepseek4.cpp knows; at 4 the windows overlap and an indexer selects.
_UNCOMPRESSED, _SELECTED, _STRIDED = 0, 4, 128


def _compressor(b: Block, name: str, size: int, ratio: int) -> Iterator[Named]:
    """What folds so many cells of a cache into one."""
    wide = 2 * size if ratio == _SELECTED else size
    yield b.weight(f"{name}_kv", b.h.embd, wide)
    yield b.weight(f"{name}_gate", b.h.embd, wide)
    yield b.weight(f"{name}_ape", wide, ratio)
    yield b.norm(f"{name}_norm", size)


def _compressed_attention(b: Block) -> Iterator[Named]:
    """One latent head for keys and values, a grouped output projection, compressed cells in most layers."""
    h, size, heads = b.h, b.h["attention.key_length"], b.heads
    rank = h["attention.q_lora_rank"]
    groups, out_rank = h.divisor("attention.output_group_count"), h["attention.output_lora_rank"]
    yield b.norm("attn_norm")
    yield b.weight("attn_sinks", heads)
    yield b.weight("attn_q_a", h.embd, rank)
    yield b.norm("attn_q_a_norm", rank)
    yield b.weight("attn_q_b", rank, heads * size)
    yield b.weight("attn_kv", h.embd, size)
    yield b.norm("attn_kv_a_norm", size)
    yield b.weight("attn_output_a", heads * size // groups, out_rank * groups)
    yield b.weight("attn_output_b", groups * out_rank, h.embd)
    yield from hyper_connections(b)
    ratio = h.at("attention.compress_ratios", b.index)
    if ratio not in (_UNCOMPRESSED, _SELECTED, _STRIDED):
        raise ProfileError(f"compression ratio of block {b.index}: {ratio}, expected 0, 4 or 128")
    if ratio:
        yield from _compressor(b, "attn_compressor", size, ratio)
    if ratio == _SELECTED:
        index_heads, index_size = h["attention.indexer.head_count"], h["attention.indexer.key_length"]
        yield b.weight("indexer.proj", h.embd, index_heads)
        yield b.weight("indexer.attn_q_b", rank, index_heads * index_size)
        yield from _compressor(b, "indexer_compressor", index_size, ratio)


def _deepseek4(h: Shapes) -> Iterator[Named]:
    """src/models/deepseek4.cpp. The first layers route by a table from token to experts."""
    streams = h["hyper_connection.count"]
    shared = h.get("expert_shared_count") * h.at("expert_feed_forward_length", 0)
    yield from ends(h)
    yield "output_hc_fn.weight", (streams * h.embd, streams)
    yield "output_hc_base.weight", (streams,)
    yield "output_hc_scale.weight", (1,)
    for b in h.blocks():
        hashed = b.index < h.get("hash_layer_count")
        yield from _compressed_attention(b)
        if hashed:
            yield b.weight("ffn_gate_tid2eid", h["expert_used_count"], h.vocab)
        yield b.norm("ffn_norm")
        yield from experts(b, selection_bias=not hashed, shared=shared)
        if b.drafts:
            yield from nextn(b)


def _minimax_m3(h: Shapes) -> Iterator[Named]:
    """src/models/minimax-m3.cpp: layers with experts also select blocks of cells."""
    shared = h.get("expert_shared_count") * h.at("expert_feed_forward_length", 0)
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from qk_norm(b)
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
            continue
        yield from experts(b, selection_bias=True, shared=shared)
        heads, size = h["attention.indexer.head_count"], h["attention.indexer.key_length"]
        yield b.weight("indexer.q_proj", h.embd, heads * size)
        yield b.weight("indexer.k_proj", h.embd, size)
        yield b.norm("indexer.q_norm", size)
        yield b.norm("indexer.k_norm", size)


def _step35(h: Shapes) -> Iterator[Named]:
    """src/models/step35.cpp: windowed and full attention with different heads, gated by head."""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from qk_norm(b)
        yield from attention(b)
        yield b.weight("attn_gate", h.embd, b.heads)
        yield b.norm("ffn_norm")
        if b.drafts or b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=h["expert_shared_feed_forward_length"])
        if b.drafts:
            yield from nextn(b)
            yield b.weight("nextn.shared_head_head", h.embd, h.vocab)


def _mimo2(h: Shapes) -> Iterator[Named]:
    """src/models/mimo2.cpp. How many layers lead without experts is no part of the header:
    `tensors.leading_dense` says it; drafting blocks have none."""
    windowed = h.hparams.get("attention.sliding_window_pattern")
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        slides = isinstance(windowed, tuple) and b.index < len(windowed) and bool(windowed[b.index])
        if h.has("window_sinks" if slides else "sinks"):
            yield b.weight("attn_sinks", b.heads)
        yield b.norm("ffn_norm")
        if b.drafts or b.index < h.get(TRAIT + "leading_dense"):
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True)
        if b.drafts:
            yield b.weight("nextn.eh_proj", 2 * h.embd, h.embd)
            yield b.norm("nextn.enorm")
            yield b.norm("nextn.hnorm")
            yield b.norm("layer_output_norm")


BUILDERS: dict[str, Builder] = {
    "deepseek4": _deepseek4,
    "minimax-m3": _minimax_m3,
    "step35": _step35,
    "mimo2": _mimo2,
}
