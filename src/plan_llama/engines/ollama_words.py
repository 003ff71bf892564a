"""An Ollama command, read: what it does, to which model, and what its environment says. Nothing of it is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plan_llama.engines.ollama_facts import facts
from plan_llama.findings import Finding

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_TRUE_OR_FALSE = ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False")
_DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+|-?\d+")
# What the client reads itself; everything else belongs to the server's environment.
_CLIENT = frozenset({"OLLAMA_HOST", "OLLAMA_NOHISTORY", "OLLAMA_EDITOR"})
_WITH_VALUE = frozenset(
    {"-f", "--file", "-q", "--quantize", "--keepalive", "--format", "--think", "--dimensions"}
)
LOADS = ("run", "serve", "create")


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaWords:
    """`name` is the model's; `file` the Modelfile of `create`."""

    action: str
    name: str | None
    file: str | None
    env: Mapping[str, str]


def loads(word: str, following: str | None) -> bool:
    """Whether two words begin a command that loads or prepares a model."""
    return _place((word,)) == 0 and following in LOADS


def meant(argv: Sequence[str]) -> bool:
    """Whether a command is Ollama's: assignments and wrappers aside, its program is."""
    return _place(argv) is not None


def _place(argv: Sequence[str]) -> int | None:
    for index, word in enumerate(argv):
        if re.split(r"[/\\]", word)[-1].removesuffix(".exe") == "ollama":
            return index
        if word.startswith("llama"):
            return None
    return None


def read(argv: Sequence[str], env: Mapping[str, str]) -> OllamaWords:
    """The words of a command; assignments in front of the program go over `env`."""
    place = _place(argv) or 0
    variables = dict(env)
    variables.update((match[1], match[2]) for word in argv[:place] if (match := _ASSIGNMENT.fullmatch(word)))
    rest = list(argv[place + 1 :])
    if rest[:1] == ["ollama"]:  # `docker exec ollama ollama run`: a container and the program in it
        rest.pop(0)
    action = rest.pop(0) if rest else ""
    names: list[str] = []
    file = None
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in _WITH_VALUE and not equals and rest:
            value = rest.pop(0)
        if flag in ("-f", "--file"):
            file = value
        elif not word.startswith("-"):
            names.append(word)
    return OllamaWords(action=action, name=names[0] if names else None, file=file, env=variables)


def findings(words: OllamaWords) -> Iterator[Finding]:
    """What of the environment is unknown, not read as it was meant, or in the wrong place."""
    known = facts().variables
    for name, value in words.env.items():
        if not name.startswith("OLLAMA_"):
            continue
        item = known.get(name)
        if item is None:
            from plan_llama.errors import did_you_mean

            yield Finding(
                id="ollama-variable",
                severity="warning",
                text=f"{name}: Ollama {facts().version} does not read this variable",
                fix=did_you_mean(name, list(known)).removesuffix("; ") or "leave it out",
            )
            continue
        if item.warn:
            yield Finding(id="ollama-variable", severity="warning", text=f"{name}: {item.warn}")
        plain = value.strip().strip("\"'")
        if plain and not _readable(item.kind, plain):
            means = "on" if item.kind == "bool" else "the default"
            yield Finding(
                id="ollama-variable",
                severity="warning",
                text=f"{name}={value}: not a value that Ollama reads; it takes it for {means}",
            )
    if words.action == "serve":
        return
    server = [n for n in words.env if n not in _CLIENT and n.startswith(("OLLAMA_", "LLAMA_ARG_"))]
    if server:
        yield Finding(
            id="ollama-variable",
            severity="warning",
            text=f"{', '.join(server)}: read by `ollama serve`, not by `ollama {words.action}`; the numbers are for a "
            "server that has them",
            fix="give them to the server",
        )


def _readable(kind: str, value: str) -> bool:
    if kind == "uint":
        return value.isascii() and value.isdigit()
    if kind == "bool":
        return value in _TRUE_OR_FALSE
    if kind == "duration":
        return bool(_DURATION.fullmatch(value))
    return True
