"""Qwen 2 to 3 with plain attention, dense and with experts."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.pieces import (
    Block,
    Builder,
    Named,
    Shapes,
    attention,
    ends,
    experts,
    gated,
    qk_norm,
)


def _qwen2(h: Shapes) -> Iterator[Named]:
    """src/models/qwen2.cpp, qwen2vl.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b, bias=True)
        yield b.norm("ffn_norm")
        yield from gated(b, b.ffn)


def _qwen2moe(h: Shapes) -> Iterator[Named]:
    """src/models/qwen2moe.cpp"""
    yield from ends(h, tied=False)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b, bias=True)
        yield b.norm("ffn_norm")
        yield from experts(
            b, shared=h.get("expert_shared_feed_forward_length") or b.ffn, width=_expert_width(b)
        )
        yield b.weight("ffn_gate_inp_shexp", h.embd)


def _expert_width(b: Block) -> int:
    """As stated, else an equal share of the dense width."""
    return b.h.get("expert_feed_forward_length") or b.ffn // max(b.h["expert_used_count"], 1)


def _qwen3(h: Shapes) -> Iterator[Named]:
    """src/models/qwen3.cpp, qwen3moe.cpp, qwen3vl.cpp, qwen3vlmoe.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from qk_norm(b)
        yield b.norm("ffn_norm")
        if h.get("expert_count"):
            yield from experts(b, width=_expert_width(b))
        else:
            yield from gated(b, b.ffn)


BUILDERS: dict[str, Builder] = {
    "qwen2": _qwen2,
    "qwen2vl": _qwen2,
    "qwen2moe": _qwen2moe,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3,
    "qwen3vl": _qwen3,
    "qwen3vlmoe": _qwen3,
}
