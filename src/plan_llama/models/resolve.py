"""From what a user calls a model to its spec: a catalog name or a GGUF, and how to get what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from plan_llama.errors import ModelError, UsageError
from plan_llama.models import catalog_models, locate, projectors
from plan_llama.models.catalog_models import KnownModel, KnownQuant
from plan_llama.models.spec import load
from plan_llama.models.types import Download, ModelSpec

if TYPE_CHECKING:
    from plan_llama.hardware.types import Source

_FIRST_KEYS_BYTES = 64 << 10
_FORMS = (
    "give a catalog name (plan-llama models lists them), a GGUF file, a folder with a config.json, "
    "hf:OWNER/REPO:QUANT or ollama:NAME"
)


def resolve_model(text: str, quant: str | None = None, *, download_dir: Path | None = None) -> ModelSpec:
    """The model that `--model` names.

    A file (any part of a split one) is read; `hf:` and `https:` names have their headers read over the
    network, `ollama:` names are looked up in Ollama's store; a folder with a config.json is the GGUF that
    llama.cpp's tools would make of it; a catalog name is looked for on this machine
    and, where it is not there, modelled from the catalog with the command that downloads it (into
    `download_dir`, else ~/models). Without `quant` a catalog name means the profile's default. Raises
    UsageError for words that mean nothing, ModelError for an unknown name or an unreadable file.
    """
    if not text.strip():
        raise UsageError("--model is empty", hint=_FORMS)
    path = Path(text)
    text = text if _is_file(path) else spelled(text)
    if not _is_file(path) and (named := _by_scheme(text, quant, download_dir)):
        return _with_known(named, Path(named.path or "").name)
    if _is_file(path) or text.lower().endswith(".gguf"):
        return _from_file(path, quant)
    known = catalog_models.find(text)
    if known is None:
        if _is_file(path / "config.json"):
            from plan_llama.models.config_folder import from_folder

            return from_folder(path, quant)
        _refuse_other_forms(text, path)
        known = catalog_models.get(text)  # raises with the nearest names
    if quant and known.named(quant) is None and (made := _unpublished(known, quant, download_dir)):
        return made
    return from_catalog(known, catalog_models.get_quant(known, quant), download_dir=download_dir)


def projector_file(text: str) -> ModelSpec | None:
    """The projector in a file on this machine; None for any other name, and for a file that is something else."""
    path = Path(text)
    if not _is_file(path):
        return None
    try:
        with path.open("rb") as file:
            start = file.read(_FIRST_KEYS_BYTES)
    except OSError:
        return None
    if (
        b"clip" not in start
    ):  # a projector's architecture, which is written first: no need to read the rest twice
        return None
    try:
        return projectors.load(path)
    except ModelError:
        return None  # whoever wants the model says what is wrong with the file


def _unpublished(known: KnownModel, quant: str, download_dir: Path | None) -> ModelSpec | None:
    """A mix of llama.cpp's own tools: the file where somebody made it here; None for any other quant."""
    from plan_llama.models import quant_mix, unpublished

    name = quant_mix.mix_name(quant)
    if name is None:
        return None
    if published := known.named(name):  # another spelling, as Q4_K of Q4_K_M
        return from_catalog(known, published, download_dir=download_dir)
    made = unpublished.of_known(known, name, folder=download_dir)
    made = replace(made, projector=projectors.of_known(known, known.quants[0], folder=download_dir))
    target = Path(made.path or "")
    return _from_file(target, None) if _is_file(target) else made


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
            spec = replace(spec, projector=projectors.of_known(known, item, beside=spec, folder=download_dir))
        except ModelError as error:
            note = f"found on this machine but unreadable ({error.line()})"
        else:
            if spec.present:
                return spec
            return replace(spec, download=_download(item, download_dir))
    modelled = catalog_models.build(known, item)
    download = _download(item, download_dir)
    return replace(
        modelled,
        download=download,
        path=download.path if item.files else None,
        present=False,
        data_note=note,
        projector=projectors.of_known(known, item, folder=download_dir),
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
        from plan_llama.models import quant_mix, unpublished

        if quant_mix.mix_name(quant) and spec.quant in quant_mix.PLAIN:
            return unpublished.of_file(_with_known(spec, path.name), quant)
        raise UsageError(
            f"--quant {quant} does not go with the file {path}, which is {spec.quant}",
            hint="leave --quant out, or name the model instead of a file",
        )
    return replace(_with_known(spec, path.name), projector=projectors.in_folder_of(spec))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One quant that `--model` leaves open; `load` finds or models it, and may ask a server."""

    quant: str
    size_bytes: int
    repo: str
    load: Callable[[], ModelSpec]
    kl_divergence: float | None = None  # from the unquantised model, as published of this file


def choices(text: str, *, download_dir: Path | None = None) -> tuple[Choice, ...]:
    """The quants among which to choose where `--quant` is not given, largest first.

    Empty where `text` names one file (or nothing). For an `hf:` name the repository is listed, which can
    raise ModelError.
    """
    text = spelled(text)
    if _scheme(text) == "hf":
        from plan_llama.models import hub, remote

        name = hub.parse(text)
        if name.quant or name.file:
            return ()
        return tuple(
            Choice(
                quant=item.quant,
                size_bytes=item.size_bytes,
                repo=name.repo,
                load=partial(_loaded, loader),
            )
            for item, loader in remote.hub_loaders(text, download_dir=download_dir)
        )
    known = catalog_models.find(text) if not text.lower().endswith(".gguf") else None
    if known is None:
        return ()
    usable = sorted((quant for quant in known.quants if quant.plannable), key=lambda quant: -quant.size_bytes)
    return tuple(
        Choice(
            quant=item.quant,
            size_bytes=item.size_bytes,
            repo=item.repo,
            load=partial(from_catalog, known, item, download_dir=download_dir),
            kl_divergence=item.kld,
        )
        for item in usable
    )


def all_choices(text: str, spec: ModelSpec) -> tuple[Choice, ...]:
    """Every quant of the model that `text` named and `spec` is, also where `text` says which one."""
    text = spelled(text)
    if _scheme(text) == "hf":
        from plan_llama.models import hub

        return choices(f"hf:{hub.parse(text).full}")
    return choices(spec.catalog_id) if spec.catalog_id else ()


def _loaded(loader: Callable[[], ModelSpec]) -> ModelSpec:
    spec = loader()
    return _with_known(spec, Path(spec.path or "").name)


def spelled(text: str) -> str:
    """A name as the sources have it: a link to the hub (with or without https://, or hf.co/…) as its `hf:` name."""
    if not re.match(r"\s*(https?://|hf\.co/|huggingface\.co/)", text):
        return text
    from plan_llama.models import hub

    return hub.spelled(text)


def _scheme(text: str) -> str:
    """`hf`, `ollama`, `http` or `https` where a name begins so; a drive letter is none."""
    scheme, colon, _ = text.partition(":")
    return scheme.lower() if colon and scheme.lower() in ("hf", "ollama", "http", "https") else ""


def _by_scheme(text: str, quant: str | None, download_dir: Path | None) -> ModelSpec | None:
    """The model of a name that begins with its source; None for other names. Imports what it needs."""
    scheme = _scheme(text)
    if scheme == "ollama":
        from plan_llama.models import ollama

        return ollama.resolve(text, quant)
    if scheme:
        from plan_llama.models import remote

        ask = remote.from_hub if scheme == "hf" else remote.from_url
        return ask(text, quant, download_dir=download_dir)
    return None


def _with_known(spec: ModelSpec, file_name: str) -> ModelSpec:
    known = catalog_models.find(spec.name)
    if known is None and (guessed := catalog_models.guess(file_name)):
        known = catalog_models.model(guessed[0])
    return _with_catalog(spec, known) if known and _same_shapes(spec, known) else spec


def _same_shapes(spec: ModelSpec, known: KnownModel) -> bool:
    """A name alone proves nothing: a fine-tune or a distillate often carries it."""
    keys = ("embedding_length", "expert_count", "context_length")
    trunk = int(known.hparams.get("block_count", 0)) - int(known.hparams.get("nextn_predict_layers", 0))
    return (
        spec.architecture == known.architecture
        and spec.layers == trunk  # without the blocks for drafting, which some files have and others not
        and all(spec.hparams.get(key) == known.hparams.get(key) for key in keys)
    )


def _with_catalog(spec: ModelSpec, known: KnownModel) -> ModelSpec:
    """What a file does not say and the catalog does: sampling, licence, what is known to break."""
    sources: Mapping[str, Source] = MappingProxyType({**spec.sources, "sampling": "catalog"})
    return replace(
        spec,
        name=known.name,
        catalog_id=known.id,
        licence=spec.licence or known.licence,
        sampling=spec.sampling or known.sampling,
        kv_quantisation_breaks=known.kv_quantisation_breaks,
        sources=sources,
    )


def _refuse_other_forms(text: str, path: Path) -> None:
    try:
        is_folder = path.is_dir()
        ggufs = sorted(entry.name for entry in path.glob("*.gguf"))[:3] if is_folder else []
    except (OSError, ValueError):
        return
    if is_folder:
        hint = f"give the file, such as {path / ggufs[0]}" if ggufs else _FORMS
        raise UsageError(f"--model {text}: a folder", hint=hint)


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False
