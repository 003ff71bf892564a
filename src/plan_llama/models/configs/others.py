"""Families of one or two models: Phi, gpt-oss, MiniMax, Command, ERNIE, Seed, OLMo, EXAONE, Hunyuan, dots."""

from __future__ import annotations

import math
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import (
    SIGMOID,
    Config,
    Mapper,
    base,
    llama3_rope,
    real,
    sliding_pattern,
    traits,
)


def _phi3(c: Config) -> dict[str, Any]:
    """Phi3MiniModel"""
    rope, embd = c.rope, c.number("hidden_size", "n_embd")
    context = c.number("n_positions", "max_position_embeddings")
    original = int(real(rope.get("original_max_position_embeddings", context), c.where, "original_max…"))
    h: dict[str, Any] = {
        "context_length": context,
        "rope.scaling.original_context_length": original,
        "embedding_length": embd,
        "feed_forward_length": c.number("intermediate_size"),
        "block_count": c.layers,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.number("num_key_value_heads", "n_head_kv", default=c.heads),
        "attention.layer_norm_rms_epsilon": c.real("rms_norm_eps"),
        "rope.dimension_count": c.rotated(),
        "rope.freq_base": real(c.rope_full.get("rope_theta", 10000.0), c.where, "rope_theta"),
        "attention.sliding_window": c.number("sliding_window", default=0),
    }
    scaled = bool(rope.get("long_factor"))
    if scaled:
        scale = context / max(original, 2)
        h["rope.scaling.attn_factor"] = (
            math.sqrt(1 + math.log(scale) / math.log(max(original, 2))) if scale > 1 else 1.0
        )
    return h | traits(tied=c.flag("tie_word_embeddings"), rope_factors=scaled)


def _phimoe(c: Config) -> dict[str, Any]:
    """PhiMoeModel"""
    h = _phi3(c)
    h["expert_used_count"] = c.number("num_experts_per_tok", "num_experts_per_token")
    h["expert_count"] = c.number("num_local_experts", "num_experts")
    return h


def _gpt_oss(c: Config) -> dict[str, Any]:
    """GptOssModel"""
    h = base(c)
    h["attention.sliding_window"] = c.number("sliding_window")
    h["expert_feed_forward_length"] = c.number("intermediate_size")
    return h


def _minimax_m2(c: Config) -> dict[str, Any]:
    """MiniMaxM2Model: the blocks for next-token prediction are not converted"""
    h = base(c)
    h["expert_feed_forward_length"] = c.number("intermediate_size")
    h["rope.dimension_count"] = c.number("rotary_dim")
    return h


def _command_r(c: Config) -> dict[str, Any]:
    """CommandR2Model"""
    h = base(c)
    h["context_length"] = c.number("model_max_length", "max_position_embeddings")
    h["logit_scale"] = c.real("logit_scale")
    h["rope.scaling.type"] = "none"
    return h | traits(qk_norm=c.layers >= 64, attention_bias=c.flag("attention_bias"))


