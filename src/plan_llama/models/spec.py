"""From a GGUF on disk to a ModelSpec, and what can be told of a model from its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models import ggml_types, shards
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.units import publisher_gb

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS

# The same tensors that --cpu-moe moves (llm_ffn_exps_cpu_override in common/common.h, b11434).
EXPERT = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
# T5 has two stacks of layers, WavTokenizer two networks
_BLOCK = re.compile(r"(?:(?:enc\.|dec\.)?blk|posnet|convnext)\.([0-9]+)\.")
# First match wins; a part of a tensor's name → its class.
_KINDS = (
    (".ssm_", "recurrent state"),
    (".time_mix_", "recurrent state"),
    (".indexer.", "attention"),
    (".attn_", "attention"),
    (".ffn_gate_inp", "expert routing"),
    (".ffn_", "feed-forward"),
)
# Architectures that are only the drafting half of another model (src/llama-arch.cpp, b11434).
_DRAFT_ONLY = frozenset({"eagle3", "dflash"})


def load(path: str | Path) -> ModelSpec:
    """The model in a GGUF file, or in a split one from any of its parts.

    Only the headers are read. Data that is short or sparse makes `present` False and is said in `data_note`.
    Raises ModelError for a file that is unreadable, lacks parts, or is not a model that can run by itself.
    """
    return from_files(shards.read_all(Path(path)))


def from_files(files: shards.Files) -> ModelSpec:
    """Like load, of headers that are read already."""
    first = files.headers[0]
    _refuse_other_kinds(first.name, first.metadata)
    spec = raw_spec(files)
    _check_blocks(spec, first.name)
    return spec


def raw_spec(files: shards.Files) -> ModelSpec:
    """What the headers say, whatever kind of file they are of."""
    first = files.headers[0]
    metadata = first.metadata
    architecture = _architecture(first.name, metadata)
    tensors = files.tensors
    if not tensors:
        raise ModelError(
            f"{first.name}: holds no tensors (only a vocabulary)", hint="give the model's own file"
        )
    prefix = f"{architecture}."
    hparams = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    return ModelSpec(
        name=_name(metadata, files.path),
        architecture=architecture,
        quant=_quant(metadata, files.path, tensors),
        tensors=tensors,
        hparams=hparams,
        vocab_size=_vocabulary(first.array_lengths, hparams, tensors),
        file_bytes=files.file_bytes,
        path=str(files.path),
        present=files.missing_bytes == 0,
        files=files.parts,
        data_note=_data_note(files),
        licence=_text(metadata, "general.license"),
    )


def _architecture(where: str, metadata: dict[str, Any]) -> str:
    found = metadata.get("general.architecture")
    if not isinstance(found, str) or not found.isprintable() or not found:
        raise ModelError(f"{where}: 'general.architecture' is missing: not a language model's GGUF")
    return found


def block_of(tensor: Tensor) -> int | None:
    """The block a tensor belongs to; None for the embeddings, the output and what is outside blocks."""
    match = _BLOCK.match(tensor.name)
    return int(match[1]) if match else None


def is_expert(tensor: Tensor) -> bool:
    """Whether a tensor holds routed experts."""
    return EXPERT.search(tensor.name) is not None


def is_draft(spec: ModelSpec, tensor: Tensor) -> bool:
    """Whether a tensor belongs to a next-token-prediction block, which is not loaded unless asked for."""
    return _is_behind(tensor, spec.layers)


def _is_behind(tensor: Tensor, layers: int) -> bool:
    block = block_of(tensor)
    return block is not None and block >= layers


def active_parameters(spec: ModelSpec) -> int:
    """Weights that one token runs through: routed experts by the share that is used, no draft block.

    The token embedding is a lookup of one row and counts only where it is the output head as well (tied).
    """
    return _active(spec, lambda tensor: tensor.elements)


def active_bytes(spec: ModelSpec) -> int:
    """Bytes of weights that are read for one token, by the rules of `active_parameters`."""
    return _active(spec, lambda tensor: tensor.nbytes)


def _active(spec: ModelSpec, measure: Callable[[Tensor], int]) -> int:
    experts = spec.int_param("expert_count", 0)
    used = spec.int_param("expert_used_count", 0)
    tied = not any(tensor.name == "output.weight" for tensor in spec.tensors)
    layers = spec.layers
    total = 0
    for tensor in spec.tensors:
        looked_up = tensor.name == "per_layer_token_embd.weight"  # a few rows per token
        if looked_up or _is_behind(tensor, layers) or (tensor.name == "token_embd.weight" and not tied):
            continue
        if experts and is_expert(tensor):
            total += measure(tensor) * used // experts
        else:
            total += measure(tensor)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTotal:
    """What the tensors of one kind come to; `types` has the bytes by ggml type."""

    name: str
    tensors: int
    elements: int
    nbytes: int
    types: Mapping[str, int]


def tensor_class(tensor: Tensor, layers: int) -> str:
    """The kind of a tensor of a model with so many layers, in words a user knows."""
    name = tensor.name
    if name.startswith(("token_embd.", "per_layer_token_embd.")):
        return "token embedding"
    if name == "output.weight":
        return "output head"
    if _is_behind(tensor, layers):
        return "draft block"
    if is_expert(tensor):
        return "routed experts"
    if "shexp" in name:
        return "shared experts"
    if len(tensor.shape) < 2 or "norm" in name:
        return "norms and biases"
    for part, kind in _KINDS:
        if part in name:
            return kind
    return "other"


def class_totals(spec: ModelSpec) -> tuple[ClassTotal, ...]:
    """The tensors summed up by class, largest first."""
    groups: dict[str, list[Tensor]] = {}
    layers = spec.layers
    for tensor in spec.tensors:
        groups.setdefault(tensor_class(tensor, layers), []).append(tensor)
    totals = []
    for name, members in groups.items():
        types: dict[str, int] = {}
        for tensor in members:
            types[tensor.type.name] = types.get(tensor.type.name, 0) + tensor.nbytes
        totals.append(
            ClassTotal(
                name=name,
                tensors=len(members),
                elements=sum(tensor.elements for tensor in members),
                nbytes=sum(types.values()),
                types=types,
            )
        )
    return tuple(sorted(totals, key=lambda total: -total.nbytes))


def engine_needed(spec: ModelSpec) -> tuple[str, tuple[str, ...]] | None:
    """The only engine that reads a file's tensors, and the types that decide it; None where llama.cpp reads all."""
    kinds = {tensor.type for tensor in spec.tensors if tensor.type.engine != "llama.cpp"}
    if not kinds:
        return None
    return next(iter(kinds)).engine, tuple(sorted(kind.name for kind in kinds))


