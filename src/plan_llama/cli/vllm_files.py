"""Write what a vLLM plan hands over: a script per node, and the manifest."""

from __future__ import annotations

import shlex
from pathlib import Path

from plan_llama.engines.launch import FurtherCommand, LaunchCommand
from plan_llama.errors import InputError
from plan_llama.launchers.writing import write


def write_files(folder: Path, made: LaunchCommand, *, force: bool) -> list[Path]:
    """`start-vllm.sh` for the first node, `node-N.sh` for the others, and the plan's files. Raises InputError."""
    others = [item for item in made.further if item.what.startswith("On node")]
    texts = {"start-vllm.sh": _script(FurtherCommand(what="vLLM", argv=made.argv, env=made.env))}
    texts |= {f"node-{rank}.sh": _script(item) for rank, item in enumerate(others, 1)}
    texts |= {item.name: item.text for item in made.files}
    taken = [name for name in texts if (folder / name).exists()]
    if taken and not force:  # before anything is written
        raise InputError(f"{folder / taken[0]}: is there already", hint="--force replaces it")
    return [write(folder, text, name=name, force=force) for name, text in texts.items()]


def _script(item: FurtherCommand) -> str:
    lines = ["#!/bin/sh", "set -eu"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in item.env.items()]
    lines.append(f"exec {shlex.join(item.argv)}")
    return "\n".join(lines) + "\n"
