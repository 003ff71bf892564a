"""A folder with a model's published weights: the GGUF that llama.cpp's tools make of it, before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plan_llama.errors import ModelError, ProfileError
from plan_llama.models import quant_mix
from plan_llama.models.config import from_config, read_config
from plan_llama.models.types import ModelSpec, Tensor

_DTYPES = {"float16": "F16", "float32": "F32"}  # all others are converted to BF16


def from_folder(folder: Path, quant: str | None = None) -> ModelSpec:
    """The GGUF that would be made of a folder with a config.json, in a mix of llama-quantize or as converted.

    Only config.json is read. `made_with` is the command that makes the file, beside the weights. Raises
    ModelError where the config is not readable, its architecture is not described, or there is no such mix.
    """
    path = folder / "config.json"
    return spec_of(read_config(path), folder.resolve().name, quant, where=str(path), folder=folder)


def spec_of(
    config: Mapping[str, Any],
    name: str,
    quant: str | None = None,
    *,
    where: str,
    folder: Path,
) -> ModelSpec:
    """The same for a config from elsewhere: `where` is what errors call it, `folder` where the weights are."""
    architecture, hparams, vocab = from_config(config, where)
    mix = quant_mix.mix_name(quant or plain_type(config))
    if mix is None:
        raise ModelError(
            f"{where}: llama.cpp's tools make no {quant} of it",
            hint=f"they make {', '.join(sorted(quant_mix.DEFAULT_TYPES))}",
        )
    try:
        tensors = quant_mix.tensors_of(architecture, hparams, vocab, mix)
    except ProfileError as error:
        raise ModelError(f"{where}: {error.message}") from error
    if tensors is None:
        raise ModelError(f"{where}: no table for {architecture}")
    _check(tensors, hparams, where)
    plain = mix if mix in quant_mix.PLAIN else "BF16"
    converted, target = str(folder / f"{name}-{plain}.gguf"), str(folder / f"{name}-{mix}.gguf")
    words: tuple[str, ...] = (
        "convert_hf_to_gguf.py",
        "--outtype",
        plain.lower(),
        "--outfile",
        converted,
        str(folder),
    )
    if mix != plain:
        matrix = str(folder / "imatrix.gguf") if quant_mix.needs_imatrix(tensors, mix) else None
        words = quant_mix.command(converted, target, mix, imatrix=matrix)
    return ModelSpec(
        name=name,
        architecture=architecture,
        quant=mix,
        tensors=tensors,
        hparams=hparams,
        vocab_size=vocab,
        file_bytes=quant_mix.file_size(tensors, vocab_size=vocab).total_bytes,
        path=target,
        source="modelled",
        made_with=words,
        sources={"file_bytes": "modelled", "tensors": "modelled"},
    )


def _check(tensors: tuple[Tensor, ...], hparams: Mapping[str, Any], where: str) -> None:
    """A config comes from outside: what is counted and divided by later must be there."""
    for tensor in tensors:
        if min(tensor.shape, default=1) < 1:
            shape = " x ".join(map(str, tensor.shape))
            raise ModelError(f"{where}: its numbers make {tensor.name} a tensor of {shape}")
    experts, used = hparams.get("expert_count", 0), hparams.get("expert_used_count", 0)
    if not used <= experts:
        raise ModelError(f"{where}: {used:,} experts used of {experts:,}, expected no more than there are")


def plain_type(config: Mapping[str, Any]) -> str:
    """The 16-bit type that the converter chooses by itself (`--outtype auto`)."""
    text = config.get("text_config")
    parts = (config, text if isinstance(text, Mapping) else {})
    found = next(
        (part[key] for part in parts for key in ("dtype", "torch_dtype") if isinstance(part.get(key), str)),
        "bfloat16",
    )
    return _DTYPES.get(found.removeprefix("torch."), "BF16")
