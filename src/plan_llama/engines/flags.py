"""Which arguments a build of llama.cpp accepts, and what to write for those that it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType

from plan_llama import catalog
from plan_llama.engines.arguments import ENGINE, Argument, Span, head, history, tables
from plan_llama.errors import InputError

_SERVER = "llama-server"


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
class Replacement:
    """What stands in the place of an argument that a build does not have yet, by its value."""

    flag: str
    values: Mapping[str, tuple[str, ...]]
    lost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagTable:
    """The arguments of one build. `note` says so where another build's table stands in for the asked one."""

    build: int  # the build that was asked for
    table_build: int  # the build whose source the table was read from
    engine: str = ENGINE
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

    @classmethod
    def of_program(cls, build: int | None, listed: Sequence[str]) -> FlagTable:
        """The table of a llama-server that is here: its build's, held against what its own --help lists.

        One that has no number, or says nothing of it, has that of the tree whose arguments are most like its own.
        """
        names = {name for line in listed for name in line.partition(" ")[0].split(",")}
        if not names:
            return cls.load(build)
        numbered = build is not None and build > 1
        table = cls.load(build if numbered else _most_like(names))
        own = tuple(_held_against(table, names))
        note = None if own == table.arguments else table.note
        if not numbered:
            note = f"a build without a number: by its --help, its arguments are taken to be those of b{table.build}"
        return replace(
            table, build=build or 0, note=note, arguments=own, _by_name=MappingProxyType(by_name(own))
        )

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

    def older_form(self, spelling: str, program: str) -> RemovedForm | None:
        """What is written down of an argument that is not, or not so, in the newest build."""
        name = normalised(spelling)
        return next((form for form in self.removed if name in form.names and program in form.programs), None)

    def removed_form(self, spelling: str, program: str) -> RemovedForm | None:
        """How builds before this one took an argument that it refuses, or now takes with a value."""
        form = self.older_form(spelling, program)
        if self.engine != ENGINE:
            return form if form is not None and self.lookup(spelling, program) is None else None
        if form is not None and form.bare:
            return form
        span = self.span(spelling, program)
        last = span.until if span else None
        if form is not None and form.first_build_without is not None:
            return form if self.build >= form.first_build_without else None
        if span is None or last is None or last >= self.table_build:
            return None
        values = next(item.values for item in history().of(last) if _is(item, spelling, program))
        form = form or RemovedForm(names=(normalised(spelling),), programs=(program,))
        return replace(form, values=values, last_build=last, first_build_without=span.gone)

    def span(self, spelling: str, program: str) -> Span | None:
        """Which builds know a spelling."""
        return None if self.engine != ENGINE else history().spans.get((program, normalised(spelling)))

    def replacement(self, spelling: str, values: tuple[str, ...], program: str) -> Replacement | None:
        """What does the same as an argument that came later, if this build has it."""
        if self.engine != ENGINE:
            return None
        for older in replacements().values():
            newer = history().of(history().trees[-1].build)
            if any(_is(item, spelling, program) and older.flag in item.names for item in newer):
                value = values[0] if values else ""
                words = older.values.get(value, older.values.get("*"))
                if words is not None and all(self.lookup(w, program) for w in words if w.startswith("-")):
                    return replace(older, values={value: words})
        return None

    def listed(self, program: str) -> list[str]:
        """The arguments as a program's --help lists them: names, then what the value looks like."""
        return [
            " ".join((",".join(item.spellings), *item.values)) + ("|all" if "all" in item.choices else "")
            for item in self.arguments
            if program in item.programs and not item.removed
        ]


def normalised(spelling: str) -> str:
    """A long option with `_` is read as one with `-` (common/arg.cpp and llama-bench.cpp, b11434)."""
    return spelling.replace("_", "-") if spelling.startswith("--") else spelling


def _is(argument: Argument, spelling: str, program: str) -> bool:
    return program in argument.programs and normalised(spelling) in argument.spellings


@cache
def _load(build: int | None) -> FlagTable:
    if build is not None and build < 0:
        raise InputError(f"{ENGINE} has no build {build}", hint="builds are written like b11434")
    single = tables()
    asked = max(single) if build is None else build
    removed = tuple(_removed())
    own = [known for known in single if known <= asked]
    if asked <= 1:  # what a tree without its history reports
        own = [max(single)]
    if own:
        table_build = max(own)
        arguments = single[table_build]
    else:
        trees = [tree.build for tree in history().trees]
        table_build = max((known for known in trees if known <= asked), default=trees[0])
        arguments = tuple(_sharper(history().of(table_build), removed, table_build, asked))
    return FlagTable(
        build=asked,
        table_build=table_build,
        note=_note(asked, table_build, max(single)),
        arguments=arguments,
        removed=removed,
        _by_name=MappingProxyType(by_name(arguments)),
    )