def _cohere2(c: Config) -> dict[str, Any]:
    """Cohere2Model"""
    h = base(c)
    h["logit_scale"] = c.real("logit_scale")
    h["attention.sliding_window"] = c.number("sliding_window")
    h["vocab_size"] = c.number("vocab_size")
    h["rope.dimension_count"] = int(c.real("rotary_pct", default=1.0) * (c.number("hidden_size") // c.heads))
    h["rope.scaling.type"] = "none"
    return h


def _ernie(c: Config) -> dict[str, Any]:
    """Ernie4_5Model"""
    bias = c.flag("use_bias")
    tied = c.flag("tie_word_embeddings", default=True)
    return base(c) | traits(tied=tied, attention_bias=bias, attention_output_bias=bias)


def _ernie_moe(c: Config) -> dict[str, Any]:
    """Ernie4_5MoeModel; the blocks for next-token prediction are not converted"""
    h = _ernie(c)
    h["expert_count"] = c.number("moe_num_experts")
    h["expert_used_count"] = c.number("moe_k")
    h["interleave_moe_layer_step"] = c.number("moe_layer_interval")
    h["leading_dense_block_count"] = c.number("moe_layer_start_index")
    h["expert_feed_forward_length"] = c.number("moe_intermediate_size")
    shared = c.number("moe_num_shared_experts", default=0)
    h["expert_shared_count"] = shared
    if shared:
        kv_heads = c.number("num_key_value_heads") or 1
        h["expert_shared_feed_forward_length"] = c.number("intermediate_size") // kv_heads
    return h | traits(selection_bias=c.flag("moe_use_aux_free"))


def _seed_oss(c: Config) -> dict[str, Any]:
    """SeedOssModel"""
    return base(c) | traits(
        tied=c.flag("tie_word_embeddings"),
        attention_bias=c.flag("attention_bias", default=True),
        attention_output_bias=c.flag("attention_out_bias"),
    )


def _olmo2(c: Config) -> dict[str, Any]:
    """Olmo2Model, of OLMo 2 and 3"""
    h = base(c)
    if c.has("sliding_window"):
        h["attention.sliding_window"] = c.number("sliding_window")
        default = tuple((index + 1) % 4 != 0 for index in range(c.layers))
        h["attention.sliding_window_pattern"] = sliding_pattern(c) or default
    return h


def _olmoe(c: Config) -> dict[str, Any]:
    """OlmoeModel"""
    return base(c) | {"attention.layer_norm_rms_epsilon": 1e-5}


def _exaone4(c: Config) -> dict[str, Any]:
    """Exaone4Model"""
    h = base(c)
    h["vocab_size"] = c.number("vocab_size")
    if c.has("sliding_window"):
        h["attention.sliding_window"] = c.number("sliding_window")
        if pattern := sliding_pattern(c) or _letters(c):
            h["attention.sliding_window_pattern"] = pattern
    return h | traits(tied=c.flag("tie_word_embeddings"), rope_freqs=llama3_rope(c))


def _exaone_moe(c: Config) -> dict[str, Any]:
    """ExaoneMoEModel"""
    h = _exaone4(c)
    drafts = c.number("num_nextn_predict_layers", default=0)
    width, shared = c.number("moe_intermediate_size"), c.number("num_shared_experts")
    return h | {
        "block_count": c.layers + drafts,
        "expert_feed_forward_length": width,
        "expert_shared_count": shared,
        "expert_shared_feed_forward_length": width * shared,
        "expert_weights_scale": c.real("routed_scaling_factor"),
        "expert_weights_norm": c.flag("norm_topk_prob"),
        "leading_dense_block_count": c.number(
            "first_k_dense_replace", "first_last_k_dense_replace", default=0
        ),
        "nextn_predict_layers": drafts,
        "rope.scaling.type": "none",
    }


def _bailing2(c: Config) -> dict[str, Any]:
    """BailingMoeV2Model, of Ling 2 and Ring 2"""
    h = base(c)
    drafts = c.number("num_nextn_predict_layers", default=0)
    width, shared = c.number("moe_intermediate_size"), c.number("num_shared_experts")
    return h | {
        "block_count": c.layers + drafts,
        "vocab_size": c.number("vocab_size"),
        "rope.dimension_count": c.rotated(0.5),
        "leading_dense_block_count": c.number("first_k_dense_replace"),
        "expert_feed_forward_length": width,
        "expert_shared_feed_forward_length": c.number(
            "moe_shared_expert_intermediate_size", default=width * shared
        ),
        "expert_weights_scale": c.real("routed_scaling_factor"),
        "expert_weights_norm": c.flag("norm_topk_prob"),
        "expert_shared_count": shared,
        "nextn_predict_layers": drafts,
    }


def _letters(c: Config) -> tuple[bool, ...] | None:
    """A pattern such as "LLLG" over and over, or a full layer every n-th time."""
    pattern = c.first("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return tuple(pattern[index % len(pattern)] == "L" for index in range(c.layers))
    if isinstance(pattern, int) and pattern > 0:
        return tuple((index + 1) % pattern != 0 for index in range(c.layers))
    return None


def _hunyuan(c: Config) -> dict[str, Any]:
    """HunYuanModel: one expert is none"""
    h = base(c)
    if h.get("expert_count", 0) <= 1:
        for key in ("expert_count", "expert_used_count"):
            h.pop(key, None)
    return _ntk(c, h, 50) | traits(
        tied=c.flag("tie_word_embeddings"), attention_bias=c.flag("attention_bias")
    )


def _hunyuan_moe(c: Config) -> dict[str, Any]:
    """HunYuanMoEModel: some keys list one number per layer, all equal"""
    h = base(c)
    h["expert_shared_feed_forward_length"] = c.number("intermediate_size")
    names = {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_used_count": "moe_topk",
        "expert_shared_count": "num_shared_expert",
    }
    h.update({key: _same_everywhere(c, name) for key, name in names.items()})
    return _ntk(c, h, 1000) | traits(
        tied=c.flag("tie_word_embeddings"), attention_bias=c.flag("attention_bias")
    )


def _same_everywhere(c: Config, key: str) -> int:
    value = c.first(key)
    values = value if isinstance(value, list) and value else [value]
    if any(item != values[0] for item in values) or not isinstance(values[0], int):
        raise ModelError(f"{c.where}: '{key}' must be one whole number for all layers")
    return values[0]


def _ntk(c: Config, h: dict[str, Any], alpha: int) -> dict[str, Any]:
    """Hunyuan's rope: a larger base instead of scaling, for 256 K tokens."""
    rope = c.rope
    if rope.get("rope_type") != "dynamic":
        return h
    base_value = real(rope.get("rope_theta", 10000.0), c.where, "rope_theta")
    alpha_value = real(rope.get("alpha", alpha), c.where, "alpha")
    dim = max(c.head_dim, 3)
    return h | {
        "rope.freq_base": base_value * alpha_value ** (dim / (dim - 2)),
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scaling.original_context_length": 256 * 1024,
        "context_length": 256 * 1024,
    }


def _dots1(c: Config) -> dict[str, Any]:
    """Dots1Model"""
    h = base(c)
    h.setdefault("expert_gating_func", SIGMOID)  # src/models/dots1.cpp has no default of its own
    h["expert_feed_forward_length"] = c.number("moe_intermediate_size")
    h["leading_dense_block_count"] = c.number("first_k_dense_replace")
    h["expert_shared_count"] = c.number("n_shared_experts")
    h["expert_weights_scale"] = c.real("routed_scaling_factor")
    h["expert_weights_norm"] = c.flag("norm_topk_prob")
    return h | traits(attention_bias=c.flag("attention_bias"), selection_bias=True)


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "Phi3ForCausalLM": ("phi3", _phi3),
    "PhiMoEForCausalLM": ("phimoe", _phimoe),
    "GptOssForCausalLM": ("gpt-oss", _gpt_oss),
    "MiniMaxM2ForCausalLM": ("minimax-m2", _minimax_m2),
    "CohereForCausalLM": ("command-r", _command_r),
    "Cohere2ForCausalLM": ("cohere2", _cohere2),
    "Ernie4_5_ForCausalLM": ("ernie4_5", _ernie),
    "Ernie4_5ForCausalLM": ("ernie4_5", _ernie),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5-moe", _ernie_moe),
    "SeedOssForCausalLM": ("seed_oss", _seed_oss),
    "Olmo2ForCausalLM": ("olmo2", _olmo2),
    "Olmo3ForCausalLM": ("olmo2", _olmo2),
    "OlmoeForCausalLM": ("olmoe", _olmoe),
    "Exaone4ForCausalLM": ("exaone4", _exaone4),
    "ExaoneMoEForCausalLM": ("exaone-moe", _exaone_moe),
    "ExaoneMoeForCausalLM": ("exaone-moe", _exaone_moe),
    "BailingMoeV2ForCausalLM": ("bailingmoe2", _bailing2),
    "HunYuanDenseV1ForCausalLM": ("hunyuan-dense", _hunyuan),
    "HunYuanMoEV1ForCausalLM": ("hunyuan-moe", _hunyuan_moe),
    "Dots1ForCausalLM": ("dots1", _dots1),
}
