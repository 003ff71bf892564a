"""DeepSeek-V2 to V4 and what converts like it: Kimi-K2, GLM-4.7-Flash, GLM-5, Mistral 4, GLM-5.3-Flash."""

from __future__ import annotations

from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import SIGMOID, Config, Mapper, base, real, traits

_MAX_DRAFTS = 64  # lists with a value per block are made as long; published models have up to 7


def listed(c: Config, key: str, *, count: int) -> tuple[Any, ...]:
    """A list with a value for each layer. Raises ModelError where it is missing or of another length."""
    found = c.values.get(key)
    if not isinstance(found, list) or len(found) != count:
        raise ModelError(f"{c.where}: '{key}' must be a list of {count} values, one per layer")
    return tuple(found)


def _attention(c: Config) -> dict[str, Any]:
    """The latent attention's sizes; the cache holds one head of the compressed latent and the rope part."""
    latent, rope = c.number("kv_lora_rank", default=512), c.number("qk_rope_head_dim")
    h: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": c.number("qk_nope_head_dim") + rope,
        "attention.value_length_mla": c.number("v_head_dim"),
        "rope.dimension_count": rope,
    }
    if c.has("q_lora_rank"):
        h["attention.q_lora_rank"] = c.number("q_lora_rank")
    return h


def deepseek(c: Config) -> dict[str, Any]:
    """DeepseekV2Model in conversion/deepseek.py: without blocks for next-token prediction."""
    h = base(c) | _attention(c)
    h["vocab_size"] = c.number("vocab_size")
    h.setdefault("attention.layer_norm_rms_epsilon", 1e-6)
    routed = c.has("n_routed_experts")
    h["leading_dense_block_count"] = c.number("first_k_dense_replace", default=0 if routed else c.layers)
    h["expert_feed_forward_length"] = (
        c.number("moe_intermediate_size") if c.has("moe_intermediate_size") else c.number("intermediate_size")
    )
    h["expert_shared_count"] = c.number("n_shared_experts", default=0)
    if c.has("routed_scaling_factor"):
        h["expert_weights_scale"] = c.real("routed_scaling_factor")
    if c.flag("norm_topk_prob"):
        h["expert_weights_norm"] = True
    if (scale := c.rope.get("mscale_all_dim")) is not None:
        h["rope.scaling.yarn_log_multiplier"] = 0.1 * real(scale, c.where, "mscale_all_dim")
    sigmoid = h.get("expert_gating_func") == SIGMOID
    return h | traits(
        tied=c.flag("tie_word_embeddings"),
        selection_bias=sigmoid or c.first("topk_method") == "noaux_tc",
    )


def draft_blocks(c: Config, key: str = "num_nextn_predict_layers") -> int:
    """Blocks for next-token prediction, 0 where the config says nothing. Raises ModelError for too many."""
    count = c.number(key, default=0)
    if count > _MAX_DRAFTS:
        raise ModelError(f"{c.where}: '{key}' is {count:,}, expected at most {_MAX_DRAFTS}")
    return count


def add_drafts(h: dict[str, Any], count: int) -> None:
    """Appends blocks for next-token prediction."""
    if count:
        h["block_count"] += count
        h["nextn_predict_layers"] = count


def _indexer(c: Config) -> dict[str, Any]:
    return {
        "attention.indexer.head_count": c.number("index_n_heads"),
        "attention.indexer.key_length": c.number("index_head_dim"),
        "attention.indexer.top_k": c.number("index_topk"),
    }


def _own_indexers(c: Config) -> dict[str, Any]:
    """Which layers select for themselves; the others take over the selection of the layer before."""
    if not c.has("indexer_types"):
        return {}
    kinds = listed(c, "indexer_types", count=c.layers)
    return {"attention.indexer.types": tuple(kind == "full" for kind in kinds)}


def _deepseek_v32(c: Config) -> dict[str, Any]:
    """DeepseekV32Model: its drafting block brings an embedding and an output head of its own."""
    h = deepseek(c) | _indexer(c)
    add_drafts(h, draft_blocks(c))
    return h | traits(draft_embedding=True)


def _glm_dsa(c: Config) -> dict[str, Any]:
    """GlmMoeDsaModel in conversion/glm.py"""
    h = deepseek(c) | _indexer(c) | _own_indexers(c)
    turned = real(c.rope.get("partial_rotary_factor", 1.0), c.where, "partial_rotary_factor")
    h["rope.dimension_count"] = int(c.number("qk_rope_head_dim") * turned)
    add_drafts(h, draft_blocks(c))
    return h


