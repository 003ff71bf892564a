"""Phi-3 and Phi-4 (Q, K and V in one tensor, gate and up in one), Phi-3.5-MoE."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.pieces import Builder, Named, Shapes, attention, ends, experts


def _phi3(h: Shapes) -> Iterator[Named]:
    """src/models/phi3.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        if h.has("qkv_split"):
            yield from attention(b)
        else:
            yield b.weight("attn_qkv", h.embd, (b.heads + 2 * b.kv_heads) * b.key)
            yield b.weight("attn_output", b.heads * b.value, h.embd)
        yield b.norm("ffn_norm")
        yield b.weight("ffn_up", h.embd, 2 * b.ffn)
        yield b.weight("ffn_down", b.ffn, h.embd)


def _phimoe(h: Shapes) -> Iterator[Named]:
    """src/models/phimoe.cpp: biases everywhere but on the experts"""
    yield from ends(h, tied=False, norm_bias=True)
    yield "output.bias", (h.vocab,)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield b.bias("attn_norm", h.embd)
        yield from attention(b, bias=True, output_bias=True)
        yield b.norm("ffn_norm")
        yield b.bias("ffn_norm", h.embd)
        yield from experts(b, width=b.ffn)


BUILDERS: dict[str, Builder] = {"phi3": _phi3, "phimoe": _phimoe}
