"""What the kernel wrote since it started: /dev/kmsg where this user may read it, else the journal."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from plan_llama.engines.bounded import run
from plan_llama.hardware.types import ProbeNote

_RECORD = re.compile(
    r"\d+,\d+,(\d+),[^;]*;([^\n]*)"
)  # priority, sequence, microseconds since boot (dev-kmsg in the ABI)
_JOURNAL = re.compile(r"\[\s*(\d+)\.\d+\] \S+ kernel: (.*)")
_DAY_S = 86400.0
_MOST_RECORDS = 100_000
_TIMEOUT_S = 10.0
# An old kill of a browser says nothing of a server: kills count where what was killed may have been one.
_ENGINES = r"llama|ollama|vllm|VLLM|python|koboldcpp|lms|LM Studio|EngineCore"
_TELLING = re.compile(
    rf"(?:Out of memory|Memory cgroup out of memory): Killed process \d+ \([^)]*(?:{_ENGINES})"
    r"|NVRM: Xid|has fallen off the bus|amdgpu.*(?:GPU reset|ring \S+ timeout)|Memory access fault by GPU"
)


def lines(*, kmsg: Path = Path("/dev/kmsg"), now_s: float | None = None) -> tuple[list[str], list[ProbeNote]]:
    """Lines of the last day that tell of a server's end or a GPU's fault, and why they could not be read."""
    try:
        records = _kmsg(kmsg)
    except OSError as error:
        found = _journal()
        if found is None:
            reason = f"{kmsg}: {error.strerror}; the kernel's log is not read"
            return [], [ProbeNote(probe="kernel log", reason=reason, unlock="sudo dmesg -T | tail -50 tells")]
        records = found
    uptime = time.monotonic() if now_s is None else now_s
    return [text for when, text in records if uptime - when < _DAY_S and _TELLING.search(text)], []


def _kmsg(path: Path) -> list[tuple[float, str]]:
    """Every record, one per read; EPIPE says that some were overwritten meanwhile, EAGAIN that there are no more."""
    found: list[tuple[float, str]] = []
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        for _ in range(_MOST_RECORDS):
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue
            if not data:
                break
            text = data.decode("utf-8", "replace")
            found += [(int(match[1]) / 1e6, match[2]) for match in _RECORD.finditer(text)]
    finally:
        os.close(descriptor)
    return found


def _journal() -> list[tuple[float, str]] | None:
    program = shutil.which("journalctl")
    if program is None:
        return None
    argv = [program, "-k", "-b", "-q", "--no-pager", "-n", "5000", "-o", "short-monotonic"]
    ended = run(argv, env=os.environ, timeout_s=_TIMEOUT_S)
    if ended.code != 0 or not ended.out:
        return None
    return [(float(match[1]), match[2]) for match in _JOURNAL.finditer(ended.out)]
