"""Which model a checked command means: its file, what the name of a file that is elsewhere says, or --model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plan_llama.cli import images
from plan_llama.cli.model_notes import about_file
from plan_llama.cli.options import ModelOptions
from plan_llama.engines.commandline import ParsedArgument, ParsedCommand
from plan_llama.errors import ModelError
from plan_llama.findings import Finding
from plan_llama.memory.footprint import Footprint
from plan_llama.models import catalog_models, projectors
from plan_llama.models.catalog_models import KnownModel, KnownQuant
from plan_llama.models.resolve import from_catalog, resolve_model
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec
from plan_llama.units import gib

_DEFAULT_TAG = "Q4_K_M"  # what -hf owner/repo without a tag loads (common/arg.cpp, b11434)


def model_of(parsed: ParsedCommand, options: ModelOptions) -> tuple[ModelSpec | None, list[Finding]]:
    """The model, or None with the finding that says why it is not known. Nothing is fetched."""
    if options.model is not None:
        spec = resolve_model(options.model, options.quant)
        return spec, about_file(spec)
    words = {name: item for item in parsed.arguments if item.argument for name in item.argument.names}
    path, repo = _value(words.get("-m")), _value(words.get("-hf"))
    if path is not None and _is_file(path):
        spec = load(path)
        return spec, about_file(spec)
    if path is not None:
        found = _by_file_name(path)
    elif repo is not None:
        found = _by_repository(repo, _value(words.get("-hff")))
    else:
        text = "the command names no model (-m FILE)"
        return None, [Finding(id="model-missing", severity="error", text=text, fix="name it, or add --model")]
    name = path or repo
    if found is None:
        what = "no such file, and its name is not that" if path else "not the name"
        text = f"{name}: {what} of a model and quant in the catalog: memory and speed are unknown"
        fix = "--model NAME before -- says which model it is"
        if path is None:  # nothing is fetched because a command names it
            fix += f"; --model hf:{repo} asks the hub"
        return None, [Finding(id="file-not-found", severity="error", text=text, fix=fix)]
    known, quant = found
    spec = from_catalog(known, quant)
    if path is None and repo is not None and repo.partition(":")[0].lower() == quant.repo.lower():
        return spec, about_file(spec)
    text = f"{name} is not here; by its name it is taken for {known.name} {quant.quant} of {quant.repo}"
    taken = Finding(
        id="file-not-found", severity="warning", text=text, fix="--model NAME before -- if that is wrong"
    )
    return spec, [taken, *about_file(spec)]


def with_projector(
    parsed: ParsedCommand, spec: ModelSpec, options: ModelOptions
) -> tuple[ModelSpec, list[Finding]]:
    """The model with the projector that the command loads: --mmproj's, the repository's own with -hf, or none.

    A file that is not here is taken for the one that the catalog knows of the model.
    """
    if options.mmproj is not None or options.no_mmproj:
        return images.with_projector(spec, options), []
    words = {name: item for item in parsed.arguments if item.argument for name in item.argument.names}
    path, url = _value(words.get("-mm")), _value(words.get("-mmu"))
    if path is None and url is None:
        automatic = words.get("--mmproj-auto")
        taken = "-hf" in words and not (automatic is not None and automatic.negated)
        return (spec if taken else replace(spec, projector=None)), []
    if path is not None and _is_file(path):
        return replace(spec, projector=projectors.load(path)), []
    known = spec.projector or _known_projector(spec)
    name = path or url
    if known is None:
        text = f"{name}: not here, and the catalog knows no projector of this model: it is not counted"
        fix = "--mmproj FILE before -- names one that is here"
        return replace(spec, projector=None), [
            Finding(id="not-counted", severity="warning", text=text, fix=fix)
        ]
    text = f"{name} is not here; it is taken for the {known.quant} projector of this model"
    found = Finding(
        id="file-not-found", severity="note", text=text, fix="--mmproj FILE before -- if that is wrong"
    )
    return replace(spec, projector=known), [found]


def with_draft(parsed: ParsedCommand, spec: ModelSpec) -> tuple[ModelSpec, list[Finding]]:
    """The model with the one that drafts for it, --spec-draft-model's; a file that is not here is known by its name."""
    words = {name: item for item in parsed.arguments if item.argument for name in item.argument.names}
    path = _value(words.get("-md"))
    if path is None:
        return spec, []
    if _is_file(path):
        try:
            return replace(spec, draft=load(path)), []
        except ModelError as error:  # made for drafting only: its graph is not described
            return spec, [Finding(id="draft-not-described", severity="note", text=str(error))]
    found = _by_file_name(path)
    if found is None:
        return spec, []
    known, quant = found
    text = f"{path} is not here; by its name it is taken for {known.name} {quant.quant}"
    fix = "name a file that is here if that is wrong"
    taken = Finding(id="file-not-found", severity="note", text=text, fix=fix)
    return replace(spec, draft=from_catalog(known, quant)), [taken]


def about_draft(spec: ModelSpec, used: Footprint) -> list[Finding]:
    """What the model that drafts takes of the command's memory."""
    if used.draft is None or spec.draft is None:
        return []
    parts = {
        device.pool: part.total_bytes for device, part in zip(used.devices, used.draft.devices, strict=True)
    }
    sizes = [f"{gib(size)} on {name}" for name, size in parts.items() if size]
    sizes.append(f"{gib(used.draft.host.total_bytes)} on the host")
    text = (
        f"the draft model {spec.draft.name} takes {', '.join(sizes)} of that; the speed is without drafting"
    )
    return [Finding(id="draft-model-counted", severity="note", text=text)]


def _known_projector(spec: ModelSpec) -> ModelSpec | None:
    if spec.catalog_id is None:
        return None
    known = catalog_models.model(spec.catalog_id)
    return projectors.of_known(known, known.quants[0])


def _value(item: ParsedArgument | None) -> str | None:
    return item.values[0] if item and item.values else None


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False


def _by_file_name(name: str) -> tuple[KnownModel, KnownQuant] | None:
    guess = catalog_models.guess(Path(name).name)
    if guess is None:
        return None
    known = catalog_models.model(guess[0])
    return known, catalog_models.get_quant(known, guess[1])


def _by_repository(name: str, file: str | None) -> tuple[KnownModel, KnownQuant] | None:
    """What `-hf owner/repo[:QUANT]` means: the catalog's own repository, else one that is named after a model."""
    if file is not None:
        return _by_file_name(file)
    repo, _, tag = name.partition(":")
    wanted = (repo.lower(), (tag or _DEFAULT_TAG).lower())
    for known in catalog_models.by_repository(repo):
        for quant in known.quants:
            if quant.plannable and (quant.repo.lower(), quant.quant.lower()) == wanted:
                return known, quant
    return _by_file_name(f"{repo.rpartition('/')[2].removesuffix('-GGUF')}-{tag or _DEFAULT_TAG}.gguf")
