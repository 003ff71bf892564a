"""Read a llama.cpp command as its own parser does, word by word, without ever running it.

The rules are those of common/arg.cpp (common_params_parse_ex) and tools/llama-bench/llama-bench.cpp, b11434:
a value is always the next word (there is no `--flag=value`), whatever it looks like; of a repeated plain
argument the last one wins; environment variables come before the command line. The parser stops at its first
error; this one reads on, so that everything wrong is known at once, and keeps what the author of a refused
argument meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from plan_llama.engines import values as cxx
from plan_llama.engines.arguments import ENGINE, Argument
from plan_llama.engines.flags import FlagTable, RemovedForm, normalised
from plan_llama.errors import InputError
from plan_llama.memory.types import Program

Status = Literal["ok", "unknown", "bad-value", "removed", "ignored", "duplicate"]
REFUSED: tuple[Status, ...] = ("unknown", "bad-value", "removed")

PROGRAMS: Mapping[str, Program] = MappingProxyType(
    {
        "llama-server": "llama-server",
        "llama-cli": "llama-cli",
        "llama-bench": "llama-bench",
        "llama-fit-params": "llama-fit-params",
    }
)
# The one binary that holds all programs (app/llama.cpp).
_SUBCOMMANDS: Mapping[str, Program] = MappingProxyType(
    {
        "serve": "llama-server",
        "server": "llama-server",
        "cli": "llama-cli",
        "client": "llama-cli",
        "bench": "llama-bench",
        "fit-params": "llama-fit-params",
    }
)
# Given more than once, these add up instead of replacing each other (their handlers push_back).
_ADDS_UP = frozenset(
    {
        "-ot",
        "-cmoe",
        "-ncmoe",
        "-ncffn",
        "-otd",
        "-cmoed",
        "-ncmoed",
        "--override-kv",
        "--spec-type",
        "--api-key",
    }
    | {"--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled", "--image", "-r", "-l"}
    | {"--dry-sequence-breaker"}
)
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_MOST_WORDS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedArgument:
    """One argument of a command. `position` is the index of its word; -1 for an environment variable."""

    position: int
    spelling: str  # exactly as given; the variable's name where `from_env`
    values: tuple[str, ...] = ()
    argument: Argument | None = None  # what it is, or was meant to be; None where nobody knows
    status: Status = "ok"
    reason: str = ""  # why it is refused, or what is odd about it; empty where all is well
    fix: str = ""
    negated: bool = False  # a negative spelling of a switch
    from_env: bool = False

    @property
    def words(self) -> str:
        """The argument with its values as written."""
        return " ".join((self.spelling, *self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCommand:
    """A command, read. `meant`: what refused arguments of older builds stood for, by `mmap`, `mlock`,
    `direct_io`, `flash_attn`."""

    program: Program
    executable: str
    wrapper: tuple[str, ...] = ()  # sudo, numactl --interleave=all, …
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    arguments: tuple[ParsedArgument, ...] = ()
    meant: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    build: int
    table_build: int  # the build whose arguments it was read by
    engine: str = ENGINE

    @property
    def refused(self) -> tuple[ParsedArgument, ...]:
        """The arguments that end this program with an error."""
        return tuple(item for item in self.arguments if item.status in REFUSED)

    @property
    def accepted(self) -> bool:
        """Whether the program's parser takes the whole command."""
        return not self.refused


