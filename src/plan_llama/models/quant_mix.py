"""The tensors and the size of a file that llama-quantize would make, before there is one.

Source of the rules: src/llama-quant.cpp of llama.cpp b11434 (`quant_rules`); of what its converter writes before:
prepare_tensors in conversion/base.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models import tables
from plan_llama.models.ggml_types import by_name
from plan_llama.models.gguf import DEFAULT_ALIGNMENT
from plan_llama.models.quant_rules import (
    DEFAULT_TYPES,
    EMBEDDINGS,
    Run,
    dimensions,
    file_order,
    mix_name,
)
from plan_llama.models.types import Tensor

__all__ = [
    "DEFAULT_TYPES",
    "PLAIN",
    "VOCABULARY_BYTES_PER_TOKEN",
    "FileSize",
    "command",
    "converted",
    "file_size",
    "made",
    "mix_name",
    "needs_imatrix",
    "quantise",
    "tensors_of",
]

# The mixes that the converter writes itself (`--outtype`), and from which the others are made without much loss.
PLAIN = ("BF16", "F16", "F32")

# What the converter keeps in f32 whatever the output type is: norms, routers, small convolutions.
_CONVERTED_F32 = re.compile(
    r"_norm\.weight$|\.(ffn_gate_inp(_shexp)?|ssm_conv1d(_[qkv])?|shortconv\.conv|indexer\.proj"
    r"|altup_(correct|predict)_coef|time_mix_(first|w1|w2|decay_w[12]|lerp_fused))\.weight$"
    r"|^(position_embd|token_types)\.weight$"
)
_CONVERTED_F32_IN = {
    "minimax-m3": re.compile(r"\.indexer\."),
    "glm5-next": re.compile(
        r"^(blk\.|output_hc).*(hc_(attn|ffn)_|indexer_compressor_|ssm_a|ssm_dt|exp_probs_b)"
    ),
    "hy_v4": re.compile(r"(hc_attn_fn|hc_ffn_fn|output_hc_fn)\.weight$"),
}
# Published in that type and kept by the converter.
_EXPERTS = re.compile(r"_exps\.weight$")
_CONVERTED_AS_IS = {
    "deepseek4": ((_EXPERTS, "mxfp4"), (re.compile(r"\.ffn_gate_tid2eid\.weight$"), "i32")),
    "gpt-oss": ((_EXPERTS, "mxfp4"),),
    "kimi-k3": ((_EXPERTS, "mxfp4"),),
}

# Types that are useless without an importance matrix (tensor_requires_imatrix).
_NEEDS_IMATRIX = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})

# A header's bytes per token of the vocabulary (text, type, score, merges): 20 to 61 in the vocabularies that
# llama.cpp's tree carries as models/ggml-vocab-*.gguf; 35 to 43 with as many merges as tokens.
VOCABULARY_BYTES_PER_TOKEN = 40


def converted(
    architecture: str, shapes: Iterable[tuple[str, tuple[int, ...]]], output: str = "BF16"
) -> tuple[Tensor, ...]:
    """The types that llama.cpp's converter writes for names and shapes with `--outtype` F32, F16 or BF16."""
    plain, f32 = by_name(output), by_name("f32")
    kept = _CONVERTED_F32_IN.get(architecture)
    as_is = _CONVERTED_AS_IS.get(architecture, ())
    found = []
    for name, shape in shapes:
        kind = plain
        if (
            len(shape) < 2
            or not name.endswith(".weight")
            or _CONVERTED_F32.search(name)
            or (kept and kept.search(name))
        ):
            kind = f32
        else:
            kind = next((by_name(type_) for pattern, type_ in as_is if pattern.search(name)), plain)
        found.append(Tensor(name, kind, shape))
    return tuple(found)


