"""What Ollama reads and does, by its profile (profiles/engines/ollama)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from plan_llama import catalog
from plan_llama.errors import ProfileError
from plan_llama.units import GIB

ENGINE = "ollama"
DEFAULT_CONTEXT_FLOOR = 4  # Scheduler.getRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of `ollama serve`: its kind of value, and what it decides; `warn` is what it does not do."""

    kind: str
    text: str
    warn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaFacts:
    """One version of Ollama. `parameters` are the kinds of the Modelfile's, by name."""

    version: str
    llama_cpp: int  # the build of its llama-server
    first_with_llama_server: str
    one_slot: frozenset[str]
    image_min_tokens: int
    image_min_tokens_of: frozenset[str]
    cloud: frozenset[str]
    tiers: tuple[tuple[int, int], ...]  # least bytes of all cards, tokens; the largest first
    parameters: Mapping[str, str]
    load_parameters: frozenset[str]
    variables: Mapping[str, Variable]

    def automatic_context(self, total_bytes: int) -> int:
        """The context where neither the Modelfile nor the environment says one."""
        return next(tokens for least, tokens in self.tiers if total_bytes >= least)


@cache
def facts() -> OllamaFacts:
    """The newest version that is described. Raises ProfileError."""
    files = sorted((catalog.root() / "engines" / ENGINE).glob("*.toml"))
    if not files:
        raise ProfileError("no profile of Ollama", hint="reinstall plan-llama")
    table = catalog.Table(catalog.load(files[-1]), str(files[-1]))
    if table.take("schema", int) != 1:
        raise ProfileError(f"{table.where}: 'schema' must be 1")
    table.take("engine", str)
    parameters: dict[str, str] = {}
    at_load: set[str] = set()
    for row in table.tables("parameter"):
        names = row.strings("names")
        parameters.update(dict.fromkeys(names, row.take("kind", str)))
        if row.get("load", bool):
            at_load.update(names)
        row.done()
    variables: dict[str, Variable] = {}
    for row in table.tables("variable"):
        item = Variable(
            kind=row.take("kind", str), text=row.take("text", str), warn=row.get("warn", str) or ""
        )
        variables.update(dict.fromkeys(row.strings("names"), item))
        row.done()
    tiers = []
    for row in table.tables("tier"):
        tiers.append((row.take("from_gib", int) * GIB, row.take("context", int)))
        row.done()
    cloud = set()
    for row in table.tables("cloud"):
        cloud.add(row.take("name", str))
        row.take("source", str)
        row.done()
    found = OllamaFacts(
        version=table.take("version", str),
        llama_cpp=table.take("llama_cpp", int),
        first_with_llama_server=table.take("first_with_llama_server", str),
        one_slot=frozenset(table.strings("one_slot")),
        image_min_tokens=table.take("image_min_tokens", int),
        image_min_tokens_of=frozenset(table.strings("image_min_tokens_of")),
        cloud=frozenset(cloud),
        tiers=tuple(sorted(tiers, reverse=True)),
        parameters=MappingProxyType(parameters),
        load_parameters=frozenset(at_load),
        variables=MappingProxyType(variables),
    )
    table.done()
    return found
