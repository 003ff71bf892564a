"""Run a command and watch it, and the machine under it, until enough was seen: lines and facts for doctor.

The command is argv, never a shell's text, and it and all that it started are ended however this is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from plan_llama.cli import doctor_cards
from plan_llama.cli.interrupts import interruptible
from plan_llama.doctor.evidence import Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.redact import secret_values
from plan_llama.engines.bounded import Start
from plan_llama.errors import InputError
from plan_llama.hardware.card_state import CardWatch
from plan_llama.hardware.processes import Watch
from plan_llama.units import gib

SOURCE = "the command's output"
_PROBE = "this machine"
_TICK_S = 0.05
_IDLE_S = 3.0  # what a server still says once it listens is said in its first seconds
_DRAIN_S = 2.0
_CHUNKS = 64
_CARDS_S = 0.5
# Builds of 2026 log devices and buffers from verbosity 4 on; older ones know the first name (common/arg.cpp, b11434).
_VERBOSE = {"LLAMA_LOG_VERBOSITY": "4", "LLAMA_ARG_LOG_VERBOSITY": "4"}
_VERBOSE_ARGUMENTS = frozenset(("-lv", "--verbosity", "--log-verbosity", "-v", "--verbose", "--log-verbose"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How the watched command ended, or why it was ended."""

    seconds: float
    code: int | None = None  # None: it still ran, and was ended
    timed_out: bool = False


def watched(argv: Sequence[str], reader: LogReader, timeout_s: float) -> Watch:
    """Runs it and feeds the reader; what was seen of it comes back. Raises InputError where it cannot be started."""
    reader.feed([], SOURCE)
    start: Start | None = None
    output: _Output | None = None
    try:
        with interruptible():
            start = Start(argv, _environment(argv), together=True)
            process = start.process()
            watch = Watch(process.pid)
            secrets = [value.encode() for value in secret_values(argv, os.environ)]
            output = _Output(process.stdout, secrets) if process.stdout is not None else None
            cards = doctor_cards.watch()
            began = time.monotonic()
            code = _follow(process.poll, reader, watch, cards, output, began + timeout_s)
            over = code is None and time.monotonic() - began >= timeout_s
            seen = Seen(seconds=time.monotonic() - began, code=code, timed_out=over)
    except (OSError, ValueError) as error:  # a ValueError is a NUL in an argument
        reason = getattr(error, "strerror", None) or str(error)
        hint = "name a program that is on PATH, with its arguments behind it"
        raise InputError(f"{argv[0]}: cannot be started ({reason})", hint=hint) from error
    finally:
        if start is not None:
            start.end()
        if output is not None:
            output.rest()
    observe(reader, watch)
    doctor_cards.observe(reader, cards)
    _observe_end(reader, seen)
    return watch


def observe(reader: LogReader, watch: Watch) -> None:
    """What was seen of a process, as facts."""

    def fact(name: str, value: Value, text: str) -> None:
        reader.observe(name, Fact(value, Line(0, text, _PROBE)))

    if watch.rss_peak_bytes:
        fact(
            "rss_peak_bytes",
            watch.rss_peak_bytes,
            f"RAM of the process at its peak: {gib(watch.rss_peak_bytes)}",
        )
    if (bound := watch.address) is not None:
        limit, peak = bound
        text = f"limit of address space (RLIMIT_AS, ulimit -v): {gib(limit)}; the peak was {gib(peak)}"
        fact("address_limit_bytes", limit, text)
        fact("address_peak_bytes", peak, text)
    locked = [
        item.memlock_limit_bytes for item in watch.latest.values() if item.memlock_limit_bytes is not None
    ]
    if locked:
        fact("memlock_limit_bytes", min(locked), f"limit of locked memory (ulimit -l): {gib(min(locked))}")
    if watch.swap_peak_bytes:
        fact(
            "process_swap_bytes",
            watch.swap_peak_bytes,
            f"swapped out at the peak: {gib(watch.swap_peak_bytes)}",
        )
    if watch.read_bytes:
        fact(
            "drive_read_bytes", watch.read_bytes, f"read from drives since it began: {gib(watch.read_bytes)}"
        )
    bounded = [item for item in watch.groups if item.limit_bytes is not None]
    killed = next((item for item in watch.groups if watch.kills.get(item.where)), None)
    group = (
        killed if killed in bounded else min(bounded, key=lambda item: item.limit_bytes or 0, default=None)
    )
    kills = max(watch.kills.values(), default=0)
    if group is not None and group.limit_bytes is not None:
        peak = watch.group_peak_bytes[group.where]
        text = f"{group.where}: a limit of {gib(group.limit_bytes)}; the peak was {gib(peak)}"
        text += f"; the kernel ended {kills} of its processes for want of memory" if kills else ""
        fact("cgroup_limit_bytes", group.limit_bytes, text)
        fact("cgroup_peak_bytes", peak, text)
        fact("cgroup_kills", kills, text)
    elif kills:
        fact(
            "cgroup_kills",
            kills,
            f"the kernel ended {kills} processes of its control group for want of memory",
        )
    else:
        reader.observe("cgroup_kills", Fact(0))


