"""A process that runs: its command line and environment, memory, faults, threads and processors, from /proc."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from plan_llama.cli import doctor_cards, doctor_live
from plan_llama.cli.doctor_running import Running, running
from plan_llama.doctor.evidence import RUNNING, Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.redact import redacted_words
from plan_llama.errors import InputError
from plan_llama.hardware.processes import Thread, Watch, cores_of, nodes_of, swapped_pages, threads, usage
from plan_llama.hardware.sysfs import cpu_list, numbered, text, under
from plan_llama.units import gib

_ROOT = Path("/")
_SECONDS = 2.0
_TICK_S = 0.2
_TICKS_PER_S = 100  # USER_HZ, the same on all of Linux's usual architectures
_BUSY = 0.5  # of the time that it was watched
_PAGE_BYTES = 4096
_LISTENS = "0A"  # TCP_LISTEN
# What steers an engine; the rest of an environment is nobody's business.
_STEERS = re.compile(
    r"(?:LLAMA|GGML|OLLAMA|VLLM|CUDA|NVIDIA|HIP|HSA|ROCR|ROCM|AMD|OMP|GOMP|MALLOC|LD_LIBRARY)[A-Z0-9_]*="
)
_RUNTIMES = re.compile(
    r"lib(?:cudart|cublas|amdhip64|hipblas|vulkan)\.so\.[\d.]+"
)  # which runtime it has loaded
_CUDA_RUNTIME = re.compile(r"libcudart\.so\.(\d+)")
_WORDS = {  # facts by the arguments that say them (common/arg.cpp, b11434)
    "threads": ("-t", "--threads"),
    "kv_type_k": ("-ctk", "--cache-type-k"),
    "kv_type_v": ("-ctv", "--cache-type-v"),
    "model_path": ("-m", "--model"),
    "context": ("-c", "--ctx-size"),
}
_NAMES_MODEL = frozenset(("-m", "--model", "-hf", "-hfr", "--hf-repo"))
_NUMBERS = frozenset(("threads", "context"))


def looked_at(reader: LogReader, pid: int, *, sysroot: Path = _ROOT, seconds: float = _SECONDS) -> Running:
    """Watches it for a moment; what it runs comes back.

    Raises InputError where there is no such process, or none can be seen.
    """
    first = usage(pid, sysroot)
    if first is None:
        raise InputError(f"--pid {pid}: no process of that number can be seen", hint="pgrep -a llama-server")
    folder = under(sysroot, f"/proc/{pid}")
    words = (text(folder / "cmdline") or "").split("\0")
    environment = [word for word in (text(folder / "environ") or "").split("\0") if _STEERS.match(word)]
    command = shlex.join(redacted_words(words))
    libraries = sorted(set(_RUNTIMES.findall(text(folder / "maps", 16 << 20) or "")))
    lines = [command, *redacted_words(environment), *libraries]
    reader.feed([line.replace("\n", " ").encode() for line in lines], RUNNING)

    def fact(name: str, value: Value, said: str) -> None:
        reader.observe(name, Fact(value, Line(0, said, RUNNING)))

    for library in libraries:
        if found := _CUDA_RUNTIME.match(library):
            fact("cuda_runtime_major", int(found[1]), f"it has loaded {library}")
    line = Line(0, f"command: {command}", RUNNING)
    reader.know("command", Fact(command, line))
    reader.observe("process_command", Fact(command, line))
    for name, arguments in _WORDS.items():
        behind = [after for word, after in pairwise(words) if word in arguments]
        if behind and name not in _NUMBERS:
            reader.know(name, Fact(behind[-1], line))
        elif behind and behind[-1].isdigit() and int(behind[-1]):
            reader.know(name, Fact(int(behind[-1]), line))
    watch = Watch(pid, sysroot)
    began = time.monotonic()
    watch.look()
    faults, read, swapped = watch.major_faults, watch.read_bytes, swapped_pages(sysroot)
    before = threads(pid, sysroot)
    cards = doctor_cards.watch() if sysroot == _ROOT else None
    used: dict[int, set[int]] = {}
    now = before
    while time.monotonic() - began < seconds:
        time.sleep(min(_TICK_S, seconds))
        watch.look()
        if cards is not None:
            cards.look()
        for number, thread in (now := threads(pid, sysroot)).items():
            used.setdefault(number, set()).add(thread.processor)
    took = max(time.monotonic() - began, _TICK_S)
    doctor_live.observe(reader, watch)
    if cards is not None:
        doctor_cards.observe(reader, cards)
    last = watch.latest.get(pid, first)
    rate = (watch.major_faults - faults) / took
    fact(
        "major_faults_per_s",
        rate,
        f"pages read from a drive because they were not in RAM: {rate:.0f} per second",
    )
    if (rate := (watch.read_bytes - read) / took) > 0:
        fact("drive_rate_bytes", int(rate), f"read from drives while it runs: {gib(int(rate))} per second")
    if (rate := _PAGE_BYTES * (swapped_pages(sysroot) - swapped) / took) > 0:
        fact("swap_rate_bytes", int(rate), f"to and from swap, of all programs: {gib(int(rate))} per second")
    fact("process_threads", last.threads, f"{last.threads} threads")
    _placed(reader, sysroot, took, before, now, used)
    if allowed := len(cpu_list(last.cpus)):
        fact("affinity_cores", allowed, f"it may run on {allowed} processors ({last.cpus})")
    if last.locked_bytes:
        fact("locked_bytes", last.locked_bytes, f"locked in RAM: {gib(last.locked_bytes)}")
    try:
        opened = sum(1 for _ in (folder / "fd").iterdir())
        fact("open_files", opened, f"{opened} open files and connections")
    except OSError:
        fact("open_files_unknown", True, "its open files and environment belong to another user: not seen")
    loader, words, environment = _loader(pid, words, environment, watch, sysroot)
    return running(loader, words, dict(word.split("=", 1) for word in environment), watch, sysroot=sysroot)


def _loader(
    pid: int, words: list[str], environment: list[str], watch: Watch, sysroot: Path
) -> tuple[int, list[str], list[str]]:
    """The process that has the model: this one, or the server below it that Ollama or llama-server's router started."""
    if "llama-server" in words[0] and any(word in _NAMES_MODEL for word in words):
        return pid, words, environment
    for child in watch.latest:
        folder = under(sysroot, f"/proc/{child}")
        its_words = (text(folder / "cmdline") or "").split("\0")
        if (
            child != pid
            and "llama-server" in its_words[0]
            and any(word in _NAMES_MODEL for word in its_words)
        ):
            its_environment = (text(folder / "environ") or "").split("\0")
            return child, its_words, [word for word in its_environment if _STEERS.match(word)]
    return pid, words, environment


