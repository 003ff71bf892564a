"""Multimodal projectors (mmproj files): read from a GGUF, modelled from the catalog, and chosen as llama.cpp does.

A projector is a ModelSpec of architecture `clip` whose `hparams` are the header's keys without that prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from plan_llama.errors import ModelError
from plan_llama.models import ggml_types, locate, shards
from plan_llama.models.known_models import KnownModel, KnownQuant
from plan_llama.models.spec import raw_spec
from plan_llama.models.types import Download, ModelSpec

# clip_model_loader::load_hparams asks for these; they are no part of the memory
_EPSILON, _PIXELS = 1e-6, (0.5, 0.5, 0.5)


def is_projector(spec: ModelSpec) -> bool:
    """Whether a spec is a projector's and not a language model's."""
    return spec.architecture == "clip"


def load(path: str | Path) -> ModelSpec:
    """The projector in a GGUF file. Raises ModelError for a file that is unreadable or something else."""
    return from_files(shards.read_all(Path(path)))


def from_files(files: shards.Files) -> ModelSpec:
    """Like load, of headers that are read already."""
    first = files.headers[0]
    if first.metadata.get("general.architecture") != "clip":
        raise ModelError(
            f"{first.name}: not a multimodal projector (mmproj)",
            hint="--mmproj takes the projector's own GGUF",
        )
    spec = raw_spec(files)
    for key in ("embedding_length", "attention.head_count", "patch_size"):
        if spec.hparams.get("has_vision_encoder") and spec.int_param(f"vision.{key}") < 1:
            raise ModelError(f"{first.name}: 'clip.vision.{key}' is 0, expected a positive number")
    return spec


def of_known(
    known: KnownModel, quant: KnownQuant, *, beside: ModelSpec | None = None, folder: Path | None = None
) -> ModelSpec | None:
    """The projector of a catalog model: its file where that is here, else modelled, with the download command.

    `beside` is the model's own file, whose folder is looked into. None for a model without a projector, or one whose
    tower the catalog does not describe.
    """
    item = known.projector
    if item is not None and beside is not None and (found := in_folder_of(beside)):
        return found
    if item is None or item.kind is None:
        return None
    if item.file and (path := locate.find(quant.repo, (item.file,))):
        try:
            return load(path)
        except ModelError:
            pass  # damaged: it is to be downloaded again
    output = (ggml_types.quant_in_name(item.file) if item.file else None) or "F16"
    from plan_llama.models.tables import towers

    tensors = towers.tower_tensors(item.kind, item.hparams, output)
    if tensors is None:
        return None
    where = folder or locate.download_folder(quant.repo)
    size = sum(tensor.nbytes for tensor in tensors)
    pattern = item.file or "*mmproj*"
    target = str(where / item.file) if item.file else str(where)
    return ModelSpec(
        name=f"{known.name} projector",
        architecture="clip",
        quant=output,
        tensors=tensors,
        hparams={
            **item.hparams,
            "vision.attention.layer_norm_epsilon": _EPSILON,
            "vision.image_mean": _PIXELS,
            "vision.image_std": _PIXELS,
        },
        vocab_size=0,
        file_bytes=size,
        path=target,
        source="catalog",
        download=Download(
            repo=quant.repo,
            quant=output,
            files=(item.file,) if item.file else (),
            size_bytes=size,
            argv=("hf", "download", quant.repo, "--include", pattern, "--local-dir", str(where)),
            path=target,
            url=f"https://huggingface.co/{quant.repo}",
        ),
        licence=known.licence,
    )


def in_folder_of(spec: ModelSpec) -> ModelSpec | None:
    """The projector that lies in the folder of a model's file; None where there is none that can be read."""
    if not spec.files:
        return None
    folder = Path(spec.files[0][0]).parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(".gguf"))
    except OSError:
        return None
    name = choose(names, Path(spec.files[0][0]).name)
    try:
        return load(folder / name) if name else None
    except ModelError:
        return None


def choose(paths: Iterable[str], model: str) -> str | None:
    """The file that `-hf` takes with a model: in the folder nearest to it, of the nearest number of bits.

    Source: find_best_mmproj in common/download.cpp, b11434.
    """
    best: tuple[int, int] | None = None
    chosen = None
    parents = model.split("/")[:-1]
    for path in paths:
        folders = path.split("/")[:-1]
        if "mmproj" not in path or not path.endswith(".gguf") or folders != parents[: len(folders)]:
            continue
        rank = (-len(folders), abs(_bits(path) - _bits(model)))
        if best is None or rank < best:
            best, chosen = rank, path
    return chosen


def _bits(name: str) -> int:
    """extract_quant_bits: the first number of the quant in a name."""
    found = re.search(r"[0-9]+", ggml_types.quant_in_name(name.rpartition("/")[2]) or "")
    return int(found[0]) if found else 0
