"""`--hardware`, `--gpu`, `--ram` and the others: the machine that is planned for, said option by option.

What an option replaces makes the facts beside it assumptions: another card's link and driver, another
memory's speed and limits. Every such value has the source "assumed".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from plan_llama.errors import UsageError
from plan_llama.hardware import cards as asked_cards
from plan_llama.hardware import described, gpu_table, ram_speed
from plan_llama.hardware.host import ISA_FLAGS
from plan_llama.hardware.types import Cpu, Disk, Gpu, Machine, ProbeNote, Ram, Source
from plan_llama.units import gib, parse_size, uses_decimal_spelling

# What an instruction set comes with on every processor that has it.
_ISA_IMPLIES: dict[str, tuple[str, ...]] = {
    "amx": ("avx512_vnni", "avx512_bf16"),
    "avx512_vnni": ("avx512",),
    "avx512_bf16": ("avx512",),
    "avx512_vbmi": ("avx512",),
    "avx512": ("avx2", "f16c", "fma", "bmi2"),
    "avx_vnni": ("avx2", "f16c", "fma", "bmi2"),
    "i8mm": ("neon", "dotprod"),
    "sve": ("neon", "dotprod"),
    "dotprod": ("neon",),
}
_ISA_ALIASES = {"amx_int8": "amx", "matmul_int8": "i8mm", "avx512f": "avx512"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareChoice:
    """The hardware options of the command line, as written. Sizes are text (`24GiB`), `ram_bandwidth` is
    10**9 B/s.

    `reserve`, `gpu_free` and `ram_available` say how much of a machine may be used: they alone do not make it another.
    """

    hardware: str | None = None
    gpu: tuple[str, ...] = ()
    gpu_free: tuple[str, ...] = ()
    ram: str | None = None
    ram_available: str | None = None
    ram_type: str | None = None
    ram_channels: int | None = None
    ram_bandwidth: float | None = None
    cpu: str | None = None
    cpu_cores: int | None = None
    cpu_isa: str | None = None
    unified: bool = False
    no_gpu: bool = False
    reserve: str | None = None

    @property
    def simulates(self) -> bool:
        """Whether the machine is another than this one."""
        return replace(self, reserve=None, gpu_free=(), ram_available=None) != HardwareChoice()


def _ram(choice: HardwareChoice, base: Ram, is_described: bool, unified_rate: float | None) -> Ram:
    """The memory after its options. `unified_rate` is the GPU's bandwidth where the memory is one pool."""
    ram, sources = base, dict(base.sources)
    if choice.ram is not None:
        total = parse_size(choice.ram, what="--ram")
        if total == 0:
            raise UsageError("--ram: a machine has some memory")
        sources = {"total_bytes": "user", "available_bytes": "assumed"}
        ram = Ram(total_bytes=total, available_bytes=described.available_of(total))
        if is_described:
            # More or less of the described machine's memory: type and channels are still its own.
            kept = ("type", "speed_mt_s", "channels", "bandwidth_bytes_per_s")
            ram = replace(ram, **{key: getattr(base, key) for key in kept})
            sources |= {key: base.sources[key] for key in kept if key in base.sources}
    if choice.ram_available is not None:
        available = parse_size(choice.ram_available, what="--ram-available")
        if available > ram.total_bytes:
            raise UsageError(
                f"--ram-available: {gib(available)} is more than the memory ({gib(ram.total_bytes)})"
            )
        ram = replace(ram, available_bytes=available, limits=())
        sources["available_bytes"] = "user"
    rate, known = ram.bandwidth_bytes_per_s, sources.get("bandwidth_bytes_per_s")
    kind, speed, channels = ram.type, ram.speed_mt_s, ram.channels
    if choice.ram_channels is not None and not 1 <= choice.ram_channels <= 64:
        raise UsageError(f"--ram-channels: expected 1 to 64 channels of 64 bits, found {choice.ram_channels}")
    if choice.ram_type is not None or choice.ram_channels is not None:
        if choice.ram_type is not None:
            kind, speed = ram_speed.parse_type(choice.ram_type)
            sources |= {"type": "user", "speed_mt_s": "user"}
        elif speed is None:
            kind, speed = ram_speed.ASSUMED_TYPE, ram_speed.ASSUMED_MT_S
            sources |= {"type": "assumed", "speed_mt_s": "assumed"}
        if choice.ram_channels is not None:
            channels = choice.ram_channels
            sources["channels"] = "user"
        elif channels is None:
            channels = ram_speed.ASSUMED_CHANNELS
            sources["channels"] = "assumed"
        rate = ram_speed.peak_bytes_per_s(speed, channels)
        assumed = "assumed" in (sources.get("type"), sources.get("channels"))
        known = "assumed" if assumed else "modelled"
    elif rate is None and unified_rate is not None:
        rate, known = unified_rate, "catalog"
    elif rate is None:
        kind, speed, channels = ram_speed.ASSUMED_TYPE, ram_speed.ASSUMED_MT_S, ram_speed.ASSUMED_CHANNELS
        sources |= dict.fromkeys(("type", "speed_mt_s", "channels"), "assumed")
        rate, known = ram_speed.assumed_bytes_per_s(), "assumed"
    if choice.ram_bandwidth is not None:
        if not 0.1 <= choice.ram_bandwidth <= 100_000:
            raise UsageError(f"--ram-bandwidth: expected GB/s (10^9 bytes), found {choice.ram_bandwidth:g}")
        rate, known = choice.ram_bandwidth * 1e9, "user"
    if known is not None:
        sources["bandwidth_bytes_per_s"] = known
    return replace(
        ram, type=kind, speed_mt_s=speed, channels=channels, bandwidth_bytes_per_s=rate, sources=sources
    )


