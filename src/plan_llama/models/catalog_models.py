"""The models that are known by name: one TOML profile each under `models/`, and the specs they describe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from plan_llama import catalog
from plan_llama.errors import ModelError, ProfileError, did_you_mean
from plan_llama.models import ggml_types
from plan_llama.models.known_models import MADE, KnownModel, KnownQuant, TypeRule, parse
from plan_llama.models.types import ModelSpec, Tensor, TensorType

__all__ = [
    "INDEX",
    "MADE",
    "KnownModel",
    "KnownQuant",
    "TypeRule",
    "build",
    "by_repository",
    "find",
    "get",
    "get_quant",
    "guess",
    "index_of",
    "list_models",
    "model",
    "model_ids",
    "names",
    "nearest",
    "resolve",
    "type_of",
]

INDEX = "index.json"  # beside the shipped profiles, made by scripts/model_index.py


@cache
def model_ids() -> tuple[str, ...]:
    """The ids of all models of the catalog, sorted."""
    return tuple(sorted(catalog.files("models")))


@cache
def model(model_id: str) -> KnownModel:
    """A model by its exact id. Raises ProfileError for a wrong profile, KeyError where there is none."""
    return parse(model_id, catalog.file("models", model_id))


def list_models() -> tuple[KnownModel, ...]:
    """Every model of the catalog, by id."""
    return tuple(model(model_id) for model_id in model_ids())


def index_of(models: Iterable[KnownModel]) -> dict[str, dict[str, Any]]:
    """What a name and a repository stand for, so that looking one up reads no other model's profile.

    `names`: id by id, name or alias; `repositories`: ids by repository, in lower case.
    """
    known_names: dict[str, str] = {}
    repositories: dict[str, list[str]] = {}
    for known in models:
        for alias in (known.id, known.name, *known.aliases):
            known_names.setdefault(_plain(alias), known.id)
        for repo in dict.fromkeys(quant.repo.lower() for quant in known.quants):
            repositories.setdefault(repo, []).append(known.id)
    return {"names": known_names, "repositories": repositories}


@cache
def _shipped_index() -> Mapping[str, Mapping[str, Any]]:
    """The index of the shipped profiles; they are all read where it is missing."""
    folder = catalog.root() / "models"
    try:
        index: dict[str, dict[str, Any]] = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError):
        return index_of(parse(path.stem, path) for path in sorted(folder.glob("*.toml")))
    return index


@cache
def _index(own: Path) -> Mapping[str, Mapping[str, Any]]:
    """The shipped index with a user's own profiles in front of it."""
    shipped = _shipped_index()
    files = sorted((own / "models").glob("*.toml"))
    if not files:
        return shipped
    mine = index_of(parse(path.stem, path) for path in files)
    replaced = {path.stem for path in files}
    kept_names = {name: found for name, found in shipped["names"].items() if found not in replaced}
    repositories: dict[str, list[str]] = {}
    for repo, ids in (*mine["repositories"].items(), *shipped["repositories"].items()):
        repositories.setdefault(repo, []).extend(ids)
    return {"names": {**kept_names, **mine["names"]}, "repositories": repositories}


def names() -> Mapping[str, str]:
    """The id that every known name stands for: ids, names and aliases in lower case, blanks as dashes."""
    found: Mapping[str, str] = _index(catalog.user_root())["names"]
    return found


def by_repository(repo: str) -> tuple[KnownModel, ...]:
    """The models of which that repository (owner/name, in any case) has a quant."""
    ids = _index(catalog.user_root())["repositories"].get(repo.lower(), ())
    return tuple(model(found) for found in dict.fromkeys(ids) if found in model_ids())


def find(name: str) -> KnownModel | None:
    """The model of that id, name or alias, in any case and with blanks for dashes; None for none."""
    wanted = _plain(name)
    if wanted in model_ids():
        return model(wanted)
    found = names().get(wanted)
    return model(found) if found in model_ids() else None


def get(name: str) -> KnownModel:
    """Like find, but an unknown name raises ModelError with the nearest names."""
    known = find(name)
    if known:
        return known
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}" if near else f"the catalog has {len(model_ids())} models"
    other = "give a GGUF file or hf:OWNER/REPO"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+)?", name):
        other = f"hf:{name} looks on the hub"
    raise ModelError(
        f"no model {name!r} in the catalog, and no such file",
        hint=f"{hint} (plan-llama models lists them); or {other}",
    )


def nearest(name: str) -> tuple[str, ...]:
    """The ids of up to three models whose ids, names or aliases are the most like a name."""
    import difflib

    known_names = {**names(), **{known_id: known_id for known_id in model_ids()}}
    found = difflib.get_close_matches(_plain(name), known_names, 3, 0.5)
    return tuple(dict.fromkeys(known_names[near] for near in found))