def quantise(
    architecture: str,
    hparams: Mapping[str, Any],
    tensors: Sequence[Tensor],
    mix: str,
    *,
    imatrix: bool = False,
) -> tuple[Tensor, ...]:
    """The tensors of the file that llama-quantize makes, in its order (by block, then by name).

    `tensors` are those of the source, usually of a BF16 file (see `converted`); `imatrix` says whether an
    importance matrix is given. Raises ModelError for a mix that llama-quantize does not make, or a shape for
    which it has no type.
    """
    name = mix_name(mix)
    if name is None:
        raise ModelError(
            f"llama-quantize (b11434) makes no {mix}", hint=f"it makes {', '.join(sorted(DEFAULT_TYPES))}"
        )
    run = Run(architecture, hparams, tensors, name, imatrix)
    return tuple(
        Tensor(tensor.name, by_name(run.type_of(tensor)), tensor.shape)
        for tensor in sorted(tensors, key=file_order)
    )


def made(
    architecture: str, hparams: Mapping[str, Any], source: Sequence[Tensor], mix: str
) -> tuple[Tensor, ...]:
    """With an importance matrix only where llama-quantize insists on one."""
    made = quantise(architecture, hparams, source, mix)
    if not needs_imatrix(made, mix):
        return made
    return quantise(architecture, hparams, source, mix, imatrix=True)


def tensors_of(
    architecture: str, hparams: Mapping[str, Any], vocab_size: int, mix: str, *, imatrix: bool | None = None
) -> tuple[Tensor, ...] | None:
    """The tensors of a mix of a model with these hyperparameters; None for an unknown architecture.

    F32, F16 and BF16 are as the converter writes them, all others as llama-quantize makes them from BF16.
    `imatrix` None means an importance matrix where the mix cannot be made without. Raises ModelError for a
    mix that neither makes, ProfileError for hyperparameters that make no shapes.
    """
    named = tables.tensors(architecture, hparams, vocab_size)
    if named is None:
        return None
    if (name := mix_name(mix)) in PLAIN:
        return converted(architecture, named, name)
    source = converted(architecture, named)
    if imatrix is None:
        return made(architecture, hparams, source, mix)
    return quantise(architecture, hparams, source, mix, imatrix=imatrix)


def needs_imatrix(tensors: Iterable[Tensor], mix: str) -> bool:
    """Whether llama-quantize refuses to make these tensors (of `quantise`) without an importance matrix."""
    small = _NEEDS_IMATRIX | {"q2_K"} if mix_name(mix) == "Q2_K_S" else _NEEDS_IMATRIX
    return any(
        tensor.type.name in small and tensor.name not in (*EMBEDDINGS, "output.weight") for tensor in tensors
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSize:
    """Bytes of a GGUF. The data is exact; the header is an estimate where its vocabulary was not read."""

    header_bytes: int
    data_bytes: int
    estimated: bool

    @property
    def total_bytes(self) -> int:
        """The file."""
        return self.header_bytes + self.data_bytes


def file_size(
    tensors: Iterable[Tensor],
    *,
    vocab_size: int,
    vocabulary_bytes: int | None = None,
    alignment: int = DEFAULT_ALIGNMENT,
) -> FileSize:
    """What a single file of these tensors takes.

    Without `vocabulary_bytes` (the metadata of a header that was read) the tokenizer is taken as
    VOCABULARY_BYTES_PER_TOKEN, which misses by some MB at most.
    """
    infos = data = 0
    for tensor in tensors:
        # Name with its length, number of dimensions, dimensions, type, offset.
        infos += 8 + len(tensor.name.encode()) + 4 + 8 * max(1, dimensions(tensor)) + 4 + 8
        data += -(-tensor.nbytes // alignment) * alignment
    words = vocab_size * VOCABULARY_BYTES_PER_TOKEN if vocabulary_bytes is None else vocabulary_bytes
    header = -(-(24 + words + infos) // alignment) * alignment
    return FileSize(header_bytes=header, data_bytes=data, estimated=vocabulary_bytes is None)


def command(
    source: str,
    target: str,
    mix: str,
    *,
    imatrix: str | None = None,
    requantise: bool = False,
    binary: str = "llama-quantize",
) -> tuple[str, ...]:
    """The words of the command that makes a mix from a file."""
    options = ("--imatrix", imatrix) if imatrix else ()
    again = ("--allow-requantize",) if requantise else ()
    return (binary, *again, *options, source, target, mix_name(mix) or mix)
