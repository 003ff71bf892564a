"""Configs of models with linear attention: Qwen3-Next, Qwen3.5 and 3.6, Qwen3.8-Flash-Next, Kimi-Linear, Kimi-K3."""

from __future__ import annotations

from itertools import accumulate
from math import isqrt
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import SIGMOID, Config, Mapper, base, real, traits
from plan_llama.models.configs.latent import add_drafts, draft_blocks

_MAX_NGRAM, _MAX_NGRAM_HEADS = 8, 64  # LLAMA_MAX_PLE_NGRAM and LLAMA_MAX_PLE_HEADS
_MROPE_SECTIONS = (11, 11, 10, 0)  # _QWEN35_DEFAULT_MROPE_SECTION in conversion/qwen.py


def _delta_net(c: Config, drafts: int) -> dict[str, Any]:
    """Qwen3NextModel with _QwenMtpMixin in conversion/qwen.py"""
    values = c.number("linear_num_value_heads")
    turned = real(c.rope.get("partial_rotary_factor", 0.25), c.where, "partial_rotary_factor")
    h = base(c) | {
        "vocab_size": c.number("vocab_size"),
        "ssm.conv_kernel": c.number("linear_conv_kernel_dim"),
        "ssm.state_size": c.number("linear_key_head_dim"),
        "ssm.group_count": c.number("linear_num_key_heads"),
        "ssm.time_step_rank": values,
        "ssm.inner_size": c.number("linear_value_head_dim") * values,
        "full_attention_interval": c.number("full_attention_interval", default=4),
        "rope.dimension_count": int(c.head_dim * turned),
    }
    if types := c.layer_types():
        h["attention.recurrent_layers"] = (
            *(kind == "linear_attention" for kind in types),
            *(False,) * drafts,
        )
    if c.has("moe_intermediate_size"):
        h["expert_feed_forward_length"] = c.number("moe_intermediate_size")
    if c.has("shared_expert_intermediate_size"):
        h["expert_shared_feed_forward_length"] = c.number("shared_expert_intermediate_size")
    add_drafts(h, drafts)
    return h | traits(
        tied=c.flag("tie_word_embeddings"),
        draft_embedding=bool(drafts) and c.flag("mtp_use_dedicated_embeddings"),
    )


def _qwen3next(c: Config) -> dict[str, Any]:
    """The weights hold one block for next-token prediction, which the config does not say; the converter counts
    it in the weights. Those of Qwen3-Coder-Next hold none, and its config is the same: it is counted too."""
    return _delta_net(c, draft_blocks(c, "mtp_num_hidden_layers") or 1)


def _qwen35(c: Config) -> dict[str, Any]:
    """Qwen3_5TextModel and Qwen3_5MoeTextModel"""
    h = _delta_net(c, draft_blocks(c, "mtp_num_hidden_layers"))
    h.setdefault("rope.dimension_sections", _MROPE_SECTIONS)
    return h


def _qwen4exp(c: Config) -> dict[str, Any]:
    """Qwen4ExpTextModel in conversion/qwen4exp.py"""
    h = _qwen35(c)
    ratio = c.number("indexer_compress_ratio")
    keeps_state = h["attention.recurrent_layers"] if c.layer_types() else ()
    if not keeps_state:
        raise ModelError(f"{c.where}: 'layer_types' must list the kind of all {c.layers} layers")
    h |= {
        "hyper_connection.count": c.number("hc_count"),
        "hyper_connection.low_rank": c.number("hc_lowrank"),
        "attention.indexer.head_count": c.number("indexer_n_heads"),
        "attention.indexer.key_length": c.number("indexer_head_dim"),
        "attention.indexer.top_k": c.number("indexer_budget"),
        "attention.compress_ratios": tuple(0 if state else ratio for state in keeps_state),
    }
    layers = c.first("ple_layer_ids")
    return h | _ngrams(c, layers) if isinstance(layers, list) and layers else h


