"""Machines described in TOML: the shipped ones and the user's (`--hardware NAME|FILE.toml`), and saving one.

schema = 1
id = "desktop"
name = "Ryzen 9 7950X with two RTX 3090"
[[gpu]]
name = "RTX 3090"      # the rest comes from the GPU table; a value here overrides it
count = 2
[ram]
total = "128GiB"
type = "DDR5-5600"
channels = 2
[cpu]
physical_cores = 16
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from plan_llama import catalog
from plan_llama.catalog import Table
from plan_llama.errors import InputError, PlanLlamaError, ProfileError
from plan_llama.files import replace_text
from plan_llama.hardware import gpu_table, ram_speed
from plan_llama.hardware.other_gpus import metal_limit_bytes
from plan_llama.hardware.types import Backend, Cpu, Disk, Gpu, Limit, Machine, Ram, Source, Vendor
from plan_llama.units import parse_size

SCHEMA = 1
_DISK_KINDS = ("nvme", "ssd", "hdd", "network", "unknown")
_MOST_CARDS = 64
_MOST_FILE_BYTES = 1 << 20
_Word = TypeVar("_Word", bound=str)


def available_of(total_bytes: int) -> int:
    """What a machine with so much memory has available: 2 % less, the kernel's and the firmware's (256
    → 251 GiB).
    """
    return total_bytes * 98 // 100


def _size(table: Table, key: str) -> int | None:
    """`total = "256GiB"` or `total_bytes = 274877906944`."""
    exact = table.get(f"{key}_bytes", int)
    written = table.get(key, str)
    if exact is not None and written is not None:
        raise ProfileError(f"{table.where}: give '{key}' or '{key}_bytes', not both")
    if written is not None:
        return parse_size(written, what=f"{table.where}: '{key}'")
    if exact is not None and not 0 <= exact <= 1 << 60:
        raise ProfileError(f"{table.where}: '{key}_bytes' is outside what a machine can have")
    return exact


def _count(table: Table, key: str, least: int = 1, most: int = 1 << 20) -> int | None:
    value = table.get(key, int)
    if value is not None and not least <= value <= most:
        raise ProfileError(f"{table.where}: '{key}' must be between {least} and {most}, found {value}")
    return value


def _rate(table: Table, key: str) -> float | None:
    value = table.get(key, float)
    if value is not None and not 0 < value < 1e20:
        raise ProfileError(f"{table.where}: '{key}' must be a positive number, found {value}")
    return value


def _word(table: Table, key: str, words: tuple[_Word, ...]) -> _Word | None:
    value = table.get(key, str)
    if value is not None and value not in words:
        raise ProfileError(f"{table.where}: '{key}' must be one of {', '.join(words)}, found {value!r}")
    return value


def _sources(table: Table, values: dict[str, Any]) -> dict[str, Source]:
    """Values of the file are known from the file, unless it says how they were known when it was written."""
    written = table.table("sources")
    if not written.keys():
        return {key: "file" for key, value in values.items() if value not in (None, ())}
    found: dict[str, Source] = {}
    for key in written.keys():  # noqa: SIM118  # a Table, not a dict
        found[key] = _word(written, key, cast("tuple[Source, ...]", get_args(Source))) or "file"
    return found


def _gpu(table: Table, ram: Ram) -> tuple[Gpu, int]:
    name = table.take("name", str)
    count = _count(table, "count", 1, _MOST_CARDS) or 1
    total, free = _size(table, "total"), _size(table, "free")
    vendor = _word(table, "vendor", cast("tuple[Vendor, ...]", get_args(Vendor)))
    facts = gpu_table.lookup(name, vendor=vendor, memory_bytes=total)
    integrated = table.get("integrated", bool)
    if integrated is None:
        integrated = facts.unified if facts else False
    values: dict[str, Any] = {
        "name": name,
        "total_bytes": total,
        "free_bytes": free,
        "backend": _word(table, "backend", cast("tuple[Backend, ...]", get_args(Backend))),
        "pci_bus_id": table.get("pci_bus_id", str),
        "compute_capability": table.get("compute_capability", str),
        "gfx_target": table.get("gfx_target", str),
        "bandwidth_bytes_per_s": _rate(table, "bandwidth_bytes_per_s"),
        "fp16_flops_per_s": _rate(table, "fp16_flops_per_s"),
        "pcie_gen": _count(table, "pcie_gen", 1, 8),
        "pcie_width": _count(table, "pcie_width", 1, 32),
        "pcie_gen_now": _count(table, "pcie_gen_now", 1, 8),
        "pcie_width_now": _count(table, "pcie_width_now", 1, 32),
        "link_bytes_per_s": _rate(table, "link_bytes_per_s"),
        "driver": table.get("driver", str),
        "display": table.get("display", bool),
    }
    sources = _sources(table, values)
    if vendor is None:
        vendor = facts.vendor if facts else "unknown"
    if values["backend"] is None:
        values["backend"] = facts.backend if facts else "cuda"
    if total is None:
        if not integrated:
            total = facts.memory_bytes if facts else None
        else:
            total = metal_limit_bytes(ram.total_bytes) if vendor == "apple" else ram.total_bytes
        sources.setdefault("total_bytes", "modelled" if integrated else "catalog")
    if total is None:
        close = ", ".join(gpu_table.nearest(name))
        hint = f"give 'total', or a name of the table such as {close}" if close else "give 'total'"
        raise ProfileError(
            f"{table.where}: the GPU table does not know {name!r} and no 'total' is given", hint=hint
        )
    if free is None:
        free = min(total, ram.available_bytes) if integrated else total
        sources.setdefault("free_bytes", "assumed")
    if free > total:
        raise ProfileError(f"{table.where}: 'free' is more than 'total'")
    values |= {"total_bytes": total, "free_bytes": free, "vendor": vendor, "integrated": integrated}
    reserved = _size(table, "reserved") or 0
    table.done()
    return gpu_table.fill(Gpu(**values, reserved_bytes=reserved, sources=sources), facts), count


def _ram(table: Table) -> Ram:
    total = _size(table, "total")
    if total is None:
        raise ProfileError(f"{table.where}: required value 'total' is missing", hint='total = "128GiB", say')
    available = _size(table, "available")
    written, speed = table.get("type", str), _count(table, "speed_mt_s", 200, 20000)
    kind = written
    if written is not None and speed is None and "-" in written:
        kind, speed = ram_speed.parse_type(written, what=f"{table.where}: 'type'")
    limits = tuple(
        Limit(
            kind=limit.take("kind", str),
            limit_bytes=_size(limit, "limit") or 0,
            used_bytes=_size(limit, "used"),
            where=limit.take("where", str),
        )
        for limit in table.tables("limit")
    )
    values: dict[str, Any] = {
        "available_bytes": available,
        "swap_total_bytes": _size(table, "swap_total"),
        "swap_free_bytes": _size(table, "swap_free"),
        "memlock_bytes": _size(table, "memlock"),
        "type": kind,
        "speed_mt_s": speed,
        "channels": _count(table, "channels", 1, 64),
        "bandwidth_bytes_per_s": _rate(table, "bandwidth_bytes_per_s"),
    }
    sources = _sources(table, {"total_bytes": total, **values})
    reserved = _size(table, "reserved") or 0
    table.done()
    if available is None:
        values["available_bytes"] = available_of(total)
        sources.setdefault("available_bytes", "assumed")
    elif available > total:
        raise ProfileError(f"{table.where}: 'available' is more than 'total'")
    values["swap_total_bytes"] = values["swap_total_bytes"] or 0
    values["swap_free_bytes"] = values["swap_free_bytes"] or 0
    if values["bandwidth_bytes_per_s"] is None and speed and values["channels"]:
        values["bandwidth_bytes_per_s"] = ram_speed.peak_bytes_per_s(speed, values["channels"])
        sources.setdefault("bandwidth_bytes_per_s", "modelled")
    return Ram(total_bytes=total, **values, limits=limits, reserved_bytes=reserved, sources=sources)


def _cpu(table: Table) -> Cpu:
    physical = _count(table, "physical_cores")
    if physical is None:
        raise ProfileError(f"{table.where}: required value 'physical_cores' is missing")
    values: dict[str, Any] = {
        "name": table.get("name", str),
        "architecture": table.get("architecture", str),
        "performance_cores": _count(table, "performance_cores"),
        "logical_cores": _count(table, "logical_cores"),
        "usable_cores": _count(table, "usable_cores"),
        "sockets": _count(table, "sockets"),
        "numa_nodes": _count(table, "numa_nodes"),
        "isa": table.strings("isa"),
    }
    sources = _sources(table, {"physical_cores": physical, **values})
    table.done()
    if values["logical_cores"] is None:
        values["logical_cores"] = physical
        sources.setdefault("logical_cores", "assumed")
    values = {key: value for key, value in values.items() if value is not None}
    return Cpu(physical_cores=physical, **values, sources=sources)


def _disk(table: Table) -> Disk | None:
    if not table.keys():
        return None
    values: dict[str, Any] = {
        "free_bytes": _size(table, "free"),
        "total_bytes": _size(table, "total"),
        "kind": _word(table, "kind", _DISK_KINDS),
        "filesystem": table.get("filesystem", str),
        "read_bytes_per_s": _rate(table, "read_bytes_per_s"),
    }
    path = table.get("path", str) or ""
    sources = _sources(table, values)
    table.done()
    return Disk(path=path, **{**values, "kind": values["kind"] or "unknown"}, sources=sources)


def _machine(table: Table) -> Machine:
    schema = table.take("schema", int)
    if schema != SCHEMA:
        raise ProfileError(
            f"{table.where}: schema {schema} is not known", hint=f"this version reads schema {SCHEMA}"
        )
    ram = _ram(table.table("ram"))
    gpus: list[Gpu] = []
    for entry in table.tables("gpu"):
        gpu, count = _gpu(entry, ram)
        gpus += [gpu] * count
    if len(gpus) > _MOST_CARDS:
        raise ProfileError(f"{table.where}: more than {_MOST_CARDS} GPUs")
    unified = table.get("unified", bool)
    if unified is None:
        unified = bool(gpus) and all(gpu.integrated for gpu in gpus)
    if unified and ram.bandwidth_bytes_per_s is None and gpus and gpus[0].bandwidth_bytes_per_s:
        # One memory: the GPU's figure is the memory's.
        ram = replace(
            ram,
            bandwidth_bytes_per_s=gpus[0].bandwidth_bytes_per_s,
            sources={
                **ram.sources,
                "bandwidth_bytes_per_s": gpus[0].sources.get("bandwidth_bytes_per_s", "catalog"),
            },
        )
    identity = table.get("id", str)
    machine = Machine(
        name=table.get("name", str) or identity or Path(table.where).stem,
        simulated=True,
        os=_word(table, "os", ("linux", "darwin", "windows")) or "linux",
        wsl=bool(table.get("wsl", bool)),
        container=table.get("container", str),
        unified=unified,
        gpus=tuple(gpus),
        ram=ram,
        cpu=_cpu(table.table("cpu")),
        disk=_disk(table.table("disk")),
        rocm_version=table.get("rocm_version", str),
        sources={"name": "file"},
    )
    table.get("description", str)
    table.get("source_url", str)
    table.done()
    return machine


def load(path_or_name: str) -> Machine:
    """A described machine by the name of its profile or the path of its file.

    Raises InputError (unknown name, with the nearest ones) and ProfileError (a malformed file).
    """
    known = catalog.files("hardware")
    path = Path(path_or_name)
    if path_or_name in known:
        path = known[path_or_name]
    elif path.suffix.lower() != ".toml" and not path.is_file():
        from difflib import get_close_matches

        close = get_close_matches(path_or_name, known, n=3, cutoff=0.4) or sorted(known)[:8]
        hint = f"nearest: {', '.join(close)}" if close else "there are no machine profiles; name a .toml file"
        raise InputError(f"no machine is called {path_or_name!r} and there is no such file", hint=hint)
    if path.exists() and (not path.is_file() or path.stat().st_size > _MOST_FILE_BYTES):
        raise InputError(f"{path}: not a machine description", hint="expected a TOML file of some KiB")
    try:
        return _machine(Table(catalog.load(path), str(path)))
    except RecursionError as error:
        raise ProfileError(f"{path}: not valid TOML (nested too deeply)") from error
    except ProfileError:
        raise
    except PlanLlamaError as error:  # a size or memory type in the file, not on the command line
        raise ProfileError(error.message, hint=error.hint) from error


def portable(machine: Machine) -> Machine:
    """What `save` keeps: all that a plan needs, without what is private or only of the moment.

    Left out are serial numbers, processes, installed engines, notes and paths of the disk.
    """
    gpus = tuple(replace(gpu, uuid=None, processes=()) for gpu in machine.gpus)
    disk = replace(machine.disk, path="", mount=None) if machine.disk else None
    return replace(
        machine,
        simulated=True,
        gpus=gpus,
        disk=disk,
        engines=(),
        calibrated=None,
        notes=(),
        sources={"name": "file"},
    )


def _plain(values: Any, *, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """A frozen value as a TOML table: unknown (None) and empty entries are left out."""
    from dataclasses import fields as fields_of

    table: dict[str, Any] = {}
    for field in fields_of(values):
        value = getattr(values, field.name)
        if value is None or field.name in leave:
            continue
        if field.name == "sources":
            value = dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        if value not in ([], {}):
            table[field.name] = value
    return table


def dumps(machine: Machine, *, identity: str) -> str:
    """The machine as the text of a TOML file that `load` reads back to `portable(machine)`."""
    import tomli_w

    kept = portable(machine)
    table: dict[str, Any] = {"schema": SCHEMA, "id": identity, "name": kept.name, "os": kept.os}
    table |= {key: True for key in ("wsl",) if getattr(kept, key)}
    table["unified"] = kept.unified
    table |= {
        key: getattr(kept, key) for key in ("container", "rocm_version") if getattr(kept, key) is not None
    }
    ram = _plain(kept.ram, leave=("limits",))
    if kept.ram.limits:
        ram["limit"] = [_plain(limit) for limit in kept.ram.limits]
    table |= {"ram": ram, "cpu": _plain(kept.cpu)}
    if kept.disk:
        table["disk"] = _plain(kept.disk, leave=("path",))
    if kept.gpus:
        table["gpu"] = [_plain(gpu) for gpu in kept.gpus]
    return tomli_w.dumps(table)


def save(machine: Machine, path: str | Path, *, force: bool = False) -> None:
    """Write the machine's description, atomically.

    Raises InputError where the file is there and not `force`.
    """
    target = Path(path)
    if target.exists() and not force:
        raise InputError(f"{target}: the file exists", hint="--force overwrites it")
    try:
        replace_text(target, dumps(machine, identity=target.stem))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
