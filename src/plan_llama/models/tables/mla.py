"""Families with multi-head latent attention: DeepSeek-V2 to V3.2, Kimi-K2, GLM-4.7-Flash and GLM-5, Mistral 4."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.pieces import Block, Builder, Named, Shapes, ends, experts, gated, nextn

_SIGMOID = 2  # expert_gating_func: routers with it select by a bias (src/llama-hparams.h)


def latent_attention(b: Block, heads: int = 0) -> Iterator[Named]:
    """Multi-head latent attention, K and V up-projections split per head.

    The query has a low rank where the header says one. `heads`: their number, where the block's own is not it.
    """
    h, heads = b.h, heads or b.heads
    q_rank, kv_rank, rope = (
        h.get("attention.q_lora_rank"),
        h["attention.kv_lora_rank"],
        h["rope.dimension_count"],
    )
    key, value = h["attention.key_length_mla"], h["attention.value_length_mla"]
    yield b.norm("attn_norm")
    if q_rank:
        yield b.norm("attn_q_a_norm", q_rank)
    yield b.norm("attn_kv_a_norm", kv_rank)
    if q_rank:
        yield b.weight("attn_q_a", h.embd, q_rank)
        yield b.weight("attn_q_b", q_rank, heads * key)
    else:
        yield b.weight("attn_q", h.embd, heads * key)
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


def selects(b: Block) -> bool:
    """Whether a block has an indexer of its own; else it takes the selection of the layer before."""
    types = b.h.hparams.get("attention.indexer.types")
    if isinstance(types, tuple) and b.index < len(types):
        return bool(types[b.index])
    return True


def _feed_forward(b: Block, *, selection_bias: bool, fused: bool = False) -> Iterator[Named]:
    """A dense network in the leading blocks, then experts; `fused`: their gate and up are one tensor."""
    h = b.h
    if b.leading_dense:
        yield from gated(b, b.ffn)
        return
    width = h.at("expert_feed_forward_length", b.index)
    for name, shape in experts(b, selection_bias=selection_bias, shared=h.get("expert_shared_count") * width):
        if fused and name.endswith("ffn_gate_exps.weight"):
            yield b.weight("ffn_gate_up_exps", h.embd, 2 * width, h["expert_count"])
        elif not (fused and name.endswith("ffn_up_exps.weight")):
            yield name, shape


def _deepseek2(h: Shapes) -> Iterator[Named]:
    """src/models/deepseek2.cpp (and mistral4, whose experts the converter leaves fused)"""
    selection_bias = h.has("selection_bias", h.get("expert_gating_func") == _SIGMOID)
    yield from ends(h)
    for b in h.blocks():
        yield from latent_attention(b)
        yield b.norm("ffn_norm")
        yield from _feed_forward(b, selection_bias=selection_bias, fused=h.has("fused_experts"))
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


def _sparse(h: Shapes) -> Iterator[Named]:
    """src/models/deepseek32.cpp and glm-dsa.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield from latent_attention(b)
        yield b.norm("ffn_norm")
        if selects(b):
            yield from indexer(b)
        yield from _feed_forward(b, selection_bias=True)
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


BUILDERS: dict[str, Builder] = {
    "deepseek2": _deepseek2,
    "mistral4": _deepseek2,
    "deepseek32": _sparse,
    "glm-dsa": _sparse,
}
