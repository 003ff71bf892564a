"""GLM-4 (dense) and GLM-4.5 to 4.7 (experts), with their vision models."""

from __future__ import annotations

from typing import Any

from plan_llama.models.configs.common import SIGMOID, Config, Mapper, base, traits


def _glm4(c: Config) -> dict[str, Any]:
    """Glm4Model"""
    h = base(c)
    h["rope.dimension_count"] = c.rotated(0.5)
    return h | traits(tied=c.flag("tie_word_embeddings"), attention_bias=c.flag("attention_bias"))


def _glm4moe(c: Config) -> dict[str, Any]:
    """Glm4MoeModel. In the published weights of 4.5 and 4.7 the block for next-token prediction has an embedding
    and a head of its own, in those of 4.6 it has none; the config does not say, so they are counted.
    """
    h = base(c)
    drafts = c.number("num_nextn_predict_layers", default=0)
    h["block_count"] = c.layers + drafts
    h["rope.dimension_count"] = c.rotated(0.5)
    names = {
        "expert_count": "n_routed_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "leading_dense_block_count": "first_k_dense_replace",
    }
    h.update({key: c.number(name) for key, name in names.items() if c.has(name)})
    h["expert_gating_func"] = SIGMOID
    if c.has("routed_scaling_factor"):
        h["expert_weights_scale"] = c.real("routed_scaling_factor")
    if c.has("norm_topk_prob"):
        h["expert_weights_norm"] = c.flag("norm_topk_prob")
    if drafts:
        h["nextn_predict_layers"] = drafts
    return h | traits(
        tied=c.flag("tie_word_embeddings"),
        attention_bias=c.flag("attention_bias"),
        qk_norm=c.flag("use_qk_norm"),
        draft_embedding=bool(drafts),
    )


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "Glm4ForCausalLM": ("glm4", _glm4),
    "Glm4vForConditionalGeneration": ("glm4", _glm4),
    "Glm4MoeForCausalLM": ("glm4moe", _glm4moe),
    "Glm4vMoeForConditionalGeneration": ("glm4moe", _glm4moe),
}