def _glm_flash(c: Config) -> dict[str, Any]:
    """Glm4MoeLiteModel in conversion/glm.py (GLM-4.7-Flash)"""
    h = deepseek(c)
    add_drafts(h, draft_blocks(c))
    return h | traits(draft_embedding=True)


def mistral4(c: Config) -> dict[str, Any]:
    """Mistral3Model.Mistral4Model in conversion/mistral3.py: the experts' gate and up stay one tensor."""
    return deepseek(c) | traits(fused_experts=True)


def _hyper_connections(c: Config) -> dict[str, Any]:
    return {
        "hyper_connection.count": c.number("hc_mult"),
        "hyper_connection.sinkhorn_iterations": c.number("hc_sinkhorn_iters"),
        "hyper_connection.epsilon": c.real("hc_eps"),
    }


def _clamps(c: Config, blocks: int) -> dict[str, Any]:
    if not c.has("swiglu_limit"):
        return {}
    limits = (c.real("swiglu_limit"),) * blocks
    return {"swiglu_clamp_exp": limits, "swiglu_clamp_shexp": limits}


def _deepseek_v4(c: Config) -> dict[str, Any]:
    """DeepseekV4Model: the converter leaves the blocks for next-token prediction to a file of their own."""
    h = base(c) | _indexer(c) | _hyper_connections(c) | _clamps(c, c.layers)
    ratios = c.values.get("compress_ratios")
    if not isinstance(ratios, list) or len(ratios) < c.layers:
        raise ModelError(f"{c.where}: 'compress_ratios' must be a list with a value for each layer")
    h |= {
        "vocab_size": c.number("vocab_size"),
        "embedding_length_out": c.number("hidden_size") * c.number("hc_mult"),
        "rope.dimension_count": c.number("qk_rope_head_dim"),
        "attention.q_lora_rank": c.number("q_lora_rank"),
        "attention.sliding_window": c.number("sliding_window"),
        "attention.output_group_count": c.number("o_groups"),
        "attention.output_lora_rank": c.number("o_lora_rank"),
        "attention.compress_ratios": tuple(ratios),
        "attention.compress_rope_freq_base": c.real("compress_rope_theta"),
        "hash_layer_count": c.number("num_hash_layers"),
        "expert_feed_forward_length": c.number("moe_intermediate_size"),
        "expert_shared_count": c.number("n_shared_experts"),
        "expert_weights_scale": c.real("routed_scaling_factor"),
        "expert_weights_norm": c.flag("norm_topk_prob"),
    }
    return h


def _glm5_next(c: Config) -> dict[str, Any]:
    """Glm5NextModel in conversion/glm.py (GLM-5.3-Flash)"""
    attending = tuple(int(kind != "linear_attention") for kind in listed(c, "layer_types", count=c.layers))
    linear = c.within("linear_attn_config")
    h = base(c) | _attention(c) | _indexer(c) | _own_indexers(c) | _hyper_connections(c)
    add_drafts(h, drafts := draft_blocks(c))
    h |= _clamps(c, h["block_count"])
    h |= {
        "vocab_size": c.number("vocab_size"),
        "attention.head_count_kv": (*attending, *(1,) * drafts),
        "attention.layer_norm_epsilon": 1e-6,
        "attention.indexer.kpool": c.number("index_kpool"),
        "attention.indexer.kpool_select_tail": c.flag("index_kpool_always_select_tail", default=True),
        "ssm.conv_kernel": linear.number("short_conv_kernel_size"),
        "kda.head_dim": linear.number("head_dim"),
        "leading_dense_block_count": c.number("first_k_dense_replace"),
        "expert_feed_forward_length": c.number("moe_intermediate_size"),
        "expert_shared_count": c.number("n_shared_experts"),
        "expert_weights_scale": c.real("routed_scaling_factor"),
        "expert_weights_norm": c.flag("norm_topk_prob"),
    }
    if linear.has("gate_lower_bound"):
        h["kda.gate_lower_bound"] = linear.real("gate_lower_bound")
    return h


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "DeepseekV2ForCausalLM": ("deepseek2", deepseek),
    "DeepseekV3ForCausalLM": ("deepseek2", deepseek),
    "KimiVLForConditionalGeneration": ("deepseek2", deepseek),
    "KimiK25ForConditionalGeneration": ("deepseek2", deepseek),
    "Glm4MoeLiteForCausalLM": ("deepseek2", _glm_flash),
    "DeepseekV32ForCausalLM": ("deepseek32", _deepseek_v32),
    "DeepseekV4ForCausalLM": ("deepseek4", _deepseek_v4),
    "GlmMoeDsaForCausalLM": ("glm-dsa", _glm_dsa),
    "Glm5NextForConditionalGeneration": ("glm5-next", _glm5_next),
}
