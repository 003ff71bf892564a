"""What was measured of a machine, kept in one TOML file per machine: memory, the way to each GPU, drives.

`plan-llama calibrate` measures all of it, `hardware --measure` and a plan that would have to assume the memory's
bandwidth measure that alone. Plans on the machine use what is here. A damaged file counts as none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plan_llama.catalog import Table
from plan_llama.errors import PlanLlamaError, ProfileError
from plan_llama.files import replace_text
from plan_llama.hardware import cache
from plan_llama.hardware.sysfs import text, under
from plan_llama.hardware.types import Cpu, Ram
from plan_llama.units import GIB

SCHEMA = 1
_LEAST_RATE, _MOST_RATE = 1e6, 1e14  # bytes per second that make sense


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """A measured read bandwidth of the memory in bytes per second, the threads that reached it, and the day (ISO date).

    `by_threads` are the rates of other numbers of threads.
    """

    bytes_per_s: float
    threads: int
    date: str
    by_threads: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Bytes per second that one card gets from pinned host memory, and gives back."""

    bus_id: str
    gpu: str
    to_gpu_bytes_per_s: float
    from_gpu_bytes_per_s: float
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRead:
    """How fast the drive of a mount is read past the page cache."""

    mount: str
    read_bytes_per_s: float
    method: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All measurements of a machine, and what made the latest of them."""

    machine: str = ""
    plan_llama: str = ""
    engine_build: int | None = None
    memory: Bandwidth | None = None
    links: tuple[Link, ...] = ()
    disks: tuple[DiskRead, ...] = ()

    def link(self, bus_id: str | None) -> Link | None:
        """The measurement of the card on a bus id."""
        return next((item for item in self.links if item.bus_id == bus_id), None)

    def disk(self, mount: str | None) -> DiskRead | None:
        """The measurement of the drive of a mount point."""
        return next((item for item in self.disks if item.mount == mount), None)


def today() -> str:
    """The date of a measurement."""
    from datetime import UTC, datetime

    return datetime.now(UTC).date().isoformat()


def machine_key(cpu: Cpu, ram: Ram, sysroot: Path = Path("/")) -> str:
    """What a measurement is valid for: this machine (by a hash of its id), CPU and memory, over reboots."""
    import hashlib

    identity = text(under(sysroot, "/etc/machine-id"), 256) or ""
    parts = (
        identity,
        cpu.name or "",
        str(cpu.physical_cores),
        str(cpu.usable_cores),
        str(round(ram.total_bytes / GIB)),
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def path(key: str) -> Path:
    """The file of a machine."""
    return cache.folder() / "calibration" / f"{key}.toml"


def load(key: str) -> Calibration:
    """What is known of a machine; empty where nothing was measured or the file is damaged."""
    where = path(key)
    try:
        return _read(Table(tomllib.loads(where.read_text(encoding="utf-8")), str(where)))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, PlanLlamaError):
        return Calibration()


def store(
    key: str,
    *,
    machine: str,
    engine_build: int | None = None,
    memory: Bandwidth | None = None,
    links: Sequence[Link] = (),
    disks: Sequence[DiskRead] = (),
) -> Path | None:
    """Adds measurements to what is known, in place of older ones of the same thing.

    Returns the file, or None where it cannot be written.
    """
    import tomli_w

    from plan_llama import __version__

    old = load(key)
    new = replace(
        old,
        machine=machine or old.machine,
        plan_llama=__version__,
        engine_build=engine_build if engine_build is not None else old.engine_build,
        memory=memory or old.memory,
        links=(*links, *(x for x in old.links if x.bus_id not in {item.bus_id for item in links})),
        disks=(*disks, *(x for x in old.disks if x.mount not in {item.mount for item in disks})),
    )
    target = path(key)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, tomli_w.dumps(as_table(new)))
    except OSError:
        return None
    return target


def as_table(item: Calibration) -> dict[str, Any]:
    """The measurements as the file and the JSON hold them."""
    table: dict[str, Any] = {"schema": SCHEMA, "machine": item.machine, "plan_llama": item.plan_llama}
    if item.engine_build is not None:
        table["engine_build"] = item.engine_build
    if item.memory:
        table["memory"] = {
            "bytes_per_s": item.memory.bytes_per_s,
            "threads": item.memory.threads,
            "date": item.memory.date,
            "by_threads": [{"threads": count, "bytes_per_s": rate} for count, rate in item.memory.by_threads],
        }
    table["link"] = [
        {
            "bus_id": link.bus_id,
            "gpu": link.gpu,
            "to_gpu_bytes_per_s": link.to_gpu_bytes_per_s,
            "from_gpu_bytes_per_s": link.from_gpu_bytes_per_s,
            "date": link.date,
        }
        for link in item.links
    ]
    table["disk"] = [
        {
            "mount": disk.mount,
            "read_bytes_per_s": disk.read_bytes_per_s,
            "method": disk.method,
            "date": disk.date,
        }
        for disk in item.disks
    ]
    return table


def _read(table: Table) -> Calibration:
    if table.take("schema", int) != SCHEMA:
        return Calibration()
    part = table.table("memory")
    memory = None
    if part.keys():
        memory = Bandwidth(
            bytes_per_s=_rate(part, "bytes_per_s"),
            threads=part.take("threads", int),
            date=part.take("date", str),
            by_threads=tuple(
                (row.take("threads", int), _rate(row, "bytes_per_s")) for row in part.tables("by_threads")
            ),
        )
    return Calibration(
        machine=table.take("machine", str),
        plan_llama=table.take("plan_llama", str),
        engine_build=table.get("engine_build", int),
        memory=memory,
        links=tuple(
            Link(
                bus_id=row.take("bus_id", str),
                gpu=row.take("gpu", str),
                to_gpu_bytes_per_s=_rate(row, "to_gpu_bytes_per_s"),
                from_gpu_bytes_per_s=_rate(row, "from_gpu_bytes_per_s"),
                date=row.take("date", str),
            )
            for row in table.tables("link")
        ),
        disks=tuple(
            DiskRead(
                mount=row.take("mount", str),
                read_bytes_per_s=_rate(row, "read_bytes_per_s"),
                method=row.take("method", str),
                date=row.take("date", str),
            )
            for row in table.tables("disk")
        ),
    )


def _rate(table: Table, key: str) -> float:
    value = table.take(key, float)
    if not _LEAST_RATE <= value <= _MOST_RATE:  # NaN is not
        raise ProfileError(f"{table.where}: '{key}' is no rate that a machine has")
    return value
