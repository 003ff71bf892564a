"""Find a published GGUF that is already on the machine, with a few stat calls.

Layouts: the Hugging Face hub cache (llama.cpp keeps its own downloads there since 2026,
common/hf-cache.cpp in b11434), llama.cpp's older flat cache, LM Studio, Ollama, and `hf download
--local-dir` as this program writes it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from plan_llama.models import shards

_MAX_SNAPSHOTS = 32
_MAX_ENTRIES = 4_000
_MAX_MANIFEST = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"


def download_folder(repo: str) -> Path:
    """Where this program's download commands put a repository: ~/models/OWNER/REPO."""
    return (_home() or Path()) / "models" / repo


def find(repo: str, files: tuple[str, ...], *, include: str = "", quant: str = "") -> Path | None:
    """The first part of a published GGUF whose parts are all on this machine; None where they are not.

    `files` are the paths in the repository, first part first; where they are not known, `include` (a
    pattern as for `hf download --include`) says which of the repository's files are meant. `quant` is
    Ollama's tag. Whether the data is complete is the reader's business: only names are looked at.
    """
    for folder in _repo_folders(repo):
        found = _named(folder, files) if files else _matching(folder, include)
        if found:
            return found
    return _flat(repo, files) or _ollama(repo, quant)


def ollama_stores() -> tuple[Path, ...]:
    """Where Ollama keeps its manifests and blobs: the user's own, then those of its system services."""
    return (
        *_env("OLLAMA_MODELS"),
        *_under_home(".ollama", "models"),
        Path("/usr/share/ollama/.ollama/models"),
        Path("/var/lib/ollama/.ollama/models"),
        Path("/var/lib/ollama/models"),
    )


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME and no entry for this user
        return None


def _under_home(*parts: str) -> tuple[Path, ...]:
    home = _home()
    return (home.joinpath(*parts),) if home else ()


def _env(name: str, *parts: str) -> tuple[Path, ...]:
    value = os.environ.get(name)
    return (Path(value).joinpath(*parts),) if value else ()


def _hub_caches() -> tuple[Path, ...]:
    return (
        *_env("LLAMA_CACHE"),
        *_env("HF_HUB_CACHE"),
        *_env("HUGGINGFACE_HUB_CACHE"),
        *_env("HF_HOME", "hub"),
        *_env("XDG_CACHE_HOME", "huggingface", "hub"),
        *_under_home(".cache", "huggingface", "hub"),
    )


def _repo_folders(repo: str) -> Iterator[Path]:
    """Folders that hold a repository's files under their own names."""
    yield download_folder(repo)
    for cache in dict.fromkeys(_hub_caches()):
        snapshots = cache / ("models--" + repo.replace("/", "--")) / "snapshots"
        try:
            yield from sorted(islice(snapshots.iterdir(), _MAX_SNAPSHOTS))
        except OSError:
            continue  # this cache does not have it
    for lm_studio in (*_under_home(".lmstudio", "models"), *_under_home(".cache", "lm-studio", "models")):
        yield lm_studio / repo


def _named(folder: Path, files: tuple[str, ...]) -> Path | None:
    """All files under their paths in the repository, or side by side as LM Studio keeps them."""
    for names in (files, tuple(name.rpartition("/")[2] for name in files)):
        if all((folder / name).is_file() for name in names):
            return folder / names[0]
    return None


def _matching(folder: Path, include: str) -> Path | None:
    """The one GGUF (or split one) in a folder that a pattern means."""
    if not include or not folder.is_dir():
        return None
    firsts: list[Path] = []
    for path in islice(folder.rglob("*.gguf"), _MAX_ENTRIES):
        if not fnmatch.fnmatch(path.relative_to(folder).as_posix(), include):
            continue
        part = shards.part_of(path)
        if part is None:
            firsts.append(path)
        elif part[1] == 1:
            prefix, _, count = part
            names = [shards.part_name(prefix, number, count) for number in range(1, min(count, 1000) + 1)]
            if all(path.with_name(name).is_file() for name in names):
                firsts.append(path)
    models = [path for path in firsts if not path.name.lower().startswith(("mmproj", "mtp-"))]
    return models[0] if len(models) == 1 else None


def _flat(repo: str, files: tuple[str, ...]) -> Path | None:
    """llama.cpp's cache before it moved: OWNER_REPO_FILE.gguf in one folder."""
    if not files:
        return None
    names = [f"{repo}_{name}".replace("/", "_") for name in files]
    if sys.platform == "darwin":
        system = _under_home("Library", "Caches", "llama.cpp")
    elif sys.platform == "win32":
        system = _env("LOCALAPPDATA", "llama.cpp")
    else:
        system = (*_env("XDG_CACHE_HOME", "llama.cpp"), *_under_home(".cache", "llama.cpp"))
    for folder in (*_env("LLAMA_CACHE"), *system):
        if all((folder / name).is_file() for name in names):
            return folder / names[0]
    return None


def _ollama(repo: str, quant: str) -> Path | None:
    """A model that Ollama pulled from Hugging Face (hf.co/OWNER/REPO:QUANT); it keeps the GGUF as a blob."""
    if not quant:
        return None
    for store in ollama_stores():
        manifest = store / "manifests" / "hf.co" / repo / quant
        try:
            if manifest.stat().st_size > _MAX_MANIFEST:
                continue
            layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
            digests = [layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there, or not a manifest
        match = _DIGEST.fullmatch(str(digests[0])) if digests else None
        blob = store / "blobs" / f"sha256-{match[1]}" if match else None
        if blob and blob.is_file():
            return blob
    return None
