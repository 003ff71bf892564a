"""Which type llama-quantize gives a tensor: the rules of each mix.

Source: tensor_allows_quantization, llama_tensor_get_type and tensor_type_fallback in src/llama-quant.cpp of
llama.cpp b11434. Where a rule counts what went before, it does so in the order of the file that is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import Tensor

# What a mix gives a tensor that no rule singles out (llama_ftype_get_default_type).
DEFAULT_TYPES: dict[str, str] = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "q8_0",
    "Q6_K": "q6_K",
    "Q5_K_M": "q5_K",
    "Q5_K_S": "q5_K",
    "Q5_1": "q5_1",
    "Q5_0": "q5_0",
    "Q4_K_M": "q4_K",
    "Q4_K_S": "q4_K",
    "Q4_1": "q4_1",
    "Q4_0": "q4_0",
    "IQ4_NL": "iq4_nl",
    "IQ4_XS": "iq4_xs",
    "MXFP4_MOE": "mxfp4",
    "Q3_K_L": "q3_K",
    "Q3_K_M": "q3_K",
    "Q3_K_S": "q3_K",
    "IQ3_M": "iq3_s",
    "IQ3_S": "iq3_s",
    "IQ3_XS": "iq3_s",
    "IQ3_XXS": "iq3_xxs",
    "Q2_K": "q2_K",
    "Q2_K_S": "q2_K",
    "Q2_0": "q2_0",
    "IQ2_M": "iq2_s",
    "IQ2_S": "iq2_xs",
    "IQ2_XS": "iq2_xs",
    "IQ2_XXS": "iq2_xxs",
    "TQ2_0": "tq2_0",
    "TQ1_0": "tq1_0",
    "IQ1_M": "iq1_m",
    "IQ1_S": "iq1_s",
    "Q1_0": "q1_0",
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# Where the row is no multiple of a type's block (tensor_type_fallback).
FALLBACK: dict[str, str] = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}

_LAYER = re.compile(r"blk\.([0-9]+)\.")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_NEVER = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj"
    r"|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
    r"|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_embd|\.patch_merger"
    r"|a\.rvq\.codebook|mm\.a\.code_embd|^position_embd\.weight|^token_types\.weight"
)
_NEVER_IN = {
    "glm5-next": re.compile(
        r"hc_|indexer\.(attn_q_b|attn_k|proj)|indexer_compressor_(gate|ape)|ssm_[fg]_[ab]\.weight"
        r"|ssm_beta\.weight|attn_kv_a_mqa\.weight|attn_[kv]_b\.weight"
    )
}
# Not below q8_0 by these mixes' own rules.
_AT_LEAST_Q8 = {"glm5-next": re.compile(r"attn_q_[ab]|nextn\.eh_proj")}

# Blocks of the models that the loader takes for a 70B (LLM_TYPE_70B in src/models/*.cpp).
_TYPE_70B = {"llama": 80, "llama-embed": 80, "deci": 80, "olmo": 80, "qwen2": 80, "jais2": 68}

_BELOW_3_BITS = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_IQ2_LARGE = frozenset({"IQ2_S", "IQ2_M"})
_OUTPUT_Q5 = _BELOW_3_BITS | {"IQ3_XXS"}
_EMBEDDING_TYPES = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "iq3_s"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "q4_K"),
}
_Q_K_TYPES = {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}
_ATTENTION_OUTPUT_TYPES = {
    "Q2_K": "q3_K",
    "IQ3_XXS": "iq3_s",
    "Q3_K_M": "q4_K",
    "Q3_K_L": "q5_K",
    "IQ3_M": "q4_K",
}
_EIGHT_EXPERTS_OUTPUT_Q5 = frozenset(
    {
        "Q2_K",
        "IQ3_XS",
        "IQ3_XXS",
        "Q3_K_S",
        "Q3_K_M",
        "IQ4_NL",
        "Q4_K_S",
        "Q4_K_M",
        "IQ3_S",
        "IQ3_M",
        "IQ4_XS",
    }
)


def mix_name(quant: str) -> str | None:
    """A mix as llama-quantize spells it (`q4_k` means Q4_K_M); None for one that it does not make."""
    name = _ALIASES.get(quant.upper(), quant.upper())
    return name if name in DEFAULT_TYPES else None


def file_order(tensor: Tensor) -> tuple[int, str]:
    match = _LAYER.match(tensor.name)
    return (int(match[1]) if match else -1, tensor.name)


def dimensions(tensor: Tensor) -> int:
    """As ggml counts them: trailing ones are none."""
    count = len(tensor.shape)
    while count > 1 and tensor.shape[count - 1] == 1:
        count -= 1
    return count


def _more_bits(index: int, count: int) -> bool:
    """The first and the last eighth, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def quantisable(architecture: str, tensor: Tensor) -> bool:
    """Whether llama-quantize changes the type of a tensor at all, whatever it is asked for."""
    name = tensor.name
    if dimensions(tensor) < 2 or not name.endswith("weight") or _NEVER.search(name):
        return False
    never = _NEVER_IN.get(architecture)
    return not (never and never.search(name))


