"""Gemma 1 to 4: no output head of their own; from Gemma 2 on norms behind attention and network too."""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.pieces import Block, Builder, Named, Shapes, attention, ends, gated, qk_norm

_LAUREL_RANK = 64  # llama_hparams.laurel_rank: no key has it


def _gemma(h: Shapes) -> Iterator[Named]:
    """src/models/gemma.cpp"""
    yield from ends(h, tied=True)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield b.norm("ffn_norm")
        yield from gated(b, b.ffn)


def _gemma2(h: Shapes) -> Iterator[Named]:
    """src/models/gemma2.cpp"""
    yield from ends(h, tied=True)
    for b in h.blocks():
        yield from _block(b, norms=False)


def _gemma3(h: Shapes) -> Iterator[Named]:
    """src/models/gemma3.cpp"""
    yield from ends(h, tied=True)
    for b in h.blocks():
        yield from _block(b, norms=True)


def _block(b: Block, *, norms: bool) -> Iterator[Named]:
    """A block with norms before and behind both halves, and over Q and K where `norms`."""
    yield b.norm("attn_norm")
    yield from attention(b)
    if norms:
        yield from qk_norm(b)
    yield b.norm("post_attention_norm")
    yield b.norm("ffn_norm")
    yield from gated(b, b.ffn)
    yield b.norm("post_ffw_norm")


def _per_layer_embedding(h: Shapes, width: int) -> Iterator[Named]:
    """An embedding of its own for every layer, in one table."""
    layers = h["block_count"]
    yield "per_layer_token_embd.weight", (width * layers, h.vocab)
    yield "per_layer_model_proj.weight", (h.embd, width * layers)
    yield "per_layer_proj_norm.weight", (width,)


def _per_layer_input(b: Block, width: int) -> Iterator[Named]:
    """How a block takes its own embedding in."""
    yield b.weight("inp_gate", b.h.embd, width)
    yield b.weight("proj", width, b.h.embd)
    yield b.norm("post_norm")


def _gemma3n(h: Shapes) -> Iterator[Named]:
    """src/models/gemma3n.cpp"""
    embd, copies = h.embd, h["altup.num_inputs"]
    width = h["embedding_length_per_layer_input"]
    yield "altup_proj.weight", (embd, embd, copies - 1)
    yield "altup_unembd_proj.weight", (embd, embd, copies - 1)
    yield from _per_layer_embedding(h, width)
    yield from ends(h, tied=True)
    for b in h.blocks():
        yield from _block(b, norms=True)
        yield from _per_layer_input(b, width)
        yield b.weight("altup_correct_coef", copies, copies)
        yield b.norm("altup_correct_scale")
        yield b.weight("altup_predict_coef", copies, copies * copies)
        yield b.weight("altup_router", embd, copies)
        yield b.norm("altup_router_norm")
        yield b.weight("laurel_l", embd, _LAUREL_RANK)
        yield b.weight("laurel_r", _LAUREL_RANK, embd)
        yield b.norm("laurel_post_norm")


def _gemma4(h: Shapes) -> Iterator[Named]:
    """src/models/gemma4.cpp: wider heads where attention is full, K as V there in some (`tensors.k_is_v`)"""
    width = h.get("embedding_length_per_layer_input")
    yield "rope_freqs.weight", (h["attention.key_length"] // 2,)
    if width:
        yield from _per_layer_embedding(h, width)
    yield from ends(h, tied=True)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from _gemma4_attention(b)
        yield b.norm("post_attention_norm")
        yield b.norm("ffn_norm")
        yield from gated(b, b.ffn)
        yield b.norm("post_ffw_norm")
        yield b.weight("layer_output_scale", 1)
        if h.get("expert_count"):
            yield from _gemma4_experts(b)
        if width:
            yield from _per_layer_input(b, width)


def _gemma4_attention(b: Block) -> Iterator[Named]:
    h = b.h
    window = h.hparams.get("attention.sliding_window_pattern")
    slides = isinstance(window, tuple) and b.index < len(window) and bool(window[b.index])
    head = h["attention.key_length_swa" if slides else "attention.key_length"]
    yield b.weight("attn_q", h.embd, b.heads * head)
    yield b.norm("attn_q_norm", head)
    # The last layers read another layer's cache; published weights hold their K and V only in some models.
    if b.index < h["block_count"] - h.get("attention.shared_kv_layers") or not h.has("shared_kv_absent"):
        yield b.weight("attn_k", h.embd, b.kv_heads * head)
        yield b.norm("attn_k_norm", head)
        if slides or not h.has("k_is_v"):
            yield b.weight("attn_v", h.embd, b.kv_heads * head)
    yield b.weight("attn_output", b.heads * head, h.embd)


def _gemma4_experts(b: Block) -> Iterator[Named]:
    """Experts beside the dense network, gate and up in one tensor, with a scale for router and down."""
    embd, count = b.h.embd, b.h["expert_count"]
    width = b.h.at("expert_feed_forward_length", b.index)
    yield b.weight("ffn_gate_inp", embd, count)
    yield f"blk.{b.index}.ffn_gate_inp.scale", (embd,)
    yield b.norm("pre_ffw_norm_2")
    yield b.norm("post_ffw_norm_1")
    yield b.norm("post_ffw_norm_2")
    yield b.weight("ffn_gate_up_exps", embd, 2 * width, count)
    yield b.weight("ffn_down_exps", width, embd, count)
    yield f"blk.{b.index}.ffn_down_exps.scale", (count,)


BUILDERS: dict[str, Builder] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
}
