"""Which arguments a build of llama.cpp accepts: facts in TOML tables, one per build, made from its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from plan_llama import catalog
from plan_llama.errors import InputError, ProfileError

ENGINE = "llama.cpp"
_FOLDER = f"engines/{ENGINE}"
_BUILD = re.compile(r"b(\d{3,7})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of one or more programs.

    `kind` says what the parser makes of the value: `flag` and `switch` take none (a switch has `negative`
    spellings); `int`, `uint`, `float`, `choice`, `string`, `devices` take one; `floats`, `uints`, `ranges`,
    `choices`, `bools` take one that is a list; `strings` takes two. `choices` beside a number kind are words
    that are accepted as well.
    """

    names: tuple[str, ...]
    negative: tuple[str, ...] = ()
    kind: str
    values: tuple[str, ...] = ()  # the hint for each value that is taken
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    refused: tuple[int, ...] = ()  # single numbers that the parser throws on
    env: str | None = None
    programs: tuple[str, ...]
    ignored: str | None = None  # the engine's notice: accepted, without effect
    deprecated: str | None = None  # the engine's notice: accepted, works for now
    removed: str | None = None  # the engine's notice: known, always refused

    @property
    def name(self) -> str:
        """The longest of the first spellings: the readable one."""
        return max(self.names, key=len)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedForm:
    """An argument as older builds took it. `bare` is one that took no value then and takes one now."""

    names: tuple[str, ...]
    programs: tuple[str, ...]
    values: tuple[str, ...] = ()
    bare: bool = False
    instead: str = ""
    settings: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    last_build: int | None = None  # the newest build known to accept it
    first_build_without: int | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagTable:
    """The arguments of one build. `note` says so where another build's table stands in for the asked one."""

    build: int  # the build that was asked for
    table_build: int  # the build whose source the table was read from
    note: str | None = None
    arguments: tuple[Argument, ...]
    removed: tuple[RemovedForm, ...]
    _by_name: Mapping[tuple[str, str], Argument] = field(repr=False, compare=False)

    @classmethod
    def load(cls, build: int | None = None) -> FlagTable:
        """The table of a build (None: the newest known one); without one of its own, the nearest older one.

        Raises InputError for a negative build, ProfileError for a table that does not say what it must.
        """
        return _load(build)

    def lookup(self, spelling: str, program: str) -> Argument | None:
        """The argument of that spelling in that program, or None. `--ctx_size` is `--ctx-size`."""
        return self._by_name.get((program, normalised(spelling)))

    def from_env(self, variable: str, program: str) -> tuple[Argument, bool] | None:
        """The argument that an environment variable sets, and whether it is the LLAMA_ARG_NO_… form."""
        for argument in self.arguments:
            if argument.env and program in argument.programs:
                if argument.env == variable:
                    return argument, False
                if argument.negative and argument.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") == variable:
                    return argument, True
        return None

    def removed_form(self, spelling: str, program: str) -> RemovedForm | None:
        """How older builds took an argument of that spelling, where that is known."""
        name = normalised(spelling)
        return next((form for form in self.removed if name in form.names and program in form.programs), None)


def normalised(spelling: str) -> str:
    """A long option with `_` is read as one with `-` (common/arg.cpp and llama-bench.cpp, b11434)."""
    return spelling.replace("_", "-") if spelling.startswith("--") else spelling


@cache
def _load(build: int | None) -> FlagTable:
    tables: dict[int, Any] = {}
    removed_path = None
    for stem, path in catalog.files(_FOLDER).items():
        if match := _BUILD.fullmatch(stem):
            tables[int(match[1])] = path
        elif stem == "removed":
            removed_path = path
    if not tables or removed_path is None:
        raise ProfileError(f"no flag table of {ENGINE} among the profiles", hint="reinstall plan-llama")
    if build is not None and build < 0:
        raise InputError(f"{ENGINE} has no build {build}", hint="builds are written like b11434")
    asked = max(tables) if build is None else build
    older = [known for known in tables if known <= asked]
    table_build = max(older) if older else min(tables)
    note = None
    if table_build != asked:
        side = "newer" if table_build < asked else "older"
        note = (
            f"no flag table for {ENGINE} b{asked}, which is {side} than the nearest known one: "
            f"its arguments are taken to be those of b{table_build}"
        )
    arguments = _arguments(catalog.Table(catalog.load(tables[table_build]), str(tables[table_build])))
    removed = _removed(catalog.Table(catalog.load(removed_path), str(removed_path)))
    by_name = {
        (program, name): argument
        for argument in arguments
        for program in argument.programs
        for name in (*argument.names, *argument.negative)
    }
    return FlagTable(
        build=asked,
        table_build=table_build,
        note=note,
        arguments=arguments,
        removed=removed,
        _by_name=MappingProxyType(by_name),
    )


def _arguments(table: catalog.Table) -> tuple[Argument, ...]:
    _schema(table)
    for key, kind in (("engine", str), ("build", int)):
        table.take(key, kind)
    table.strings("sources")
    found = []
    for item in table.tables("argument"):
        refused = item.get("refused", list) or []
        found.append(
            Argument(
                names=item.strings("names"),
                negative=item.strings("negative"),
                kind=item.take("kind", str),
                values=item.strings("values"),
                choices=item.strings("choices"),
                minimum=item.get("min", int),
                maximum=item.get("max", int),
                refused=tuple(refused),
                env=item.get("env", str),
                programs=item.strings("programs"),
                ignored=item.get("ignored", str),
                deprecated=item.get("deprecated", str),
                removed=item.get("removed", str),
            )
        )
        item.done()
    table.done()
    return tuple(found)


def _removed(table: catalog.Table) -> tuple[RemovedForm, ...]:
    _schema(table)
    found = []
    for item in table.tables("argument"):
        settings = item.get("settings", dict) or {}
        found.append(
            RemovedForm(
                names=item.strings("names"),
                programs=item.strings("programs"),
                values=item.strings("values"),
                bare=item.get("bare", bool) or False,
                instead=item.get("instead", str) or "",
                settings=MappingProxyType(settings),
                last_build=item.get("last_build", int),
                first_build_without=item.get("first_build_without", int),
                sources=item.strings("sources"),
            )
        )
        item.done()
    table.done()
    return tuple(found)


def _schema(table: catalog.Table) -> None:
    if table.take("schema", int) != 1:
        raise ProfileError(f"{table.where}: 'schema' must be 1")