def _ngrams(c: Config, layers: list[Any]) -> dict[str, Any]:
    """The table of n-grams. Its heads have as many rows as the primes above a base say (Qwen4ExpTextModel of
    transformers), and the whole is padded; the factors of its hash are the checkpoint's own and change no buffer."""
    size = c.number("ngram_size")
    heads = max(1, (size - 1) * c.number("heads_per_ngram"))
    if not (2 <= size <= _MAX_NGRAM and heads <= _MAX_NGRAM_HEADS):
        raise ModelError(
            f"{c.where}: n-grams of {size:,} with {heads:,} heads, "
            f"expected 2 to {_MAX_NGRAM} with at most {_MAX_NGRAM_HEADS}"
        )
    start = min(c.number("ngram_vocab_size_base", default=20_000_000), 1 << 31)
    rows: list[int] = []
    while len(rows) < heads:
        start += 1
        if all(start % divisor for divisor in range(2, isqrt(start) + 1)):
            rows.append(start)
    pad = max(1, c.number("make_ngram_vocab_size_divisible_by", default=128))
    return {
        "ple.layers": tuple(layer - 1 for layer in layers if isinstance(layer, int)),
        "ple.ngram_size": size,
        "ple.heads_per_ngram": c.number("heads_per_ngram"),
        "ple.conv_kernel": c.number("ple_conv_kernel_size", default=4),
        "ple.eos_token_id": 0,
        "embedding_length_per_layer_input": c.number("ple_embed_dim", default=c.number("hidden_size"))
        // heads,
        "ple.layer_multipliers": (1,) * size,
        "ple.head_offsets": tuple(accumulate(rows[:-1], initial=0)),
        "ple.head_vocab_sizes": tuple(rows),
        "tensors.ngram_rows": -(-sum(rows) // pad) * pad,
    }


def _kimi(c: Config) -> dict[str, Any]:
    """What KimiLinearModel and KimiK3Model write alike. Layers are counted from 1 in their configs."""
    linear = c.within("linear_attn_config")
    full = linear.values.get("full_attn_layers")
    if not isinstance(full, list):
        raise ModelError(f"{c.where}: 'linear_attn_config.full_attn_layers' must be a list of layers")
    latent, rope = c.number("kv_lora_rank"), c.number("qk_rope_head_dim")
    h = base(c) | {
        "vocab_size": c.number("vocab_size"),
        "attention.head_count_kv": tuple(int(layer in full) for layer in range(1, c.layers + 1)),
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.key_length_mla": c.number("qk_nope_head_dim") + rope,
        "attention.value_length_mla": c.number("v_head_dim"),
        "rope.dimension_count": rope,
        "ssm.conv_kernel": linear.number("short_conv_kernel_size", default=4),
        "kda.head_dim": linear.number("head_dim"),
        "expert_feed_forward_length": c.number("moe_intermediate_size"),
        "expert_shared_count": c.number("num_shared_experts"),
        "leading_dense_block_count": c.number("first_k_dense_replace"),
        "expert_weights_scale": c.real("routed_scaling_factor"),
    }
    h.pop("attention.value_length", None)
    if c.has("q_lora_rank"):
        h["attention.q_lora_rank"] = c.number("q_lora_rank")
    return h


def _kimi_k3(c: Config) -> dict[str, Any]:
    """KimiK3Model in conversion/kimi_k3.py"""
    linear = c.within("linear_attn_config")
    h = _kimi(c) | {
        "attention.value_length": c.number("kv_lora_rank"),
        "expert_weights_norm": c.flag("moe_renormalize"),
        "expert_gating_func": SIGMOID,
        "activation.situ_beta": c.real("activation_situ_beta"),
        "activation.situ_linear_beta": c.real("activation_situ_linear_beta"),
        "attn_res.block_size": c.number("attn_res_block_size"),
        "tensors.attention_gate": c.flag("mla_use_output_gate"),
        "tensors.routed_norm": c.flag("latent_moe_use_norm"),
    }
    if linear.has("gate_lower_bound"):
        h["kda.gate_lower_bound"] = linear.real("gate_lower_bound")
    if c.has("routed_expert_hidden_size"):
        h["expert_latent_length"] = c.number("routed_expert_hidden_size")
    return h


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "Qwen3NextForCausalLM": ("qwen3next", _qwen3next),
    "Qwen3_5ForConditionalGeneration": ("qwen35", _qwen35),
    "Qwen3_5ForCausalLM": ("qwen35", _qwen35),
    "Qwen3_5MoeForConditionalGeneration": ("qwen35moe", _qwen35),
    "Qwen3_5MoeForCausalLM": ("qwen35moe", _qwen35),
    "Qwen4ExpForConditionalGeneration": ("qwen4exp", _qwen4exp),
    "Qwen4ExpForCausalLM": ("qwen4exp", _qwen4exp),
    "KimiLinearForCausalLM": ("kimi-linear", _kimi),
    "KimiLinearModel": ("kimi-linear", _kimi),
    "KimiK3ForConditionalGeneration": ("kimi-k3", _kimi_k3),
}
