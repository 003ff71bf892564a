"""A POSIX shell script that starts the planned command, after a look at what changed since the plan."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import InputError
from plan_llama.hardware.types import Backend

FILE_NAME = "start-llama-server.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file that must be there in full."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNeed:
    """What the plan takes on a card, and what was free then. Matched by UUID, PCI address or index."""

    index: int  # among the cards of its vendor, in PCI order
    name: str
    backend: Backend
    uuid: str | None = None
    pci_bus_id: str | None = None
    need_bytes: int
    planned_free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchNeeds:
    """Everything that a launcher checks. With `pageable` (a mapped file) too little RAM is no failure."""

    files: tuple[ModelFile, ...]
    gpus: tuple[GpuNeed, ...] = ()
    ram_need_bytes: int = 0
    planned_ram_bytes: int = 0
    pageable: bool = False
    locked_bytes: int = 0  # 0: the load mode locks nothing


def shell_launcher(command: LaunchCommand, needs: LaunchNeeds, *, title: str = "") -> str:
    """The script. `--check` as its first argument only checks; all other arguments go to the server.

    Raises InputError for a word that no program can be given (one with a NUL character).
    """
    words = [*command.argv, *command.env.values(), *(item.path for item in needs.files)]
    if any("\0" in word for word in words):
        raise InputError("a launcher cannot hold a word with a NUL character")
    checks = [_file_check(item) for item in needs.files]
    checks += [_gpu_check(gpu) for gpu in needs.gpus if gpu.need_bytes]
    if needs.ram_need_bytes:
        kind = "slow" if needs.pageable else "fatal"
        checks.append(f"check_ram {needs.ram_need_bytes} {needs.planned_ram_bytes} {kind}")
    if needs.locked_bytes:
        checks.append(f"check_memlock {needs.locked_bytes}")
    address = _argument(command.argv, "--host", "127.0.0.1")
    port = _argument(command.argv, "--port", "8080")
    heading = "".join(c if c.isprintable() else "?" for c in title)
    exports = "".join(f"{name}={shlex.quote(value)}\nexport {name}\n" for name, value in command.env.items())
    filled = {
        "HEADING": f"# {heading}\n" if heading else "",
        "ENGINE": command.engine,
        "BUILD": str(command.build),
        "EXPORTS": exports,
        "EXECUTABLE": shlex.quote(command.argv[0]),
        "ARGUMENTS": " \\\n    ".join(shlex.quote(word) for word in command.argv[1:]),
        "PORT": shlex.quote(port),
        "LISTENERS": shlex.quote(_listeners(address)),
        "CHECKS": "\n".join(checks),
    }
    template = (Path(__file__).parent / "posix.sh.in").read_text(encoding="utf-8")
    # in one pass: what is filled in (a file's name, say) is never looked at again
    return re.sub(r"@([A-Z]+)@", lambda match: filled[match[1]], template)


def write(
    directory: Path, text: str, *, name: str = FILE_NAME, force: bool = False, mode: int = 0o755
) -> Path:
    """Write the launcher, executable, in one step. Raises InputError where the name is taken or unusable."""
    target = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                file.write(text)
            Path(temporary).chmod(mode)
            if force:
                Path(temporary).replace(target)
            else:
                target.hardlink_to(temporary)  # fails where the name is taken, unlike a rename
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError as error:
        raise InputError(f"{target}: is there already", hint="--force replaces it") from error
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _file_check(item: ModelFile) -> str:
    return f"check_file {shlex.quote(item.path)} {item.size_bytes}"


def _gpu_check(gpu: GpuNeed) -> str:
    words = [gpu.backend, str(gpu.index), gpu.uuid or "", (gpu.pci_bus_id or "").lower(), gpu.name]
    quoted = " ".join(shlex.quote(word) for word in words)
    return f"check_gpu {quoted} {gpu.need_bytes} {gpu.planned_free_bytes}"


def _argument(argv: Sequence[str], flag: str, default: str) -> str:
    places = [place for place, word in enumerate(argv[:-1]) if word == flag]
    return argv[places[-1] + 1] if places else default


def _listeners(host: str) -> str:
    """Addresses of /proc/net/tcp and tcp6 that are in the way of a bind to host, or `any` for all."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return "any"
    if not int(address):
        return "any"
    little = address.packed[::-1].hex().upper()
    return f"{little} 00000000 {'0' * 32} 0000000000000000FFFF0000{little}"