def by_name(arguments: Iterable[Argument]) -> dict[tuple[str, str], Argument]:
    """Arguments by program and spelling."""
    return {
        (program, name): item for item in arguments for program in item.programs for name in item.spellings
    }


def _server(arguments: Iterable[Argument]) -> set[str]:
    return {name for item in arguments if _SERVER in item.programs for name in item.spellings}


def _most_like(names: set[str]) -> int:
    """The newest of the trees whose llama-server differs least from one that lists these names."""
    trees = [tree.build for tree in history().trees]
    return min(reversed(trees), key=lambda build: len(_server(history().of(build)) ^ names))


def _held_against(table: FlagTable, names: set[str]) -> Iterator[Argument]:
    """What a program lists, as this build or the next one that has it takes it; --help leaves out what is removed."""
    for item in table.arguments:
        if (
            _SERVER not in item.programs
            or item.removed
            or names & set(item.spellings)
            or all("." in name for name in item.names)
        ):
            yield item
        elif others := tuple(program for program in item.programs if program != _SERVER):
            yield replace(item, programs=others)
    missing = names - _server(table.arguments)
    for item in sorted(history().arguments, key=lambda item: item.since):
        if _SERVER in item.programs and item.since > table.table_build and missing & set(item.spellings):
            missing -= set(item.spellings)
            yield replace(item, programs=(_SERVER,))


def _note(asked: int, table_build: int, newest: int) -> str | None:
    if asked == table_build:
        return None
    taken = f"its arguments are taken to be those of b{table_build}"
    if asked <= 1:
        return f"a build without a number may be of any age: {taken}"
    if table_build == newest:
        return f"no flag table for {ENGINE} b{asked}, which is newer than the nearest known one: {taken}"
    if asked < table_build:
        return f"no flag table for {ENGINE} b{asked}, which is older than the nearest known one: {taken}"
    following = min(tree.build for tree in history().trees if tree.build > asked)
    return (
        f"no flag table for {ENGINE} b{asked}, which lies between two known ones: {taken}, "
        f"and may have some that were first seen in b{following}"
    )


def _sharper(
    arguments: tuple[Argument, ...], removed: tuple[RemovedForm, ...], table_build: int, asked: int
) -> Iterator[Argument]:
    """The table with the changes whose build is known closer than the trees tell."""
    for argument in arguments:
        form = next(
            (
                form
                for form in removed
                if form.first_build_without
                and table_build < form.first_build_without <= asked
                and set(form.names) & set(argument.names)
                and set(form.programs) & set(argument.programs)
            ),
            None,
        )
        if form is None:
            yield argument
        elif form.bare:
            following = min(tree.build for tree in history().trees if tree.build > table_build)
            yield next(item for item in history().of(following) if _is(item, argument.name, form.programs[0]))


def _removed() -> Iterator[RemovedForm]:
    path = catalog.root() / "engines" / ENGINE / "removed.toml"
    table = catalog.Table(catalog.load(path), str(path))
    head(table)
    for item in table.tables("argument"):
        settings = item.get("settings", dict) or {}
        yield RemovedForm(
            names=item.strings("names"),
            programs=item.strings("programs"),
            bare=item.get("bare", bool) or False,
            instead=item.get("instead", str) or "",
            settings=MappingProxyType(settings),
            last_build=item.get("last_build", int),
            first_build_without=item.get("first_build_without", int),
            sources=item.strings("sources"),
        )
        item.done()
    table.done()


@cache
def replacements() -> Mapping[str, Replacement]:
    """What older builds have in the place of an argument, by flag."""
    path = catalog.root() / "engines" / ENGINE / "older-spellings.toml"
    table = catalog.Table(catalog.load(path), str(path))
    head(table)
    found = {}
    for row in table.tables("spelling"):
        values = row.table("values")
        flag = row.take("flag", str)
        found[flag] = Replacement(
            flag=flag,
            values={key: values.strings(key) for key in values.keys()},  # noqa: SIM118 - a method of ours
            lost=row.get("lost", str) or "",
        )
        row.done()
    table.done()
    return MappingProxyType(found)
