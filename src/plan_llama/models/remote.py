"""Models on a server: `hf:owner/repo[:QUANT]` and `https://….gguf`. Their headers are read, never their data.

The network is used because the user named something that is on it, and for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote as quoted
from urllib.parse import unquote, urlsplit, urlunsplit

from plan_llama.errors import ModelError, RemoteError, UsageError
from plan_llama.models import hub, locate, projectors, remote_cache, shards
from plan_llama.models.gguf import RawHeader, read_header
from plan_llama.models.http_ranges import FIRST_BYTES, RemoteFile
from plan_llama.models.http_transport import Access, Deadline, checked, request, shown
from plan_llama.models.hub import HubFile, HubQuant, Repository
from plan_llama.models.progress import Progress
from plan_llama.models.spec import from_files, load
from plan_llama.models.types import Download, ModelSpec
from plan_llama.units import publisher_gb

_MAX_PARTS = 300
_AT_ONCE = 8
_MAX_CONFIG_BYTES = 4 << 20
# Parts behind the first hold tensor infos only: some 100 bytes each.
_FIRST_OF_LATER_PARTS = 256 << 10
_WINDOW = 64 << 10  # what read_header asks for at a time; RemoteFile reads ahead in larger steps


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A file to read the header of. `oid` changes when its content does; empty where that is not known."""

    url: str
    name: str
    oid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A header, the bytes that were read for it now, and since when it was kept if nobody was asked."""

    header: RawHeader
    fetched_bytes: int = 0
    kept_at: str | None = None


def hub_repository(text: str) -> Repository:
    """What the repository of an `hf:` name offers."""
    name = hub.parse(text)
    with Progress(f"listing {name.full}") as progress:
        progress.show("asking")
        return hub.repository(name.repo, revision=name.revision, deadline=Deadline())


def hub_loaders(
    text: str, *, download_dir: Path | None = None
) -> tuple[tuple[HubQuant, Callable[[], ModelSpec]], ...]:
    """The whole quants of a repository, largest first, each with the function that reads its headers."""
    found = hub_repository(text)
    return tuple(
        (item, partial(_from_quant, found, item, download_dir)) for item in found.quants if not item.missing
    )


def from_hub(text: str, quant: str | None = None, *, download_dir: Path | None = None) -> ModelSpec:
    """The model of an `hf:` name, from this machine where its files are here, else from the hub's headers.

    Without a quant what -hf would load: Q4_K_M, else Q8_0. Raises UsageError and ModelError.
    """
    name = hub.parse(text)
    if quant and (name.quant or name.file) and quant.lower() != (name.quant or "").lower():
        raise UsageError(f"--quant {quant} does not go with --model {text}", hint="say it once")
    try:
        found = hub_repository(text)
    except ModelError as error:
        wanted = quant or name.quant
        local = _local(name, (name.file,) if name.file else (), wanted) if wanted or name.file else None
        if local is None or (isinstance(error, RemoteError) and not error.passing):
            raise
        return local
    if found.config is not None and not found.quants and not name.file:
        return _from_config(found, found.config, quant or name.quant, download_dir)
    return _from_quant(found, hub.choose(found, name, quant), download_dir)


def projector_of(text: str, model: ModelSpec, *, download_dir: Path | None = None) -> ModelSpec | None:
    """The projector that `-hf` would load with a model of that repository; None where it has none.

    Raises ModelError where its header cannot be read.
    """
    found = hub_repository(text)
    folder = download_dir or locate.download_folder(found.repo)
    name = model.download.files[0] if model.download else Path(model.path or "").name
    chosen = projectors.choose((file.path for file in found.projectors), name)
    file = next((file for file in found.projectors if file.path == chosen), None)
    if file is None:
        return None
    path = locate.find(found.repo, (file.path,))
    if path is not None and (here := projectors.load(path)).present:
        return here
    part = _Part(url=hub.file_url(found.repo, file.path), name=f"hf:{found.repo}/{file.path}", oid=file.oid)
    access = None if hub.offline() else hub.access()
    try:
        read = _headers([part], Deadline(), access, f"{found.repo} {file.path}")
    except RemoteError as error:
        raise hub.explained(error, found.repo) from None
    target = folder / file.path
    spec = projectors.from_files(shards.from_headers(target, tuple(item.header for item in read)))
    download = Download(
        repo=found.repo,
        quant=spec.quant,
        files=(file.path,),
        size_bytes=file.size_bytes,
        argv=("hf", "download", found.repo, "--include", file.path, "--local-dir", str(folder)),
        path=str(target),
        url=f"{hub.endpoint()}/{found.repo}",
    )
    return replace(spec, present=False, files=(), download=download)


def from_url(url: str, quant: str | None = None, *, download_dir: Path | None = None) -> ModelSpec:
    """The model behind a link to a GGUF; of a split one any part."""
    url = checked(url)
    parts = urlsplit(url)
    folder, _, last = parts.path.rpartition("/")
    file = unquote(last)
    if not file.lower().endswith(".gguf") or not file.isprintable() or "/" in file or "\\" in file:
        raise UsageError(
            f"--model {shown(url)}: not a link to a .gguf file", hint="or give hf:OWNER/REPO:QUANT"
        )
    split = shards.part_of(Path(file))
    files = [file]
    if split:
        if not 1 <= split[2] <= _MAX_PARTS:
            raise ModelError(f"{shown(url)}: claims {split[2]:,} parts, expected 1 to {_MAX_PARTS}")
        files = [shards.part_name(split[0], number, split[2]) for number in range(1, split[2] + 1)]
    urls = [urlunsplit(parts._replace(path=f"{folder}/{quoted(name)}")) for name in files]
    where = download_dir or locate.download_folder(parts.hostname or "")
    download = partial(
        Download,
        repo=parts.netloc,
        files=tuple(files),
        argv=("curl", "-fL", "--create-dirs", "--output-dir", str(where), "--remote-name-all", *urls),
        path=str(where / files[0]),
        url=shown(urls[0]),
    )
    if all((where / name).is_file() for name in files):
        spec = load(where / files[0])
        if spec.present:
            return _same_quant(spec, quant)
        return replace(
            _same_quant(spec, quant), download=download(quant=spec.quant, size_bytes=spec.file_bytes)
        )
    read = _headers([_Part(url=link, name=shown(link)) for link in urls], Deadline(), None, shown(urls[0]))
    spec = _assembled(read, where / files[0], shown(urls[0]))
    return _same_quant(replace(spec, download=download(quant=spec.quant, size_bytes=spec.file_bytes)), quant)


def _same_quant(spec: ModelSpec, quant: str | None) -> ModelSpec:
    if quant is not None and quant.lower() != spec.quant.lower():
        raise UsageError(
            f"--quant {quant} does not go with this file, which is {spec.quant}", hint="leave it out"
        )
    return spec


def _local(name: hub.HubName | Repository, files: tuple[str, ...], quant: str | None) -> ModelSpec | None:
    """The model from one of the places that other programs keep it in; None where it is not (all) there.

    Those places do not tell revisions apart: for another than main only its own download folder is looked at.
    """
    if name.revision == hub.MAIN:
        found = locate.find(name.repo, files, include=f"*{quant}*" if quant else "", quant=quant or "")
    else:
        folder = _folder(name)
        there = bool(files) and all((folder / file).is_file() for file in files)
        found = folder / files[0] if there else None
    if found is None:
        return None
    try:
        return load(found)
    except ModelError:
        return None  # damaged: what the server has is read instead


def _folder(name: hub.HubName | Repository) -> Path:
    """Where its files are downloaded to: a folder of its own for another revision than main."""
    return locate.download_folder(name.repo + name.full[len(name.repo) :].replace("/", "-"))


def _download_command(found: Repository, folder: Path, *options: str) -> tuple[str, ...]:
    other = () if found.revision == hub.MAIN else ("--revision", found.revision)
    return ("hf", "download", found.repo, *other, *options, "--local-dir", str(folder))


def _from_quant(found: Repository, item: HubQuant, download_dir: Path | None) -> ModelSpec:
    folder = download_dir or _folder(found)
    names = tuple(file.path for file in item.files)
    download = Download(
        repo=found.repo,
        quant=item.quant,
        files=names,
        size_bytes=item.size_bytes,
        argv=_download_command(found, folder, "--include", shards.include_pattern(names)),
        path=str(folder / names[0]),
        url=_page(found),
    )
    local = _local(found, names, item.quant)
    if local is not None:
        return replace(local, quant=item.quant, download=None if local.present else download)
    if len(names) > _MAX_PARTS:
        raise ModelError(
            f"{found.repo}: {item.quant} has {len(names):,} parts, expected at most {_MAX_PARTS}"
        )
    parts = [
        _Part(
            url=hub.file_url(found.repo, file.path, found.revision),
            name=f"hf:{found.full}/{file.path}",
            oid=file.oid,
        )
        for file in item.files
    ]
    try:
        access = None if hub.offline() else hub.access()
        read = _headers(parts, Deadline(), access, f"{found.full} {item.quant}")
    except RemoteError as error:
        raise hub.explained(error, found.full) from None
    for got, file in zip(read, item.files, strict=True):
        if got.header.file_bytes != file.size_bytes:
            hub.forget(found.repo, found.revision)
            raise ModelError(
                f"{got.header.name}: has {got.header.file_bytes:,} bytes, and the listing says {file.size_bytes:,}",
                hint="the repository is changing: try again",
            )
    spec = _assembled(read, folder / names[0], _page(found))
    note = spec.origin_note
    if found.kept_at:
        note = f"{note}; the listing is from {found.kept_at} ({found.why_kept})"
    return replace(spec, quant=item.quant, download=download, origin_note=note)


def hub_config(text: str) -> tuple[Repository, dict[str, Any]]:
    """The repository of an `hf:` name and its config.json. Raises ModelError where it holds none."""
    found = hub_repository(text)
    if found.config is None:
        raise ModelError(f"{found.repo}: holds no config.json", hint="vLLM needs the unconverted weights")
    return found, _config(found, found.config)


def _config(found: Repository, config: HubFile) -> dict[str, Any]:
    """The config.json of a repository, from the cache where it was read before."""
    url, where = hub.file_url(found.repo, config.path, found.revision), f"hf:{found.full}/config.json"
    kept = remote_cache.get("config", f"{url}\n{config.oid}")
    value = kept.value if kept and isinstance(kept.value, dict) else None
    if value is None:
        if hub.offline():
            raise ModelError(f"{where}: offline (HF_HUB_OFFLINE), and it was not read before")
        try:
            with request(url, deadline=Deadline(), access=hub.access(), name=where) as answer:
                raw = answer.read(_MAX_CONFIG_BYTES + 1)
        except RemoteError as error:
            raise hub.explained(error, found.full) from None
        try:
            value = json.loads(raw) if len(raw) <= _MAX_CONFIG_BYTES else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ModelError(f"{where}: is not a JSON object")
        remote_cache.put("config", f"{url}\n{config.oid}", value)
    return value


def _from_config(
    found: Repository, config: HubFile, quant: str | None, download_dir: Path | None
) -> ModelSpec:
    """The GGUF that would be made of a repository's unconverted weights, from its config.json."""
    from plan_llama.models.config_folder import spec_of

    where = f"hf:{found.full}/config.json"
    value = _config(found, config)
    folder = download_dir or _folder(found)
    spec = spec_of(value, found.repo.partition("/")[2], quant, where=where, folder=folder)
    download = Download(
        repo=found.repo,
        quant=spec.quant,
        files=(),
        size_bytes=found.weights_bytes,
        argv=_download_command(found, folder),
        path=spec.path or str(folder),
        url=_page(found),
    )
    note = f"not on this machine: worked out from the config.json of {download.url}, which holds no GGUF"
    return replace(spec, download=download, origin_note=note)


