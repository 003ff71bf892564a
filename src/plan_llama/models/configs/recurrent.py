"""Configs of models with state-space layers or short convolutions: Granite 4, Nemotron-H, Falcon-H1, Jamba and more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs.common import SIGMOID, Architecture, Config, Mapper, base, traits
from plan_llama.models.configs.latent import draft_blocks

# The converter writes this for models without positions (no rope), whatever they were trained for.
_NO_POSITIONS = 1 << 20
_STATE = ("state_size", "d_state", "state_dim", "ssm_state_size", "mamba_d_state", "mamba_ssm_state_size")
_MIXER_HEADS = ("n_heads", "num_heads", "mamba_n_heads", "mamba_num_heads")


def _prefixed(*names: str) -> tuple[str, ...]:
    """Names as they are and with `mamba_` before them (find_hparam of the hybrid models)."""
    return (*names, *(f"mamba_{name}" for name in names))


def _granite(c: Config) -> dict[str, Any]:
    """GraniteMoeModel without its heads' size, which the converter ignores."""
    h = base(replace(c, values={**c.values, "head_dim": None}))
    h["vocab_size"] = c.number("vocab_size")
    h["rope.dimension_count"] = c.number("hidden_size") // c.heads
    scales = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    h.update({key: c.real(name) for key, name in scales.items() if c.first(name)})
    if shared := c.number("shared_intermediate_size", default=0):
        h["expert_shared_feed_forward_length"] = shared
    bias = c.flag("attention_bias")
    return h | traits(tied=c.flag("tie_word_embeddings"), attention_bias=bias, attention_output_bias=bias)


def _mixer(c: Config, inner: int) -> dict[str, Any]:
    """The Mamba-2 mixer of the hybrid models."""
    biased = next((c.flag(name) for name in ("use_conv_bias", "mamba_conv_bias") if c.has(name)), True)
    return {
        "ssm.conv_kernel": c.number(*_prefixed("conv_kernel", "d_conv")),
        "ssm.state_size": c.number(*_STATE),
        "ssm.group_count": c.number(*_prefixed("n_groups", "num_groups")),
        "ssm.inner_size": inner,
        "ssm.time_step_rank": c.number(*_MIXER_HEADS),
        "tensors.conv_bias": biased,
    }


def _attention_layers(c: Config) -> tuple[int, ...]:
    """GraniteHybridModel.get_attn_layers: listed by kind, by index, or by a period."""
    if types := c.layer_types():
        return tuple(index for index, kind in enumerate(types) if kind == "attention")
    if isinstance(indices := c.first("attn_layer_indices"), list) and indices:
        return tuple(index for index in indices if isinstance(index, int))
    period, offset = c.number("attn_layer_period"), c.number("attn_layer_offset")
    return tuple(index for index in range(c.layers) if period and index % period == offset)


def _granite_architecture(c: Config) -> str:
    """Granite 4 models without state-space layers convert to the plain architectures."""
    if len(_attention_layers(c)) < c.layers:
        return "granitehybrid"
    return "granitemoe" if c.number("num_experts_per_tok", default=0) else "granite"


def _granite_hybrid(c: Config) -> dict[str, Any]:
    """GraniteHybridModel in conversion/granite.py"""
    attending = _attention_layers(c)
    h = _granite(c)
    if len(attending) == c.layers:
        return h
    h |= _mixer(c, c.number("expand", "mamba_expand") * c.number("hidden_size"))
    kv_heads = c.number("num_key_value_heads")
    h["attention.head_count_kv"] = tuple(kv_heads * (index in attending) for index in range(c.layers))
    h["rope.scaling.finetuned"] = positions = c.first("model_type") == "bamba"
    if not positions:
        h["context_length"] = _NO_POSITIONS
    return h


