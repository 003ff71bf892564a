"""Data-sheet facts of GPUs by name or PCI id, from `profiles/gpus/*.toml` (one file per vendor)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from plan_llama.catalog import Table, files, load
from plan_llama.errors import ProfileError
from plan_llama.hardware.types import Backend, Gpu, Vendor
from plan_llama.units import GIB

_BACKENDS: dict[Vendor, Backend] = {"nvidia": "cuda", "amd": "rocm", "intel": "sycl", "apple": "metal"}

# Words that say nothing about which card it is, and words that tell families apart and may be left out.
_NOISE = frozenset(
    ("nvidia", "amd", "ati", "intel", "apple", "geforce", "radeon", "graphics", "gpu", "tm", "r")
)
_FAMILY = frozenset(("rtx", "gtx", "rx", "arc", "tesla", "quadro", "instinct", "generation", "edition"))
_FORM = re.compile(r"sxm\d?|pcie|nvl|oam|hbm\d?e?")
_MEMORY = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d+)?) ?gi?b?(?![a-z0-9])")
_MEMORY_TOLERANCE = 0.13
_WORD = re.compile(r"[a-z]+|\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One row of the table.

    Peaks are the vendor's; FP16 is dense. `memory_bytes` of unified memory is the most one can buy.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    vendor: Vendor
    memory_bytes: int | None
    bandwidth_bytes_per_s: float | None
    fp16_flops_per_s: float | None
    compute_capability: str | None = None
    gfx_target: str | None = None
    pcie_gen: int | None = None
    pcie_width: int | None = None
    unified: bool = False
    pci_ids: tuple[str, ...] = ()
    source_url: str | None = None

    @property
    def backend(self) -> Backend:
        """The vendor's own compute interface."""
        return _BACKENDS.get(self.vendor, "vulkan")


def _row(table: Table) -> GpuFacts:
    written = table.take("vendor", str)
    vendors: dict[str, Vendor] = {name: name for name in get_args(Vendor)}
    if (vendor := vendors.get(written)) is None:
        raise ProfileError(
            f"{table.where}: vendor must be one of {', '.join(get_args(Vendor))}, found {written!r}"
        )
    memory = table.get("memory_gib", float)
    bandwidth = table.get("bandwidth_gb_s", float)
    tflops = table.get("fp16_tflops", float)
    facts = GpuFacts(
        id=table.take("id", str),
        name=table.take("name", str),
        aliases=table.strings("aliases"),
        vendor=vendor,
        memory_bytes=round(memory * GIB) if memory else None,
        bandwidth_bytes_per_s=bandwidth * 1e9 if bandwidth else None,
        fp16_flops_per_s=tflops * 1e12 if tflops else None,
        compute_capability=table.get("compute_capability", str),
        gfx_target=table.get("gfx", str),
        pcie_gen=table.get("pcie_gen", int),
        pcie_width=table.get("pcie_width", int),
        unified=bool(table.get("unified", bool)),
        pci_ids=tuple(pci.lower() for pci in table.strings("pci_ids")),
        source_url=table.get("source_url", str),
    )
    if facts.memory_bytes is None and not facts.unified:
        raise ProfileError(f"{table.where}: required value 'memory_gib' is missing")
    table.done()
    return facts


@cache
def _read(path: Path) -> tuple[GpuFacts, ...]:
    table = Table(load(path), str(path))
    rows = tuple(_row(row) for row in table.tables("gpu"))
    table.get("schema", int)
    table.done()
    return rows


def rows(vendor: Vendor | None = None) -> tuple[GpuFacts, ...]:
    """All rows, or those of a vendor (then only that vendor's file is read, and a user's own files).

    Raises ProfileError for a malformed table.
    """
    found: list[GpuFacts] = []
    for stem, path in files("gpus").items():
        if vendor is None or stem == vendor or stem not in get_args(Vendor):
            found += [row for row in _read(path) if vendor in (None, row.vendor)]
    return tuple(found)


def _words(name: str) -> tuple[list[str], float | None]:
    """The telling words of a name, and the memory size in it (GiB)."""
    lowered = re.sub(r"\((?:tm|r|c)\)|[™®©]", " ", name.lower())
    lowered = re.sub(r"\[[0-9a-f]{4}:[0-9a-f]{4}\]", " ", lowered).replace("_", " ")
    memory = _MEMORY.search(lowered.replace("-", " "))
    lowered = _MEMORY.sub(" ", lowered.replace("-", " "))
    lowered = lowered.replace("max q", "maxq").replace("mobile", "laptop")
    return [word for word in re.findall(r"[a-z0-9]+", lowered) if word not in _NOISE], (
        float(memory[1]) if memory else None
    )


def _spelled(name: str) -> str:
    """A name in its own words, without the makers'."""
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return "".join(word for word in words if word not in _NOISE)


def _keys(name: str) -> tuple[str, str, str]:
    """The name as compared: as it is, without the family, and without the form factor either."""
    words = _words(name)[0]
    # "rtx3090" and "rx7900xtx" are written without a space too.
    split = [part for word in words for part in _WORD.findall(word)]
    short = "".join(part for part in split if part not in _FAMILY)
    formless = "".join(
        part
        for word in words
        if not _FORM.fullmatch(word)
        for part in _WORD.findall(word)
        if part not in _FAMILY
    )
    return "".join(split), short, formless


