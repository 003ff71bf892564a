"""The arguments of llama.cpp's programs as its known builds have them: TOML tables made from their sources.

`bNNNN.toml` holds the newest known build and history.toml what older ones had otherwise; together they give back the
table of every source tree that was read (scripts/flag_history.py). What came or went between two trees is known no
closer than that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from plan_llama import catalog
from plan_llama.errors import ProfileError

ENGINE = "llama.cpp"
_FOLDER = f"engines/{ENGINE}"
_BUILD = re.compile(r"b(\d{3,7})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of one or more programs, as the trees from `since` to `until` (None: the newest) have it.

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
    since: int
    until: int | None = None

    @property
    def name(self) -> str:
        """The longest of the first spellings: the readable one."""
        return max(self.names, key=len)

    @property
    def spellings(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.names, *self.negative)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A source tree that was read: builds from `build` on have what is in it; up to `after`, where that is known
    apart from it, they may not."""

    build: int
    origin: str
    after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The trees that know a spelling: from `since` to `until` (None: the newest). `after` is the one before the first,
    `gone` the one behind the last."""

    after: int | None
    since: int
    until: int | None
    gone: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The trees, oldest first, and every argument that one of them has."""

    trees: tuple[Tree, ...]
    arguments: tuple[Argument, ...]
    spans: Mapping[tuple[str, str], Span]  # by program and spelling

    def of(self, build: int) -> tuple[Argument, ...]:
        """The arguments of one of the trees."""
        return tuple(
            item
            for item in self.arguments
            if item.since <= build and (item.until is None or build <= item.until)
        )


@cache
def tables() -> Mapping[int, tuple[Argument, ...]]:
    """The tables of single builds: the newest known one, and a user's own."""
    found = {}
    for stem, path in catalog.files(_FOLDER).items():
        if match := _BUILD.fullmatch(stem):
            table = catalog.Table(catalog.load(path), str(path))
            head(table)
            build = table.take("build", int)
            table.strings("sources")
            found[int(match[1])] = read_rows(table, build)
            table.done()
    if not found:
        raise ProfileError(f"no flag table of {ENGINE} among the profiles", hint="reinstall plan-llama")
    return MappingProxyType(dict(sorted(found.items())))


@cache
def history() -> History:
    """What is known of older builds. Raises ProfileError for data that does not say what it must."""
    path = catalog.root() / _FOLDER / "history.toml"
    table = catalog.Table(catalog.load(path), str(path))
    head(table)
    trees = []
    for row in table.tables("tree"):
        trees.append(
            Tree(build=row.take("build", int), origin=row.take("origin", str), after=row.get("after", int))
        )
        row.take("sha256", str)
        row.get("numbered_by", str)
        row.done()
    old = read_rows(table, None)
    table.done()
    newest = trees[-1].build
    if newest not in tables():
        raise ProfileError(f"{path}: there is no table of b{newest}", hint="reinstall plan-llama")
    every = (*tables()[newest], *old)
    builds = [tree.build for tree in trees]
    return History(trees=tuple(trees), arguments=every, spans=MappingProxyType(_spans(every, builds)))


def _spans(arguments: Iterable[Argument], builds: Sequence[int]) -> dict[tuple[str, str], Span]:
    known: dict[tuple[str, str], tuple[int, int]] = {}
    for item in arguments:
        last = builds[-1] if item.until is None else item.until
        for program in item.programs:
            for name in item.spellings:
                so_far = known.get((program, name), (item.since, last))
                known[program, name] = (min(so_far[0], item.since), max(so_far[1], last))
    return {
        key: Span(
            after=max((build for build in builds if build < first), default=None),
            since=first,
            until=None if last == builds[-1] else last,
            gone=min((build for build in builds if build > last), default=None),
        )
        for key, (first, last) in known.items()
    }


def head(table: catalog.Table) -> None:
    """The beginning of each of these files."""
    if table.take("schema", int) != 1:
        raise ProfileError(f"{table.where}: 'schema' must be 1")
    table.get("engine", str)


def read_rows(table: catalog.Table, build: int | None) -> tuple[Argument, ...]:
    """The rows of a table; a row of one build's own table may leave out `since`."""
    found = []
    for item in table.tables("argument"):
        since = item.get("since", int)
        if since is None:
            since = item.take("since", int) if build is None else build
        found.append(
            Argument(
                names=item.strings("names"),
                negative=item.strings("negative"),
                kind=item.take("kind", str),
                values=item.strings("values"),
                choices=item.strings("choices"),
                minimum=item.get("min", int),
                maximum=item.get("max", int),
                refused=tuple(item.get("refused", list) or ()),
                env=item.get("env", str),
                programs=item.strings("programs"),
                ignored=item.get("ignored", str),
                deprecated=item.get("deprecated", str),
                removed=item.get("removed", str),
                since=since,
                until=item.get("until", int),
            )
        )
        item.done()
    return tuple(found)
