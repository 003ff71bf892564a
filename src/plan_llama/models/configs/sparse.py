"""Configs of MiniMax-M3, Step-3.5 and 3.7, MiMo-V2."""

from __future__ import annotations

from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import Config, Mapper, base, llama3_rope, real, traits
from plan_llama.models.configs.latent import add_drafts, draft_blocks, listed

_MIMO_DRAFTS = 3  # MimoV2Model._n_nextn: the config does not say how many blocks draft


def _minimax_m3(c: Config) -> dict[str, Any]:
    """MiniMaxM3Model in conversion/minimax.py"""
    sparse = c.within("sparse_attention_config")
    return base(c) | {
        "vocab_size": c.number("vocab_size"),
        "rope.dimension_count": c.number("rotary_dim"),
        "expert_feed_forward_length": c.number("intermediate_size"),
        "expert_shared_count": c.number("n_shared_experts"),
        "expert_weights_scale": c.real("routed_scaling_factor"),
        "expert_weights_norm": True,
        "attention.indexer.head_count": sparse.number("sparse_num_index_heads"),
        "attention.indexer.key_length": sparse.number("sparse_index_dim"),
        "attention.indexer.top_k": sparse.number("sparse_topk_blocks"),
        "attention.indexer.block_size": sparse.number("sparse_block_size"),
        "attention.indexer.local_blocks": sparse.number("sparse_local_block"),
        "leading_dense_block_count": leading_zeros(c),
    }


def leading_zeros(c: Config) -> int:
    """Leading layers without experts, from `moe_layer_freq` with one number for each layer."""
    count = 0
    for value in listed(c, "moe_layer_freq", count=c.layers):
        if value != 0:
            break
        count += 1
    return count


def _step35(c: Config) -> dict[str, Any]:
    """Step35Model in conversion/step3.py: the drafting blocks attend in full unless they are listed."""
    blocks = c.layers + (drafts := draft_blocks(c))
    types = c.values.get("layer_types")
    if not isinstance(types, list):
        raise ModelError(f"{c.where}: 'layer_types' must list the kind of each layer")
    slides = [kind == "sliding_attention" for kind in types[:blocks]]
    slides += [False] * (blocks - len(slides))
    theta = c.first("rope_theta")
    both = isinstance(theta, list) and len(theta) > 1
    plain = {
        key: value for key, value in c.values.items() if key != "rope_theta" or not isinstance(theta, list)
    }
    h = base(Config(plain, c.where))
    if isinstance(theta, list) and both:
        h["rope.freq_base"] = real(theta[0], c.where, "rope_theta")
        h["rope.freq_base_swa"] = real(theta[1], c.where, "rope_theta")
    other = c.within("attention_other_setting") if c.has("attention_other_setting") else c
    heads = {False: c.heads, True: other.number("num_attention_heads", default=c.heads)}
    kv_full = c.number("num_attention_groups")
    kv_heads = {False: kv_full, True: other.number("num_attention_groups", default=kv_full)}
    routed = str(c.first("moe_layers_enum") or "").strip()
    h |= {
        "vocab_size": c.number("vocab_size"),
        "attention.head_count": tuple(heads[slide] for slide in slides),
        "attention.head_count_kv": tuple(kv_heads[slide] for slide in slides),
        "attention.sliding_window": c.number("sliding_window"),
        "attention.sliding_window_pattern": tuple(slides),
        "attention.layer_norm_rms_epsilon": c.real("rms_norm_eps", default=1e-5),
        "expert_count": c.number("moe_num_experts"),
        "expert_used_count": c.number("moe_top_k"),
        "expert_feed_forward_length": c.number("moe_intermediate_size"),
        "expert_shared_feed_forward_length": c.number("share_expert_dim"),
        "leading_dense_block_count": min(_integers(c, routed)) if routed else 0,
        "moe_every_n_layers": c.number("moe_every_n_layer", default=1),
    }
    if c.has("moe_router_scaling_factor"):
        h["expert_weights_scale"] = c.real("moe_router_scaling_factor")
    if c.has("norm_expert_weight"):
        h["expert_weights_norm"] = c.flag("norm_expert_weight")
    add_drafts(h, drafts)
    return h | traits(rope_freqs=llama3_rope(c))


def _integers(c: Config, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ModelError(f"{c.where}: 'moe_layers_enum' must be numbers with commas between") from None


def _mimo2(c: Config) -> dict[str, Any]:
    """MimoV2Model in conversion/mimo.py"""
    slides = (*listed(c, "hybrid_layer_pattern", count=c.layers), *(1,) * _MIMO_DRAFTS)
    kv_heads = (c.number("num_key_value_heads"), c.number("swa_num_key_value_heads"))
    turned = real(c.rope.get("partial_rotary_factor"), c.where, "partial_rotary_factor")
    h = base(c)
    add_drafts(h, _MIMO_DRAFTS)
    h |= {
        "vocab_size": c.number("vocab_size"),
        "attention.head_count_kv": tuple(kv_heads[slide == 1] for slide in slides),
        "attention.sliding_window": c.number("sliding_window"),
        "attention.sliding_window_pattern": tuple(int(slide == 1) for slide in slides),
        "attention.value_length": c.number("v_head_dim"),
        "attention.layer_norm_rms_epsilon": c.real("layernorm_epsilon", default=1e-5),
        "rope.dimension_count": int(c.head_dim * turned),
        "expert_count": c.number("n_routed_experts"),
        "expert_feed_forward_length": c.number("moe_intermediate_size"),
        "tensors.leading_dense": leading_zeros(c),
    }
    if c.has("attention_value_scale"):
        h["attention.value_scale"] = c.real("attention_value_scale")
    return h | traits(
        window_sinks=c.flag("add_swa_attention_sink_bias"), sinks=c.flag("add_full_attention_sink_bias")
    )


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "MiniMaxM3SparseForCausalLM": ("minimax-m3", _minimax_m3),
    "MiniMaxM3SparseForConditionalGeneration": ("minimax-m3", _minimax_m3),
    "Step3p5ForCausalLM": ("step35", _step35),
    "Step3p7ForConditionalGeneration": ("step35", _step35),
    "MiMoV2FlashForCausalLM": ("mimo2", _mimo2),
    "MiMoV2ForCausalLM": ("mimo2", _mimo2),
}
