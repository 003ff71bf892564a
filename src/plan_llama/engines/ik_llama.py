"""ik_llama.cpp: which arguments it takes, and what of its memory is known (profiles/engines/ik_llama.cpp).

A fork of llama.cpp from the summer of 2024 with programs of the same names. Its builds count its own commits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from plan_llama import catalog
from plan_llama.engines.arguments import Argument, history, read_rows
from plan_llama.engines.flags import FlagTable, RemovedForm, by_name
from plan_llama.errors import ProfileError
from plan_llama.units import MIB

ENGINE = "ik_llama.cpp"
_PROGRAMS = ("llama-server", "llama-cli")
_BUILD = re.compile(r"b(\d{3,7})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What is known beside its tables. `older` are ids of differences that llama.cpp's older builds have as well."""

    older: tuple[str, ...]
    beyond_bytes: int  # what a compute buffer may be larger than predicted
    kernels_bytes: int
    expanded_bytes: int  # of a file whose latent attention has K and V in one matrix
    forms: tuple[RemovedForm, ...]


@cache
def notes() -> Notes:
    """Raises ProfileError for data that does not say what it must."""
    table = _table("notes")
    forms = []
    for row in table.tables("meaning"):
        settings = row.get("settings", dict) or {}
        forms.append(
            RemovedForm(names=row.strings("names"), programs=_PROGRAMS, settings=MappingProxyType(settings))
        )
        row.done()
    for row in table.tables("removed"):
        forms.append(
            RemovedForm(names=row.strings("names"), programs=_PROGRAMS, instead=row.take("instead", str))
        )
        row.take("source", str)
        row.done()
    older = table.strings("older")
    table.strings("older_sources")
    found = Notes(
        older=older,
        beyond_bytes=table.take("beyond_mib", int) * MIB,
        kernels_bytes=table.take("kernels_mib", int) * MIB,
        expanded_bytes=table.take("expanded_mib", int) * MIB,
        forms=tuple(forms),
    )
    table.done()
    return found


@cache
def flags() -> FlagTable:
    """The arguments of the newest build that was read."""
    folder = catalog.root() / "engines" / ENGINE
    builds = [int(match[1]) for path in folder.glob("b*.toml") if (match := _BUILD.fullmatch(path.stem))]
    if not builds:
        raise ProfileError(f"no flag table of {ENGINE} among the profiles", hint="reinstall plan-llama")
    table = _table(f"b{max(builds)}")
    build = table.take("build", int)
    table.take("commit", str)
    table.strings("sources")
    arguments = read_rows(table, build)
    table.done()
    return FlagTable(
        build=build,
        table_build=build,
        engine=ENGINE,
        arguments=arguments,
        removed=notes().forms,
        _by_name=MappingProxyType(by_name(arguments)),
    )


def meant(argv: Sequence[str]) -> bool:
    """Whether a command has arguments that only ik_llama.cpp ever had, or names a program in its folder."""
    from plan_llama.engines.commandline import PROGRAMS

    named = any("ik_llama" in word and re.split(r"[/\\]", word)[-1] in PROGRAMS for word in argv)
    return named or bool(_own_names().intersection(argv))


@cache
def _own_names() -> frozenset[str]:
    theirs = {name for program, name in history().spans if program in _PROGRAMS}
    own = {name for item in flags().arguments if _serves(item) for name in item.spellings}
    own |= {name for form in notes().forms for name in form.names}
    return frozenset(own - theirs)


def _serves(item: Argument) -> bool:
    return bool({*_PROGRAMS} & {*item.programs})


def _table(stem: str) -> catalog.Table:
    path = catalog.root() / "engines" / ENGINE / f"{stem}.toml"
    table = catalog.Table(catalog.load(path), str(path))
    if table.take("schema", int) != 1:
        raise ProfileError(f"{path}: 'schema' must be 1")
    table.take("engine", str)
    return table
