"""What binds memory below what the machine has: cgroups, resource limits, WSL.

The rules are the kernel's: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plan_llama.hardware.sysfs import fields, integer, text, under
from plan_llama.hardware.types import Limit

# cgroup v1 has no word for "unlimited": it is LONG_MAX rounded down to a page.
_V1_UNLIMITED = 0x7FFFFFFFFFFFF000
_CAP_IPC_LOCK = 14  # include/uapi/linux/capability.h: may lock memory beyond RLIMIT_MEMLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted cgroup hierarchy, and our place in it."""

    version: int
    mount: Path
    relative: PurePosixPath

    def path(self) -> Iterator[Path]:
        """Our group and every one above it, up to the mount point, innermost first."""
        parts = self.relative.parts
        for count in range(len(parts), -1, -1):
            folder = self.mount.joinpath(*parts[:count])
            if folder.is_dir():
                yield folder


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def hierarchies(sysroot: Path, controller: str, process: str = "self") -> list[Hierarchy]:
    """Where the groups that bind a process (this one, or a number) are mounted: v2, and v1's of the controller.

    In a container the mount point shows only a part of the host's tree (mountinfo's root field); a path from
    /proc/self/cgroup is then either below that root or, with a cgroup namespace, relative to it.
    """
    mounts: list[tuple[int, str, str]] = []  # version, root, mount point
    for line in (text(under(sysroot, "/proc/self/mountinfo")) or "").splitlines():
        left, found, right = line.partition(" - ")
        first, last = left.split(), right.split()
        if not found or len(first) < 5 or len(last) < 3:
            continue
        if last[0] == "cgroup2":
            mounts.append((2, _unescape(first[3]), _unescape(first[4])))
        elif last[0] == "cgroup" and controller in last[2].split(","):
            mounts.append((1, _unescape(first[3]), _unescape(first[4])))
    ours: dict[int, str] = {}
    for line in (text(under(sysroot, f"/proc/{process}/cgroup")) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            ours[2] = path
        elif controller in controllers.split(","):
            ours[1] = path
    found_all: list[Hierarchy] = []
    for version, root, point in mounts:
        if version not in ours:
            continue
        place, base = PurePosixPath(ours[version]), PurePosixPath(root)
        relative = place.relative_to(base) if place.is_relative_to(base) else place
        parts = [part for part in relative.parts if part not in ("/", "..")]
        found_all.append(
            Hierarchy(version=version, mount=under(sysroot, point), relative=PurePosixPath(*parts))
        )
    return found_all


def _shown(file: Path, sysroot: Path) -> str:
    return "/" + str(file.relative_to(sysroot)) if file.is_relative_to(sysroot) else str(file)


def _used(current: int | None, stat: Path, cache_key: str) -> int | None:
    """Usage without the page cache that the kernel gives back first (what `docker stats` shows)."""
    if current is None:
        return None
    cache = fields(text(stat), " ").get(cache_key, "")
    return max(0, current - int(cache)) if cache.isdigit() else current


def _v2(hierarchy: Hierarchy, sysroot: Path) -> Iterator[Limit]:
    for folder in hierarchy.path():
        used = _used(integer(folder / "memory.current"), folder / "memory.stat", "inactive_file")
        for name in ("memory.max", "memory.high"):
            limit = integer(folder / name)
            if limit is not None:
                where = _shown(folder / name, sysroot)
                yield Limit(kind=f"cgroup v2 {name}", limit_bytes=limit, used_bytes=used, where=where)


def _v1(hierarchy: Hierarchy, sysroot: Path) -> Iterator[Limit]:
    for folder in hierarchy.path():
        file = folder / "memory.limit_in_bytes"
        limit = integer(file)
        if limit is not None and limit < _V1_UNLIMITED:
            used = _used(
                integer(folder / "memory.usage_in_bytes"), folder / "memory.stat", "total_inactive_file"
            )
            yield Limit(kind="cgroup v1", limit_bytes=limit, used_bytes=used, where=_shown(file, sysroot))


def cgroup_limits(sysroot: Path) -> tuple[Limit, ...]:
    """Every cgroup memory limit above this process, innermost first."""
    found: list[Limit] = []
    for hierarchy in hierarchies(sysroot, "memory"):
        found += (_v2 if hierarchy.version == 2 else _v1)(hierarchy, sysroot)
    return tuple(found)


def swap_limit_bytes(sysroot: Path) -> int | None:
    """The least memory.swap.max above this process (cgroup v2), None where there is none."""
    values = [
        value
        for hierarchy in hierarchies(sysroot, "memory")
        if hierarchy.version == 2
        for folder in hierarchy.path()
        if (value := integer(folder / "memory.swap.max")) is not None
    ]
    return min(values, default=None)


def cpu_quota(sysroot: Path) -> float | None:
    """CPUs that the cgroup quota allows (v2 cpu.max, v1 cpu.cfs_quota_us), the least on the path."""
    found: list[float] = []
    for hierarchy in hierarchies(sysroot, "cpu"):
        for folder in hierarchy.path():
            if hierarchy.version == 2:
                words = (text(folder / "cpu.max") or "").split()
                if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
                    found.append(int(words[0]) / int(words[1]))
            else:
                quota, period = integer(folder / "cpu.cfs_quota_us"), integer(folder / "cpu.cfs_period_us")
                if quota is not None and period and quota > 0:
                    found.append(quota / period)
    return min(found, default=None)


def _rlimit(sysroot: Path, name: str) -> int | None:
    """The soft limit of a line of /proc/self/limits in bytes, None for unlimited."""
    for line in (text(under(sysroot, "/proc/self/limits")) or "").splitlines():
        if line.startswith(name):
            word = line[len(name) :].split()[:1]
            return int(word[0]) if word and word[0].isdigit() else None
    return None


def memlock_bytes(sysroot: Path) -> int | None:
    """RLIMIT_MEMLOCK (`ulimit -l`), None where nothing limits it: unlimited, or we hold CAP_IPC_LOCK."""
    capabilities = fields(text(under(sysroot, "/proc/self/status"))).get("CapEff", "0")
    try:
        if int(capabilities, 16) >> _CAP_IPC_LOCK & 1:
            return None
    except ValueError:
        pass
    return _rlimit(sysroot, "Max locked memory")


def is_wsl(sysroot: Path) -> bool:
    """Whether this is Windows Subsystem for Linux (Microsoft's kernels say so in their release)."""
    return "microsoft" in (text(under(sysroot, "/proc/sys/kernel/osrelease")) or "").lower()


def memory_limits(sysroot: Path, total_bytes: int, available_bytes: int) -> tuple[Limit, ...]:
    """All limits, those that cannot bind (at or above the machine's memory) left out; WSL's is always
    named.
    """
    found = [limit for limit in cgroup_limits(sysroot) if limit.limit_bytes < total_bytes]
    address_space = _rlimit(sysroot, "Max address space")
    if address_space is not None:
        # Binds mmap too, so also where it is above the memory.
        found.append(Limit(kind="RLIMIT_AS", limit_bytes=address_space, used_bytes=None, where="ulimit -v"))
    if is_wsl(sysroot):
        found.append(
            Limit(
                kind="wsl2",
                limit_bytes=total_bytes,
                used_bytes=max(0, total_bytes - available_bytes),
                where="%UserProfile%\\.wslconfig, [wsl2] memory=",
            )
        )
    return tuple(found)


def available_bytes(kernel_available_bytes: int, limits: tuple[Limit, ...]) -> int:
    """The least of what the kernel has available and what every limit leaves."""
    left = [max(0, limit.limit_bytes - (limit.used_bytes or 0)) for limit in limits]
    return min([kernel_available_bytes, *left])


def container(sysroot: Path) -> str | None:
    """The kind of container this process is in, None outside of one."""
    if under(sysroot, "/.dockerenv").exists():
        return "docker"
    if under(sysroot, "/run/.containerenv").exists():
        return "podman"
    if under(sysroot, "/var/run/secrets/kubernetes.io").exists():
        return "kubernetes"
    groups = text(under(sysroot, "/proc/self/cgroup")) or ""
    for word, kind in (
        ("kubepods", "kubernetes"),
        ("docker", "docker"),
        ("libpod", "podman"),
        ("lxc", "lxc"),
    ):
        # A service such as docker.service is not a container.
        if re.search(rf"/{word}(?!\.service)", groups):
            return kind
    return None