def parse_isa(written: str) -> tuple[str, ...]:
    """`amx,avx512` as llama.cpp's names, with what each comes with.

    Raises UsageError with the known names.
    """
    names: list[str] = []
    for part in written.split(","):
        name = part.strip().lower().replace("-", "_")
        name = _ISA_ALIASES.get(name, name)
        if name and name not in ISA_FLAGS:
            raise UsageError(
                f"--cpu-isa: {part.strip()!r} is not known", hint=f"known: {', '.join(ISA_FLAGS)}"
            )
        names += [name] if name else []
    for name in names:  # grows while it is read, so that what is implied implies on
        names += [implied for implied in _ISA_IMPLIES.get(name, ()) if implied not in names]
    return tuple(name for name in ISA_FLAGS if name in names)


def _cpu(choice: HardwareChoice, base: Cpu, notes: list[ProbeNote]) -> Cpu:
    cpu, sources = base, dict(base.sources)
    if choice.cpu is not None:
        sources |= dict.fromkeys(("physical_cores", "logical_cores", "isa"), "assumed")
        sources["name"] = "user"
        cpu = replace(cpu, name=choice.cpu)
        missing = [
            option
            for option, value in (("--cpu-cores", choice.cpu_cores), ("--cpu-isa", choice.cpu_isa))
            if value is None
        ]
        if missing:
            stay = base.name or "the machine"
            reason = f"nothing is known of {choice.cpu!r}; cores and instructions stay those of {stay}"
            notes.append(ProbeNote(probe="cpu", reason=reason, unlock=" and ".join(missing)))
    if choice.cpu_cores is not None:
        cores = choice.cpu_cores
        if not 1 <= cores <= 4096:
            raise UsageError(f"--cpu-cores: expected 1 to 4096 physical cores, found {cores}")
        sources |= {"physical_cores": "user", "logical_cores": "assumed"}
        cpu = replace(
            cpu,
            physical_cores=cores,
            logical_cores=cores,
            performance_cores=None,
            usable_cores=None,
            sockets=1,
            numa_nodes=1,
        )
    if choice.cpu_isa is not None:
        cpu = replace(cpu, isa=parse_isa(choice.cpu_isa))
        sources["isa"] = "user"
    return replace(cpu, sources=sources)


