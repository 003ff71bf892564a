"""Files that nobody publishes and llama.cpp's own tools make: their tensors, their size, and the command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from plan_llama.errors import ModelError
from plan_llama.models import locate, quant_mix
from plan_llama.models.catalog_models import KnownModel
from plan_llama.models.types import ModelSpec, Tensor


def of_known(known: KnownModel, mix: str, *, folder: Path | None = None) -> ModelSpec:
    """A catalog model in a mix that is not published: made in `folder`, by default ~/models/ID.

    `made_with` is the command that makes the file, from the catalog's 16-bit one where that is published.
    Raises ModelError for a mix that llama.cpp's tools do not make, or a model whose shapes are not known.
    """
    name = quant_mix.mix_name(mix)
    tensors = quant_mix.tensors_of(known.architecture, known.hparams, known.vocab_size, mix)
    if name is None or tensors is None:
        raise ModelError(
            f"{known.name} {mix} is not published, and the shapes of {known.architecture} are not known here"
        )
    folder = folder or locate.download_folder(known.id)
    target = str(folder / f"{known.id}-{name}.gguf")
    words: tuple[str, ...]
    if name in quant_mix.PLAIN:
        words = ("convert_hf_to_gguf.py", "--outtype", name.lower(), "--outfile", target, str(folder / "hf"))
    else:
        plain = quant_mix.converted(known.architecture, ((t.name, t.shape) for t in tensors))
        words = _quantise(_plain_file(known, folder), plain, tensors, target, name)
    size = quant_mix.file_size(tensors, vocab_size=known.vocab_size)
    return ModelSpec(
        name=known.name,
        architecture=known.architecture,
        quant=name,
        tensors=tensors,
        hparams=known.hparams,
        vocab_size=known.vocab_size,
        file_bytes=size.total_bytes,
        path=target,
        source="modelled",
        made_with=words,
        catalog_id=known.id,
        licence=known.licence,
        sampling=known.sampling,
        kv_quantisation_breaks=known.kv_quantisation_breaks,
        sources={"file_bytes": "modelled", "tensors": "modelled"},
    )


def of_file(spec: ModelSpec, mix: str) -> ModelSpec:
    """What llama-quantize makes of a model's file (F32, F16 or BF16), beside it.

    Raises ModelError for a file that is quantised already, or a mix that llama-quantize does not make.
    """
    name = quant_mix.mix_name(mix)
    if name is None or spec.quant not in quant_mix.PLAIN or spec.path is None:
        raise ModelError(
            f"{spec.name} is {spec.quant}: {mix} is made from a BF16, F16 or F32 file",
            hint="leave --quant out, or name the model instead of a file",
        )
    tensors = quant_mix.made(spec.architecture, spec.hparams, spec.tensors, name)
    metadata = (
        spec.file_bytes - quant_mix.file_size(spec.tensors, vocab_size=0, vocabulary_bytes=0).total_bytes
    )
    size = quant_mix.file_size(tensors, vocab_size=0, vocabulary_bytes=metadata)
    source = Path(spec.path)
    target = str(source.with_name(f"{spec.catalog_id or source.stem}-{name}.gguf"))
    return replace(
        spec,
        quant=name,
        tensors=tensors,
        file_bytes=size.total_bytes,
        path=target,
        present=False,
        files=(),
        source="modelled",
        data_note=None,
        made_with=_quantise(spec.path, spec.tensors, tensors, target, name),
        sources={**spec.sources, "file_bytes": "modelled", "tensors": "modelled"},
    )


def _plain_file(known: KnownModel, folder: Path) -> str:
    for plain in quant_mix.PLAIN:
        published = known.named(plain)
        if published and published.files:
            return str(locate.download_folder(published.repo) / published.files[0])
    return str(folder / f"{known.id}-BF16.gguf")


def _quantise(
    source: str, before: Iterable[Tensor], after: tuple[Tensor, ...], target: str, mix: str
) -> tuple[str, ...]:
    packed = {tensor.name: tensor.type for tensor in before if tensor.type.quantised}
    needed = quant_mix.needs_imatrix(after, mix)
    return quant_mix.command(
        source,
        target,
        mix,
        imatrix=str(Path(target).with_name("imatrix.gguf")) if needed else None,
        requantise=any(packed.get(tensor.name, tensor.type) != tensor.type for tensor in after),
    )