def _pattern(c: Config) -> str:
    """Nemotron's layers as one letter each: M a mixer, * attention, - a dense network, E experts."""
    found = c.first("hybrid_override_pattern") or c.first("layers_block_type")
    letters = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "moe": "E"}
    if isinstance(found, list):
        found = "".join(letters.get(str(kind), "?") for kind in found)
    if not isinstance(found, str) or not found or set(found) - set("M*-E"):
        raise ModelError(f"{c.where}: 'hybrid_override_pattern' must be made of M, *, - and E")
    return found


def _nemotron_architecture(c: Config) -> str:
    return "nemotron_h_moe" if c.has("num_experts_per_tok") else "nemotron_h"


def _nemotron_h(c: Config) -> dict[str, Any]:
    """NemotronHModel in conversion/nemotron.py"""
    pattern = _pattern(c)
    c = replace(c, values={**c.values, "num_hidden_layers": len(pattern)})
    head = c.number("head_dim", default=0) or c.number("attention_head_dim")
    kv_heads, routed = c.number("num_key_value_heads"), c.has("num_experts_per_tok")
    width = c.number("moe_intermediate_size" if routed else "intermediate_size")
    inner = c.number("mamba_num_heads") * c.number("mamba_head_dim")
    h = _granite(c) | _mixer(c, inner)
    drafts = draft_blocks(c) if routed else 0
    letters = [*pattern, *"D" * drafts]  # a drafting block holds attention and experts
    h |= {
        "context_length": _NO_POSITIONS,
        "rope.scaling.finetuned": False,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.head_count_kv": tuple(kv_heads * (kind in "*D") for kind in letters),
        "feed_forward_length": tuple(width * (kind in "-ED") for kind in letters),
    }
    if routed:
        h |= {
            "expert_feed_forward_length": width,
            "expert_shared_feed_forward_length": c.number("moe_shared_expert_intermediate_size"),
            "expert_shared_count": c.number("n_shared_experts"),
            "expert_weights_norm": c.flag("norm_topk_prob"),
            "expert_weights_scale": c.real("routed_scaling_factor"),
        }
        if c.has("moe_latent_size"):
            h["moe_latent_size"] = c.number("moe_latent_size")
    if drafts:
        h |= {"block_count": len(letters), "nextn_predict_layers": drafts}
    return h


def _falcon_h1(c: Config) -> dict[str, Any]:
    """FalconH1Model in conversion/falcon_h1.py"""
    inner = c.number("mamba_d_ssm")
    h = base(c) | _mixer(c, inner)
    h["vocab_size"] = c.number("vocab_size")
    h["ssm.time_step_rank"] = inner // max(1, c.number("mamba_d_head"))
    bias = c.flag("attention_bias")
    return (
        h
        | {"tensors.mixer_norm": c.flag("mamba_rms_norm")}
        | traits(tied=c.flag("tie_word_embeddings"), attention_bias=bias, attention_output_bias=bias)
    )