def _with_reserve(machine: Machine, written: str) -> Machine:
    """`gpu0=4GiB,ram=24GiB`: bytes that a plan leaves alone."""
    gpus, ram, seen = list(machine.gpus), machine.ram, set[str]()
    for part in written.split(","):
        key, separator, size = (word.strip() for word in part.partition("="))
        key = key.lower()
        match = re.fullmatch(r"gpu(\d{1,3})", key)
        if not separator or (key != "ram" and not match):
            raise UsageError(f"--reserve: expected gpu0=4GiB,ram=24GiB, found {part.strip()!r}")
        if key in seen:
            raise UsageError(f"--reserve: {key} is given twice")
        seen.add(key)
        reserved = parse_size(size, what=f"--reserve {key}")
        index = int(match[1]) if match else -1
        if match and index >= len(gpus):
            raise UsageError(
                f"--reserve: there is no {key}",
                hint=f"the machine has {len(gpus)} GPUs, gpu0 being the first",
            )
        total = gpus[index].total_bytes if match else ram.total_bytes
        if reserved > total:
            raise UsageError(f"--reserve: {gib(reserved)} is more than {key} has ({gib(total)})")
        if match:
            gpus[index] = replace(
                gpus[index],
                reserved_bytes=reserved,
                sources={**gpus[index].sources, "reserved_bytes": "user"},
            )
        else:
            ram = replace(ram, reserved_bytes=reserved, sources={**ram.sources, "reserved_bytes": "user"})
    return replace(machine, gpus=tuple(gpus), ram=ram)


def _spelling_notes(choice: HardwareChoice) -> list[ProbeNote]:
    reserve = [part.partition("=")[2] for part in (choice.reserve or "").split(",")]
    given = [*choice.gpu_free, choice.ram, choice.ram_available, *reserve]
    given += [re.sub(r"\s*[*×]\s*\d+\s*$", "", gpu) for gpu in choice.gpu]
    decimal = [size for size in given if size and uses_decimal_spelling(size)]
    notes = [
        ProbeNote(
            probe="gpu",
            reason=f"--gpu {gpu!r} is read as {facts.name}; {' and '.join(o.name for o in others)} is called so, too",
            unlock=f"--gpu '{others[0].name}' means that one",
        )
        for gpu in choice.gpu
        if (name := re.sub(r"\s*[*×]\s*\d+\s*$", "", gpu))
        and (facts := gpu_table.lookup(name))
        and (others := gpu_table.namesakes(name))
    ]
    if not decimal:
        return notes
    reason = f"{', '.join(decimal)}: MB and GB of memory are read as MiB and GiB (2**20 and 2**30 bytes)"
    return [*notes, ProbeNote(probe="sizes", reason=reason, unlock="write MiB or GiB")]


def resolve(
    choice: HardwareChoice,
    *,
    base: Machine | None = None,
    model_path: str | None = None,
    engine_path: str | None = None,
    measure_bandwidth: bool = False,
) -> Machine:
    """The machine to plan for: `base` (this one, probed, by default; or `--hardware`) with every option
    applied.

    Raises UsageError for options that contradict each other or the machine, InputError for an unknown name.
    """
    if choice.no_gpu and (choice.gpu or choice.gpu_free or choice.unified):
        other = "--gpu" if choice.gpu else "--gpu-free" if choice.gpu_free else "--unified"
        raise UsageError(f"--no-gpu contradicts {other}", hint="leave out one of them")
    # before the probe: a misspelt name is told at once
    cards = asked_cards.parse(choice.gpu, one_pool=choice.unified)
    if choice.hardware is not None:
        base = described.load(choice.hardware)
    elif base is None:
        base = _probe(choice, model_path, engine_path, measure_bandwidth)
    notes = _spelling_notes(choice)
    replaced = bool(choice.gpu) or choice.no_gpu
    gpus = cards if replaced else base.gpus
    unified = choice.unified or (
        all(gpu.integrated for gpu in cards) if cards else base.unified and not choice.no_gpu
    )
    if choice.unified and not gpus:
        sources: dict[str, Source] = {"name": "assumed"}
        gpus = (
            Gpu(
                name="integrated GPU",
                backend="vulkan",
                integrated=True,
                total_bytes=0,
                free_bytes=0,
                sources=sources,
            ),
        )
    # A named GPU that shares the memory says how fast that memory is; this machine's measurement is not its.
    rate = next((gpu.bandwidth_bytes_per_s for gpu in gpus), None) if unified else None
    ram = base.ram
    if unified and cards and rate is not None:
        ram = replace(ram, bandwidth_bytes_per_s=None)
    ram = _ram(choice, ram, choice.hardware is not None, rate)
    if unified and (choice.unified or cards or choice.ram or choice.ram_available):
        # A described or probed GPU may reach less than all of the memory (GTT); that limit is still its own.
        own_limit = not (choice.unified or cards or choice.ram)
        gpus = asked_cards.as_one_pool(gpus, ram, own_limit=own_limit)
    changes: dict[str, Any] = {}
    if unified and any(gpu.vendor == "apple" for gpu in gpus):
        changes |= {"os": "darwin", "wsl": False, "container": None}
    if choice.ram is not None:
        changes |= {"wsl": False, "container": None}
    machine = replace(
        base,
        simulated=base.simulated or choice.simulates,
        unified=unified,
        gpus=asked_cards.with_free(gpus, choice.gpu_free),
        ram=ram,
        cpu=_cpu(choice, base.cpu, notes),
        rocm_version=None if replaced else base.rocm_version,
        calibrated=None if choice.simulates else base.calibrated,
        disk=_unmeasured(base.disk) if choice.simulates and choice.hardware is None else base.disk,
        **changes,
    )
    machine = replace(
        machine, notes=(*_still_true(base.notes, choice), *_assumption_notes(ram, choice), *notes)
    )
    if choice.simulates and choice.hardware is None:
        machine = replace(machine, name=_name(machine), sources={"name": "user"})
    return _with_reserve(machine, choice.reserve) if choice.reserve else machine