def parse(argv: Sequence[str], *, table: FlagTable, env: Mapping[str, str] | None = None) -> ParsedCommand:
    """Read a command's words; assignments in front of the program are its environment, over `env`.

    Raises InputError where no program of llama.cpp is named, or the command is absurdly long.
    """
    if len(argv) > _MOST_WORDS:
        raise InputError(f"the command has {len(argv)} words", hint=f"at most {_MOST_WORDS} are read")
    place, program, first = _program(argv)
    variables = dict(env or {})
    wrapper = []
    for word in argv[:place]:
        if match := _ASSIGNMENT.fullmatch(word):
            variables[match[1]] = match[2]
        elif word != "env":
            wrapper.append(word)
    reader = _Reader(argv, first, program, table)
    if program != "llama-bench":  # its parser reads no environment
        reader.environment(variables)
    reader.command_line()
    return ParsedCommand(
        program=program,
        executable=argv[place],
        wrapper=tuple(wrapper),
        env=MappingProxyType(variables),
        arguments=tuple(reader.found),
        meant=MappingProxyType(reader.meant),
        build=table.build,
        table_build=table.table_build,
        engine=table.engine,
    )


def program_of(word: str, following: str | None = None) -> tuple[Program, int] | None:
    """The program that a word names, and how many words name it: the one binary `llama` takes a second one."""
    name = re.split(r"[/\\]", word)[-1].removesuffix(".exe")
    if name in PROGRAMS:
        return PROGRAMS[name], 1
    subcommand = _SUBCOMMANDS.get(following or "")
    return (subcommand, 2) if name == "llama" and subcommand else None


def _program(argv: Sequence[str]) -> tuple[int, Program, int]:
    """Where the program stands, which it is, and where its arguments begin."""
    for place, word in enumerate(argv):
        if found := program_of(word, argv[place + 1] if place + 1 < len(argv) else None):
            return place, found[0], place + found[1]
    known = ", ".join(PROGRAMS)
    given = f"'{argv[0]}'" if argv else "nothing"
    raise InputError(
        f"no program of llama.cpp in the command, found {given}", hint=f"expected one of {known}"
    )


