"""From what a user calls a model to its spec: a catalog name or a GGUF, and how to get what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from plan_llama.errors import ModelError, UsageError
from plan_llama.hardware.types import Source
from plan_llama.models import catalog_models, locate
from plan_llama.models.catalog_models import KnownModel, KnownQuant
from plan_llama.models.spec import load
from plan_llama.models.types import Download, ModelSpec

_FORMS = "give a catalog name (plan-llama models lists them) or a GGUF file"


def resolve_model(text: str, quant: str | None = None, *, download_dir: Path | None = None) -> ModelSpec:
    """The model that `--model` names.

    A file (any part of a split one) is read; a catalog name is looked for on this machine and, where it
    is not there, modelled from the catalog with the command that downloads it (into `download_dir`, else
    ~/models). Without `quant` a catalog name means the profile's default. Raises UsageError for words
    that mean nothing, ModelError for an unknown name or an unreadable file.
    """
    if not text.strip():
        raise UsageError("--model is empty", hint=_FORMS)
    path = Path(text)
    if _is_file(path) or text.lower().endswith(".gguf"):
        return _from_file(path, quant)
    known = catalog_models.find(text)
    if known is None:
        _refuse_other_forms(text, path)
        known = catalog_models.get(text)  # raises with the nearest names
    return from_catalog(known, catalog_models.get_quant(known, quant), download_dir=download_dir)


def from_catalog(known: KnownModel, item: KnownQuant, *, download_dir: Path | None = None) -> ModelSpec:
    """The spec of one catalog quant: the real header where the file is here, else the modelled table.

    `download` is there unless the whole file is. Where the names of the files are not known (`files`
    empty) `path` is None and `download.path` is the folder.
    """
    found = locate.find(item.repo, item.files, include=item.include, quant=item.quant)
    note = None
    if found:
        try:
            spec = _with_catalog(replace(load(found), quant=item.quant), known)
        except ModelError as error:
            note = f"found on this machine but unreadable ({error.line()})"
        else:
            if spec.present:
                return spec
            return replace(spec, download=_download(item, download_dir))
    modelled = catalog_models.build(known, item)
    download = _download(item, download_dir)
    return replace(
        modelled, download=download, path=download.path if item.files else None, present=False, data_note=note
    )


def _download(item: KnownQuant, download_dir: Path | None) -> Download:
    folder = download_dir or locate.download_folder(item.repo)
    return Download(
        repo=item.repo,
        quant=item.quant,
        files=item.files,
        size_bytes=item.size_bytes,
        argv=("hf", "download", item.repo, "--include", item.include, "--local-dir", str(folder)),
        path=str(folder / item.files[0]) if item.files else str(folder),
        url=f"https://huggingface.co/{item.repo}",
    )


def _from_file(path: Path, quant: str | None) -> ModelSpec:
    spec = load(path)
    if quant is not None and quant.lower() != spec.quant.lower():
        raise UsageError(
            f"--quant {quant} does not go with the file {path}, which is {spec.quant}",
            hint="leave --quant out, or name the model instead of a file",
        )
    guessed = catalog_models.guess(path.name)
    known = catalog_models.find(spec.name) or (catalog_models.model(guessed[0]) if guessed else None)
    return _with_catalog(spec, known) if known and _same_shapes(spec, known) else spec


def _same_shapes(spec: ModelSpec, known: KnownModel) -> bool:
    """A name alone proves nothing: a fine-tune or a distillate often carries it."""
    keys = ("block_count", "embedding_length", "expert_count", "context_length")
    return spec.architecture == known.architecture and all(
        spec.hparams.get(key) == known.hparams.get(key) for key in keys
    )


def _with_catalog(spec: ModelSpec, known: KnownModel) -> ModelSpec:
    """What a file does not say and the catalog does: sampling, licence, what is known to break."""
    sources: Mapping[str, Source] = MappingProxyType({**spec.sources, "sampling": "catalog"})
    return replace(
        spec,
        name=known.name,
        catalog_id=known.id,
        licence=spec.licence or known.licence,
        sampling=known.sampling,
        kv_quantisation_breaks=known.kv_quantisation_breaks,
        sources=sources,
    )


def _refuse_other_forms(text: str, path: Path) -> None:
    scheme = text.split(":", 1)[0].lower() if ":" in text else ""
    if scheme in ("hf", "ollama", "http", "https"):
        raise UsageError(f"--model {text}: this version does not understand {scheme}: models", hint=_FORMS)
    try:
        is_folder = path.is_dir()
        has_config = is_folder and (path / "config.json").is_file()
        ggufs = sorted(entry.name for entry in path.glob("*.gguf"))[:3] if is_folder else []
    except (OSError, ValueError):
        return
    if has_config:
        raise UsageError(
            f"--model {text}: this version does not read folders with a config.json", hint=_FORMS
        )
    if is_folder:
        hint = f"give the file, such as {path / ggufs[0]}" if ggufs else _FORMS
        raise UsageError(f"--model {text}: a folder", hint=hint)


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False