def _page(found: Repository) -> str:
    """The repository's page, of the revision where it is another than main."""
    page = f"{hub.endpoint()}/{found.repo}"
    return page if found.revision == hub.MAIN else f"{page}/tree/{quoted(found.revision, safe='')}"


def _assembled(read: Sequence[_Read], path: Path, where: str) -> ModelSpec:
    """The spec of headers from elsewhere: `path` is where the file will be, and nothing is there yet."""
    files = shards.from_headers(path, tuple(item.header for item in read))
    spec = from_files(files)
    fetched = sum(item.fetched_bytes for item in read)
    kept = [item.kept_at for item in read if item.kept_at]
    plural = "headers were" if len(read) > 1 else "header was"
    amount = f" ({fetched / 1e6:,.1f} MB of {publisher_gb(spec.file_bytes)})" if fetched else ""
    note = f"not on this machine: its {plural} read from {where}{amount}"
    if not fetched:
        note = f"not on this machine: its {plural} read from {where} earlier and kept in the cache"
    if kept:
        note += f", {min(kept)}; whether the file is still the same was not asked"
    return replace(spec, present=False, files=(), origin_note=note)


def _headers(
    parts: Sequence[_Part], deadline: Deadline, access: Access | None, what: str
) -> tuple[_Read, ...]:
    """The headers of all parts, some at a time; the first failure ends the others."""
    with Progress(f"reading the header of {what}") as progress:
        progress.show(f"0 of {len(parts)} files")
        first = _header(parts[0], deadline, access, FIRST_BYTES)
        read = [first]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            rest = [pool.submit(_header, part, deadline, access, _FIRST_OF_LATER_PARTS) for part in parts[1:]]
            try:
                for index, future in enumerate(rest):
                    progress.show(f"{index + 1} of {len(parts)} files")
                    read.append(future.result())
            except BaseException:
                deadline.end()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return tuple(read)


