"""Read the YAML files that start an engine: compose, llama-swap, Kubernetes.

Compose: `command` as a string (split as a shell does) or a list, `entrypoint`, `environment` as a map or a list,
`${NAME:-default}` and `$$` (compose-spec, 12-interpolation.md). llama-swap: `cmd` with macros and comment lines, `env`
(its config.example.yaml). Kubernetes: `command`, `args` and `env` of every container of a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from plan_llama.command_files import shell
from plan_llama.command_files.images import image_program
from plan_llama.command_files.types import FoundCommand, Word, starts_engine
from plan_llama.errors import InputError

_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_]\w*)(?:(:?[-?+])([^{}]*))?\}|([A-Za-z_]\w*))")
# A default in a default: what is in front of it, and what it comes to.
_NESTED = re.compile(r"(\$\{[A-Za-z_]\w*:?-[^{}]*)\$\{[A-Za-z_]\w*:?-([^{}]*)\}")
_DOLLAR, _UNKNOWN = "\0", "\1"  # a sign that is no shell's, and around the number of an unknown variable
_MACRO = re.compile(r"\$\{([\w.-]+)\}")


def commands(text: str) -> list[FoundCommand]:
    """The commands of a YAML file of one of these kinds. Raises InputError for text that is no YAML."""
    import yaml

    try:
        documents = [item for item in yaml.safe_load_all(text) if isinstance(item, dict)]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(
            f"{where}not YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        ) from error
    found: list[FoundCommand] = []
    for document in documents:
        if isinstance(document.get("services"), dict):
            found += _compose(document["services"])
        elif isinstance(document.get("models"), dict):
            found += _swap(document)
        elif "kind" in document:
            found += _pods(document)
        elif any(isinstance(item, dict) and "image" in item for item in document.values()):
            found += _compose(document)  # services as they stand in an older file, or in an excerpt
    return found


def _compose(services: Mapping[str, Any]) -> Iterator[FoundCommand]:
    for name, service in services.items():
        if not isinstance(service, dict):
            continue
        notes = ["variables of env_file are not read"] if service.get("env_file") else []
        env = dict(_environment(service.get("environment")))
        words = _words(service.get("command"))
        entry = _words(service.get("entrypoint"))
        image = _interpolated(str(service.get("image", "")))
        replaced = service.get("entrypoint") is not None
        made = (entry + words, {}) if replaced else image_program(image.text, words)
        if made is None or not starts_engine(made[0]):
            continue
        if "build" in service and not replaced:
            notes.append(
                "the image is built here: it is taken to start what the published one of its name does"
            )
        yield FoundCommand(
            words=tuple(made[0]), env={**made[1], **env}, where=f"service {name}", notes=tuple(notes)
        )


def _environment(given: object) -> Iterator[tuple[str, str]]:
    if isinstance(given, dict):
        pairs = [(str(key), value) for key, value in given.items() if value is not None]
    elif isinstance(given, list):
        pairs = [(key, value) for key, sign, value in (str(item).partition("=") for item in given) if sign]
    else:
        return
    for key, value in pairs:
        word = _interpolated(_text(value))
        if word.known:
            yield key, word.text


def _text(value: object) -> str:
    """A scalar as compose hands it on: true and false in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(given: object) -> list[Word]:
    if isinstance(given, list):
        return [_interpolated(_text(item)) for item in given]
    if not isinstance(given, str):
        return []
    # values are put in first, then the text is split; what is not known stays one word
    sources: list[str] = []

    def hidden(match: re.Match[str]) -> str:
        made = _interpolated(match[0])
        if made.known:
            return made.text.replace("$", _DOLLAR)
        sources.append(made.text)
        return f"{_UNKNOWN}{len(sources) - 1}{_UNKNOWN}"

    text = _VARIABLE.sub(hidden, _flat(given)).replace("$", _DOLLAR)
    return [_shown(word.text, sources) for word in shell.split(text)]


def _shown(text: str, sources: list[str]) -> Word:
    """A word with its dollar signs and unknown variables put back."""
    made = re.sub(f"{_UNKNOWN}(\\d+){_UNKNOWN}", lambda found: sources[int(found[1])], text)
    return Word(made.replace(_DOLLAR, "$"), _UNKNOWN not in text)


def _interpolated(text: str) -> Word:
    known = True

    def value(match: re.Match[str]) -> str:
        nonlocal known
        if match[1]:
            return "$"
        if match[3] in (":-", "-"):
            return str(match[4])
        known = False
        return match[0]

    return Word(_VARIABLE.sub(value, _flat(text)), known)


def _flat(text: str) -> str:
    """`${A:-${B:-c}}` as `${A:-c}`: no variable is set here."""
    for _ in range(8):
        text, count = _NESTED.subn(r"\1\2", text)
        if not count:
            break
    return text


def _swap(document: Mapping[str, Any]) -> Iterator[FoundCommand]:
    shared = document.get("macros") if isinstance(document.get("macros"), dict) else {}
    start = document.get("startPort", 5800)
    for name, model in document["models"].items():
        if not isinstance(model, dict) or not isinstance(model.get("cmd"), str):
            continue
        own = model.get("macros") if isinstance(model.get("macros"), dict) else {}
        macros = {"PORT": start, "MODEL_ID": name, **(shared or {}), **(own or {})}
        text = "\n".join(line for line in model["cmd"].split("\n") if not line.lstrip().startswith("#"))
        for _ in range(8):  # macros name other macros
            text = _MACRO.sub(lambda found: str(macros.get(found[1], found[0])), text)  # noqa: B023 - used at once
        # its splitter knows quotes and backslashes; a newline is a blank, and $ is nothing special
        words = tuple(
            Word(word.text.replace(_DOLLAR, "$"), _DOLLAR + "{" not in word.text)
            for word in shell.split(re.sub(r"\\?\n", " ", text).replace("$", _DOLLAR))
        )
        env = dict(_environment(model.get("env")))
        if starts_engine(words):
            yield FoundCommand(words=words, env=env, where=f"model {name}")


def _pods(document: Mapping[str, Any]) -> Iterator[FoundCommand]:
    for container in _containers(document, 0):
        made: list[Word] = [Word(str(item).replace("$$", "$")) for item in container.get("command") or []]
        args = [Word(str(item).replace("$$", "$")) for item in container.get("args") or []]
        env = {
            str(item["name"]): str(item["value"]).replace("$$", "$")
            for item in container.get("env") or []
            if isinstance(item, dict) and "name" in item and "value" in item
        }
        entered = (made + args, {}) if made else image_program(str(container.get("image", "")), args)
        if entered is not None and starts_engine(entered[0]):
            where = f"container {container.get('name', '?')}"
            yield FoundCommand(words=tuple(entered[0]), env={**entered[1], **env}, where=where)


def _containers(node: object, depth: int) -> Iterator[dict[str, Any]]:
    if depth > 12:
        return
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "containers" and isinstance(value, list):
                yield from (item for item in value if isinstance(item, dict))
            else:
                yield from _containers(value, depth + 1)
    elif isinstance(node, list):
        for item in node:
            yield from _containers(item, depth + 1)
