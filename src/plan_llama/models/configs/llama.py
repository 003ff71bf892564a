"""Llama and the families that convert like it: Mistral, Mixtral, Ministral, SmolLM3, Llama 4."""

from __future__ import annotations

from typing import Any

from plan_llama.models.configs.common import Config, Mapper, base, llama3_rope, traits


def llama(c: Config) -> dict[str, Any]:
    """LlamaModel in conversion/llama.py"""
    h = base(c)
    h["vocab_size"] = c.number("vocab_size")
    h["rope.dimension_count"] = c.head_dim
    bias = c.flag("attention_bias")
    return h | traits(
        tied=c.flag("tie_word_embeddings"),
        rope_freqs=llama3_rope(c),
        attention_bias=bias,
        attention_output_bias=bias,
        ffn_bias=c.flag("mlp_bias"),
    )


def _smollm3(c: Config) -> dict[str, Any]:
    """SmolLM3Model: ties its embedding unless the config denies it."""
    return llama(c) | traits(tied=c.flag("tie_word_embeddings", default=True))


def _ministral(c: Config) -> dict[str, Any]:
    """Mistral3Model.Ministral3Model in conversion/mistral3.py"""
    h = llama(c)
    rope = c.rope
    if c.first("model_type") == "ministral3":
        h["rope.scaling.yarn_log_multiplier"] = float(rope.get("mscale_all_dim", 0.0))
        h["attention.temperature_scale"] = float(rope.get("llama_4_scaling_beta", 0.0))
    return h


def _llama4(c: Config) -> dict[str, Any]:
    """Llama4Model: `intermediate_size` is that of the experts, the dense layers have their own."""
    dense, expert = c.number("intermediate_size_mlp"), c.number("intermediate_size")
    h = llama(c)
    h["feed_forward_length"] = dense
    h["interleave_moe_layer_step"] = c.number("interleave_moe_layer_step", default=1)
    h["expert_feed_forward_length"] = expert
    types = c.layer_types()
    if types and all(kind == "full_attention" for kind in types):
        h["attention.sliding_window"] = 0
    return h


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "LlamaForCausalLM": ("llama", llama),
    "LLaMAForCausalLM": ("llama", llama),
    "MistralForCausalLM": ("llama", llama),
    "MixtralForCausalLM": ("llama", llama),
    "SmolLM3ForCausalLM": ("smollm3", _smollm3),
    "Mistral3ForConditionalGeneration": ("mistral3", _ministral),
    "Ministral3ForCausalLM": ("mistral3", _ministral),
    "Llama4ForConditionalGeneration": ("llama4", _llama4),
    "Llama4ForCausalLM": ("llama4", _llama4),
}