def _header(part: _Part, deadline: Deadline, access: Access | None, first_bytes: int) -> _Read:
    key = f"{part.url}\n{part.oid}"
    kept = remote_cache.get("header", key)
    value = kept.value if kept and isinstance(kept.value, dict) else {}
    known = remote_cache.header_from(value.get("header"), part.name)
    if kept and known and (part.oid or kept.fresh):
        return _Read(header=known)
    if hub.offline():
        if kept and known:
            return _Read(header=known, kept_at=kept.when)
        raise ModelError(
            f"{part.name}: offline (HF_HUB_OFFLINE), and its header was not read before",
            hint="unset HF_HUB_OFFLINE",
        )
    etag = str(value.get("etag", "")) if known else ""
    try:
        file = RemoteFile(
            part.url,
            name=part.name,
            deadline=deadline,
            access=access,
            first_bytes=first_bytes,
            unless_etag=etag if etag.isprintable() else "",
        )
        with closing(file):
            if file.unchanged and known:
                remote_cache.put("header", key, value)
                return _Read(header=known)
            header = read_header(file.read_at, file.size, part.name, window=_WINDOW)
    except RemoteError as error:
        if kept and known and error.passing:
            return _Read(header=known, kept_at=kept.when)
        raise
    remote_cache.put("header", key, {"etag": file.etag, "header": remote_cache.header_value(header)})
    return _Read(header=header, fetched_bytes=file.fetched_bytes)
