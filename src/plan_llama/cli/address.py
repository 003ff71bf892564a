"""Where the server listens: loopback unless another address is named, and then only with a key."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli.options import ServeOptions
from plan_llama.engines.contradictions import is_loopback
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What the command line says of it; None where it says nothing."""

    host: str | None = None
    port: int | None = None
    api_key_file: str | None = None

    def check(self) -> None:
        """Raises UsageError for an address that others reach without a key, and for a key file that is none."""
        if self.host is not None and (not self.host or self.host != self.host.strip()):
            raise UsageError(
                f"--host {self.host!r}: not an address", hint="127.0.0.1, ::1 or the one to listen on"
            )
        if self.api_key_file is not None and not Path(self.api_key_file).is_file():
            raise UsageError(
                f"--api-key-file {self.api_key_file}: no such file", hint="a file with one key a line"
            )
        if self.host is not None and not is_loopback(self.host) and self.api_key_file is None:
            raise UsageError(
                f"--host {self.host}: other machines would be let in without a key",
                hint="add --api-key-file FILE (one key a line), or leave --host out",
            )

    def refuse(self, engine: str) -> None:
        """Raises UsageError where something is said of it to an engine that is told its address otherwise."""
        if self != NOWHERE_SAID:
            raise UsageError(
                f"--host, --port and --api-key-file are not for {engine}",
                hint="leave them out; see its command",
            )

    def of(self, command: LaunchCommand) -> LaunchCommand:
        """The command with this address. Raises UsageError for an engine that is not told its address so."""
        if self == NOWHERE_SAID:
            return command
        argv = list(command.argv)
        for flag, value in (("--host", self.host), ("--port", self.port)):
            if value is None:
                continue
            if flag not in argv:
                self.refuse(command.engine)
            argv[argv.index(flag) + 1] = str(value)
        if self.api_key_file is not None:
            if command.engine not in ("llama.cpp", "ik_llama.cpp"):
                raise UsageError(
                    f"--api-key-file: {command.engine} has no such argument", hint="leave it out"
                )
            argv += ["--api-key-file", os.path.abspath(self.api_key_file)]  # noqa: PTH100 - Path.absolute keeps `..`
        return replace(command, argv=tuple(argv))


NOWHERE_SAID = Address()


def address_of(options: ServeOptions) -> Address:
    """What the options say. Raises UsageError where others would be let in without a key."""
    address = Address(host=options.host, port=options.port, api_key_file=options.api_key_file)
    address.check()
    return address
