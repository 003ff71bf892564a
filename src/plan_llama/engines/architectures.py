"""Which builds of llama.cpp know a model's architecture (LLM_ARCH_NAMES in src/llama-arch.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from plan_llama import catalog
from plan_llama.engines.arguments import ENGINE, head, history
from plan_llama.findings import Finding
from plan_llama.models.types import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The trees that know an architecture: from `since` to `until` (None: the newest)."""

    since: int
    until: int | None


@cache
def _profile() -> tuple[Mapping[str, Known], Mapping[str, Known]]:
    """What is loaded, and of that what drafts with a block of its own, by name."""
    path = catalog.root() / "engines" / ENGINE / "architectures.toml"
    table = catalog.Table(catalog.load(path), str(path))
    head(table)
    loads, drafting = _rows(table, "loads"), _rows(table, "drafts")
    table.done()
    return loads, drafting


def _rows(table: catalog.Table, key: str) -> Mapping[str, Known]:
    found = {}
    for row in table.tables(key):
        known = Known(since=row.take("since", int), until=row.get("until", int))
        found.update(dict.fromkeys(row.strings("names"), known))
        row.done()
    return MappingProxyType(found)


def architectures() -> Mapping[str, Known]:
    """All of them, by name."""
    return _profile()[0]


def drafting() -> Mapping[str, Known]:
    """Those whose models' own block llama.cpp can draft with (--spec-type draft-mtp), by name."""
    return _profile()[1]


def drafts(build: int, architecture: str) -> bool:
    """Whether a build surely drafts with such a model's own block (--spec-type draft-mtp); one without a number is
    taken for a new one."""
    known = drafting().get(architecture)
    return known is not None and (build <= 1 or build >= known.since)


def finding(build: int, spec: ModelSpec) -> Finding | None:
    """An error where a build is too old for the model, a warning where it may be; nothing for one without a number."""
    known = architectures().get(spec.architecture)
    if known is None or build <= 1 or build >= known.since:
        return None
    before = max((tree.build for tree in history().trees if tree.build < known.since), default=None)
    if before is None:  # the oldest tree has it: when it came is not known
        return None
    surely = build <= before
    return Finding(
        id="architecture-needs-newer-build",
        severity="error" if surely else "warning",
        text=f"b{build} {'does not know' if surely else 'may not know'} the architecture {spec.architecture}: it "
        f"came after b{before}, with b{known.since} at the latest",
        fix=f"llama.cpp b{known.since} or newer",
    )
