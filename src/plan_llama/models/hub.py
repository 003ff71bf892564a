"""What a Hugging Face repository offers: its GGUFs grouped into quants, with sizes, from the hub's own listing.

`HF_ENDPOINT`, `HF_TOKEN` (or the token that `hf auth login` keeps) and `HF_HUB_OFFLINE` mean what they mean to
the hub's own library. Which files are models and which belong to one, as -hf has it: gguf_filename_is_model and
get_split_files in common/download.cpp, llama.cpp b11434.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote as quoted
from urllib.parse import unquote, urljoin

from plan_llama.errors import ModelError, RemoteError, UsageError, did_you_mean
from plan_llama.models import ggml_types, remote_cache, shards
from plan_llama.models.http_transport import Access, Deadline, origin, request
from plan_llama.units import publisher_gb

_ENDPOINT = "https://huggingface.co"
_SHORT = "hf.co/"  # as Ollama has it: hf.co/OWNER/REPO:QUANT
_REPO = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?/[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
)
_REVISION = re.compile(r"(?:refs/[a-z]{1,20}/)?[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_])?")
_LINK = re.compile(r"(?i)([^/]+/[^/]+)(?:/(resolve|blob|tree)/(refs/[^/]+/[^/]+|[^/]+)(?:/(.+))?)?")
_NO_OWNERS = frozenset({"api", "blog", "collections", "datasets", "docs", "models", "papers", "spaces"})
MAIN = "main"
_NO_MODELS = re.compile("(?i:mmproj|imatrix)|mtp-|eagle3-|dflash-|dspark-")
_PREFERRED = ("Q4_K_M", "Q8_0")  # what -hf without a tag loads (find_best_model)
_MAX_PAGES = 20
_MAX_PAGE_BYTES = 16 << 20
_MAX_FILES = 20_000
_NEXT = re.compile(r'<([^<>\s]{1,2000})>\s*;\s*rel="?next"?')
_ON = frozenset({"1", "on", "yes", "true"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository; `oid` changes when its content does."""

    path: str
    size_bytes: int
    oid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubQuant:
    """One GGUF of a repository, split or not. `missing` names parts that the listing lacks."""

    quant: str
    files: tuple[HubFile, ...]
    missing: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all parts that are there."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What a revision of a repository holds. `kept_at` is when a kept answer was given, if nobody was asked (UTC)."""

    repo: str
    quants: tuple[HubQuant, ...]  # largest first
    projectors: tuple[HubFile, ...]
    config: HubFile | None = None  # config.json, of the unconverted weights
    weights_bytes: int = 0  # of those weights
    revision: str = MAIN
    kept_at: str | None = None
    why_kept: str | None = None

    @property
    def full(self) -> str:
        """The repository as HubName.full has it."""
        return HubName(repo=self.repo, revision=self.revision).full


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """The words of `hf:owner/repo[@REVISION][:QUANT]`, or of `hf:owner/repo[@REVISION]/folder/FILE.gguf`.

    A revision is a branch, a tag, a commit, or `refs/pr/NUMBER`, as the hub's own URIs have it.
    """

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str = MAIN

    @property
    def full(self) -> str:
        """The repository, with the revision where it is another than main."""
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def endpoint() -> str:
    """The hub: HF_ENDPOINT or huggingface.co, without a slash at its end. Raises UsageError for no URL."""
    given = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if not given:
        return _ENDPOINT
    try:
        origin(given)
    except ValueError:
        given = ""
    if not given or "@" in given:
        raise UsageError("HF_ENDPOINT is not a URL", hint="expected https://HOST")
    return given


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in _ON


