"""GLM-4 (dense) and GLM-4.5 to 4.7 (experts, one block for next-token prediction)."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.pieces import (
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


def _glm4(h: Shapes) -> Iterator[Named]:
    """src/models/glm4.cpp: gate and up in one tensor"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield b.norm("post_attention_norm")
        yield b.norm("ffn_norm")
        yield b.weight("ffn_up", h.embd, 2 * b.ffn)
        yield b.weight("ffn_down", b.ffn, h.embd)
        yield b.norm("post_ffw_norm")
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


def _glm4moe(h: Shapes) -> Iterator[Named]:
    """src/models/glm4-moe.cpp"""
    yield from ends(h)
    shared = h.get("expert_shared_count") * h["expert_feed_forward_length"]
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        if h.has("qk_norm"):
            yield from qk_norm(b)
        yield b.norm("post_attention_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=shared)
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


BUILDERS: dict[str, Builder] = {"glm4": _glm4, "glm4moe": _glm4moe}
