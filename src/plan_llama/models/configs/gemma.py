"""Gemma 1 to 4."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import Config, Mapper, base, sliding_pattern, traits

# What transformers takes where a published config says nothing (Gemma3TextConfig); the vocabulary is that of
# the multimodal sizes.
_GEMMA3 = {
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262208,
    "rope_theta": 1_000_000.0,
}


def _gemma(c: Config) -> dict[str, Any]:
    """GemmaModel"""
    return {
        "context_length": c.number("max_position_embeddings"),
        "embedding_length": c.number("hidden_size"),
        "block_count": c.layers,
        "feed_forward_length": c.number("intermediate_size"),
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.number("num_key_value_heads", default=c.heads),
        "attention.layer_norm_rms_epsilon": c.real("rms_norm_eps"),
        "attention.key_length": c.number("head_dim"),
        "attention.value_length": c.number("head_dim"),
    }


def _gemma2(c: Config) -> dict[str, Any]:
    """Gemma2Model"""
    return _gemma(c) | {
        "attn_logit_softcapping": c.real("attn_logit_softcapping"),
        "final_logit_softcapping": c.real("final_logit_softcapping"),
        "attention.sliding_window": c.number("sliding_window"),
    }


def _gemma3(c: Config) -> dict[str, Any]:
    """Gemma3Model"""
    c = replace(c, values={**_GEMMA3, **c.values})
    h = base(c)
    h["vocab_size"] = c.number("vocab_size")
    if c.has("final_logit_softcapping"):
        h["final_logit_softcapping"] = c.real("final_logit_softcapping")
    if c.first("sliding_window_pattern") != 1:
        h["attention.sliding_window"] = c.number("sliding_window")
    return h


def _gemma3n(c: Config) -> dict[str, Any]:
    """Gemma3NModel"""
    h = _gemma3(replace(c, values={"vocab_size": 262400, "num_key_value_heads": 2, **c.values}))
    h["altup.active_idx"] = c.number("altup_active_idx")
    h["altup.num_inputs"] = c.number("altup_num_inputs")
    h["embedding_length_per_layer_input"] = c.number("hidden_size_per_layer_input")
    h["attention.shared_kv_layers"] = c.number("num_kv_shared_layers")
    sparsity = c.first("activation_sparsity_pattern")
    if isinstance(sparsity, list) and all(isinstance(part, int | float) and part < 1 for part in sparsity):
        normal = NormalDist()
        h["activation_sparsity_scale"] = tuple(
            normal.inv_cdf(part) if part > 0 else float("-inf") for part in sparsity
        )
    widths = c.first("intermediate_size")
    if isinstance(widths, list):
        each = (replace(c, values={"intermediate_size": width}) for width in widths)
        h["feed_forward_length"] = tuple(layer.number("intermediate_size") for layer in each)
    h["attention.sliding_window_pattern"] = _pattern(c)
    return h


def _pattern(c: Config) -> tuple[bool, ...]:
    pattern = sliding_pattern(c)
    if pattern is None:
        raise ModelError(f"{c.where}: 'layer_types' must list the kind of all {c.layers} layers")
    return pattern


def _gemma4(c: Config) -> dict[str, Any]:
    """Gemma4Model"""
    h = _gemma3(c)
    pattern, shared = _pattern(c), c.number("num_kv_shared_layers")
    full, slides = c.number("global_head_dim"), c.number("head_dim")
    h["attention.shared_kv_layers"] = shared
    h["embedding_length_per_layer_input"] = c.number("hidden_size_per_layer_input", default=0)
    h["attention.sliding_window_pattern"] = pattern
    h["attention.key_length"] = h["attention.value_length"] = full
    h["attention.key_length_swa"] = h["attention.value_length_swa"] = slides
    if c.first("expert_intermediate_size", "moe_intermediate_size") is not None:
        h["expert_feed_forward_length"] = c.number("expert_intermediate_size", "moe_intermediate_size")
    if c.flag("use_double_wide_mlp"):
        width, first = c.number("intermediate_size"), c.layers - shared
        h["feed_forward_length"] = tuple(width * (1 + (i >= first)) for i in range(c.layers))
    if c.has("num_global_key_value_heads"):
        heads = c.number("num_key_value_heads"), c.number("num_global_key_value_heads")
        h["attention.head_count_kv"] = tuple(heads[not slide] for slide in pattern)
    h["rope.dimension_count"], h["rope.dimension_count_swa"] = full, slides
    return h | traits(k_is_v=c.flag("attention_k_eq_v"))


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "GemmaForCausalLM": ("gemma", _gemma),
    "Gemma2ForCausalLM": ("gemma2", _gemma2),
    "Gemma3ForCausalLM": ("gemma3", _gemma3),
    "Gemma3ForConditionalGeneration": ("gemma3", _gemma3),
    "Gemma3nForConditionalGeneration": ("gemma3n", _gemma3n),
    "Gemma3nForCausalLM": ("gemma3n", _gemma3n),
    "Gemma4ForConditionalGeneration": ("gemma4", _gemma4),
    "Gemma4ForCausalLM": ("gemma4", _gemma4),
}