def parse(text: str) -> HubName:
    """The parts of an `hf:` name. Raises UsageError for what is none."""
    rest = text.partition(":")[2].strip().removeprefix("//")
    name, colon, quant = rest.partition(":")
    owner, _, inside = name.partition("/")
    repo, _, file = inside.partition("/")
    repo, at, revision = repo.partition("@")
    if revision == "refs" and (match := re.match(r"([^/]+/[^/]+)(?:/(.*))?", file)):
        revision, file = f"refs/{match[1]}", match[2] or ""
    full, revision = f"{owner}/{repo}", unquote(revision) if at else MAIN
    wrong = not _REPO.fullmatch(full) or ".." in full or "--" in full
    wrong = wrong or not _REVISION.fullmatch(revision) or ".." in revision
    if wrong or (colon and not quant) or (file and (quant or not file.lower().endswith(".gguf"))):
        raise UsageError(
            f"--model {text}: not a repository",
            hint="expected hf:OWNER/REPO or hf:OWNER/REPO:QUANT, with @REVISION behind REPO for another than main",
        )
    if quant.lower().endswith(".gguf"):
        return HubName(repo=full, file=quant, revision=revision)
    return HubName(repo=full, quant=quant or None, file=file or None, revision=revision)


def file_url(repo: str, path: str, revision: str = MAIN) -> str:
    """Where a file of a repository is read from."""
    return f"{endpoint()}/{repo}/resolve/{quoted(revision, safe='')}/{quoted(path)}"


def from_url(url: str) -> HubName | None:
    """What a link to the hub means: to a GGUF (copied from its pages, too), to a repository, or to a folder of one.

    None for all other links. A folder stands for the quant that it is named after.
    """
    base = endpoint() + "/"
    path = url.partition("?")[0].partition("#")[0].rstrip("/")
    match = re.fullmatch(
        r"([^/]+/[^/]+)(?:/(resolve|blob|tree)/(refs/[^/]+/[^/]+|[^/]+)(?:/(.+))?)?",
        path.removeprefix(base),
        re.IGNORECASE,
    )
    if not path.startswith(base) or not match or not _REPO.fullmatch(match[1]):
        return None
    if match[1].partition("/")[0].lower() in _NO_OWNERS or (
        not match[2] and match[1].lower().endswith(".gguf")
    ):
        return None
    repo, kind, revision, inside = match[1], match[2], unquote(match[3] or MAIN), unquote(match[4] or "")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        return None
    if kind is None or kind.lower() == "tree":
        return HubName(repo=repo, quant=inside.rpartition("/")[2] or None, revision=revision)
    if not inside.lower().endswith(".gguf"):
        return None
    return HubName(repo=repo, file=inside, revision=revision)


def spelled(text: str) -> str:
    """The `hf:` name that a link to the hub stands for, with or without https://; any other text as it is."""
    bare = text.strip().removeprefix("https://").removeprefix("http://")
    if bare.startswith(_SHORT):
        return "hf:" + bare.removeprefix(_SHORT)
    host = _host() + "/"
    name = from_url(endpoint() + "/" + bare.removeprefix(host)) if bare.startswith(host) else None
    if name is None:
        return text
    behind = f"/{name.file}" if name.file else f":{name.quant}" if name.quant else ""
    return f"hf:{name.full}{behind}"


def access() -> Access | None:
    """The token for the hub, bound to its origin; None without one. Raises ModelError for an unusable one."""
    token = _token()
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ModelError(
            "the Hugging Face token holds blanks or control characters",
            hint="set HF_TOKEN to the token alone",
        )
    return Access(token=token, origin=origin(endpoint()))


def _token() -> str:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip():
            return value
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").strip().lower() in _ON:
        return ""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = os.environ.get("HF_TOKEN_PATH") or Path(home) / "token"
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            if value := file.read(1000).strip():
                return value
    except (OSError, RuntimeError, UnicodeDecodeError):
        pass  # nobody has logged in here
    try:
        from huggingface_hub import get_token
    except ImportError:
        return ""
    return str(get_token() or "")  # knows places of its own (a notebook's secrets)


def repository(repo: str, *, deadline: Deadline, revision: str = MAIN) -> Repository:
    """What a repository holds, as listed within the last hour.

    Offline, or where the hub does not answer, an older listing is used and `kept_at` says so. Raises
    ModelError where there is none, and for a repository that is not there or not open to the user.
    """
    key = _listing_key(repo, revision)
    kept = remote_cache.get("listing", key)
    files = _files(kept.value) if kept else None
    if kept and files is not None and (kept.fresh or offline()):
        return _repository(repo, revision, files, kept.when if offline() else None, "offline")
    if offline():
        raise ModelError(
            f"{repo}: offline (HF_HUB_OFFLINE), and it was not looked at before",
            hint="unset HF_HUB_OFFLINE, or give a file",
        )
    try:
        rows = _list(repo, revision, deadline)
    except RemoteError as error:
        if kept and files is not None and error.passing:
            return _repository(repo, revision, files, kept.when, f"{_host()} did not answer")
        raise explained(error, HubName(repo=repo, revision=revision).full) from None
    remote_cache.put("listing", key, rows)
    return _repository(repo, revision, _files(rows) or (), None, None)


