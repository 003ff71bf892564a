"""Put a launcher into a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from plan_llama.errors import InputError


def write(
    directory: Path,
    text: str,
    *,
    name: str,
    force: bool = False,
    mode: int = 0o755,
    newline: str = "\n",
    encoding: str = "utf-8",
) -> Path:
    """Write a launcher in one step. Raises InputError where the name is taken or unusable."""
    target = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "w", encoding=encoding, errors="surrogateescape", newline=newline) as file:
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
