"""Read any file that starts an engine: which kind it is, and the commands in it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from plan_llama.command_files import containers, presets, shell, unit, windows
from plan_llama.command_files.types import FoundCommand
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError

_MOST_BYTES = 1 << 20
_UNIT = re.compile(r"^\s*\[(?:Service|Container)\]\s*$", re.MULTILINE)
_SECTION = re.compile(r"^\s*\[[^\]\n]+\]\s*$", re.MULTILINE)
_YAML = re.compile(r"^(?:services|models|apiVersion|kind)\s*:", re.MULTILINE)
_HINT = "a script, a systemd unit, a compose, llama-swap or Kubernetes file, or a presets file with a llama.cpp command"


def text_of(path: str) -> str:
    """A file's text, or standard input's for `-`. Raises InputError for what cannot be read."""
    try:
        data = sys.stdin.buffer.read(_MOST_BYTES + 1) if path == "-" else _read(Path(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", hint=_HINT) from error
    name = "standard input" if path == "-" else path
    if len(data) > _MOST_BYTES:
        raise InputError(f"{name}: larger than {_MOST_BYTES >> 20} MiB", hint=_HINT)
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name}: not a text", hint=_HINT)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return data.decode(encoding, errors="surrogateescape" if encoding != "utf-16" else "replace")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def commands(text: str, name: str, table: FlagTable) -> list[FoundCommand]:
    """The commands of a file that start an engine, in their order.

    Raises InputError where it holds none, or cannot be read as what it seems to be.
    """
    shown = "standard input" if name == "-" else name
    try:
        found = _commands(text, Path(name).suffix.lower(), table)
    except InputError as error:
        raise InputError(f"{shown}: {error.message}", hint=error.hint) from error
    found = [item for item in found if not _only_asks(item)]
    if not found:
        raise InputError(f"{shown}: no command of llama.cpp in it", hint=_HINT)
    return found


def _only_asks(item: FoundCommand) -> bool:
    """Whether a command only asks the program for its version or its arguments."""
    return item.words[-1].text in ("--version", "--help", "-h", "--list-devices")


def _commands(text: str, suffix: str, table: FlagTable) -> list[FoundCommand]:
    if suffix in (".bat", ".cmd"):
        return windows.batch(text)
    if suffix == ".ps1":
        return windows.powershell(text)
    if suffix in (".yml", ".yaml", ".json"):
        return containers.commands(text)
    if suffix in (".service", ".container") or _UNIT.search(text):
        return unit.commands(text)
    if suffix == ".ini" or (not text.startswith("#!") and suffix != ".sh" and _is_presets(text)):
        return presets.commands(text, table)
    if not text.startswith("#!") and suffix != ".sh" and _YAML.search(text):
        return containers.commands(text)
    return shell.commands(text)


def _is_presets(text: str) -> bool:
    first = next((line for line in text.splitlines() if line.strip() and line.lstrip()[0] not in ";#"), "")
    return _SECTION.fullmatch(first) is not None