class _Reader:
    """Goes through the words once."""

    def __init__(self, argv: Sequence[str], first: int, program: Program, table: FlagTable) -> None:
        self.argv, self.place, self.program, self.table = argv, first, program, table
        self.found: list[ParsedArgument] = []
        self.meant: dict[str, bool] = {}
        self.seen: dict[tuple[str, ...], str] = {}

    def environment(self, variables: Mapping[str, str]) -> None:
        """LLAMA_ARG_… variables, in the order in which the parser asks for them: that of its own list."""
        for argument in self.table.arguments:
            if not argument.env or self.program not in argument.programs:
                continue
            for variable, value in variables.items():
                known = self.table.from_env(variable, self.program)
                if known and known[0] is argument:
                    self._variable(argument, variable, value, negated=known[1])
        for variable in variables:
            if variable.startswith("LLAMA_ARG_") and self.table.from_env(variable, self.program) is None:
                reason = f"no argument of b{self.table.table_build} reads this variable"
                self.found.append(
                    ParsedArgument(
                        position=-1, spelling=variable, status="ignored", reason=reason, from_env=True
                    )
                )

    def _variable(self, argument: Argument, variable: str, value: str, *, negated: bool) -> None:
        status: Status = "ignored" if argument.ignored else "ok"
        reason = argument.ignored or ""
        taken: tuple[str, ...] = ()
        if argument.kind == "flag":
            negated = self._negates(argument, argument.names[0])
            if value not in cxx.TRUE_WORDS:
                status, reason = "ignored", f"'{value}' is not on, enabled, true or 1"
        elif argument.kind == "switch":
            if not negated and value in cxx.FALSE_WORDS:
                negated = True
            elif not negated and value not in cxx.TRUE_WORDS:
                status, reason = "bad-value", f"expected on or off, found '{value}'"
        else:
            taken = (value,)
            if trouble := cxx.problem(argument, taken):
                status, reason = "bad-value", trouble
        self.found.append(
            ParsedArgument(
                position=-1,
                spelling=variable,
                values=taken,
                argument=argument,
                status=status,
                reason=reason,
                negated=negated,
                from_env=True,
            )
        )

    def command_line(self) -> None:
        """All words from the program's first argument on."""
        while self.place < len(self.argv):
            position = self.place
            word = self.argv[position]
            self.place += 1
            argument = self.table.lookup(word, self.program)
            if argument is not None:
                self.found.append(self._known(position, word, argument))
            elif form := self.table.removed_form(word, self.program):
                self.found.append(self._gone(position, word, form))
            else:
                self.found.append(self._unknown(position, word))

    def _known(self, position: int, word: str, argument: Argument) -> ParsedArgument:
        negated = self._negates(argument, word)
        wanted = 0 if argument.kind in ("flag", "switch") else len(argument.values)
        taken = tuple(self.argv[self.place : self.place + wanted])
        self.place += len(taken)
        status: Status = "ok"
        reason = fix = ""
        if len(taken) < wanted:
            status, reason = (
                "bad-value",
                f"expected {cxx.shown(argument)} after it, found the end of the command",
            )
        elif wanted and (trouble := cxx.problem(argument, taken)):
            status, reason = "bad-value", trouble
            if self._is_argument(taken[-1]):
                reason = (
                    f"expected {cxx.shown(argument)}, but the next word '{taken[-1]}' is read as its value"
                )
                self.place -= 1  # the author did not mean it as a value: read on from there
        elif argument.removed:
            status, reason, fix = (
                "removed",
                f"b{self.table.table_build} refuses it: {argument.removed}",
                argument.removed,
            )
        if status == "bad-value" and (form := self._bare_form(word)):
            self.meant.update(form.settings)
            fix = form.instead
            reason += (
                f" (a switch up to b{form.last_build}; b{form.first_build_without} and newer want a value)"
            )
        if status == "ok":
            status, reason = self._notes(argument, taken)
            self._old_meaning(word, argument, taken)
        self.seen.setdefault(argument.names, word)
        return ParsedArgument(
            position=position,
            spelling=word,
            values=taken,
            argument=argument,
            status=status,
            reason=reason,
            fix=fix,
            negated=negated,
        )

    def _notes(self, argument: Argument, taken: tuple[str, ...]) -> tuple[Status, str]:
        """What is odd about an argument that is accepted."""
        if notice := argument.ignored:
            return "ignored", f"accepted and without effect: {notice}"
        if (
            argument.names in self.seen
            and not _ADDS_UP & set(argument.names)
            and self.program != "llama-bench"
        ):
            return "duplicate", f"{self.seen[argument.names]} was given before: the last value counts"
        if argument.kind == "int" and taken[0] not in argument.choices and (rest := cxx.trailing(taken[0])):
            return (
                "ok",
                f"'{taken[0]}' is read as {cxx.to_int(taken[0])}: the parser stops in front of '{rest}'",
            )
        if argument.kind == "string" and self._is_argument(taken[0]):
            return "ok", f"the next word '{taken[0]}' is taken as its value"
        return "ok", argument.deprecated or ""

    def _gone(self, position: int, word: str, form: RemovedForm) -> ParsedArgument:
        taken = tuple(self.argv[self.place : self.place + len(form.values)])
        self.place += len(taken)
        self._means(form, taken)
        since = f"b{form.first_build_without} and newer refuse it"
        if form.first_build_without is None:
            since = f"{self.table.engine} b{self.table.table_build} does not know it"
        fix = f"write {form.instead}" if form.instead else "leave it out"
        fix = fix.removeprefix("write ") if form.instead.startswith("leave it out") else fix
        return ParsedArgument(
            position=position,
            spelling=word,
            values=taken,
            status="removed",
            reason=f"removed: {since}",
            fix=fix,
        )

    def _negates(self, argument: Argument, word: str) -> bool:
        """Whether a spelling says no. Older builds had many a `--no-x` as a flag of its own, without its `--x`."""
        today = FlagTable.load().lookup(word, self.program) if argument.kind == "flag" else None
        return any(normalised(word) in item.negative for item in (argument, today) if item)

    def _old_meaning(self, word: str, argument: Argument, taken: tuple[str, ...]) -> None:
        """What an argument that this build still has, and the newest has not, says of the settings."""
        form = self.table.older_form(word, self.program)
        if form is not None and form.settings and (not form.bare or argument.kind == "flag"):
            self._means(form, taken)

    def _means(self, form: RemovedForm, taken: tuple[str, ...]) -> None:
        off = bool(taken) and taken[0].split(",")[0] in cxx.FALSE_WORDS
        self.meant.update({key: value and not off for key, value in form.settings.items()})

    def _unknown(self, position: int, word: str) -> ParsedArgument:
        head, equals, tail = word.partition("=")
        argument = self.table.lookup(head, self.program) if equals else None
        if argument is not None:
            return ParsedArgument(
                position=position,
                spelling=word,
                values=(tail,) if argument.values else (),
                argument=argument if not argument.values or cxx.problem(argument, (tail,)) is None else None,
                status="unknown",
                reason="the parser knows no '=': a value is a word of its own",
                fix=f"write {head} {tail}",
                negated=normalised(head) in argument.negative,
            )
        first, blank, rest = word.partition(" ")
        if blank and (argument := self.table.lookup(first, self.program)):
            value = rest.strip().strip("\"'")
            return ParsedArgument(
                position=position,
                spelling=word,
                argument=argument if argument.values and cxx.problem(argument, (value,)) is None else None,
                values=(value,) if argument.values else (),
                status="unknown",
                reason="one word with a blank in it",
                fix=f"two words: {first} and {value}",
            )
        taken: tuple[str, ...] = ()
        if (
            word.startswith("-")
            and self.place < len(self.argv)
            and not self._is_argument(self.argv[self.place])
        ):
            following = self.argv[self.place]
            if not following.startswith("-") or cxx.to_int(following) is not None:
                taken = (following,)
                self.place += 1
        reason, fix = self._who_knows(word, taken)
        return ParsedArgument(
            position=position, spelling=word, values=taken, status="unknown", reason=reason, fix=fix
        )

    def _who_knows(self, word: str, taken: tuple[str, ...]) -> tuple[str, str]:
        """Why a word is unknown: a newer build's argument, another program's, a slip of the pen, a stray word."""
        span = self.table.span(word, self.program)
        if span is not None and span.since > self.table.table_build:
            came = f"it came after b{span.after}, with b{span.since} at the latest"
            older = self.table.replacement(word, taken, self.program)
            if older is None:
                return (
                    f"no argument of b{self.table.table_build}: {came}",
                    f"b{span.since} or a newer one knows it",
                )
            words = next(iter(older.values.values()))
            lost = f" ({older.lost})" if older.lost else ""
            return f"no argument of b{self.table.table_build}: {came}", (
                f"write {' '.join(words)}{lost}" if words else f"leave it out{lost}"
            )
        others = [name for name in PROGRAMS if name != self.program and self.table.lookup(word, name)]
        if others:
            return f"an argument of {' and '.join(others)}, not of {self.program}", "leave it out"
        if not word.startswith("-"):
            return f"{self.program} takes no words without an argument in front", "leave it out"
        from difflib import get_close_matches

        names = [
            name for item in self.table.arguments if self.program in item.programs for name in item.names
        ]
        close = get_close_matches(normalised(word)[:80], names, n=1, cutoff=0.75)
        reason = f"no argument of {self.program} b{self.table.table_build}"
        return reason, f"perhaps {close[0]}" if close else "leave it out, or use the build that knows it"

    def _bare_form(self, word: str) -> RemovedForm | None:
        form = self.table.removed_form(word, self.program)
        return form if form is not None and form.bare else None

    def _is_argument(self, word: str) -> bool:
        """Whether a word would be an argument of its own, now or in an older build."""
        if not word.startswith("-"):
            return False
        known = self.table.lookup(word, self.program) or self.table.removed_form(word, self.program)
        return known is not None