def _observe_end(reader: LogReader, seen: Seen) -> None:
    after = f"after {seen.seconds:.1f} s"
    if seen.code is None:
        if seen.timed_out and not reader.served:
            text = f"it was still not serving {after}, when it was ended"
            reader.observe("ended_for_time", Fact(True, Line(0, text, _PROBE)))
        return
    if seen.code >= 0:
        reader.observe(
            "exit_code", Fact(seen.code, Line(0, f"it ended {after} with exit code {seen.code}", _PROBE))
        )
        return
    name = str(-seen.code)
    with contextlib.suppress(ValueError):
        name = signal.Signals(-seen.code).name
    line = Line(0, f"it was ended {after} by the signal {name}", _PROBE)
    reader.observe("exit_signal", Fact(name, line))


def _follow(
    poll: Callable[[], int | None],
    reader: LogReader,
    watch: Watch,
    cards: CardWatch,
    output: _Output | None,
    deadline: float,
) -> int | None:
    """Until it ends, has served for a moment in quiet, or the time is over. Returns its exit code."""
    quiet_since = time.monotonic()
    cards_at = 0.0
    while True:
        watch.look()
        if time.monotonic() - cards_at >= _CARDS_S:  # a driver takes milliseconds to answer for each card
            cards.look()
            cards_at = time.monotonic()
        lines = output.lines(_TICK_S) if output is not None else []
        if lines:
            reader.feed(lines, SOURCE)
            quiet_since = time.monotonic()
        if (code := poll()) is not None:
            if output is not None:
                reader.feed(output.rest(), SOURCE)
            watch.look_at_groups()
            return code
        now = time.monotonic()
        if now >= deadline or (reader.served and now - quiet_since >= _IDLE_S):
            return None
        if output is None or output.over:
            time.sleep(_TICK_S)


class _Output:
    """What a program prints, in whole lines, read by a thread so that waiting for it has a limit."""

    def __init__(self, stream: IO[bytes], secrets: Sequence[bytes] = ()) -> None:
        self._stream = stream
        self._secrets = secrets
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_CHUNKS)
        self._carry = b""
        self.over = False
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._stream.read1(1 << 16):  # type: ignore[attr-defined]  # a BufferedReader
                self._chunks.put(chunk)
        self._chunks.put(None)

    def lines(self, wait_s: float) -> list[bytes]:
        """The next ones; none where nothing comes in that time."""
        if self.over:
            return []
        try:
            chunk = self._chunks.get(timeout=wait_s)
        except queue.Empty:
            return []
        if chunk is None:
            self.over = True
            self._stream.close()
            last, self._carry = self._carry, b""
            return self._hidden([last]) if last else []
        *lines, self._carry = (self._carry + chunk).split(b"\n")
        if len(self._carry) > 1 << 20:  # a line without an end
            self._carry = self._carry[: 1 << 13]
        return self._hidden(lines)

    def _hidden(self, lines: list[bytes]) -> list[bytes]:
        for secret in self._secrets:
            lines = [line.replace(secret, b"***") for line in lines]
        return lines

    def rest(self) -> list[bytes]:
        """What the pipe still holds, until its end; a process that left the group may hold it open, and is not waited
        for.
        """
        found: list[bytes] = []
        until = time.monotonic() + _DRAIN_S
        while not self.over and time.monotonic() < until:
            found += self.lines(_TICK_S)
        return found


def _environment(argv: Sequence[str]) -> Mapping[str, str]:
    """This process's, with the verbosity that a diagnosis needs where nobody chose another."""
    chosen = _VERBOSE_ARGUMENTS.intersection(argv) or any(name in os.environ for name in _VERBOSE)
    llama = any("llama" in word for word in argv)
    return os.environ if chosen or not llama else {**os.environ, **_VERBOSE}
