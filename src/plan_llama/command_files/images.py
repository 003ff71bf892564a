"""Which program a container starts: `docker run IMAGE ARGS`, a compose service, a pod.

The images of llama.cpp are built by .devops/*.Dockerfile (b11434): a tag that begins with `server` enters llama-server
and sets LLAMA_ARG_HOST=0.0.0.0, `light` enters llama-cli, `full` a script that takes the program as its first word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plan_llama.command_files.types import Word, starts_engine

_IMAGE = re.compile(r"(?:.*/)?llama\.?cpp(?:-[a-z]+)*:(server|light|full)\b.*")
_VLLM_IMAGE = re.compile(r"(?:.*/)?vllm-openai(?::.*)?")  # its entry point is `vllm serve`
_ENTERS = {"server": ("llama-server",), "light": ("llama-cli",)}
_FULL = {
    "--server": "llama-server",
    "-s": "llama-server",
    "--run": "llama-cli",
    "--bench": "llama-bench",
    "-b": "llama-bench",
}
_IMAGE_ENV = {"server": {"LLAMA_ARG_HOST": "0.0.0.0"}}  # noqa: S104 - what the image sets, not what is bound here
# options of `run` that take no value; every other one takes the next word unless it is written with `=`
_SWITCHES = frozenset(
    (
        "-d",
        "-i",
        "-t",
        "-it",
        "-ti",
        "-dit",
        "-itd",
        "--rm",
        "--init",
        "--privileged",
        "--detach",
        "--interactive",
    )
) | {
    "--tty",
    "--read-only",
    "--no-healthcheck",
    "-P",
    "--publish-all",
    "--replace",
    "--tls-verify",
    "-q",
    "--quiet",
}


def image_program(image: str, words: Sequence[Word]) -> tuple[list[Word], dict[str, str]] | None:
    """The command and the environment that an image makes of its arguments; None for an image that is not known."""
    if _VLLM_IMAGE.fullmatch(image):
        return [Word("vllm"), Word("serve"), *words], {}
    match = _IMAGE.fullmatch(image)
    if match is None:
        return (list(words), {}) if starts_engine(words) else None
    kind = match[1]
    if kind == "full":
        program = _FULL.get(words[0].text) if words else None
        return ([Word(program), *words[1:]], {}) if program else None
    return [*(Word(name) for name in _ENTERS[kind]), *words], dict(_IMAGE_ENV.get(kind, {}))


def in_container(words: Sequence[Word]) -> tuple[list[Word], dict[str, str]] | None:
    """What `docker run` and its like start; None for another subcommand."""
    texts = [word.text for word in words]
    if "exec" in texts[1:3]:
        return (list(words), {}) if starts_engine(words) else None
    place = next((i + 1 for i, text in enumerate(texts[:4]) if text in ("run", "create")), None)
    if place is None:
        return None
    env: dict[str, str] = {}
    entry: str | None = None
    while place < len(words) and texts[place].startswith("-"):
        name, equals, value = texts[place].partition("=")
        if not equals and name not in _SWITCHES and place + 1 < len(words):
            place += 1
            value = texts[place]
        if name in ("-e", "--env"):
            key, sign, given = value.partition("=")
            if sign:
                env[key] = given
        elif name == "--entrypoint":
            entry = value
        place += 1
    if place >= len(words):
        return None
    rest = list(words[place + 1 :])
    if entry is not None:
        made = [Word(entry), *rest]
        return (made, env) if starts_engine(made) else None
    found = image_program(texts[place], rest)
    return None if found is None else (found[0], {**found[1], **env})
