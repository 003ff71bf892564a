"""A published checkpoint as vLLM loads it: its tensors in 16 bits, and how its weights are quantised.

The tensors carry the names and shapes that llama.cpp's converter gives them (`models.tables`): the same numbers,
sorted into the same classes, whoever runs the model.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plan_llama.errors import ModelError
from plan_llama.models.types import ModelSpec

Scheme = Literal[
    "none", "fp8-block", "fp8-channel", "fp8-tensor", "int8", "int4", "awq", "gptq", "nvfp4", "mxfp4"
]

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight$")
# Names of Hugging Face's modules, in which a checkpoint says what it does not quantise.
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.kv_b_proj",
    "attn_v_b": "self_attn.kv_b_proj",
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_exps": "mlp.experts.0.gate_proj",
    "ffn_up_exps": "mlp.experts.0.up_proj",
    "ffn_down_exps": "mlp.experts.0.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How a checkpoint's linear layers are stored. `method` is vLLM's name, "" where they are plain 16 bit.

    `skipped` are modules that stay 16 bit, as the checkpoint spells them.
    """

    method: str = ""
    scheme: Scheme = "none"
    group: int = 0  # weights of a row that share a scale; 0: the whole row or tensor
    skipped: tuple[str, ...] = ()
    activations: bool = False  # activations are quantised as well, where the card can
    ordered: bool = True  # GPTQ: columns keep their order, so that no index of them is loaded

    def applies_to(self, name: str) -> bool:
        """Whether the tensor of that name (llama.cpp's) is stored quantised."""
        if self.scheme == "none":
            return False
        match = _BLOCK.match(name)
        module = _MODULES.get(match[2]) if match else None
        if match is None or module is None:
            return False
        if self.method == "gpt_oss_mxfp4" and not match[2].endswith("_exps"):
            return False  # the method knows experts only
        return not any(_names(skip, f"model.layers.{match[1]}.{module}") for skip in self.skipped)


PLAIN = Quantisation()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """What `vllm serve` is given. `spec` has every tensor in 16 bits; `location` is the repository or the folder.

    Compared by identity, so that what is worked out of its tensors can be remembered.
    """

    spec: ModelSpec
    location: str
    local: bool
    quantisation: Quantisation = PLAIN
    dtype: str = "bfloat16"
    multimodal: bool = False
    size_bytes: int | None = None  # of the files, where a listing or a folder says it
    note: str = ""
    revision: str | None = None


def quantisation_of(config: Mapping[str, Any], where: str) -> Quantisation:
    """What a config.json says of its weights. Raises ModelError for a format that is not known here."""
    text = config.get("text_config")
    parts = [config, text if isinstance(text, Mapping) else {}]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            found = part.get(key)
            if isinstance(found, Mapping) and found:
                return _read(found, where)
    return PLAIN


def _read(given: Mapping[str, Any], where: str) -> Quantisation:
    method = str(given.get("quant_method") or given.get("quantization_method") or "")[:40].lower()
    skipped = _strings(given.get("modules_to_not_convert"))
    if method == "fp8":
        block = given.get("weight_block_size")
        return Quantisation(
            method="fp8",
            scheme="fp8-block" if block else "fp8-tensor",
            group=int(block[1]) if isinstance(block, list) and len(block) == 2 else 0,
            skipped=skipped or _strings(given.get("ignored_layers")),
            activations=True,
        )
    if method == "compressed-tensors":
        return _compressed(given, where)
    if method == "modelopt":
        inner = given.get("quantization")
        inner = inner if isinstance(inner, Mapping) else given
        algorithm = str(inner.get("quant_algo", ""))
        skipped = _strings(inner.get("exclude_modules")) or _strings(given.get("ignore"))
        if algorithm == "NVFP4":
            return Quantisation(
                method="modelopt_fp4", scheme="nvfp4", group=16, skipped=skipped, activations=True
            )
        if algorithm == "FP8":
            return Quantisation(method="modelopt", scheme="fp8-tensor", skipped=skipped, activations=True)
    if method in ("awq", "gptq") and given.get("bits") == 4:
        group = given.get("group_size")
        group = group if isinstance(group, int) and group > 0 else 0
        return Quantisation(
            method=method,
            scheme="awq" if method == "awq" else "gptq",
            group=group,
            skipped=skipped,
            ordered=not given.get("desc_act"),
        )
    if method == "mxfp4":
        return Quantisation(method="gpt_oss_mxfp4", scheme="mxfp4", group=32, skipped=skipped)
    what = method or "without a name"
    raise ModelError(
        f"{where}: its quantisation ({what}) is not described here",
        hint="known are fp8, compressed-tensors, modelopt FP8 and NVFP4, awq and gptq of 4 bits, and mxfp4",
    )


def _compressed(given: Mapping[str, Any], where: str) -> Quantisation:
    groups = given.get("config_groups")
    parts = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [part.get("weights") for part in parts if isinstance(part, Mapping)]
    kinds = [item for item in weights if isinstance(item, Mapping)]
    if len(kinds) != 1:
        raise ModelError(f"{where}: {len(kinds)} groups of quantised layers, one is described here")
    kind, inputs = kinds[0], parts[0].get("input_activations")
    bits, form, strategy = kind.get("num_bits"), kind.get("type"), kind.get("strategy")
    group = kind.get("group_size")
    scheme: Scheme | None = None
    if (bits, form) == (8, "float"):
        scheme = {"channel": "fp8-channel", "block": "fp8-block", "tensor": "fp8-tensor"}.get(str(strategy))  # type: ignore[assignment]
    elif (bits, form) == (8, "int"):
        scheme = "int8"
    elif (bits, form) == (4, "int"):
        scheme = "int4"
    elif (bits, form, group) == (4, "float", 16):
        scheme = "nvfp4"
    elif (bits, form, group) == (4, "float", 32):
        scheme = "mxfp4"
    if scheme is None:
        raise ModelError(f"{where}: weights of {bits} bits ({form}, {strategy}) are not described here")
    block = kind.get("block_structure")
    if scheme == "fp8-block":
        group = int(block[1]) if isinstance(block, list) and len(block) == 2 else 128
    return Quantisation(
        method="compressed-tensors",
        scheme=scheme,
        group=group if isinstance(group, int) and group > 0 else 0,
        skipped=_strings(given.get("ignore")),
        activations=isinstance(inputs, Mapping),
    )


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _names(skip: str, module: str) -> bool:
    """Whether an entry of a list of skipped modules is this one: a pattern, a name, or a part of one."""
    if skip.startswith("re:"):
        try:
            return re.match(skip[3:], module) is not None
        except re.error:
            return False
    if "*" in skip:
        patterns = (skip, f"{skip}.*", f"model.{skip}", f"model.{skip}.*")
        return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)
    return f".{skip.removeprefix('model.')}." in f".{module.removeprefix('model.')}."
