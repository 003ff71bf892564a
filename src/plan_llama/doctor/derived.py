"""Facts that follow from others: sums of buffers, shares of a card, what holds on from one start to the next."""

from __future__ import annotations

import re
from dataclasses import replace

from plan_llama.doctor.evidence import Start, is_host

_HOLDS_ON = (
    "engine",
    "version",
    "build",
    "ram_total_bytes",
    "ram_free_bytes",
    "swap_free_bytes",
    "rocm",
    "cuda",
)


def inherit(before: Start, start: Start) -> None:
    """What is true of the machine and the engine holds on from one start to the next."""
    for name in _HOLDS_ON:
        if name in before.facts:
            start.facts[name] = before.facts[name]
    start.devices = {name: replace(item) for name, item in before.devices.items()}


def derive(start: Start) -> None:
    """Facts that follow from others, worked out once a start has been read."""
    for kind in ("model", "context", "compute"):
        items = [item for item in start.buffers if item.kind == kind]
        for host in (False, True):
            mine = [item for item in items if is_host(item.device) is host]
            if mine:
                size = sum(item.size_bytes for item in mine)
                start.set(
                    f"{'host' if host else 'gpu'}_{kind}_bytes",
                    size,
                    max(mine, key=lambda b: b.size_bytes).line,
                )
    mapped = [item for item in start.buffers if item.device == "CPU_Mapped"]
    if mapped:
        start.set("mapped_bytes", sum(item.size_bytes for item in mapped), mapped[0].line)
    start.set("gpu_buffers", sum(not is_host(item.device) for item in start.buffers))
    start.set("any_buffers", len(start.buffers))
    start.set("device_count", len(start.devices))
    start.set("served", start.served is not None, start.served)
    start.set("begun", start.begun is not None, start.begun)
    integrated = [item for item in start.devices.values() if item.integrated]
    start.set("integrated_count", len(integrated), integrated[0].line if integrated else None)
    used = {item.device for item in start.buffers}
    start.set("integrated_used", any(item.name in used for item in integrated))
    start.set("two_backends", _two_backends(start, used))
    start.set("gpu_visible", bool(start.devices) or "cuda" in start.facts or "rocm" in start.facts)
    kinds = start.get("kv_type_k"), start.get("kv_type_v")
    start.set("kv_types_differ", None not in kinds and kinds[0] != kinds[1])
    _per_slot(start)
    _worst_device(start)
    _room_elsewhere(start)
    path = start.get("model_path")
    start.set("windows", isinstance(path, str) and bool(re.match(r"[A-Za-z]:[\\/]", path)))


def _two_backends(start: Start, used: set[str]) -> bool:
    """Whether buffers lie on one card under two names."""
    names: dict[str, set[str]] = {}
    for device in start.devices.values():
        if device.name in used and device.description:
            card = device.description.split("(")[0].strip()
            names.setdefault(card, set()).add(re.sub(r"\d+$", "", device.name))
    return any(len(kinds) > 1 for kinds in names.values())


def _room_elsewhere(start: Start) -> None:
    """Where an allocation failed on one of several cards: the most that another still had."""
    failed = start.number_of("failed_device")
    if failed is None:
        return
    free = [
        item.free_bytes - sum(buffer.size_bytes for buffer in start.buffers if buffer.device == item.name)
        for item in start.devices.values()
        if item.free_bytes is not None and not item.name.endswith(str(int(failed)))
    ]
    start.set("failed_device_known", bool(free))
    if free:
        start.set("other_free_bytes", max(free), start.facts["failed_device"].line)


def _per_slot(start: Start) -> None:
    slots, each, pool = (start.number_of(name) for name in ("slots", "slot_context", "context"))
    if slots and each:
        start.set("slots_times_context", int(slots * each), start.facts["slot_context"].line)
    if pool and slots and each and slots > 1 and start.get("kv_unified") is None and each < pool:
        start.set("kv_unified", slots * each > 1.5 * pool, start.facts["slot_context"].line)
    if pool is None and slots and each:
        unified = start.get("kv_unified") is not False
        start.set("context", int(each if unified else slots * each), start.facts["slot_context"].line)


def _worst_device(start: Start) -> None:
    """The device whose buffers come nearest to its memory, and the one with the least free of its total."""
    fullest = 0.0
    for device in start.devices.values():
        used = sum(item.size_bytes for item in start.buffers if item.device == device.name)
        if used and device.total_bytes and used / device.total_bytes > fullest:
            fullest = used / device.total_bytes
            start.set("fullest_share", fullest, device.line)
    shares = [
        (item.free_bytes / item.total_bytes, item)
        for item in start.devices.values()
        if item.free_bytes is not None and item.total_bytes and not item.name.startswith("RPC")
    ]
    if shares:
        share, device = min(shares, key=lambda pair: pair[0])
        start.set("least_free_share", share, device.line)
