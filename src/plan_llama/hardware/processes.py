"""What a process and all that it started take, from /proc (proc(5)): memory, swap, faults, limits, groups.

Every value is None where /proc does not tell: another system, a process that has gone, somebody else's process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from plan_llama.hardware.limits import hierarchies
from plan_llama.hardware.sysfs import cpu_list, fields, integer, numbered, text, under

_KIB = 1024
_ROOT = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One process now. Peaks are since it began; `address_limit_bytes` and `memlock_limit_bytes` are its own limits."""

    pid: int
    rss_bytes: int = 0
    anonymous_bytes: int = 0  # of those, what is no page of a file
    rss_peak_bytes: int = 0
    private_bytes: int = 0  # of it, what no file backs
    read_bytes: int = 0  # from drives, since it began
    address_peak_bytes: int = 0
    swap_bytes: int = 0
    locked_bytes: int = 0
    major_faults: int = 0
    threads: int = 0
    cpus: str = ""  # the list of those that it may use
    address_limit_bytes: int | None = None
    memlock_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A memory cgroup that binds a process. `used_bytes` counts the page cache too, as the kernel does."""

    where: str
    limit_bytes: int | None
    used_bytes: int | None
    kills: int  # processes that the kernel has ended in it for want of memory


def usage(pid: int, sysroot: Path = _ROOT) -> Usage | None:
    """A process now, None where it is gone or cannot be read."""
    folder = under(sysroot, f"/proc/{pid}")
    status = fields(text(folder / "status"))
    numbers = _stat(folder)
    if "Pid" not in status or numbers is None:
        return None
    found = fields(re.sub(r"(?m)^(Max [a-z ]+?)\s{2,}(\S+).*$", r"\1:\2", text(folder / "limits") or ""))
    return Usage(
        pid=pid,
        rss_bytes=_kib(status, "VmRSS"),
        anonymous_bytes=_kib(status, "RssAnon") + _kib(status, "RssShmem"),
        rss_peak_bytes=_kib(status, "VmHWM"),
        private_bytes=_kib(status, "RssAnon"),
        read_bytes=int(read) if (read := fields(text(folder / "io")).get("read_bytes", "")).isdigit() else 0,
        address_peak_bytes=_kib(status, "VmPeak"),
        swap_bytes=_kib(status, "VmSwap"),
        locked_bytes=_kib(status, "VmLck"),
        major_faults=int(numbers[9]),
        threads=int(status["Threads"]) if status.get("Threads", "").isdigit() else 0,
        cpus=status.get("Cpus_allowed_list", ""),
        address_limit_bytes=_limit(found, "Max address space"),
        memlock_limit_bytes=_limit(found, "Max locked memory"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """A thread now: what it has computed in ticks of the clock, and the processor that it last ran on."""

    ticks: int
    processor: int


def threads(pid: int, sysroot: Path = _ROOT) -> dict[int, Thread]:
    """The threads of a process by their numbers."""
    found: dict[int, Thread] = {}
    try:
        folders = list(under(sysroot, f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for folder in folders:
        numbers = _stat(folder)
        if numbers is not None and len(numbers) > 36 and folder.name.isdigit() and numbers[36].isdigit():
            ticks = sum(int(word) for word in numbers[11:13] if word.isdigit())
            found[int(folder.name)] = Thread(ticks=ticks, processor=int(numbers[36]))
    return found


def cores_of(processors: set[int], sysroot: Path = _ROOT) -> int:
    """How many physical cores these logical processors are."""
    siblings = {
        text(under(sysroot, f"/sys/devices/system/cpu/cpu{one}/topology/thread_siblings_list")) or str(one)
        for one in processors
    }
    return len(siblings)


def nodes_of(processors: set[int], sysroot: Path = _ROOT) -> int:
    """How many memory nodes these logical processors belong to; 1 where the kernel does not tell."""
    folders = numbered(under(sysroot, "/sys/devices/system/node"), r"node(\d+)")
    return max(1, sum(bool(cpu_list(text(folder / "cpulist")) & processors) for _, folder in folders))


def swapped_pages(sysroot: Path = _ROOT) -> int:
    """Pages that went to or came from swap since the machine started, of all programs."""
    counted = fields(text(under(sysroot, "/proc/vmstat")), " ")
    return sum(int(counted[name]) for name in ("pswpin", "pswpout") if counted.get(name, "").isdigit())


def tree(pid: int, sysroot: Path = _ROOT) -> tuple[int, ...]:
    """The process and all below it; those of its session whose parent has gone are of it too."""
    parents: dict[int, int] = {}
    ours = {pid}
    try:
        names = [entry.name for entry in under(sysroot, "/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return (pid,)
    for name in names:
        if numbers := _stat(under(sysroot, f"/proc/{name}")):
            parents[int(name)] = int(numbers[1])
            if int(numbers[3]) == pid:
                ours.add(int(name))
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return tuple(sorted(ours))


def groups(pid: int | str = "self", sysroot: Path = _ROOT) -> tuple[Group, ...]:
    """The memory cgroups of a process, innermost first, those with a limit or a kill."""
    found = [
        _group(folder, sysroot)
        for hierarchy in hierarchies(sysroot, "memory", str(pid))
        for folder in hierarchy.path()
    ]
    return tuple(item for item in found if item is not None and (item.limit_bytes is not None or item.kills))


def _group(folder: Path, sysroot: Path) -> Group | None:
    """A group's folder, v2 or v1; None where it has no memory controller, or is gone."""
    second = (folder / "memory.max").exists()
    file = folder / ("memory.max" if second else "memory.limit_in_bytes")
    if not file.exists():
        return None
    limit = integer(file)
    events = fields(text(folder / ("memory.events" if second else "memory.oom_control")), " ")
    kills = events.get("oom_kill", "0")
    return Group(
        where="/" + str(file.relative_to(sysroot)) if file.is_relative_to(sysroot) else str(file),
        limit_bytes=limit if limit is not None and limit < 1 << 60 else None,
        used_bytes=integer(folder / ("memory.current" if second else "memory.usage_in_bytes")),
        kills=int(kills) if kills.isdigit() else 0,
    )


