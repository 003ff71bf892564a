"""The commands to check: the words behind --, or those that a file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from plan_llama.command_files import reading
from plan_llama.command_files.types import FoundCommand, Word
from plan_llama.engines.commandline import PROGRAMS, program_of
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.vllm.parsing import is_vllm
from plan_llama.findings import Finding
from plan_llama.memory.types import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A command to check. `where` is empty for the one behind --."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    where: str = ""
    findings: list[Finding] = field(default_factory=list)


def in_file(path: str, table: FlagTable) -> list[Given]:
    """The commands of a file; `-` is standard input. Nothing is executed, and no other file is read.

    Raises InputError where it cannot be read, or holds no command of llama.cpp.
    """
    return [_given(item, table) for item in reading.commands(reading.text_of(path), path, table)]


def _given(item: FoundCommand, table: FlagTable) -> Given:
    argv, left_out = _known_words(item.words, table)
    said = [Finding(id="file-assumption", severity="note", text=text) for text in item.notes]
    if left_out:
        said.append(
            Finding(
                id="value-unknown",
                severity="warning",
                text=f"known only when it runs, so it is left out here: {', '.join(left_out)}",
                fix="check -- with the values written out",
            )
        )
    return Given(argv=tuple(argv), env=item.env, where=item.where, findings=said)


def _known_words(words: Sequence[Word], table: FlagTable) -> tuple[list[str], list[str]]:
    """The words that can be judged, and those that cannot: unknown ones with the argument that they are the value of.

    The name of a model's file says enough, whatever its folder is.
    """
    program = next((found[0] for word in words if (found := program_of(word.text))), PROGRAMS["llama-server"])
    takes_value = _valued_in_vllm if is_vllm([word.text for word in words]) else _valued_in(program, table)
    kept: list[str] = []
    left_out: list[str] = []
    for place, word in enumerate(words):
        if word.known or word.text.lower().endswith(".gguf"):
            kept.append(word.text)
            continue
        before = words[place - 1] if place else None
        if before and before.known and takes_value(before.text) and kept[-1:] == [before.text]:
            kept.pop()
            left_out.append(f"{before.text} {word.text}")
        else:
            left_out.append(word.text)
    return kept, left_out


def _valued_in(program: Program, table: FlagTable) -> Callable[[str], bool]:
    """Whether an argument takes a value."""

    def answer(name: str) -> bool:
        argument = table.lookup(name, program)
        return argument is not None and bool(argument.values)

    return answer


def _valued_in_vllm(name: str) -> bool:
    from plan_llama.engines.vllm import flags

    found = flags.load().lookup(flags.normalised(name))
    return found is not None and not found[0].switch
