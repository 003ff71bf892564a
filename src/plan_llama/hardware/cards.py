"""`--gpu` and `--gpu-free`: the cards that are planned for, as written, with memory of their own or in one pool."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from plan_llama.errors import UsageError
from plan_llama.hardware import gpu_table
from plan_llama.hardware.other_gpus import metal_limit_bytes
from plan_llama.hardware.types import Gpu, Ram, Source
from plan_llama.units import gib, parse_size

_MOST_CARDS = 64
_ASSUMED_PCIE_GEN = 4
_ASSUMED_PCIE_WIDTH = 16


def _one(written: str) -> tuple[Gpu, int]:
    """`RTX 3090*2`, `24GiB`, `A100 80GB`: the card, and how many. Raises UsageError.

    A bare size is an otherwise unknown discrete CUDA card. A card's memory, link and speed are the table's;
    that all of it is free, and that its slot gives the link, is assumed.
    """
    match = re.fullmatch(r"\s*(.*?)\s*(?:[*×]\s*(\d{1,3})\s*)?", written, re.DOTALL)
    name, count = (match[1], int(match[2] or 1)) if match else (written, 1)
    if not name or not 1 <= count <= _MOST_CARDS:
        raise UsageError(
            f"--gpu: expected NAME or SIZE, with *N for several (1 to {_MOST_CARDS}), found {written!r}"
        )
    facts, written_bytes = gpu_table.lookup(name), None
    if facts is None and (changed := gpu_table.modified(name)):
        facts, written_bytes = changed
    sources: dict[str, Source] = {"free_bytes": "assumed", "display": "assumed"}
    if facts is None:
        try:
            total = parse_size(name)
        except UsageError:
            close = gpu_table.nearest(name)
            hint = (
                f"nearest: {', '.join(close)}; or a size such as 24GiB"
                if close
                else "give its memory, such as 24GiB; --no-gpu plans without one"
            )
            raise UsageError(f"--gpu: no card is called {name!r}", hint=hint) from None
        if total == 0:
            raise UsageError("--gpu: a card has some memory", hint="--no-gpu plans without one")
        sources |= {"name": "user", "total_bytes": "user", "pcie_gen": "assumed", "pcie_width": "assumed"}
        unknown = Gpu(
            name=f"GPU with {gib(total)}",
            vendor="nvidia",
            total_bytes=total,
            free_bytes=total,
            pcie_gen=_ASSUMED_PCIE_GEN,
            pcie_width=_ASSUMED_PCIE_WIDTH,
            display=False,
            sources=sources,
        )
        return unknown, count
    total = written_bytes or facts.memory_bytes or 0
    gpu = Gpu(
        name=facts.name,
        vendor=facts.vendor,
        backend=facts.backend,
        integrated=facts.unified,
        total_bytes=total,
        free_bytes=total,
        display=False,
        sources={**sources, "name": "user", "total_bytes": "user" if written_bytes else "catalog"},
    )
    gpu = gpu_table.fill(gpu, facts)
    link: dict[str, Source] = {key: "assumed" for key in ("pcie_gen", "pcie_width") if key in gpu.sources}
    return replace(gpu, sources={**gpu.sources, **link}), count


def parse(written: Sequence[str], *, one_pool: bool) -> tuple[Gpu, ...]:
    """The cards of every `--gpu`, in order. With `one_pool` all share the system's memory, whatever they are."""
    cards: list[Gpu] = []
    for one in written:
        gpu, count = _one(one)
        cards += [gpu] * count
    if len(cards) > _MOST_CARDS:
        raise UsageError(f"--gpu: more than {_MOST_CARDS} cards")
    kinds = {gpu.integrated for gpu in cards}
    if len(kinds) == 2 and not one_pool:
        names = ", ".join(gpu.name for gpu in cards if gpu.integrated)
        raise UsageError(
            f"--gpu: {names} shares the system's memory and cannot stand beside cards with their own"
        )
    return tuple(cards)


def as_one_pool(gpus: tuple[Gpu, ...], ram: Ram, *, own_limit: bool) -> tuple[Gpu, ...]:
    """The GPUs of one pool: their memory is the system's (Metal keeps a part of it back), without a link."""
    found: list[Gpu] = []
    for gpu in gpus:
        total = metal_limit_bytes(ram.total_bytes) if gpu.vendor == "apple" else ram.total_bytes
        sources = {key: value for key, value in gpu.sources.items() if not key.startswith("pcie_")}
        sources |= {
            "total_bytes": "modelled" if gpu.vendor == "apple" else ram.sources.get("total_bytes", "assumed")
        }
        if own_limit:
            total = min(gpu.total_bytes, ram.total_bytes)
            sources["total_bytes"] = gpu.sources.get("total_bytes", "assumed")
        sources["free_bytes"] = ram.sources.get("available_bytes", "assumed")
        rate = gpu.bandwidth_bytes_per_s
        if rate is None:
            rate = ram.bandwidth_bytes_per_s
            sources["bandwidth_bytes_per_s"] = ram.sources.get("bandwidth_bytes_per_s", "assumed")
        found.append(
            replace(
                gpu,
                integrated=True,
                total_bytes=total,
                free_bytes=min(total, ram.available_bytes),
                bandwidth_bytes_per_s=rate,
                pcie_gen=None,
                pcie_width=None,
                pcie_gen_now=None,
                pcie_width_now=None,
                sources=sources,
            )
        )
    return tuple(found)


def with_free(gpus: tuple[Gpu, ...], written: Sequence[str]) -> tuple[Gpu, ...]:
    """The cards with what `--gpu-free` says of them, in order."""
    if len(written) > len(gpus):
        raise UsageError(f"--gpu-free: given {len(written)} times for {len(gpus)} cards")
    changed = list(gpus)
    for index, size in enumerate(written):
        free, gpu = parse_size(size, what="--gpu-free"), gpus[index]
        if free > gpu.total_bytes:
            raise UsageError(
                f"--gpu-free: {gib(free)} is more than card {index} has ({gpu.name}, {gib(gpu.total_bytes)})"
            )
        changed[index] = replace(gpu, free_bytes=free, sources={**gpu.sources, "free_bytes": "user"})
    return tuple(changed)
