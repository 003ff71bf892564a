"""The drive below a path: free space, kind and file system (`df`, `findmnt -T`, `lsblk -o ROTA`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plan_llama.hardware.sysfs import fields, integer, text, under
from plan_llama.hardware.types import Disk, ProbeNote, Source

Kind = Literal["nvme", "ssd", "hdd", "network", "unknown"]

_NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "beegfs")
)
_NETWORK_FUSE = frozenset(("fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    point: str
    device: str  # major:minor
    filesystem: str
    source: str


def _mounts(sysroot: Path) -> list[_Mount]:
    found: list[_Mount] = []
    for line in (text(under(sysroot, "/proc/self/mountinfo")) or "").splitlines():
        left, separator, right = line.partition(" - ")
        first, last = left.split(), right.split()
        if separator and len(first) >= 5 and len(last) >= 2:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), first[4])
            found.append(_Mount(point=point, device=first[2], filesystem=last[0], source=last[1]))
    return found


def _mount_of(path: str, mounts: list[_Mount]) -> _Mount | None:
    """The mount that a path is on: the longest mount point above it, of equal ones the last mounted."""
    best: _Mount | None = None
    for mount in mounts:
        point = mount.point.rstrip("/")
        if (path == mount.point or path.startswith(point + "/")) and (
            best is None or len(mount.point) >= len(best.point)
        ):
            best = mount
    return best


def _block_kind(sysroot: Path, name: str, depth: int = 0) -> Kind:
    """The kind of a block device; the slowest of the drives below it (LUKS, LVM, RAID)."""
    folder = under(sysroot, "/sys/class/block") / name
    slaves = folder / "slaves"
    below = sorted(entry.name for entry in slaves.iterdir()) if slaves.is_dir() else []
    if below and depth < 8:
        order: tuple[Kind, ...] = ("unknown", "network", "hdd", "ssd", "nvme")
        return min((_block_kind(sysroot, slave, depth + 1) for slave in below), key=order.index)
    whole = re.sub(r"(?<=\d)p\d+$", "", name)
    if whole.startswith(("sd", "hd")):
        whole = whole.rstrip("0123456789")
    if whole.startswith("nvme"):
        return "nvme"
    # A virtual disk calls itself rotating or not without knowing what is below.
    if whole.startswith(("vd", "xvd", "loop", "zram")):
        return "unknown"
    rotational = integer(under(sysroot, "/sys/class/block") / whole / "queue/rotational")
    return {0: "ssd", 1: "hdd"}.get(rotational, "unknown") if rotational is not None else "unknown"  # type: ignore[return-value]  # the three are Kinds


def _kind(sysroot: Path, mount: _Mount) -> Kind:
    if mount.filesystem in _NETWORK or mount.filesystem in _NETWORK_FUSE:
        return "network"
    uevent = fields(text(under(sysroot, f"/sys/dev/block/{mount.device}/uevent")), "=")
    name = uevent.get("DEVNAME")
    if name is None and mount.source.startswith("/dev/"):
        # btrfs shows a device number of its own; the source names the (first) drive.
        source = Path(mount.source)
        name = (source.resolve() if sysroot == Path("/") else source).name
    return _block_kind(sysroot, name) if name and "/" not in name else "unknown"


def _free(path: str) -> tuple[int, int]:
    """(free for us, total) bytes."""
    import shutil

    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def probe(
    path: str, *, sysroot: Path = Path("/"), free: Callable[[str], tuple[int, int]] = _free
) -> tuple[Disk, list[ProbeNote]]:
    """The drive that holds `path`, or would hold it: the nearest folder above that exists is asked."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    place = place.resolve()
    notes: list[ProbeNote] = []
    sources: dict[str, Source] = {}
    free_bytes = total_bytes = None
    try:
        free_bytes, total_bytes = free(str(place))
        sources |= {"free_bytes": "probe", "total_bytes": "probe"}
    except OSError as error:
        notes.append(ProbeNote(probe="disk", reason=f"{place}: free space cannot be read ({error.strerror})"))
    mount = _mount_of(str(place), _mounts(sysroot))
    kind: Kind = _kind(sysroot, mount) if mount else "unknown"
    if kind == "unknown":
        what = f"the drive below {mount.source} ({mount.filesystem})" if mount else f"the drive of {place}"
        notes.append(ProbeNote(probe="disk", reason=f"{what} does not tell its kind; load times are a guess"))
    else:
        sources["kind"] = "probe"
    disk = Disk(
        path=str(place),
        free_bytes=free_bytes,
        total_bytes=total_bytes,
        kind=kind,
        filesystem=mount.filesystem if mount else None,
        mount=mount.point if mount else None,
        sources=sources,
    )
    return disk, notes
