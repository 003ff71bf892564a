"""Run one program of an engine to its end: argv only, bounded in time and output, its whole process group ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from plan_llama.engines.guard import Guard
from plan_llama.hardware.processes import usage
from plan_llama.units import gib

_MOST_BYTES = 1 << 20  # of each stream, from its start; the rest is read and dropped
_TAIL_BYTES = 16 << 10  # and as much of its end is kept where it is longer
_GRACE_S = 2.0
_TICK_S = 0.02
# What stands in front of the words that matter, the most telling first: `0.00.774.612 E name: ...` is a logged error.
_SIGNS = tuple(
    re.compile(text) for text in (r"^[\d.]+ E ", r"(?=GGML_ASSERT)", r"^what\(\): ", r"(?i)(?=\berror\b)")
)


ENOUGH = "once it had said what it reserves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """When a program is ended that does not end by itself."""

    enough: Callable[[bytes], bool]  # of what was printed since it was asked last
    most_bytes: int  # of memory of its own, which is no page of a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended. `code` is None where it was ended for its time, or could not be started (`trouble`), or
    `stopped` tells why it was ended before; `answered` is whether it had said what was asked.
    """

    argv: tuple[str, ...]
    code: int | None
    seconds: float
    out: str = ""
    err: str = ""
    timed_out: bool = False
    trouble: str = ""
    stopped: str = ""

    @property
    def answered(self) -> bool:
        """Whether it came to its end, or to what was waited for."""
        return self.code == 0 or self.stopped == ENOUGH

    @property
    def how(self) -> str:
        """In a few words: `exit code 1`, `killed by SIGABRT`, `ended after 60 s without an answer`."""
        if self.trouble:
            return f"could not be started ({self.trouble})"
        if self.stopped:
            return f"ended {self.stopped}"
        if self.timed_out or self.code is None:
            return f"ended after {self.seconds:.0f} s without an answer"
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"

    @property
    def last_words(self) -> str:
        """The line that says most of why it ended: an error that llama.cpp logs, an assertion, an exception, else the
        last line.
        """
        lines = [line.strip() for line in f"{self.out}\n{self.err}".splitlines() if line.strip()]
        said = ""
        for sign in _SIGNS:
            said = next((line[match.end() :] for line in reversed(lines) if (match := sign.search(line))), "")
            if said:
                break
        said = said or (lines or [""])[-1]
        return "".join(c if c.isprintable() else " " for c in said.strip())[:300]


def run(
    argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, watch: Watch | None = None
) -> Ended:
    """Runs `argv` with nothing on its standard input, to its end or until `watch` ends it. Nothing of its group is
    left, however this is left.
    """
    started = time.monotonic()
    start = Start(argv, env, together=watch is not None)
    readers: list[_Reader] = []
    timed_out, stopped = False, ""
    try:
        process = start.process()
        streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
        readers = [_Reader(stream, watched=watch is not None) for stream in streams]
        if watch is None:
            process.wait(timeout_s)
        else:
            stopped = _follow(process, readers[0], watch, started + timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    except (OSError, ValueError) as error:  # a ValueError is a NUL in an argument
        reason = getattr(error, "strerror", None) or str(error)
        return Ended(argv=tuple(argv), code=None, seconds=0.0, trouble=reason)
    finally:
        start.end()
        for reader in readers:
            reader.finish()
    out, *err = (reader.text() for reader in readers)
    return Ended(
        argv=tuple(argv),
        code=None if timed_out or stopped else process.returncode,
        seconds=time.monotonic() - started,
        out=out,
        err="".join(err),
        timed_out=timed_out,
        stopped=stopped,
    )


def _follow(process: subprocess.Popen[bytes], reader: _Reader, watch: Watch, deadline: float) -> str:
    """Why it is to be ended; empty where it has ended. Raises TimeoutExpired."""
    while process.poll() is None:
        if watch.enough(reader.fresh()):
            return ENOUGH
        now = usage(process.pid)
        if now is not None and now.anonymous_bytes > watch.most_bytes:
            return (
                f"because it took {gib(now.anonymous_bytes)} of memory: it may take {gib(watch.most_bytes)}"
            )
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, deadline)
        time.sleep(_TICK_S)
    return ""


class Start:
    """Starts a program from a thread of its own: an interrupt reaches the main thread only, and so never falls between
    the start of the program and the place that ends it. `together`: errors go where its output goes.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, together: bool = False) -> None:
        self._argv, self._env = list(argv), dict(env)
        self._errors = subprocess.STDOUT if together else subprocess.PIPE
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._start, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        self._guard = Guard()
        try:
            with _no_core_files():
                self._process = subprocess.Popen(
                    self._argv,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    start_new_session=True,
                )
            self._guard.watch(self._process.pid)
        except (OSError, ValueError) as error:
            self._error = error

    def process(self) -> subprocess.Popen[bytes]:
        """The program, started. Raises what its start raised."""
        self._thread.join()
        if self._process is None:
            raise self._error or OSError("not started")
        return self._process

    def end(self) -> None:
        """Ends the program and its group, if it was started."""
        self._thread.join()
        if self._process is not None:
            end_group(self._process)
        if self._guard is not None:
            self._guard.release()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Asks the process and all that it started to end, and then makes them. The leader may be gone already."""
    for wanted in ("SIGTERM", "SIGKILL"):
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, getattr(signal, wanted))
        elif process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)


class _Reader:
    """Drains a stream from a thread, so that a program that prints without end is not kept waiting for us."""

    def __init__(self, stream: IO[bytes], *, watched: bool) -> None:
        self._stream = stream
        self._head, self._tail = bytearray(), bytearray()
        self._fresh: deque[bytes] = deque(maxlen=None if watched else 0)
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._stream.read1(1 << 16):  # type: ignore[attr-defined]  # a BufferedReader
                self._fresh.append(chunk)
                room = _MOST_BYTES - len(self._head)
                self._head += chunk[:room]
                self._tail = (self._tail + chunk[room:])[-_TAIL_BYTES:]

    def fresh(self) -> bytes:
        """What has come since this was asked last."""
        return b"".join(self._fresh.popleft() for _ in range(len(self._fresh)))

    def finish(self) -> None:
        """What is in the pipe is read; a process that left the group and holds it open is not waited for."""
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():
            self._stream.close()

    def text(self) -> str:
        """What was kept."""
        return bytes(self._head + self._tail).decode("utf-8", "replace")


@contextlib.contextmanager
def _no_core_files() -> Iterator[None]:
    """A program that aborts leaves no core file in the user's folder: the limit is inherited at the start."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
