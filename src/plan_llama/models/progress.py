"""One line of progress on a terminal's standard error; nothing where it is no terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Self


class Progress:
    """`with Progress("reading headers") as progress: progress.show("2 of 6")`. The line is gone at the end."""

    def __init__(self, what: str) -> None:
        self._what = "".join(c for c in what if c.isprintable())
        self._shown = False
        self._lock = threading.Lock()
        self._on = sys.stderr is not None and sys.stderr.isatty()

    def show(self, state: str) -> None:
        """Replaces the line."""
        if not self._on:
            return
        with self._lock:
            sys.stderr.write(f"\r{self._what}: {state}"[:100] + "\x1b[K")
            sys.stderr.flush()
            self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
