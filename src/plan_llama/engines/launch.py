"""What a plan hands over: the command that starts an engine, the files it reads, and the commands around it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NO_ENV: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFile:
    """A file that must be there before the command is run, by its name in the folder where that happens."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherCommand:
    """A command beside the one that starts the engine: `what` it is for, or where it runs (another node)."""

    what: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)

    @property
    def line(self) -> str:
        """The command as one pastes it into a POSIX shell."""
        return pasted(self.argv, self.env)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchCommand:
    """A command to start an engine: words for exec, never a shell line; `env` adds to the environment.

    `build` is a number of llama.cpp's, or the version of an engine that has versions. `files` come first, `further`
    are the commands that follow, or that are run elsewhere.
    """

    engine: str
    build: int | str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)
    files: tuple[LaunchFile, ...] = ()
    further: tuple[FurtherCommand, ...] = ()

    @property
    def line(self) -> str:
        """The command as one pastes it into a POSIX shell."""
        return pasted(self.argv, self.env)


def pasted(argv: tuple[str, ...], env: Mapping[str, str]) -> str:
    """Words and environment as one line for a POSIX shell."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    return " ".join([*assignments, shlex.join(argv)])