def get_quant(known: KnownModel, quant: str | None) -> KnownQuant:
    """A quant of a model, None meaning its default. An unknown one raises ModelError with what exists."""
    found = known.named(quant or known.default_quant)
    if found:
        return found
    names = list(dict.fromkeys(item.quant for item in known.quants))
    wanted = (quant or "").upper()
    holding = [name for name in names if wanted and wanted in name][:3]
    hint = f"did you mean {' or '.join(holding)}; " if holding else did_you_mean(wanted, names)
    raise ModelError(
        f"no quant {quant!r} of {known.name} in the catalog", hint=f"{hint}known are {', '.join(names)}"
    )


def resolve(name: str, quant: str | None = None) -> ModelSpec:
    """The spec of a catalog model: tensors from its shapes, with the types that the quant's mix gives them.

    Raises ModelError for an unknown model or quant, and for one whose types only another engine reads.
    """
    known = get(name)
    return build(known, get_quant(known, quant))


def build(known: KnownModel, item: KnownQuant) -> ModelSpec:
    """The modelled spec of one quant; `present` False and no path (that is resolve_model's)."""
    if not item.plannable:
        others = ", ".join(dict.fromkeys(q.quant for q in known.quants if q.plannable))
        why = (
            f"needs {item.engine} (it has tensor types that llama.cpp does not read)"
            if item.engine != "llama.cpp"
            else "has no known tensor types in the catalog"
        )
        raise ModelError(
            f"{known.name} {item.quant} ({item.size_stated}, {item.repo}) {why}",
            hint=f"--model hf:{item.repo}:{item.quant} reads them; here they are known of {others}",
        )
    tensors = _tensors(known, item)
    if tensors is None:
        raise ProfileError(f"models/{known.id}.toml: no tensor table for architecture {known.architecture!r}")
    return ModelSpec(
        name=known.name,
        architecture=known.architecture,
        quant=item.quant,
        tensors=tensors,
        hparams={**known.hparams, **item.hparams},
        vocab_size=known.vocab_size,
        file_bytes=item.size_bytes,
        source="catalog",
        catalog_id=known.id,
        licence=known.licence,
        sampling=known.sampling,
        kv_quantisation_breaks=known.kv_quantisation_breaks,
        sources={
            "file_bytes": "modelled" if item.computed else "catalog",
            "tensors": "catalog" if item.mix == "published" else "modelled",
            "file_name": "catalog" if item.listing or not item.computed else "assumed",
        },
    )


def _tensors(known: KnownModel, item: KnownQuant) -> tuple[Tensor, ...] | None:
    from plan_llama.models import quant_mix, tables

    hparams = {**known.hparams, **item.hparams}
    if item.ftype is not None:
        return quant_mix.tensors_of(
            known.architecture, hparams, known.vocab_size, item.ftype, imatrix=item.imatrix
        )
    named = tables.tensors(known.architecture, hparams, known.vocab_size)
    if named is None:
        return None
    plain = quant_mix.converted(known.architecture, named)
    return tuple(
        Tensor(tensor.name, type_of(known.architecture, tensor, item.rules), tensor.shape) for tensor in plain
    )


def type_of(architecture: str, tensor: Tensor, rules: tuple[TypeRule, ...]) -> TensorType:
    """What the first rule that holds gives a tensor of a converted model; what llama-quantize never changes stays."""
    from plan_llama.models import quant_rules

    if not quant_rules.quantisable(architecture, tensor):
        return tensor.type
    kind = next((rule.type for rule in rules if rule.holds(tensor.name)), None)
    if kind is None:
        raise ProfileError(f"no rule gives tensor '{tensor.name}' a type")
    if tensor.shape[0] % kind.block_elements:
        kind = ggml_types.by_name(quant_rules.FALLBACK.get(kind.name, "iq4_nl"))
    return kind if tensor.shape[0] % kind.block_elements == 0 else ggml_types.by_name("f16")


def guess(file_name: str) -> tuple[str, str] | None:
    """(catalog id, quant) that a GGUF's file name speaks of, when both are in the catalog.

    For a command whose file is on another machine: `glm-5.1-744b-ud-iq2_m.gguf` is UD-IQ2_M of glm-5.1.
    """
    stem = Path(file_name.replace("\\", "/")).name.lower()
    if not stem.endswith(".gguf"):
        return None
    quant = ggml_types.quant_in_name(stem)
    plain = _plain(stem)
    best = ""
    for text in names():
        starts = plain.startswith(text) and not re.match(r"[.]?[0-9a-z]", plain[len(text) :])
        if starts and len(text) > len(best):
            best = text
    if not best or quant is None:
        return None
    known = model(names()[best])
    found = known.named(quant)
    return (known.id, found.quant) if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())