def forget(repo: str, revision: str = MAIN) -> None:
    """Drops the kept listing, which the hub's files have outdated."""
    remote_cache.drop("listing", _listing_key(repo, revision))


def _listing_key(repo: str, revision: str) -> str:
    return f"{endpoint()}\n{HubName(repo=repo, revision=revision).full}"


def choose(found: Repository, name: HubName, quant: str | None) -> HubQuant:
    """The quant that was asked for, by its name in any case or by a file's path; else what -hf would load.

    Raises ModelError, with what there is, for one that the repository lacks or has several of.
    """
    wanted = name.file or quant or name.quant
    if not found.quants:
        raise ModelError(
            f"{found.repo}: holds no GGUF of a model",
            hint="look for a repository with -GGUF in its name",
        )
    if wanted is None:
        named = {item.quant: item for item in reversed(found.quants) if not item.missing}
        picked = next((named[name] for name in _PREFERRED if name in named), None)
        return picked or _whole(found, found.quants[-1])
    lower = wanted.lower()
    matches = [q for q in found.quants if lower in (q.quant.lower(), *(f.path.lower() for f in q.files))]
    matches = matches or [q for q in found.quants if any(_base(f.path) == _base(lower) for f in q.files)]
    matches = matches or [q for q in found.quants if q.quant.lower().endswith(f"-{lower}")]
    if len(matches) > 1:
        paths = ", ".join(item.files[0].path for item in matches[:4])
        raise ModelError(
            f"{found.repo}: {len(matches)} files are {wanted}: {paths}",
            hint=f"name one, as hf:{found.full}/{matches[0].files[0].path}",
        )
    if matches:
        return _whole(found, matches[0])
    lead = did_you_mean(wanted.upper(), list(dict.fromkeys(item.quant for item in found.quants)))
    there = ", ".join(f"{item.quant} ({publisher_gb(item.size_bytes)})" for item in found.quants[:40])
    raise ModelError(f"{found.repo}: no {wanted!r} in it", hint=f"{lead}it has {there}")


def _whole(found: Repository, item: HubQuant) -> HubQuant:
    if item.missing:
        raise ModelError(
            f"{found.repo}: {len(item.missing)} parts of {item.quant} are not in it: {', '.join(item.missing[:4])}",
            hint="an upload that is not finished, or another file",
        )
    return item


def explained(error: RemoteError, repo: str) -> RemoteError:
    """An error of the hub with what can be done about it. Codes: huggingface_hub's hf_raise_for_status."""
    login = "set HF_TOKEN, or log in with `hf auth login`"
    try:
        sent = access() is not None
    except ModelError:
        sent = False
    where, hint = f"{repo} on {_host()}", error.hint
    if error.code == "GatedRepo" or error.status == 403:
        what = "gated: its owner wants an agreement first"
        hint = f"accept it at {endpoint()}/{repo}, then " + ("try again" if sent else login)
    elif error.status == 401:
        what = "the token was refused" if sent else "there is no such repository, or it is private"
        hint = (
            "check the name, and that HF_TOKEN is valid"
            if sent
            else f"check the name; for a private one {login}"
        )
    elif error.status == 404:
        what, hint = (
            "there is no such repository or file",
            "check the name" + (" and the revision" if "@" in repo else ""),
        )
    elif error.status == 429:
        what = "too many requests"
        hint = f"try again {error.wait}" + ("" if sent else f"; the limit is higher if you {login}")
    else:
        return error
    return RemoteError(f"{where}: {what} (HTTP {error.status})", hint=hint, status=error.status)


def _host() -> str:
    return endpoint().partition("://")[2]


