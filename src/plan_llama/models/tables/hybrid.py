"""Families whose blocks alternate between attention and a linear attention with a state of fixed size.

Gated delta nets (Qwen3-Next, Qwen3.5) and Kimi's delta attention (Kimi-Linear, Kimi-K3, GLM-5.3-Flash).
"""

from __future__ import annotations

from collections.abc import Iterator

from plan_llama.models.tables.mla import indexer, latent_attention, selects
from plan_llama.models.tables.pieces import (
    TRAIT,
    Block,
    Builder,
    Named,
    Shapes,
    ends,
    experts,
    gated,
    nextn,
    qk_norm,
)

_INTERVAL = 4  # every fourth layer attends where the header says nothing


def recurrent(b: Block) -> bool:
    """Whether a block keeps a state: as listed, else all but every n-th; drafting blocks attend."""
    listed = b.h.hparams.get("attention.recurrent_layers")
    if isinstance(listed, tuple):
        return b.index < len(listed) and bool(listed[b.index])
    interval = b.h.get("full_attention_interval") or _INTERVAL
    return not b.drafts and (b.index + 1) % interval != 0


def hyper_connections(b: Block) -> Iterator[Named]:
    """What mixes the parallel residual streams before and after each half of a block."""
    count = b.h["hyper_connection.count"]
    mixes = (2 + count) * count
    for half in ("attn", "ffn"):
        yield b.weight(f"hc_{half}_fn", count * b.h.embd, mixes)
        yield b.weight(f"hc_{half}_base", mixes)
        yield b.weight(f"hc_{half}_scale", 3)


def _gated_attention(b: Block) -> Iterator[Named]:
    """Attention whose query projection also yields a gate, so it is twice as wide as its heads."""
    yield b.weight("attn_q", b.h.embd, 2 * b.heads * b.key)
    yield b.weight("attn_k", b.h.embd, b.kv_heads * b.key)
    yield b.weight("attn_v", b.h.embd, b.kv_heads * b.value)
    yield b.weight("attn_output", b.heads * b.key, b.h.embd)
    yield from qk_norm(b)


def _delta_net(b: Block, *, fused: bool) -> Iterator[Named]:
    """A gated delta net; `fused`: the projections of its two gates are one tensor."""
    h, size, heads = b.h, b.h["ssm.state_size"], b.h["ssm.time_step_rank"]
    keys, values = size * h["ssm.group_count"], size * heads
    yield b.weight("attn_qkv", h.embd, 2 * keys + values)
    yield b.weight("attn_gate", h.embd, values)
    yield b.weight("ssm_conv1d", h["ssm.conv_kernel"], 2 * keys + values)
    yield b.bias("ssm_dt", heads)
    yield b.plain("ssm_a", heads)
    if fused:
        yield b.weight("ssm_ba", h.embd, 2 * heads)
    else:
        yield b.weight("ssm_beta", h.embd, heads)
        yield b.weight("ssm_alpha", h.embd, heads)
    yield b.norm("ssm_norm", size)
    yield b.weight("ssm_out", values, h.embd)


def _gated_shared_expert(b: Block) -> Iterator[Named]:
    """Routed experts and a shared one behind a gate of its own."""
    yield from experts(b)
    yield b.weight("ffn_gate_inp_shexp", b.h.embd)
    yield from gated(b, b.h.get("expert_shared_feed_forward_length") or b.ffn, "_shexp")


def _qwen(h: Shapes, *, fused: bool, routed: bool) -> Iterator[Named]:
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield b.norm("post_attention_norm")
        yield from _delta_net(b, fused=fused) if recurrent(b) else _gated_attention(b)
        yield from _gated_shared_expert(b) if routed else gated(b, b.ffn)
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


def _qwen3next(h: Shapes) -> Iterator[Named]:
    """src/models/qwen3next.cpp"""
    return _qwen(h, fused=True, routed=True)


def _qwen35(h: Shapes) -> Iterator[Named]:
    """src/models/qwen35.cpp"""
    return _qwen(h, fused=False, routed=False)


def _qwen35moe(h: Shapes) -> Iterator[Named]:
    """src/models/qwen35moe.cpp"""
    return _qwen(h, fused=False, routed=True)


def _delta_attention(
    b: Block, heads: int, *, nested: bool = True, full_gate: bool = False
) -> Iterator[Named]:
    """Kimi's delta attention (KDA). `nested`: the decay has a leading dimension of one; `full_gate`: the output
    gate is one full projection, not two of low rank."""
    embd, size = b.h.embd, b.h["kda.head_dim"]
    inner = heads * size
    for part in "qkv":
        yield b.weight(f"ssm_conv1d_{part}", b.h["ssm.conv_kernel"], 1, inner)
    for part in "qkv":
        yield b.weight(f"attn_{part}", embd, inner)
    yield b.weight("ssm_f_a", embd, size)
    yield b.weight("ssm_f_b", size, inner)
    yield b.weight("ssm_beta", embd, heads)
    yield b.plain("ssm_a", *((1, heads) if nested else (heads,)))
    yield b.bias("ssm_dt", inner)
    if full_gate:
        yield b.weight("ssm_g", embd, inner)
    else:
        yield b.weight("ssm_g_a", embd, size)
        yield b.weight("ssm_g_b", size, inner)
    yield b.norm("ssm_norm", size)
    yield b.weight("attn_output", inner, embd)


def _keeps_state(b: Block) -> bool:
    """Kimi's way: a layer without key and value heads is a recurrent one."""
    return b.kv_heads == 0


