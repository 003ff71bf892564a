"""Families with state-space layers (Mamba) or short convolutions, alone or beside attention."""

from __future__ import annotations

from collections.abc import Iterator

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


def _mamba2_mixer(b: Block, *, norm: bool = True) -> Iterator[Named]:
    """A Mamba-2 mixer; `norm`: its output is normed by groups."""
    h = b.h
    inner, state, groups = h["ssm.inner_size"], h["ssm.state_size"], h.divisor("ssm.group_count")
    heads = h["ssm.time_step_rank"]
    convolved = inner + 2 * groups * state
    yield b.weight("ssm_in", h.embd, inner + convolved + heads)
    yield b.weight("ssm_conv1d", h["ssm.conv_kernel"], convolved)
    if h.has("conv_bias", True):
        yield b.bias("ssm_conv1d", convolved)
    yield b.bias("ssm_dt", heads)
    yield b.plain("ssm_a", 1, heads)
    yield b.plain("ssm_d", 1, heads)
    if norm:
        yield b.weight("ssm_norm", inner // groups, groups)
    yield b.weight("ssm_out", inner, h.embd)


def _mamba_mixer(b: Block, *, norms: bool = False) -> Iterator[Named]:
    """A Mamba mixer; `norms`: its time step, input and output projections are normed (Jamba)."""
    h = b.h
    inner, state, rank = h["ssm.inner_size"], h["ssm.state_size"], h["ssm.time_step_rank"]
    yield b.weight("ssm_in", h.embd, 2 * inner)
    yield b.weight("ssm_conv1d", h["ssm.conv_kernel"], inner)
    yield b.bias("ssm_conv1d", inner)
    yield b.weight("ssm_x", inner, rank + 2 * state)
    if norms:
        yield b.norm("ssm_dt_norm", rank)
    yield b.weight("ssm_dt", rank, inner)
    yield b.bias("ssm_dt", inner)
    if norms:
        yield b.norm("ssm_b_norm", state)
        yield b.norm("ssm_c_norm", state)
    yield b.plain("ssm_a", state, inner)
    yield b.plain("ssm_d", inner)
    yield b.weight("ssm_out", inner, h.embd)


def _mamba(h: Shapes) -> Iterator[Named]:
    """src/models/mamba.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from _mamba_mixer(b)


def _mamba2(h: Shapes) -> Iterator[Named]:
    """src/models/mamba2.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from _mamba2_mixer(b)


def _jamba(h: Shapes) -> Iterator[Named]:
    """src/models/jamba.cpp. Which blocks have experts is no part of the header: `tensors.expert_period` and
    `tensors.expert_offset` say it."""
    period, offset = h.get(TRAIT + "expert_period"), h.get(TRAIT + "expert_offset")
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from _mamba_mixer(b, norms=True) if b.kv_heads == 0 else attention(b)
        yield b.norm("ffn_norm")
        if period and b.index >= offset and (b.index - offset) % period == 0:
            yield from experts(b, width=b.ffn)
        else:
            yield from gated(b, b.ffn)


def _granite(h: Shapes) -> Iterator[Named]:
    """src/models/granite-hybrid.cpp, and granite.cpp, whose blocks all attend"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from _mamba2_mixer(b) if b.kv_heads == 0 else attention(b)
        yield b.norm("ffn_norm")
        if h.get("expert_count"):
            yield from experts(b, width=b.ffn, shared=h.get("expert_shared_feed_forward_length"))
        else:
            yield from gated(b, b.ffn)


def _falcon_h1(h: Shapes) -> Iterator[Named]:
    """src/models/falcon-h1.cpp: attention and a mixer side by side in every block."""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from _mamba2_mixer(b, norm=h.has("mixer_norm", True))
        yield from attention(b)
        yield b.plain("ffn_norm", h.embd)
        yield from gated(b, b.ffn)


def _ungated(b: Block, width: int, suffix: str = "", *experts: int, embd: int = 0) -> Iterator[Named]:
    embd = embd or b.h.embd
    yield b.weight(f"ffn_up{suffix}", embd, width, *experts)
    yield b.weight(f"ffn_down{suffix}", width, embd, *experts)


def _ungated_experts(b: Block) -> Iterator[Named]:
    """Nemotron's experts: no gate, and in the larger models a smaller stream of their own."""
    h, count = b.h, b.h["expert_count"]
    latent = h.get("moe_latent_size")
    yield b.weight("ffn_gate_inp", h.embd, count)
    yield b.bias("exp_probs_b", count)
    if latent:
        yield b.weight("ffn_latent_down", h.embd, latent)
        yield b.weight("ffn_latent_up", latent, h.embd)
    width = h.at("expert_feed_forward_length", b.index)
    yield from _ungated(b, width, "_exps", count, embd=latent)
    yield from _ungated(b, h["expert_shared_feed_forward_length"], "_shexp")


def _nemotron_h(h: Shapes) -> Iterator[Named]:
    """src/models/nemotron-h.cpp: a block is a mixer, attention, or a feed-forward network."""
    routed = h.get("expert_count") > 0
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        if b.drafts:  # attention and experts in one block
            yield from attention(b)
            yield b.norm("post_attention_norm")
            yield from _ungated_experts(b)
            yield from nextn(b)
        elif b.ffn:
            yield from _ungated_experts(b) if routed else _ungated(b, b.ffn)
        else:
            yield from _mamba2_mixer(b) if b.kv_heads == 0 else attention(b)


def _lfm2(h: Shapes) -> Iterator[Named]:
    """src/models/lfm2.cpp and lfm2moe.cpp: short convolutions, with attention in some blocks."""
    routed = h.get("expert_count") > 0
    for name, shape in ends(h):
        yield ("token_embd_norm.weight" if name == "output_norm.weight" else name), shape
    for b in h.blocks():
        yield b.norm("ffn_norm")
        if routed and not b.leading_dense:
            yield from experts(b, selection_bias=True)
        else:
            yield from gated(b, b.ffn)
        yield b.norm("attn_norm")
        if b.kv_heads:
            yield from qk_norm(b)
            yield from attention(b)
        else:
            yield b.weight("shortconv.conv", h["shortconv.l_cache"], h.embd)
            yield b.weight("shortconv.in_proj", h.embd, 3 * h.embd)
            yield b.weight("shortconv.out_proj", h.embd, h.embd)


BUILDERS: dict[str, Builder] = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "granite": _granite,
    "granitemoe": _granite,
    "granitehybrid": _granite,
    "falcon-h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "nemotron_h_moe": _nemotron_h,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2,
}
