"""A process that runs: its command line and environment, memory, faults, threads and processors, from /proc."""

from __future__ import annotations

import re
import shlex
import time
from itertools import pairwise
from pathlib import Path

from plan_llama.cli import doctor_live
from plan_llama.doctor.evidence import RUNNING, Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.redact import redacted
from plan_llama.errors import InputError
from plan_llama.hardware.processes import Watch, usage
from plan_llama.hardware.sysfs import cpu_list, text, under
from plan_llama.units import gib

_ROOT = Path("/")
_SECONDS = 2.0
_TICK_S = 0.2
# What steers an engine; the rest of an environment is nobody's business.
_STEERS = re.compile(
    r"(?:LLAMA|GGML|OLLAMA|VLLM|CUDA|NVIDIA|HIP|HSA|ROCR|ROCM|AMD|OMP|GOMP|MALLOC|LD_LIBRARY)[A-Z0-9_]*="
)
_WORDS = {  # facts by the arguments that say them (common/arg.cpp, b11434)
    "threads": ("-t", "--threads"),
    "kv_type_k": ("-ctk", "--cache-type-k"),
    "kv_type_v": ("-ctv", "--cache-type-v"),
    "model_path": ("-m", "--model"),
}


def looked_at(reader: LogReader, pid: int, *, sysroot: Path = _ROOT, seconds: float = _SECONDS) -> None:
    """Watches it for a moment. Raises InputError where there is no such process, or none can be seen."""
    first = usage(pid, sysroot)
    if first is None:
        raise InputError(f"--pid {pid}: no process of that number can be seen", hint="pgrep -a llama-server")
    folder = under(sysroot, f"/proc/{pid}")
    words = (text(folder / "cmdline") or "").split("\0")
    environment = [word for word in (text(folder / "environ") or "").split("\0") if _STEERS.match(word)]
    command = redacted(shlex.join(words))
    reader.feed([command.encode(), *(redacted(word).encode() for word in environment)], RUNNING)

    def fact(name: str, value: Value, said: str) -> None:
        reader.observe(name, Fact(value, Line(0, said, RUNNING)))

    line = Line(0, f"command: {command}", RUNNING)
    reader.know("command", Fact(command, line))
    reader.observe("process_command", Fact(command, line))
    for name, arguments in _WORDS.items():
        behind = [after for word, after in pairwise(words) if word in arguments]
        if behind and (name != "threads" or behind[-1].isdigit()):
            reader.know(name, Fact(int(behind[-1]) if name == "threads" else behind[-1], line))
    watch = Watch(pid, sysroot)
    began = time.monotonic()
    watch.look()
    while time.monotonic() - began < seconds:
        time.sleep(min(_TICK_S, seconds))
        watch.look()
    doctor_live.observe(reader, watch)
    last = watch.latest.get(pid, first)
    rate = (last.major_faults - first.major_faults) / max(seconds, _TICK_S)
    fact(
        "major_faults_per_s",
        rate,
        f"pages read from a drive because they were not in RAM: {rate:.0f} per second",
    )
    fact("process_threads", last.threads, f"{last.threads} threads")
    if allowed := len(cpu_list(last.cpus)):
        fact("affinity_cores", allowed, f"it may run on {allowed} processors ({last.cpus})")
    if last.locked_bytes:
        fact("locked_bytes", last.locked_bytes, f"locked in RAM: {gib(last.locked_bytes)}")
    try:
        opened = sum(1 for _ in (folder / "fd").iterdir())
        fact("open_files", opened, f"{opened} open files and connections")
    except OSError:
        fact("open_files_unknown", True, "its open files and environment belong to another user: not seen")