def _probe(choice: HardwareChoice, model_path: str | None, engine_path: str | None, measure: bool) -> Machine:
    from plan_llama.hardware.probe import probe

    return probe(
        model_path=model_path,
        engine_path=engine_path,
        measure_bandwidth=measure and choice.ram is None,
        with_gpus=not choice.gpu and not choice.no_gpu,
    )


def _unmeasured(disk: Disk | None) -> Disk | None:
    """The drive of a machine that is only like this one: what was measured here says nothing of it."""
    if disk is None or disk.sources.get("read_bytes_per_s") != "measured":
        return disk
    known = {key: source for key, source in disk.sources.items() if key != "read_bytes_per_s"}
    return replace(disk, read_bytes_per_s=None, sources=known)


# Probes whose notes an option makes pointless, by the option.
_OVERRIDDEN: tuple[tuple[Callable[[HardwareChoice], bool], tuple[str, ...]], ...] = (
    (
        lambda c: bool(c.gpu) or c.no_gpu,
        ("nvidia", "amd", "intel", "gpu", "gpu table", "pcie", "visible devices"),
    ),
    (lambda c: c.ram is not None, ("memory", "memory type", "memory channels", "memory bandwidth", "wsl")),
    (lambda c: c.ram_bandwidth is not None, ("memory type", "memory channels", "memory bandwidth")),
    (lambda c: c.ram_type is not None, ("memory type", "memory bandwidth")),
    (lambda c: c.ram_channels is not None, ("memory channels", "memory bandwidth")),
)


def _still_true(notes: tuple[ProbeNote, ...], choice: HardwareChoice) -> list[ProbeNote]:
    gone = {probe for applies, probes in _OVERRIDDEN if applies(choice) for probe in probes}
    return [note for note in notes if note.probe not in gone]


def _assumption_notes(ram: Ram, choice: HardwareChoice) -> list[ProbeNote]:
    """The memory's speed decides the speed with experts on the CPU: an assumed one is said."""
    touched = choice.ram or choice.ram_type or choice.ram_channels or choice.hardware or choice.unified
    if ram.sources.get("bandwidth_bytes_per_s") != "assumed" or not touched:
        return []
    rate = ram.bandwidth_bytes_per_s or 0.0
    reason = f"{ram.channels} channels of {ram.type}-{ram.speed_mt_s} are assumed ({rate / 1e9:.1f} GB/s)"
    return [
        ProbeNote(
            probe="memory bandwidth",
            reason=reason,
            unlock="--ram-type and --ram-channels, or --ram-bandwidth",
        )
    ]


def _name(machine: Machine) -> str:
    counts: dict[str, int] = {}
    for gpu in machine.gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    parts = [f"{count} × {name}" if count > 1 else name for name, count in counts.items()] or ["no GPU"]
    return ", ".join(
        [*parts, f"{gib(machine.ram.total_bytes)} RAM", *([machine.cpu.name] if machine.cpu.name else [])]
    )
