"""How fast a drive is read: a large file, past the page cache, by a few readers at once.

A model's own file is read where there is one, else a file of random bytes that is written for it and removed again.
Linux reads it with O_DIRECT, macOS with F_NOCACHE. Where neither works, the kernel is asked to drop the file's pages
first, which it may not do for what is in use: the method is kept with the figure.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plan_llama.errors import InputError
from plan_llama.units import GIB, MIB

READERS = 4
_BLOCK = 8 * MIB
_WRITTEN = 1 * GIB
_LEAST = 256 * MIB  # below it a file says too little
_MOST = 8 * GIB
_FNOCACHE = 48  # fcntl's F_NOCACHE on macOS


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Bytes per second, how they were read, and of what."""

    bytes_per_s: float
    size_bytes: int
    method: str
    what: str


def measure(place: Path, *, budget_s: float = 8.0, written_bytes: int = _WRITTEN) -> Read:
    """Read a file of `place` (or below it, or one that is written there) for at most about `budget_s` seconds.

    A place that is not there yet is measured by the nearest folder above it. Raises InputError where no file of enough
    size can be read or written.
    """
    file = place if place.is_file() else _largest(place)
    if file is not None and file.stat().st_size >= _LEAST:
        return _read(file, budget_s, str(file))
    folder = place
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return _written(folder, budget_s, written_bytes)


def _largest(folder: Path) -> Path | None:
    """The largest GGUF in a folder or the three levels below it (OWNER/REPO/QUANT)."""
    found: list[tuple[int, Path]] = []
    for pattern in ("*.gguf", "*/*.gguf", "*/*/*.gguf", "*/*/*/*.gguf"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                status = path.stat()
                if status.st_blocks * 512 >= status.st_size * 0.9:  # no hole where the data should be
                    found.append((status.st_size, path))
    return max(found, default=(0, None))[1]


def _written(folder: Path, budget_s: float, size: int) -> Read:
    import shutil

    try:
        free = shutil.disk_usage(folder).free
        if free < 4 * size:
            raise InputError(
                f"{folder}: too little free disk to write a file of {size // MIB} MiB for the measurement",
                hint="--path names a model's file, which is then read",
            )
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".plan-llama-", suffix=".tmp") as file:
            block = bytearray(os.urandom(16 * MIB))
            for index in range(size // len(block)):
                block[:8] = index.to_bytes(8, "little")  # no two blocks alike
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return _read(Path(file.name), budget_s, f"a written file of {size // MIB} MiB in {folder}")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be measured ({error.strerror})",
            hint="--path names a folder that can be written",
        ) from error


def _open(path: Path) -> tuple[int, str]:
    """A file descriptor past the page cache, and how."""
    if hasattr(os, "O_DIRECT"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                with mmap.mmap(-1, _BLOCK) as area:
                    os.preadv(descriptor, [area], 0)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor, "O_DIRECT"
    descriptor = os.open(path, os.O_RDONLY)
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, _FNOCACHE, 1)
        return descriptor, "F_NOCACHE"
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor, "buffered, page cache dropped"
    os.close(descriptor)
    raise InputError(
        "this system offers no way to read past its cache", hint="describe the drive in a TOML file"
    )


def _read(path: Path, budget_s: float, what: str) -> Read:
    try:
        descriptor, method = _open(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", hint="--path names another") from error
    try:
        size = min(_MOST, os.fstat(descriptor).st_size) // _BLOCK * _BLOCK
        done, seconds = _race(descriptor, size, budget_s)
    finally:
        os.close(descriptor)
    return Read(bytes_per_s=done / seconds, size_bytes=done, method=method, what=what)


def _race(
    descriptor: int, size: int, budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Readers take the blocks of a file in turn until it ends or the time is over: bytes and seconds."""
    began = clock()
    lock = threading.Lock()
    state = {"next": 0, "done": 0}
    failed: list[OSError] = []

    def reader() -> None:
        with mmap.mmap(-1, _BLOCK) as area:  # aligned to a page, as O_DIRECT wants it
            while True:
                with lock:
                    at = state["next"]
                    if at >= size or failed or (at and clock() - began > budget_s):
                        return
                    state["next"] = at + _BLOCK
                try:
                    count = os.preadv(descriptor, [area], at)
                except OSError as error:
                    failed.append(error)
                    return
                with lock:
                    state["done"] += count

    readers = [threading.Thread(target=reader, daemon=True) for _ in range(READERS)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    if failed:
        raise InputError(f"the file cannot be read ({failed[0].strerror})", hint="--path names another")
    return state["done"], max(clock() - began, 1e-9)
