"""Which arguments `vllm serve` takes: `profiles/engines/vllm/VERSION.toml`, from its own parser."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from plan_llama import catalog

ENGINE = "vllm"
VERSION = "0.33"

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument. `values` are the only ones it takes; `known` those that the wheel knows where any text parses."""

    name: str
    type: str
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    default: object = None
    nargs: str = ""
    deprecated: bool = False

    @property
    def switch(self) -> bool:
        """Whether it takes no value."""
        return self.type == "bool"

    @property
    def many(self) -> bool:
        """Whether it takes words up to the next argument."""
        return self.nargs == "+"

    def problem(self, value: str) -> str:
        """Why the parser refuses this value; empty where it takes it."""
        if self.values and value not in self.values:
            return f"takes one of {', '.join(self.values)}"
        if self.type in ("int", "list[int]"):
            return "" if _integer(value) is not None else "takes a whole number"
        if self.type == "float":
            return "" if _float(value) is not None else "takes a number"
        if self.type in ("int(k/M/G suffix)", "int|auto"):
            if self.type == "int|auto" and value.lower() in ("auto", "-1"):
                return ""
            if human_int(value) is not None:
                return ""
            return "takes a whole number, with k M g T behind it if wanted (decimals only with small letters)"
        if self.type == "json":
            try:
                json.loads(value)
            except (ValueError, RecursionError):
                return "takes JSON"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagTable:
    """All arguments of a version."""

    version: str
    arguments: tuple[Argument, ...]
    _by_name: Mapping[str, tuple[Argument, bool]] = field(repr=False, compare=False)

    def lookup(self, spelling: str) -> tuple[Argument, bool] | None:
        """The argument of a spelling, and whether that switches it off."""
        return self._by_name.get(normalised(spelling))

    def abbreviated(self, spelling: str) -> tuple[str, ...]:
        """The spellings that a long one is the start of: one is taken, several are an error."""
        name = normalised(spelling)
        if not name.startswith("--"):
            return ()
        return tuple(sorted(known for known in self._by_name if known.startswith(name)))

    @property
    def names(self) -> tuple[str, ...]:
        """Every spelling."""
        return tuple(self._by_name)


def normalised(spelling: str) -> str:
    """`--max_model_len` is `--max-model-len`, up to the first dot (FlexibleArgumentParser.parse_args)."""
    if not spelling.startswith("--"):
        return spelling
    head, dot, rest = spelling.partition(".")
    return head.replace("_", "-") + dot + rest


def human_int(text: str) -> int | None:
    """1k is 1000, 1K is 1024 (human_readable_int in vllm/utils/argparse_utils.py); None where it is neither."""
    text = text.strip()
    match = _HUMAN.fullmatch(text)
    if match is None:
        return _integer(text)
    number, unit = match.groups()
    if unit.islower():
        return int(float(number) * _UNITS[unit])
    return None if "." in number else int(number) * _UNITS[unit]


def _integer(text: str) -> int | None:
    try:
        return int(text) if len(text) < 40 else None
    except ValueError:
        return None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@cache
def load(version: str = VERSION) -> FlagTable:
    """The table of a version."""
    path = catalog.root() / "engines" / ENGINE / f"{version}.toml"
    table = catalog.Table(catalog.load(path), str(path))
    for key in ("engine", "source"):
        table.take(key, str)
    named = table.take("version", str)
    found = []
    for row in table.tables("argument"):
        found.append(
            Argument(
                name=row.take("name", str),
                type=row.take("type", str),
                aliases=row.strings("aliases"),
                negations=row.strings("negations"),
                values=row.strings("values"),
                known=row.strings("known"),
                default=row.get("default", object),
                nargs=row.get("nargs", str) or "",
                deprecated=row.get("deprecated", bool) or False,
            )
        )
        row.done()
    table.done()
    by_name: dict[str, tuple[Argument, bool]] = {}
    for item in found:
        for name in (item.name, *item.aliases):
            by_name[name] = (item, False)
        for name in item.negations:
            by_name[name] = (item, True)
        if item.negations:  # still taken where it is hidden from the help (EnableDisableAction)
            by_name.setdefault(f"--no-{item.name.removeprefix('--')}", (item, True))
    return FlagTable(version=named, arguments=tuple(found), _by_name=by_name)