class Run:
    """One pass over a model's tensors in file order: some rules count what went before."""

    def __init__(
        self,
        architecture: str,
        hparams: Mapping[str, Any],
        tensors: Sequence[Tensor],
        mix: str,
        imatrix: bool,
    ) -> None:
        self.architecture, self.mix, self.imatrix = architecture, mix, imatrix
        self.default = DEFAULT_TYPES[mix]
        blocks = _integer(hparams, "block_count")
        heads = _integer(hparams, "attention.head_count")
        kv_heads = _integer(hparams, "attention.head_count_kv", heads)
        self.experts = _integer(hparams, "expert_count")
        self.grouped = heads // kv_heads >= 4 if kv_heads else False
        self.is_70b = blocks - _integer(hparams, "nextn_predict_layers") == _TYPE_70B.get(
            architecture
        ) and not (architecture.startswith("llama") and heads == kv_heads)
        # What the loader itself adds: blocks that run again, a router's own.
        self.blocks = blocks * max(1, _integer(hparams, "num_loops")) + (architecture == "graniteswitch")
        self.values = sum(_category(tensor.name) == "attn_v" for tensor in tensors)
        self.tied = not any(tensor.name == "output.weight" for tensor in tensors)
        self.seen = dict.fromkeys(("attn_v", "ffn_down"), 0)
        self.seen |= dict.fromkeys(("ffn_gate", "ffn_up"), 0)

    def type_of(self, tensor: Tensor) -> str:
        """The type of the next tensor in file order."""
        if not quantisable(self.architecture, tensor):
            return tensor.type.name
        if not by_name(self.default).quantised:
            return self.default
        return self._fitting(tensor, self._wanted(tensor))

    def _fitting(self, tensor: Tensor, kind: str) -> str:
        row, block = tensor.shape[0], by_name(kind).block_elements
        if row % block == 0:
            return kind
        if kind not in FALLBACK and block > 32:
            raise ModelError(
                f"llama-quantize cannot make {self.mix}: the rows of '{tensor.name}' have {row} elements, "
                f"no multiple of {block}, and {kind} has no substitute"
            )
        kind = FALLBACK.get(kind, kind)
        return kind if row % by_name(kind).block_elements == 0 else "f16"

    def _wanted(self, tensor: Tensor) -> str:
        name, mix, kind = tensor.name, self.mix, _category(tensor.name)
        careful = _AT_LEAST_Q8.get(self.architecture)
        if careful and careful.search(name):
            return "q8_0"
        if kind == "output" or (kind == "embedding" and self.tied):
            return self._output(tensor)
        if mix == "MXFP4_MOE":
            return "mxfp4" if self._mxfp4(tensor, kind) else "q8_0"
        if kind == "embedding":
            return _EMBEDDING_TYPES.get(mix, self.default)
        if kind not in self.seen:
            return self._uncounted(kind)
        index = self.seen[kind]
        self.seen[kind] += 1
        if mix in _BELOW_3_BITS:
            return self._below_3_bits(kind, index)
        if kind == "attn_v":
            return self._value(index)
        position = self._position(name, index)
        if kind == "ffn_down":
            return self._down(position)
        middle = self.blocks // 8 <= position < 7 * self.blocks // 8
        return "iq3_xxs" if mix == "IQ3_XS" and middle else self.default

    def _output(self, tensor: Tensor) -> str:
        """The output head, or the embeddings that serve as one."""
        unfit = tensor.shape[0] % by_name(self.default).block_elements
        if self.mix == "MXFP4_MOE" or self.architecture == "falcon" or unfit or self.default == "q8_0":
            return "q8_0"
        return "q5_K" if self.mix in _OUTPUT_Q5 else "q6_K"

    def _mxfp4(self, tensor: Tensor, kind: str) -> bool:
        stacked = len(tensor.shape) > 2 and tensor.shape[2] > 1
        return stacked and (self.architecture != "bailingmoe3" or kind.startswith("ffn_"))

    def _uncounted(self, kind: str) -> str:
        """Queries, keys, the attention's output, and all that has no rule."""
        mix, eight = self.mix, self.experts == 8
        low = mix in _BELOW_3_BITS
        if kind == "attn_k" and eight:
            return "q4_K" if low else "q8_0"
        if kind in ("attn_q", "attn_k"):
            return _Q_K_TYPES.get(mix, self.default)
        if kind != "attn_output":
            return self.default
        if low:
            small = "iq2_xxs" if mix in ("IQ1_S", "IQ1_M") else self.default
            return "q5_K" if eight else "iq3_s" if mix in _IQ2_LARGE else small
        if self.architecture == "falcon":
            return "q4_K" if mix == "Q3_K_L" else self.default
        if eight:
            return "q5_K" if mix in _EIGHT_EXPERTS_OUTPUT_Q5 else self.default
        return _ATTENTION_OUTPUT_TYPES.get(mix, self.default)

    def _below_3_bits(self, kind: str, index: int) -> str:
        better = "iq3_s" if self.mix in _IQ2_LARGE else "q2_K"
        if kind == "attn_v":
            return "q4_K" if self.grouped or self.experts >= 4 else better
        return better if kind == "ffn_down" and index < self.blocks // 8 else self.default

    def _value(self, index: int) -> str:
        """Values, fused queries, keys and values, and the up-projection of latent ones."""
        mix, kind = self.mix, self.default
        if self.experts == 8:
            return "q8_0"
        if mix == "Q2_K":
            kind = "q4_K" if self.grouped else "q3_K"
        elif mix == "IQ3_XXS" and not self.grouped:
            kind = "iq3_xxs" if self.imatrix else "iq3_s"
        elif mix == "IQ3_M" or (mix in ("Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S") and self.grouped):
            kind = "q4_K"
        elif mix == "Q3_K_M":
            kind = "q5_K" if index < 2 else "q4_K"
        elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and self.grouped):
            kind = "q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(index, self.values):
            kind = "q6_K"
        elif mix == "Q4_K_S" and index < 4:
            kind = "q5_K"
        return "q5_K" if self.is_70b and kind in ("q3_K", "q4_K") else kind

    def _down(self, position: int) -> str:
        mix, blocks, falcon = self.mix, self.blocks, self.architecture == "falcon"
        first, more = position < blocks // 8, _more_bits(position, blocks)
        if mix == "Q2_K":
            return "q3_K"
        if mix == "Q3_K_M":
            if position < blocks // 16:
                return "q5_K"
            return "q4_K" if not falcon or more else "q3_K"
        if mix == "Q3_K_L":
            return "q4_K" if falcon else "q5_K"
        if mix == "Q4_K_M":
            if falcon:
                return "q6_K" if position < blocks // 16 else "q5_K" if more else "q4_K"
            return "q6_K" if more else "q4_K"
        if mix == "Q5_K_M":
            return "q6_K" if more else "q5_K"
        if mix == "IQ3_XXS" and not self.imatrix:
            return "q4_K" if first else "q3_K"
        if mix == "IQ3_M" and (first or (self.experts == 8 and more)):
            return "q4_K"
        if not first:
            return self.default
        if mix == "Q2_K_S":
            return "q4_K"
        if mix in ("IQ4_NL", "IQ4_XS") and not self.imatrix:
            return "q5_K"
        if mix == "Q4_K_S" and not falcon:
            return "q5_K"
        # An importance matrix does not save the first blocks at four bits without an offset.
        return {"Q4_0": "q4_1", "Q5_0": "q5_1"}.get(mix, self.default) if self.imatrix else self.default

    def _position(self, name: str, index: int) -> int:
        """The block by the count so far, or with experts by the name, as llama-quantize does."""
        if self.experts <= 1:
            return index
        match = _LAYER.match(name)
        if match is None or int(match[1]) >= self.blocks:
            raise ModelError(
                f"llama-quantize cannot make {self.mix}: '{name}' is in none of the {self.blocks} blocks"
            )
        return int(match[1])


# First match wins: part of a name → the class that the rules speak of (tensor_get_category).
_CATEGORIES = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "embedding"
    return next((kind for part, kind in _CATEGORIES if part in name), "other")


def _integer(hparams: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A hyperparameter; of one per layer the first, which is what llama-quantize looks at."""
    value = hparams.get(key, default)
    if isinstance(value, tuple | list):
        value = value[0] if value else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(f"hyperparameter '{key}' must be a whole number, found {value!r}")
    return value