def _shared_width(b: Block) -> int:
    return max(1, b.h.get("expert_shared_count")) * b.h.at("expert_feed_forward_length", b.index)


def _kimi_linear(h: Shapes) -> Iterator[Named]:
    """src/models/kimi-linear.cpp"""
    heads = h.at("attention.head_count", 0)
    yield from ends(h)
    for b in h.blocks():
        if _keeps_state(b):
            yield b.norm("attn_norm")
            yield from _delta_attention(b, heads)
        else:
            yield from latent_attention(b, heads)
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=_shared_width(b))


def _kimi_k3(h: Shapes) -> Iterator[Named]:
    """src/models/kimi-k3.cpp"""
    heads = h.at("attention.head_count", 0)
    residuals = h.get("attn_res.block_size") > 0
    yield from ends(h)
    if residuals:
        yield "output_res_score.weight", (h.embd,)
    for b in h.blocks():
        if residuals:
            yield b.norm("attn_res_score")
            yield b.norm("ffn_res_score")
        if _keeps_state(b):
            yield b.norm("attn_norm")
            yield from _delta_attention(b, heads, nested=False, full_gate=True)
        else:
            yield from latent_attention(b, heads)
            if h.has("attention_gate", True):
                yield b.weight("attn_gate", h.embd, heads * h["attention.value_length_mla"])
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
            continue
        latent = h.get("expert_latent_length")
        yield from experts(b, selection_bias=True, latent=latent, shared=_shared_width(b))
        if latent:
            yield b.weight("ffn_routed_down", h.embd, latent)
            yield b.weight("ffn_routed_up", latent, h.embd)
            if h.has("routed_norm", True):
                yield b.norm("ffn_routed_norm", latent)


def _glm5_next(h: Shapes) -> Iterator[Named]:
    """src/models/glm5-next.cpp"""
    heads = h.at("attention.head_count", 0)
    yield from ends(h)
    for b in h.blocks():
        if not b.drafts:
            yield from hyper_connections(b)
        if _keeps_state(b):
            yield b.norm("attn_norm")
            yield from _delta_attention(b, heads, nested=False)
        else:
            yield from latent_attention(b, heads)
            if selects(b):
                size = h["attention.indexer.key_length"]
                yield from indexer(b)
                yield b.weight("indexer_compressor_gate", h.embd, size)
                yield b.weight("indexer_compressor_ape", size, h["attention.indexer.kpool"])
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=_shared_width(b))
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


def _low_rank_mixer(name: str, h: Shapes) -> Iterator[Named]:
    """What mixes the parallel residual streams before a half of a block, or behind the last."""
    wide, rank = h["hyper_connection.count"] * h.embd, h["hyper_connection.low_rank"]
    yield f"{name}_norm.weight", (wide,)
    yield f"{name}_down.weight", (wide, rank)
    yield f"{name}_up.weight", (rank, wide)


def _ngram_embedding(b: Block) -> Iterator[Named]:
    """How a block takes in what the table of n-grams holds for a token."""
    h = b.h
    wide = h["hyper_connection.count"] * h.embd
    yield b.weight("ple_key", h.embd, wide)
    yield b.weight("ple_value", h.embd, h.embd)
    for norm in ("key", "query", "conv"):
        yield b.norm(f"ple_norm_{norm}", wide)
    yield b.weight("ple_conv1d", h["ple.conv_kernel"], wide)


def _qwen4exp(h: Shapes) -> Iterator[Named]:
    """src/models/qwen4exp.cpp. How many rows the table of n-grams has is no part of the header: the converter pads
    it (`tensors.ngram_rows`)."""
    listed = h.hparams.get("ple.layers")
    with_ngrams = listed if isinstance(listed, tuple) else ()
    streams = h["hyper_connection.count"]
    for name, shape in ends(h):
        if name != "output_norm.weight":
            yield name, shape
    yield from _low_rank_mixer("output_hc", h)
    if with_ngrams:
        yield "per_layer_token_embd.weight", (h["embedding_length_per_layer_input"], h[TRAIT + "ngram_rows"])
    for b in h.blocks():
        for half in ("attn", "ffn"):
            yield from _low_rank_mixer(f"blk.{b.index}.hc_{half}", h)
            yield b.weight(f"hc_{half}_inject", streams * h.embd, streams)
        if recurrent(b):
            yield from _delta_net(b, fused=False)
        else:
            yield from _gated_attention(b)
            size = h["attention.indexer.key_length"]
            yield b.weight("indexer.q_proj", h.embd, h["attention.indexer.head_count"] * size)
            yield b.weight("indexer.k_proj", h.embd, size)
            yield b.norm("indexer.q_norm", size)
            yield b.norm("indexer.k_norm", size)
        if b.index in with_ngrams:
            yield from _ngram_embedding(b)
        yield from _gated_shared_expert(b)
        if b.drafts:
            yield b.weight("nextn.eh_proj", 2 * h.embd, h.embd)
            yield b.norm("nextn.enorm")
            yield b.norm("nextn.hnorm", streams * h.embd)
            yield from _low_rank_mixer(f"blk.{b.index}.nextn.hc_head", h)


BUILDERS: dict[str, Builder] = {
    "qwen4exp": _qwen4exp,
    "qwen3next": _qwen3next,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35moe,
    "kimi-linear": _kimi_linear,
    "kimi-k3": _kimi_k3,
    "glm5-next": _glm5_next,
}
