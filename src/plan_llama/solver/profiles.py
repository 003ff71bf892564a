"""The solver's constants, read from profiles: workloads, and what the engine takes beyond its buffers."""

from __future__ import annotations

from functools import cache

from plan_llama import catalog
from plan_llama.errors import UsageError
from plan_llama.memory.footprint import Beyond
from plan_llama.solver.types import Breakage, Workload
from plan_llama.units import MIB


@cache
def workloads() -> dict[str, Workload]:
    """The named workloads."""
    path = catalog.root() / "workloads.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("schema", int)
    found = {}
    for name in table.keys():  # noqa: SIM118 - a method of ours
        row = table.table(name)
        found[name] = Workload(
            name=name,
            context_tokens=row.take("context_tokens", int),
            context_floor=row.take("context_floor", int),
            prompt_tokens=row.take("prompt_tokens", int),
            output_tokens=row.take("output_tokens", int),
            reuse=row.take("reuse", float),
            slots=row.take("slots", int),
            users=row.take("users", int),
            interactive=row.take("interactive", bool),
            cache_states=row.take("cache_states", int),
            cache_ram_bytes=row.take("cache_ram_mib", int) * MIB,
        )
        row.done()
    return found


def workload(name: str) -> Workload:
    """One workload by name. Raises UsageError with the names there are."""
    known = workloads()
    if name not in known:
        raise UsageError(f"--workload {name!r} is not known", hint=f"there are {', '.join(known)}")
    return known[name]


@cache
def repack_breakages() -> tuple[Breakage, ...]:
    """Crashes of repacked weights that are known, to be kept away from."""
    path = catalog.root() / "engines" / "llama.cpp" / "breakages.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("schema", int)
    found = []
    for row in table.tables("repack"):
        found.append(
            Breakage(
                architecture=row.take("architecture", str),
                isa=row.take("isa", str),
                text=row.take("text", str),
                source=row.take("source", str),
            )
        )
        row.done()
    table.done()
    return tuple(found)


@cache
def beyond() -> Beyond:
    """What llama.cpp takes beside its buffers, and the margins."""
    path = catalog.root() / "engines" / "llama.cpp" / "beyond-buffers.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("schema", int)
    backends, load, margin = table.table("backend"), table.table("load"), table.table("margin")
    table.done()
    made = Beyond(
        context_bytes={
            name: backends.table(name).take("context_mib", int) * MIB
            for name in backends.keys()  # noqa: SIM118
        },
        staging_bytes=load.take("staging_mib", int) * MIB,
        staging_direct_bytes=load.take("staging_direct_mib", int) * MIB,
        gpu_margin_bytes=margin.take("gpu_mib", int) * MIB,
        gpu_display_margin_bytes=margin.take("gpu_display_mib", int) * MIB,
        host_margin_bytes=margin.take("host_mib", int) * MIB,
        host_margin_ratio=margin.take("host_ratio", float),
        unified_margin_bytes=margin.take("unified_mib", int) * MIB,
        unified_display_margin_bytes=margin.take("unified_display_mib", int) * MIB,
        pinned_spare_bytes=margin.take("pinned_spare_mib", int) * MIB,
    )
    for part in (backends, load, margin):
        part.done()
    return made
