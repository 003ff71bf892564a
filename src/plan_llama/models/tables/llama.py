"""Dense and mixture-of-experts models of Llama's build: norm, attention, norm, feed-forward network."""

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
    nextn,
    norm_rows,
    qk_norm,
)


def _llama(h: Shapes) -> Iterator[Named]:
    """src/models/llama.cpp and mistral3.cpp: Llama 1 to 3, Mistral, Mixtral, Ministral"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield b.norm("ffn_norm")
        if h.get("expert_count"):
            yield from experts(b, width=b.ffn, shared=h.get("expert_shared_feed_forward_length"))
        else:
            yield from gated(b, b.ffn, bias=h.has("ffn_bias"))


def _dense(h: Shapes, second_norm: str = "ffn_norm") -> Iterator[Named]:
    """src/models/smollm3.cpp, ernie4-5.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield b.norm(second_norm)
        yield from gated(b, b.ffn)


def _llama4(h: Shapes) -> Iterator[Named]:
    """src/models/llama4.cpp: every n-th layer has experts and a shared expert of the same width"""
    yield from ends(h)
    step = h.get("interleave_moe_layer_step")
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield b.norm("ffn_norm")
        if step and (b.index + 1) % step == 0:
            yield from experts(b, shared=h.at("expert_feed_forward_length", b.index))
        else:
            yield from gated(b, b.ffn)


def _seed_oss(h: Shapes) -> Iterator[Named]:
    """src/models/seed-oss.cpp"""
    return _dense(h, "post_attention_norm")


def _ernie_moe(h: Shapes) -> Iterator[Named]:
    """src/models/ernie4-5.cpp with experts"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            shared = h.get("expert_shared_feed_forward_length")
            yield from experts(b, selection_bias=h.has("selection_bias"), shared=shared)


def _hunyuan(h: Shapes) -> Iterator[Named]:
    """src/models/hunyuan-vl.cpp (and dense), hunyuan-moe.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from qk_norm(b)
        yield b.norm("ffn_norm")
        if h.get("expert_count"):
            shared = h.get("expert_shared_feed_forward_length") or b.ffn
            yield from experts(b, width=b.ffn, shared=shared)
        else:
            yield from gated(b, b.ffn)


def _dots1(h: Shapes) -> Iterator[Named]:
    """src/models/dots1.cpp"""
    yield from ends(h, tied=False)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from qk_norm(b)
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            shared = h.get("expert_shared_count") * h["expert_feed_forward_length"]
            yield from experts(b, selection_bias=h.has("selection_bias"), shared=shared)


def _olmo2(h: Shapes) -> Iterator[Named]:
    """src/models/olmo2.cpp: OLMo 2 and 3; norms behind attention and network, over whole rows of Q and K"""
    yield from ends(h, tied=False)
    for b in h.blocks():
        yield from attention(b)
        yield from norm_rows(b)
        yield b.norm("post_attention_norm")
        yield from gated(b, b.ffn)
        yield b.norm("post_ffw_norm")


def _olmoe(h: Shapes) -> Iterator[Named]:
    """src/models/olmoe.cpp"""
    yield from ends(h, tied=False)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from norm_rows(b)
        yield b.norm("ffn_norm")
        yield from experts(b, width=b.ffn)


def _exaone4(h: Shapes) -> Iterator[Named]:
    """src/models/exaone4.cpp"""
    yield from ends(h)
    for b in h.blocks():
        yield from attention(b)
        yield from qk_norm(b)
        yield b.norm("post_attention_norm")
        yield from gated(b, b.ffn)
        yield b.norm("post_ffw_norm")


def _exaone_moe(h: Shapes) -> Iterator[Named]:
    """src/models/exaone-moe.cpp; a block for next-token prediction is dense"""
    yield from ends(h, tied=False)
    shared = h.get("expert_shared_feed_forward_length")
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from qk_norm(b)
        yield b.norm("ffn_norm")
        if b.leading_dense or b.drafts:
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=shared)
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))