@dataclass(slots=True)
class Watch:
    """A process that is looked at again and again: its peaks, and what its groups counted meanwhile."""

    pid: int
    sysroot: Path = _ROOT
    latest: dict[int, Usage] = field(default_factory=dict)
    rss_peak_bytes: int = 0  # of all processes together, as it was seen
    anonymous_peak_bytes: int = 0  # of that, what is no page of a file: those are given back
    swap_peak_bytes: int = 0
    group_peak_bytes: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    _members: tuple[int, ...] = ()
    _before: dict[str, int] | None = None
    _looks: int = 0

    def look(self) -> None:
        """Once more. All of /proc is walked now and then only: a large machine has thousands of processes."""
        if self._looks % 10 == 0:
            self._members = tree(self.pid, self.sysroot)
        self.look_at_groups()
        self._looks += 1
        now = {pid: found for pid in self._members if (found := usage(pid, self.sysroot)) is not None}
        for pid, found in now.items():
            if found.rss_peak_bytes or pid not in self.latest:
                self.latest[pid] = found
            else:  # it is ending, its memory is gone: what was seen before tells more
                self.latest[pid] = replace(self.latest[pid], rss_bytes=0)
        alone = [item.rss_peak_bytes for item in now.values()] if len(now) == 1 else []
        together = sum(item.rss_bytes for item in now.values())
        self.rss_peak_bytes = max(self.rss_peak_bytes, together, *alone)
        held = sum(item.anonymous_bytes for item in now.values())
        self.anonymous_peak_bytes = max(self.anonymous_peak_bytes, held)
        self.swap_peak_bytes = max(self.swap_peak_bytes, sum(item.swap_bytes for item in now.values()))

    def look_at_groups(self) -> None:
        """The groups, also once the process has gone: they count on."""
        now = {item.where: item for item in groups(self.pid, self.sysroot)}
        for item in self.groups:  # those of before too: it has gone, or moved
            if item.where not in now:
                again = _group(under(self.sysroot, item.where).parent, self.sysroot)
                now[item.where] = again or item
        self.groups = tuple(now.values())
        if self._before is None:
            self._before = {item.where: item.kills for item in self.groups}
        for item in self.groups:
            self.kills[item.where] = item.kills - self._before.setdefault(item.where, item.kills)
            self.group_peak_bytes[item.where] = max(
                self.group_peak_bytes.get(item.where, 0), item.used_bytes or 0
            )

    @property
    def address(self) -> tuple[int, int] | None:
        """The limit of address space and the peak of the process that came nearest to it, None where nothing limits."""
        bound = [
            (item.address_limit_bytes, item.address_peak_bytes)
            for item in self.latest.values()
            if item.address_limit_bytes is not None
        ]
        return max(bound, key=lambda pair: pair[1] / max(1, pair[0]), default=None)

    @property
    def private_bytes(self) -> int:
        """Memory of all its processes that no file backs: what is free once they have ended."""
        return sum(item.private_bytes for item in self.latest.values())

    @property
    def read_bytes(self) -> int:
        """What all of its processes have read from drives."""
        return sum(item.read_bytes for item in self.latest.values())

    @property
    def major_faults(self) -> int:
        """Pages that had to be read from a drive, by all of its processes."""
        return sum(item.major_faults for item in self.latest.values())


def _stat(folder: Path) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, which may hold anything: state is 0, parent 1, session 3."""
    numbers = (text(folder / "stat", 4096) or "").rpartition(")")[2].split()
    return numbers if len(numbers) > 9 and all(word.lstrip("-").isdigit() for word in numbers[1:10]) else None


def _kib(status: dict[str, str], name: str) -> int:
    word = status.get(name, "0").split()[:1]
    return int(word[0]) * _KIB if word and word[0].isdigit() else 0


def _limit(found: dict[str, str], name: str) -> int | None:
    word = found.get(name, "")
    return int(word) if word.isdigit() else None
