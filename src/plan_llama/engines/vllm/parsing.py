"""Read a vLLM command as its own parser does, word by word, without ever running it.

The rules are those of FlexibleArgumentParser (vllm/utils/argparse_utils.py, 0.33.0) over Python's argparse: a value is
the next word or stands behind `=`, a long spelling may be cut short where one argument begins so, JSON arguments take
dotted keys, and of a repeated argument the last one counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plan_llama.engines.vllm.flags import Argument, FlagTable, normalised
from plan_llama.errors import InputError, did_you_mean

Status = Literal["ok", "unknown", "bad-value", "duplicate", "doubtful"]
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_NEGATIVE = re.compile(r"-\d+$|-\d*\.\d+$")
_MODULE = "vllm.entrypoints.openai.api_server"
_MOST_WORDS = 20_000
# What older versions had, and what to write now.
_GONE = {
    "--swap-space": "leave it out: 0.33 computes preempted requests again; --kv-offloading-size keeps a tier in RAM",
    "--device": "leave it out: the wheel decides",
    "--max-seq-len-to-capture": "--max-cudagraph-capture-size",
    "--num-scheduler-steps": "leave it out: --async-scheduling is on by itself",
    "--use-v2-block-manager": "leave it out",
    "--guided-decoding-backend": "--structured-outputs-config.backend",
    "--rope-scaling": "--hf-overrides with the config's rope_parameters",
    "--task": "--runner",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One argument of a command, spelled as given. `argument` None is one that nobody knows."""

    spelling: str
    values: tuple[str, ...] = ()
    argument: Argument | None = None
    off: bool = False
    status: Status = "ok"
    reason: str = ""
    fix: str = ""

    @property
    def words(self) -> str:
        """The argument with its values."""
        return " ".join((self.spelling, *self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A `vllm serve` command, read. `model` is its positional word (or --model's)."""

    argv: tuple[str, ...]
    wrapper: tuple[str, ...]
    executable: tuple[str, ...]  # vllm serve, or python -m vllm.entrypoints.openai.api_server
    model: str | None
    env: Mapping[str, str]
    given: tuple[Given, ...]
    stray: tuple[str, ...] = ()  # further words that belong to nothing
    named_model: bool = False  # by --model

    @property
    def refused(self) -> tuple[Given, ...]:
        """What ends the program before it does anything."""
        return tuple(item for item in self.given if item.status in ("unknown", "bad-value"))

    def value(self, name: str) -> str | None:
        """The last value of an argument, by its full name; "on" or "off" of a switch."""
        found: str | None = None
        for item in self.given:
            if item.argument is not None and item.argument.name == name and item.status != "bad-value":
                found = ("off" if item.off else "on") if item.argument.switch else (item.values or ("",))[-1]
        return found


def is_vllm(argv: Sequence[str]) -> bool:
    """Whether a command starts vLLM's server."""
    return _place(argv) is not None


def _place(argv: Sequence[str]) -> tuple[int, int] | None:
    """The first and the last but one word of the program's name."""
    for place, word in enumerate(argv[:40]):
        name = re.split(r"[\\/]", word)[-1].lower().removesuffix(".exe")
        if name == "vllm" and place + 1 < len(argv) and argv[place + 1] == "serve":
            return place, place + 2
        if word == "-m" and place and place + 1 < len(argv) and argv[place + 1] == _MODULE:
            return place - 1, place + 2
        if word == _MODULE and place and argv[place - 1] != "-m":
            return place, place + 1
    return None


def parse(argv: Sequence[str], table: FlagTable, *, env: Mapping[str, str] | None = None) -> Command:
    """A command's words; `env` is what its file sets. Raises InputError where it does not start vLLM, or is absurdly
    long."""
    if len(argv) > _MOST_WORDS:
        raise InputError(f"the command has {len(argv)} words", hint=f"at most {_MOST_WORDS} are read")
    found = _place(argv)
    if found is None:
        raise InputError("the command does not start vLLM", hint="expected vllm serve MODEL …")
    first, after = found
    own, wrapper = {**(env or {})}, []
    for word in argv[:first]:
        if match := _ASSIGNMENT.fullmatch(word):
            own[match[1]] = match[2]
        elif word != "env":
            wrapper.append(word)
    words, loose, given = list(argv[after:]), [], []
    while words:
        word = words.pop(0)
        if word == "--":
            loose += words
            break
        if not word.startswith("-") or word == "-" or _NEGATIVE.match(word):
            loose.append(word)
            continue
        given.append(_argument(word, words, table))
    given = _repeated(given)
    named = next(
        (i.values[-1] for i in reversed(given) if i.argument and i.argument.name == "--model" and i.values),
        None,
    )
    return Command(
        argv=tuple(argv),
        wrapper=tuple(wrapper),
        executable=tuple(argv[first:after]),
        model=loose[0] if loose else named,
        named_model=not loose and named is not None,
        env=own,
        given=tuple(given),
        stray=tuple(loose[1:]),
    )


def _argument(word: str, rest: list[str], table: FlagTable) -> Given:
    """The argument that a word starts; its values are taken from `rest`."""
    spelling, equals, attached = word.partition("=")
    base = normalised(spelling)
    if word.startswith("-O") and len(word) > 2 and not word.startswith("--"):  # -O3, -O=3
        found = table.lookup("--optimization-level")
        level = word[3:] if word[2] == "=" else word[2:]
        return _checked(Given(spelling=word, argument=found[0] if found else None), (level,), inline=True)
    if base == "-O":
        base = "--optimization-level"
    if "." in base and (dotted := _dotted(word, base, equals, attached, rest, table)) is not None:
        return dotted
    found = table.lookup(base)
    if found is None:
        near = table.abbreviated(base)
        kinds = {table.lookup(name) for name in near}
        if len(near) == 1 or (len(kinds) == 1 and near):
            found = table.lookup(near[0])
        elif near:
            return _unknown(
                spelling, equals, attached, rest, f"could be {', '.join(near[:4])}", "write it out"
            )
    if found is None:
        gone = _GONE.get(base)
        hint = gone or did_you_mean(base, table.names).removesuffix("; ")
        reason = "was removed" if gone else "is not an argument of vllm serve"
        return _unknown(spelling, equals, attached, rest, reason, hint)
    argument, off = found
    item = Given(spelling=spelling, argument=argument, off=off)
    if argument.switch:
        if equals:
            return _bad(item, (attached,), "is a switch and takes no value")
        return item
    if equals:
        return _checked(item, (attached,))
    values: list[str] = []
    while rest and (argument.many or not values) and not _option(rest[0]):
        values.append(rest.pop(0))
    if not values and argument.nargs != "?":
        return _bad(item, (), "needs a value")
    return _checked(item, tuple(values))


def _dotted(
    word: str, base: str, equals: str, attached: str, rest: list[str], table: FlagTable
) -> Given | None:
    """`--speculative-config.method mtp`: a key of a JSON argument; `+` behind it appends to a list."""
    name, _, _ = base.partition(".")
    found = table.lookup(name)
    spelling = word.partition("=")[0]
    if found is None:
        return None
    if found[0].type not in ("json", "str|json"):
        return Given(spelling=spelling, argument=None, status="unknown", reason="takes no keys")
    if not equals:
        if not rest:
            return Given(spelling=spelling, argument=found[0], status="bad-value", reason="needs a value")
        attached = rest.pop(0)
    return Given(spelling=spelling, values=(attached,), argument=found[0])


def _option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not _NEGATIVE.match(word)


def _unknown(spelling: str, equals: str, attached: str, rest: list[str], reason: str, fix: str) -> Given:
    """What nobody knows, with the word behind it where that looks like its value."""
    values: tuple[str, ...] = (attached,) if equals else ()
    if not equals and rest and not _option(rest[0]):
        values = (rest.pop(0),)
    return Given(spelling=spelling, values=values, status="unknown", reason=reason, fix=fix)


def _bad(item: Given, values: tuple[str, ...], reason: str) -> Given:
    return Given(
        spelling=item.spelling,
        values=values,
        argument=item.argument,
        off=item.off,
        status="bad-value",
        reason=reason,
    )


def _checked(item: Given, values: tuple[str, ...], *, inline: bool = False) -> Given:
    argument = item.argument
    assert argument is not None  # noqa: S101 - both callers looked it up
    problem = next((text for value in values if (text := argument.problem(value))), "")
    if problem:
        return _bad(item, values, problem)
    status: Status = "ok"
    reason = fix = ""
    wrong = [value for value in values if argument.known and value not in argument.known]
    if wrong:
        status, reason = (
            "doubtful",
            f"{wrong[0]} is none that vLLM knows: the parser takes it, and the start fails",
        )
        fix = (
            did_you_mean(wrong[0], argument.known).removesuffix("; ")
            or f"one of {', '.join(argument.known[:12])}"
        )
    return Given(
        spelling=item.spelling,
        values=() if inline else values,
        argument=argument,
        off=item.off,
        status=status,
        reason=reason,
        fix=fix,
    )


def _repeated(given: list[Given]) -> list[Given]:
    """Earlier ones of a repeated argument are marked: the last one counts. Keys of JSON add up."""
    seen: set[str] = set()
    kept: list[Given] = []
    for item in reversed(given):
        name = item.argument.name if item.argument else ""
        adds = "." in item.spelling or (item.argument is not None and "repeatable" in item.argument.type)
        if name and name in seen and not adds and item.status == "ok":
            item = Given(
                spelling=item.spelling,
                values=item.values,
                argument=item.argument,
                off=item.off,
                status="duplicate",
                reason="is given again behind it, which counts",
            )
        elif name and not adds:
            seen.add(name)
        kept.append(item)
    return kept[::-1]


def json_value(text: str | None) -> Mapping[str, object]:
    """A JSON argument's object; empty where there is none."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