def listener(port: int, *, sysroot: Path = _ROOT) -> int | None:
    """The process of llama.cpp that listens on a TCP port of this machine, where this user may see it (proc(5))."""
    sockets: set[str] = set()
    for name in ("tcp", "tcp6"):
        for line in (text(under(sysroot, f"/proc/net/{name}")) or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == _LISTENS and words[1].endswith(f":{port:04X}"):
                sockets.add(f"socket:[{words[9]}]")
    for number, folder in numbered(under(sysroot, "/proc"), r"(\d+)") if sockets else ():
        if "llama" not in (text(folder / "cmdline", 4096) or "").split("\0")[0]:
            continue
        try:
            if any(str(entry.readlink()) in sockets for entry in (folder / "fd").iterdir()):
                return number
        except OSError:
            continue
    return None


def _placed(
    reader: LogReader,
    sysroot: Path,
    seconds: float,
    before: Mapping[int, Thread],
    now: Mapping[int, Thread],
    used: Mapping[int, set[int]],
) -> None:
    """Which cores and memory nodes the threads that compute were seen on."""
    least = _BUSY * seconds * _TICKS_PER_S
    busy = [one for one, thread in now.items() if one in before and thread.ticks - before[one].ticks >= least]
    if not busy:
        return
    processors = set().union(*(used.get(one, set()) for one in busy))
    cores, nodes = cores_of(processors, sysroot), nodes_of(processors, sysroot)
    said = f"{len(busy)} threads compute, on {cores} cores of {nodes} memory node{'s' if nodes > 1 else ''}"
    for name, value in (("busy_threads", len(busy)), ("busy_cores", cores), ("busy_nodes", nodes)):
        reader.observe(name, Fact(value, Line(0, said, RUNNING)))
