"""Families with multi-head latent attention: GLM with sparse attention."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.pieces import Block, Builder, Named, Shapes, ends, experts, gated, nextn


def latent_attention(b: Block) -> Iterator[Named]:
    """Multi-head latent attention with a low-rank query, K and V up-projections split per head."""
    h, heads = b.h, b.heads
    q_rank, kv_rank, rope = (
        h["attention.q_lora_rank"],
        h["attention.kv_lora_rank"],
        h["rope.dimension_count"],
    )
    key, value = h["attention.key_length_mla"], h["attention.value_length_mla"]
    yield b.norm("attn_norm")
    yield b.norm("attn_q_a_norm", q_rank)
    yield b.norm("attn_kv_a_norm", kv_rank)
    yield b.weight("attn_q_a", h.embd, q_rank)
    yield b.weight("attn_q_b", q_rank, heads * key)
    yield b.weight("attn_kv_a_mqa", h.embd, kv_rank + rope)
    yield b.weight("attn_k_b", key - rope, kv_rank, heads)
    yield b.weight("attn_v_b", kv_rank, value, heads)
    yield b.weight("attn_output", heads * value, h.embd)


def indexer(b: Block) -> Iterator[Named]:
    """The small attention that picks the tokens of sparse attention."""
    h = b.h
    heads, key = h["attention.indexer.head_count"], h["attention.indexer.key_length"]
    yield b.weight("indexer.k_norm", key)
    yield b.bias("indexer.k_norm", key)
    yield b.weight("indexer.proj", h.embd, heads)
    yield b.weight("indexer.attn_k", h.embd, key)
    yield b.weight("indexer.attn_q_b", h["attention.q_lora_rank"], heads * key)


def _glm_dsa(h: Shapes) -> Iterator[Named]:
    """src/models/glm-dsa.cpp"""
    yield from ends(h)
    shared = h.get("expert_shared_count") * h.get("expert_feed_forward_length")
    for b in h.blocks():
        yield from latent_attention(b)
        yield b.norm("ffn_norm")
        yield from indexer(b)
        if b.index < h.get("leading_dense_block_count"):
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=shared)
        if b.drafts:
            yield from nextn(b)


BUILDERS: dict[str, Builder] = {
    "glm-dsa": _glm_dsa,
}
