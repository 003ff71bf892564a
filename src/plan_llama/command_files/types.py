"""What a file says of the commands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from plan_llama.engines import ollama_words
from plan_llama.engines.commandline import program_of
from plan_llama.engines.vllm.parsing import is_vllm


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command. Of one that is not `known` the text is its source: `$(nproc)`, `$1`."""

    text: str
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCommand:
    """A command with the environment that its file gives it. `where` says which one it is: a line, a service."""

    words: tuple[Word, ...]
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    where: str = ""
    notes: tuple[str, ...] = ()  # what was taken for granted while it was read


def names_program(words: Sequence[Word]) -> bool:
    """Whether the first word is a program of an engine (or the first two: `llama serve`, `ollama run`)."""
    first, second = words[:1], words[1:2]
    if not first or not first[0].known:
        return False
    following = second[0].text if second else None
    if following is not None and is_vllm((first[0].text, following)):
        return True
    return bool(program_of(first[0].text, following)) or ollama_words.loads(first[0].text, following)


def starts_engine(words: Sequence[Word]) -> bool:
    """Whether one of the words is a program of the engine."""
    return any(names_program(words[place : place + 2]) for place in range(len(words)))
