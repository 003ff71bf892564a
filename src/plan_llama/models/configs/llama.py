"""Llama and the families that convert like it: Mistral, Mixtral, Ministral, SmolLM3, Llama 4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import Architecture, Config, Mapper, base, llama3_rope, real, traits
from plan_llama.models.configs.latent import mistral4


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
        h["rope.scaling.yarn_log_multiplier"] = real(
            rope.get("mscale_all_dim", 0.0), c.where, "mscale_all_dim"
        )
        h["attention.temperature_scale"] = real(
            rope.get("llama_4_scaling_beta", 0.0), c.where, "llama_4_scaling_beta"
        )
    return h


def _mistral_architecture(c: Config) -> str:
    return "mistral4" if c.first("model_type") == "mistral4" else "mistral3"


def _mistral(c: Config) -> dict[str, Any]:
    """Mistral3Model: one class for two families, of which Mistral 4 converts like DeepSeek"""
    return mistral4(c) if _mistral_architecture(c) == "mistral4" else _ministral(c)


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


def _deci(c: Config) -> dict[str, Any]:
    """DeciModel: a config of Nemotron Super or Ultra lists what each block has"""
    blocks = c.first("block_configs")
    if not isinstance(blocks, list) or len(blocks) != c.layers:
        raise ModelError(f"{c.where}: 'block_configs' must describe all {c.layers} layers")
    parts = [Config({"block": block}, f"{c.where}: block_configs").within("block") for block in blocks]
    embd = c.number("hidden_size")
    h = base(replace(c, values={**c.values, "intermediate_size": None, "num_key_value_heads": None}))
    groups = [part.within("attention") for part in parts]
    h["attention.head_count_kv"] = tuple(
        c.heads // max(g.number("n_heads_in_group", default=c.heads + 1), 1) for g in groups
    )
    h["attention.head_count"] = tuple(
        c.heads if g.has("n_heads_in_group") or g.flag("replace_with_linear") else 0 for g in groups
    )
    widths = [part.within("ffn").real("ffn_mult", default=0.0) for part in parts]
    h["feed_forward_length"] = tuple(-(-int(2 * width * embd / 3) // 256) * 256 for width in widths)
    h["attention.key_length"] = h["attention.value_length"] = h["rope.dimension_count"] = embd // c.heads
    h["vocab_size"] = c.number("vocab_size")
    return h | traits(tied=c.flag("tie_word_embeddings"), rope_freqs=llama3_rope(c))


MAPPERS: dict[str, tuple[Architecture, Mapper]] = {
    "LlamaForCausalLM": ("llama", llama),
    "LLaMAForCausalLM": ("llama", llama),
    "MistralForCausalLM": ("llama", llama),
    "MixtralForCausalLM": ("llama", llama),
    "DeciLMForCausalLM": ("deci", _deci),
    "SmolLM3ForCausalLM": ("smollm3", _smollm3),
    "Mistral3ForConditionalGeneration": (_mistral_architecture, _mistral),
    "Ministral3ForCausalLM": ("mistral3", _ministral),
    "Llama4ForConditionalGeneration": ("llama4", _llama4),
    "Llama4ForCausalLM": ("llama4", _llama4),
}