def _text(metadata: dict[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if not isinstance(value, str):
        return None
    return " ".join("".join(c if c.isprintable() else " " for c in value[:200]).split()) or None


def _name(metadata: dict[str, Any], path: Path) -> str:
    if name := _text(metadata, "general.name") or _text(metadata, "general.basename"):
        return name
    part = shards.part_of(path)
    return part[0] if part else path.stem


def _quant(metadata: dict[str, Any], path: Path, tensors: tuple[Tensor, ...]) -> str:
    """The file's own name says most (UD-IQ2_M is IQ2_M in the header); then the header; then the tensors."""
    if quant := ggml_types.quant_in_name(path.name):
        return quant
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and (name := ggml_types.file_type_name(file_type)):
        return name
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name]).upper()


def _vocabulary(lengths: dict[str, int], hparams: dict[str, Any], tensors: Iterable[Tensor]) -> int:
    if count := lengths.get("tokenizer.ggml.tokens"):
        return count
    stated = hparams.get("vocab_size")
    if isinstance(stated, int) and stated > 0:
        return stated
    rows = [
        tensor.shape[1] for tensor in tensors if tensor.name == "token_embd.weight" and len(tensor.shape) > 1
    ]
    return rows[0] if rows else 0


def _data_note(files: shards.Files) -> str | None:
    """One sentence about the parts whose data is not all there."""
    short = [header for header in files.headers if header.data_there < header.data_end]
    if not short:
        return None
    wanted = sum(header.data_end for header in files.headers)
    there = sum(header.data_there for header in files.headers)
    sparse = any(header.hole_bytes for header in short)
    names = ", ".join(Path(header.name).name for header in short[:3])
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    kind = (
        "is sparse (a stand-in without its data)" if sparse else "is short (a download that did not finish)"
    )
    return (
        f"{names}{more} {kind}: {there:,} of {wanted:,} bytes are there "
        f"({publisher_gb(there)} of {publisher_gb(wanted)})"
    )


def _refuse_other_kinds(where: str, metadata: dict[str, Any]) -> None:
    kind, architecture = metadata.get("general.type"), _architecture(where, metadata)
    if architecture == "clip" or kind == "mmproj":
        raise ModelError(
            f"{where}: a multimodal projector, not a language model",
            hint="give the model's own GGUF; llama.cpp takes this one with --mmproj",
        )
    if kind == "adapter":
        raise ModelError(
            f"{where}: a LoRA adapter, not a model", hint="give the model; --lora takes the adapter"
        )
    if kind == "imatrix" or architecture == "imatrix":
        raise ModelError(f"{where}: an importance matrix, not a model", hint="give the model's own GGUF")
    if architecture in _DRAFT_ONLY:
        raise ModelError(
            f"{where}: a draft head ({architecture}), not a model",
            hint="give the model's own GGUF; llama.cpp takes this one as its draft model",
        )


def _check_blocks(spec: ModelSpec, where: str) -> None:
    """Numbers that everything else loops over or divides by."""
    blocks = spec.int_param("block_count")
    drafts = spec.int_param("nextn_predict_layers", 0)
    if not 0 < blocks <= MAX_BLOCKS or not 0 <= drafts < blocks:
        raise ModelError(
            f"{where}: {blocks:,} blocks, {drafts:,} of them for drafting, "
            f"expected 1 to {MAX_BLOCKS} blocks and fewer for drafting"
        )
    experts = spec.int_param("expert_count", 0)
    used = spec.int_param("expert_used_count", 0)
    if not 0 <= used <= experts:
        raise ModelError(f"{where}: {used:,} experts used of {experts:,}, expected no more than there are")
    if drafts and not any(block_of(tensor) == 0 for tensor in spec.tensors):
        raise ModelError(
            f"{where}: holds only the blocks for drafting (next-token prediction), not the model",
            hint="give the model's own GGUF",
        )