def _list(repo: str, revision: str, deadline: Deadline) -> list[list[Any]]:
    """[path, bytes, oid] of every file, over all pages."""
    base = endpoint()
    url = f"{base}/api/models/{repo}/tree/{quoted(revision, safe='')}?recursive=1"
    rows: list[list[Any]] = []
    where = f"{base}/{repo}"
    token = access()
    for _ in range(_MAX_PAGES):
        with request(
            url, deadline=deadline, access=token, headers={"Accept": "application/json"}, name=where
        ) as answer:
            raw = answer.read(_MAX_PAGE_BYTES + 1)
            link = _NEXT.search(str(answer.headers.get("Link", ""))[:8000])
        rows += _rows(raw, where)
        if not link or len(rows) > _MAX_FILES:
            break
        url = urljoin(url, link[1])
        if origin(url) != origin(base):
            raise RemoteError(f"{where}: the listing goes on at another host")
    return rows[:_MAX_FILES]


def _rows(raw: bytes, where: str) -> list[list[Any]]:
    try:
        items: Any = json.loads(raw) if len(raw) <= _MAX_PAGE_BYTES else None
        rows = [_row(item) for item in items if item["type"] == "file"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        rows = [None]
    if None in rows:
        raise RemoteError(
            f"{where}: the answer is not a listing of files", hint="HF_ENDPOINT must name a Hugging Face hub"
        )
    return [row for row in rows if row]


def _row(item: dict[str, Any]) -> list[Any] | None:
    lfs = item.get("lfs") or {}
    path, size = item["path"], lfs.get("size", item.get("size", 0))
    if not isinstance(path, str) or type(size) is not int or size < 0:
        return None
    return [path, size, str(lfs.get("oid") or item.get("oid") or "")]


def _files(rows: Any) -> tuple[HubFile, ...] | None:
    try:
        return tuple(HubFile(path=str(path), size_bytes=int(size), oid=str(oid)) for path, size, oid in rows)
    except (ValueError, TypeError):
        return None  # a damaged cache


def _repository(
    repo: str, revision: str, files: tuple[HubFile, ...], kept_at: str | None, why: str | None
) -> Repository:
    safe = [file for file in files if _safe(file.path)]
    ggufs = [file for file in safe if file.path.lower().endswith(".gguf")]
    models = [file for file in ggufs if not _NO_MODELS.search(file.path.rpartition("/")[2])]
    return Repository(
        repo=repo,
        quants=tuple(sorted(_grouped(models), key=lambda item: -item.size_bytes)),
        projectors=tuple(file for file in ggufs if "mmproj" in _base(file.path)),
        config=next((file for file in safe if file.path == "config.json"), None),
        weights_bytes=sum(file.size_bytes for file in safe if file.path.endswith(".safetensors")),
        kept_at=kept_at,
        why_kept=why,
        revision=revision,
    )


def _grouped(files: list[HubFile]) -> Iterator[HubQuant]:
    groups: dict[tuple[str, int], dict[int, HubFile]] = {}
    for file in files:
        part = shards.part_of(Path(file.path))
        folder = file.path.rpartition("/")[0]
        key = (f"{folder}/{part[0]}", part[2]) if part else (file.path, 1)
        groups.setdefault(key, {})[part[1] if part else 1] = file
    for (prefix, count), parts in groups.items():
        ordered = tuple(parts[number] for number in sorted(parts))
        stem = _base(prefix).removesuffix(".gguf")
        missing = tuple(
            shards.part_name(prefix.rpartition("/")[2], number, count)
            for number in range(1, min(count, 1000) + 1)
            if number not in parts
        )
        folder = prefix.rpartition("/")[0]
        quant = ggml_types.quant_in_name(stem) or ggml_types.quant_in_name(folder.rpartition("/")[2])
        yield HubQuant(
            quant=quant or prefix.rpartition("/")[2].removesuffix(".gguf"), files=ordered, missing=missing
        )


def _base(path: str) -> str:
    return path.rpartition("/")[2].lower()


def _safe(path: str) -> bool:
    """A path that stays inside the folder it is put into, and that can be printed."""
    return (
        path.isprintable() and not path.startswith("/") and ".." not in path.split("/") and "\\" not in path
    )
