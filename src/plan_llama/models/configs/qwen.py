"""Qwen 2 to 3 with plain attention, text and vision models, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plan_llama.models.configs.common import Config, Mapper, base, traits


def _qwen2(c: Config) -> dict[str, Any]:
    """Qwen2Model and Qwen2VLModel: Q, K and V always have a bias"""
    return base(c) | traits(tied=c.flag("tie_word_embeddings"))


def qwen2moe(c: Config) -> dict[str, Any]:
    """Qwen2MoeModel"""
    h = base(c)
    if c.has("moe_intermediate_size"):
        h["expert_feed_forward_length"] = c.number("moe_intermediate_size")
    if c.has("shared_expert_intermediate_size"):
        h["expert_shared_feed_forward_length"] = c.number("shared_expert_intermediate_size")
    return h


def _qwen3(c: Config) -> dict[str, Any]:
    """Qwen3Model"""
    bias = c.flag("attention_bias")
    tied = c.flag("tie_word_embeddings")
    return base(c) | traits(tied=tied, attention_bias=bias, attention_output_bias=bias)


def _qwen3moe(c: Config) -> dict[str, Any]:
    """Qwen3MoeModel"""
    bias = c.flag("attention_bias")
    tied = c.flag("tie_word_embeddings")
    return qwen2moe(c) | traits(tied=tied, attention_bias=bias, attention_output_bias=bias)


def _with_deepstack(mapper: Mapper) -> Mapper:
    """Qwen3-VL: image features enter several layers (Qwen3VLTextModel), positions have three parts."""

    def map_vision(c: Config) -> dict[str, Any]:
        h = mapper(c)
        vision = c.first("vision_config")
        found = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
        h.setdefault(
            "rope.dimension_sections", (24, 20, 20, 0)
        )  # what transformers takes where a config says none
        h["n_deepstack_layers"] = len(found) if isinstance(found, list) else 0
        return h

    return map_vision


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "Qwen2ForCausalLM": ("qwen2", _qwen2),
    "Qwen2VLForConditionalGeneration": ("qwen2vl", _qwen2),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2vl", _qwen2),
    "Qwen2MoeForCausalLM": ("qwen2moe", qwen2moe),
    "Qwen3ForCausalLM": ("qwen3", _qwen3),
    "Qwen3MoeForCausalLM": ("qwen3moe", _qwen3moe),
    "Qwen3VLForConditionalGeneration": ("qwen3vl", _with_deepstack(_qwen3)),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3vlmoe", _with_deepstack(_qwen3moe)),
}