@cache
def _index(vendor: Vendor | None, _paths: tuple[Path, ...]) -> tuple[dict[str, list[GpuFacts]], ...]:
    index: tuple[dict[str, list[GpuFacts]], ...] = ({}, {}, {})
    for row in rows(vendor):
        for name in dict.fromkeys((row.id, row.name, *row.aliases)):
            for level, key in zip(index, _keys(name), strict=True):
                if key and row not in level.setdefault(key, []):
                    level[key].append(row)
    return index


def _closest(candidates: list[GpuFacts], memory_bytes: int | None) -> GpuFacts | None:
    """Of cards with the same name the one with this memory.

    Not knowing the memory, it is the first in the file (the usual one). Shared memory tells nothing.
    """
    if memory_bytes is None:
        return candidates[0] if candidates else None

    def difference(row: GpuFacts) -> float:
        return 0.0 if row.unified or not row.memory_bytes else abs(memory_bytes / row.memory_bytes - 1)

    best = min(candidates, key=difference, default=None)
    # Drivers report up to 8 % less than the sheet (error correction); variants differ by a fifth and more.
    return best if best is not None and difference(best) <= _MEMORY_TOLERANCE else None


def lookup(name: str, *, vendor: Vendor | None = None, memory_bytes: int | None = None) -> GpuFacts | None:
    """The card that a driver or a person calls so, None where the table does not know it.

    `3090`, `rtx3090`, `NVIDIA GeForce RTX 3090` are the same; `RTX 4070 Ti SUPER` is not an `RTX 4070`, a
    laptop's card not a desktop's. `memory_bytes` (or a size in the name) tells variants apart; without it the
    exact name wins, then the first variant in the file.
    """
    words, written_gib = _words(name)
    if not words:
        return None
    wanted = round(written_gib * GIB) if written_gib is not None else memory_bytes
    paths = tuple(files("gpus").values())
    spelled = _spelled(name)
    for level, key in zip(_index(vendor, paths), _keys(name), strict=True):
        # of namesakes the one whose own name begins so: "H100 80GB" is the "H100 80GB HBM3", not the "H100 PCIe"
        same = sorted(level.get(key, []), key=lambda row: not _spelled(row.name).startswith(spelled))
        found = _closest(same if written_gib is not None else level.get(key, []), wanted)
        if key and found:
            return found
    return None


def namesakes(name: str) -> tuple[GpuFacts, ...]:
    """Other cards of as much memory that the name could mean as well as the one that `lookup` takes."""
    facts = lookup(name)
    if facts is None:
        return ()
    for level, key in zip(_index(None, tuple(files("gpus").values())), _keys(name), strict=True):
        if facts in level.get(key, []):
            return tuple(
                row for row in level[key] if row is not facts and row.memory_bytes == facts.memory_bytes
            )
    return ()


def modified(name: str) -> tuple[GpuFacts, int] | None:
    """A card with a size that the table does not have of it (`RTX 2080 Ti 22GB`), and that size in bytes."""
    written_gib = _words(name)[1]
    plain = _MEMORY.sub(" ", name.lower().replace("-", " "))
    facts = lookup(plain) if written_gib is not None else None
    return (facts, round((written_gib or 0) * GIB)) if facts is not None else None


def by_pci_id(pci_id: str, *, memory_bytes: int | None = None) -> GpuFacts | None:
    """The card with the PCI id `1002:744c`; cards that share one are told apart by their memory."""
    vendors: dict[str, Vendor] = {"10de": "nvidia", "1002": "amd", "8086": "intel"}
    wanted = pci_id.lower()
    same = [row for row in rows(vendors.get(wanted[:4])) if wanted in row.pci_ids]
    return _closest(same, memory_bytes)


def nearest(name: str) -> tuple[str, ...]:
    """Up to three names of the table that look like this one, for an error message."""
    from difflib import get_close_matches

    names = {row.name.lower(): row.name for row in rows()}
    keyed = {_keys(row.name)[1]: row.name for row in rows()}
    close = [keyed[found] for found in get_close_matches(_keys(name)[1], keyed, n=2, cutoff=0.6)]
    close += [names[found] for found in get_close_matches(name.lower(), names, n=3, cutoff=0.5)]
    return tuple(dict.fromkeys(close))[:3]


def fill(gpu: Gpu, facts: GpuFacts | None) -> Gpu:
    """The card with what a probe could not read taken from the table (source "catalog")."""
    from dataclasses import replace

    if facts is None:
        return gpu
    candidates = {
        "bandwidth_bytes_per_s": facts.bandwidth_bytes_per_s,
        "fp16_flops_per_s": facts.fp16_flops_per_s,
        "compute_capability": facts.compute_capability,
        "gfx_target": facts.gfx_target,
        "pcie_gen": None if gpu.integrated else facts.pcie_gen,
        "pcie_width": None if gpu.integrated else facts.pcie_width,
    }
    new = {key: value for key, value in candidates.items() if value is not None and getattr(gpu, key) is None}
    sources = {**gpu.sources, **dict.fromkeys(new, "catalog")}
    return replace(gpu, **new, sources=sources)  # type: ignore[arg-type]  # keys and types are listed above
