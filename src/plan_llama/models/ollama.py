"""Models that Ollama has on this machine: `ollama:name[:tag]`, read from its manifests; nothing is asked for.

Layout: OLLAMA_MODELS (~/.ollama/models) with manifests/HOST/NAMESPACE/NAME/TAG in JSON, whose layers are
files blobs/sha256-DIGEST (github.com/ollama/ollama: types/model/name.go and server/manifest.go).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from plan_llama.errors import ModelError, UsageError
from plan_llama.models import projectors
from plan_llama.models.locate import ollama_stores
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LAYER = "application/vnd.ollama.image."
_MAX_JSON = 1 << 20
_MAX_ENTRIES = 4_000
# The parameters that llama-server has flags for, as Ollama spells them.
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What a manifest names: the model's blob, its projectors and the parameters its author set."""

    name: str
    model: Path
    projectors: tuple[Path, ...]
    parameters: Mapping[str, Any]


def resolve(text: str, quant: str | None = None) -> ModelSpec:
    """The model of `ollama:name[:tag]`. Raises UsageError for no name, ModelError where Ollama has it not."""
    item = installed(text)
    spec = load(item.model)
    if quant is not None and quant.lower() != spec.quant.lower():
        raise UsageError(
            f"--quant {quant} does not go with {text}, which is {spec.quant}", hint="the tag names the quant"
        )
    sampling = {
        key: float(item.parameters[name])
        for name, key in _SAMPLING.items()
        if isinstance(item.parameters.get(name), int | float)
    }
    notes = []
    projector = None
    for path in item.projectors[:1]:
        try:
            projector = projectors.load(path)
        except ModelError as error:
            notes.append(
                f"images need its projector, which is not counted: --mmproj {path} ({error.message})"
            )
    if item.parameters.get("num_ctx"):
        notes.append(
            f"its author set num_ctx {item.parameters['num_ctx']}, which Ollama takes and this plan does not"
        )
    name = item.name if spec.name.startswith("sha256-") else spec.name
    return replace(
        spec,
        name=name,
        sampling=sampling or spec.sampling,
        origin_note="; ".join(notes) or None,
        projector=projector,
    )


def installed(text: str) -> Installed:
    """What Ollama has under a name. Raises UsageError and ModelError like resolve."""
    rest = text.partition(":")[2].strip()
    path, tag = _name(text, rest)
    stores = [store for store in ollama_stores() if _is_dir(store / "manifests")]
    for store in stores:
        manifest = _down(store / "manifests", (*path, tag))
        if manifest is not None and manifest.is_file():
            return _read(rest, manifest, store)
    folders = ", ".join(str(store) for store in stores) or "no store of Ollama on this machine"
    near = _nearest(stores, rest)
    hint = f"`ollama pull {rest}` fetches it" + (f", or did you mean {' or '.join(near)}" if near else "")
    raise ModelError(f"{text}: not installed (looked in {folders})", hint=hint)


def _name(text: str, rest: str) -> tuple[tuple[str, ...], str]:
    """((host, namespace, name), tag) of a name, with Ollama's defaults."""
    path, _, tag = rest.rpartition(":") if ":" in rest.rpartition("/")[2] else (rest, "", _TAG)
    words = path.split("/")
    wrong = not 1 <= len(words) <= 3 or not all(map(_WORD.fullmatch, [*words[-2:], tag]))
    if wrong or (len(words) == 3 and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,200}", words[0])):
        raise UsageError(
            f"--model {text}: not a name of Ollama's", hint="expected ollama:NAME or ollama:NAME:TAG"
        )
    defaults = (_HOST, _NAMESPACE)
    return (*defaults[: 3 - len(words)], *words), tag


def _down(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The path under a folder, a name's case not minded where there is no exact one (as Ollama does)."""
    for name in names:
        exact = folder / name
        if _exists(exact):
            folder = exact
            continue
        alike = [entry for entry in _entries(folder) if entry.name.lower() == name.lower()]
        if not alike:
            return None
        folder = alike[0]
    return folder


def _read(name: str, manifest: Path, store: Path) -> Installed:
    content = _json(manifest)
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise ModelError(
            f"{manifest}: not a manifest of Ollama's", hint=f"`ollama pull {name}` writes it again"
        )
    blobs: dict[str, list[Path]] = {}
    for layer in layers:
        kind, digest = (
            (layer.get("mediaType"), layer.get("digest")) if isinstance(layer, dict) else (None, None)
        )
        match = _DIGEST.fullmatch(str(digest))
        if isinstance(kind, str) and kind.startswith(_LAYER) and match:
            word = kind.removeprefix(_LAYER).partition(";")[0]
            blobs.setdefault(word, []).append(store / "blobs" / f"sha256-{match[1]}")
    models = blobs.get("model", [])
    if not models:
        raise _no_model(name, content, store, tensors="tensor" in blobs)
    if not _exists(models[0]):
        raise ModelError(
            f"ollama:{name}: its data {models[0]} is missing", hint=f"`ollama pull {name}` fetches it again"
        )
    parameters = _json(blobs["params"][0]) if "params" in blobs else {}
    return Installed(
        name=name,
        model=models[0],
        projectors=tuple(blobs.get("projector", [])),
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _no_model(name: str, manifest: dict[str, Any], store: Path, *, tensors: bool) -> ModelError:
    """Why a manifest has no GGUF: it runs on somebody's servers, or it is kept in another format."""
    if tensors:
        return ModelError(
            f"ollama:{name}: kept as safetensors, which llama.cpp does not read",
            hint="take a GGUF of this model",
        )
    config = manifest.get("config")
    match = _DIGEST.fullmatch(str(config.get("digest"))) if isinstance(config, dict) else None
    facts = _json(store / "blobs" / f"sha256-{match[1]}") if match else None
    host = facts.get("remote_host") if isinstance(facts, dict) else None
    if host or name.endswith("cloud"):
        return ModelError(
            f"ollama:{name}: a cloud model, which runs on {host or 'ollama.com'} and has no weights here",
            hint="a tag without 'cloud' has them",
        )
    return ModelError(
        f"ollama:{name}: its manifest names no model", hint=f"`ollama pull {name}` fetches it again"
    )


def _nearest(stores: list[Path], wanted: str) -> list[str]:
    """Installed names like the one that was asked for."""
    import difflib

    there = []
    for store in stores:
        for manifest in islice((store / "manifests").glob("*/*/*/*"), _MAX_ENTRIES):
            host, namespace, name, tag = manifest.relative_to(store / "manifests").parts
            lead = "" if host == _HOST else f"{host}/"
            lead += "" if host == _HOST and namespace == _NAMESPACE else f"{namespace}/"
            there.append(f"{lead}{name}:{tag}")
    with_tag = wanted if ":" in wanted else f"{wanted}:{_TAG}"
    same = [name for name in there if name.rpartition(":")[0] == with_tag.rpartition(":")[0]]
    return [
        name for name in same or difflib.get_close_matches(with_tag, there, 3, 0.7) if name.isprintable()
    ][:4]


def _json(path: Path) -> Any:
    """A small JSON file; None where it is none."""
    try:
        if path.stat().st_size > _MAX_JSON:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from islice(folder.iterdir(), _MAX_ENTRIES)
    except OSError:
        return


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder of another user
        return False


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