def _jamba(c: Config) -> dict[str, Any]:
    """JambaModel in conversion/jamba.py"""
    width, kv_heads = c.number("hidden_size", "mamba_d_model"), c.number("num_key_value_heads")
    offset, period = c.number("attn_layer_offset"), max(1, c.number("attn_layer_period"))
    attends = (index >= offset and (index - offset) % period == 0 for index in range(c.layers))
    return {
        "block_count": c.layers,
        "context_length": c.number("max_position_embeddings", "n_ctx"),
        "embedding_length": width,
        "feed_forward_length": c.number("intermediate_size"),
        "attention.head_count": c.heads,
        "attention.head_count_kv": tuple(kv_heads * there for there in attends),
        "attention.layer_norm_rms_epsilon": c.real("layer_norm_epsilon", "rms_norm_eps", default=1e-6),
        "ssm.conv_kernel": c.number("mamba_d_conv", default=4),
        "ssm.inner_size": c.number("mamba_expand") * width,
        "ssm.state_size": c.number("mamba_d_state", default=16),
        "ssm.time_step_rank": c.number("mamba_dt_rank", default=-(width // -16)),
        "expert_count": c.number("num_local_experts", "num_experts"),
        "expert_used_count": c.number("num_experts_per_tok", "num_experts_per_token"),
        "tensors.expert_offset": c.number("expert_layer_offset"),
        "tensors.expert_period": c.number("expert_layer_period"),
    } | traits(tied=c.flag("tie_word_embeddings"))


def _padded_vocab(c: Config, multiple: int) -> int:
    pad = c.number("pad_vocab_size_multiple", default=multiple) or 1
    return -(-c.number("vocab_size") // pad) * pad


def _mamba(c: Config) -> dict[str, Any]:
    """MambaModel in conversion/mamba.py"""
    width = c.number("hidden_size", "d_model")
    return {
        "block_count": c.layers,
        "context_length": _NO_POSITIONS,
        "embedding_length": width,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": c.real("layer_norm_epsilon", "rms_norm_eps", default=1e-5),
        "vocab_size": _padded_vocab(c, 8),
        "ssm.conv_kernel": c.number("conv_kernel", "d_conv", default=4),
        "ssm.inner_size": c.number("intermediate_size", "d_inner", default=2 * width),
        "ssm.state_size": c.number("state_size", "d_state", default=16),
        "ssm.time_step_rank": c.number("time_step_rank", "dt_rank", default=-(width // -16)),
        "ssm.dt_b_c_rms": c.first("model_type") == "falcon_mamba",
    } | traits(tied=c.flag("tie_word_embeddings", default=True))


def _lfm2(c: Config) -> dict[str, Any]:
    """LFM2Model and LFM2MoeModel in conversion/lfm2.py"""
    types = c.layer_types()
    if types is None:
        raise ModelError(f"{c.where}: 'layer_types' must list the kind of each layer")
    h = base(c)
    h["vocab_size"] = c.number("vocab_size")
    kv_heads = c.number("num_key_value_heads")
    h["attention.head_count_kv"] = tuple(kv_heads * (kind == "full_attention") for kind in types)
    h["shortconv.l_cache"] = c.number("conv_L_cache")
    tied = c.flag("tie_embedding", default=c.flag("tie_word_embeddings", default=True))
    return h | traits(tied=tied)


def _lfm2_dense(c: Config) -> dict[str, Any]:
    """LFM2Model._add_feed_forward_length: the stated width is brought to two thirds and a multiple."""
    width = c.number("block_ff_dim", "intermediate_size")
    if c.flag("block_auto_adjust_ff_dim", default=True):
        multiple = max(1, c.number("block_multiple_of", default=256))
        width = int(c.real("block_ffn_dim_multiplier", default=1.0) * int(2 * width / 3))
        width = -(-width // multiple) * multiple
    return _lfm2(c) | {"feed_forward_length": width}


def _lfm2_moe(c: Config) -> dict[str, Any]:
    return _lfm2(c) | {
        "expert_feed_forward_length": c.number("moe_intermediate_size"),
        "leading_dense_block_count": c.number("num_dense_layers"),
        "expert_gating_func": SIGMOID,
    }


MAPPERS: dict[str, tuple[Architecture, Mapper]] = {
    "GraniteForCausalLM": ("granite", _granite),
    "GraniteMoeForCausalLM": ("granitemoe", _granite),
    "GraniteMoeSharedForCausalLM": ("granitemoe", _granite),
    "GraniteMoeHybridForCausalLM": (_granite_architecture, _granite_hybrid),
    "BambaForCausalLM": (_granite_architecture, _granite_hybrid),
    "NemotronHForCausalLM": (_nemotron_architecture, _nemotron_h),
    "FalconH1ForCausalLM": ("falcon-h1", _falcon_h1),
    "JambaForCausalLM": ("jamba", _jamba),
    "MambaForCausalLM": ("mamba", _mamba),
    "FalconMambaForCausalLM": ("mamba", _mamba),
    "Lfm2ForCausalLM": ("lfm2", _lfm2_dense),
    "Lfm2MoeForCausalLM": ("lfm2moe", _lfm2_moe),
}