def _bailing2(h: Shapes) -> Iterator[Named]:
    """src/models/bailingmoe2.cpp: Ling and Ring 2; Q, K and V in one tensor"""
    yield from ends(h, tied=False)
    shared = h.get("expert_shared_feed_forward_length")
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield b.weight("attn_qkv", h.embd, (b.heads + 2 * b.kv_heads) * b.key)
        yield from qk_norm(b)
        yield b.weight("attn_output", b.heads * b.key, h.embd)
        yield b.norm("ffn_norm")
        if b.leading_dense:
            yield from gated(b, b.ffn)
        else:
            yield from experts(b, selection_bias=True, shared=shared)
        if b.drafts:
            yield from nextn(b, embedding=h.has("draft_embedding"))
            yield b.norm("layer_output_norm")


def _deci(h: Shapes) -> Iterator[Named]:
    """src/models/deci.cpp: Nemotron Super and Ultra, pruned so that some blocks lack attention or network"""
    yield from ends(h)
    for b in h.blocks():
        if b.kv_heads:
            yield b.norm("attn_norm")
            yield from attention(b)
        elif b.heads:  # a matrix instead of attention
            yield b.norm("attn_norm")
            yield b.weight("attn_output", h.embd, h.embd)
        if b.ffn:
            yield b.norm("ffn_norm")
            yield from gated(b, b.ffn, bias=h.has("ffn_bias"))


def _gpt_oss(h: Shapes) -> Iterator[Named]:
    """src/models/openai-moe.cpp"""
    yield from ends(h, tied=False)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield b.norm("post_attention_norm")
        yield from attention(b, bias=True, output_bias=True)
        yield b.weight("attn_sinks", b.heads)
        yield from _biased_experts(b)


def _biased_experts(b: Block) -> Iterator[Named]:
    count, width = b.h["expert_count"], b.h.at("expert_feed_forward_length", b.index)
    yield from experts(b)
    yield b.bias("ffn_gate_inp", count)
    yield b.bias("ffn_gate_exps", width, count)
    yield b.bias("ffn_up_exps", width, count)
    yield b.bias("ffn_down_exps", b.h.embd, count)


def _minimax_m2(h: Shapes) -> Iterator[Named]:
    """src/models/minimax-m2.cpp"""
    yield from ends(h, tied=False)
    for b in h.blocks():
        yield b.norm("attn_norm")
        yield from attention(b)
        yield from norm_rows(b)
        yield b.norm("ffn_norm")
        yield from experts(b, selection_bias=True, width=b.ffn)


def _cohere(h: Shapes) -> Iterator[Named]:
    """src/models/command-r.cpp, cohere2.cpp: one norm for attention and network; no head of its own"""
    yield from ends(h, tied=True)
    for b in h.blocks():
        yield b.norm("attn_norm")
        if h.has("qk_norm"):  # the loader asks for them from 64 layers on
            yield b.weight("attn_q_norm", b.key, b.heads)
            yield b.weight("attn_k_norm", b.key, b.kv_heads)
        yield from attention(b)
        yield from gated(b, b.ffn)


BUILDERS: dict[str, Builder] = {
    "llama": _llama,
    "mistral3": _llama,
    "llama4": _llama4,
    "smollm3": _dense,
    "deci": _deci,
    "ernie4_5": _dense,
    "ernie4_5-moe": _ernie_moe,
    "seed_oss": _seed_oss,
    "hunyuan-dense": _hunyuan,
    "hunyuan_vl": _hunyuan,
    "hunyuan-moe": _hunyuan,
    "dots1": _dots1,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "exaone4": _exaone4,
    "exaone-moe": _exaone_moe,
    "bailingmoe2": _bailing2,
    "gpt-oss": _gpt_oss,
    "minimax-m2": _minimax_m2,
    "command-r": _cohere,
    "cohere2": _cohere,
}
