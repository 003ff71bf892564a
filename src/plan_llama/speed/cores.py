"""What the CPU's share of a pass takes: its weights through RAM and cores, products of many rows, attention.

passes.py adds these seconds to those of the cards and of the copies to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from plan_llama.memory.types import HOST
from plan_llama.speed.constants import Constants
from plan_llama.speed.rates import HostRates
from plan_llama.speed.types import CacheReads, Traffic

if TYPE_CHECKING:  # passes.py puts these seconds beside those of the cards
    from plan_llama.speed.passes import Work

Parts = dict[str, float]

_LEAST_TILED = 8  # ggml_tiled_min_batch
_TILE = 16  # TILED_MICRO
_COUNTED = 4 * _TILE  # numbers of rows whose chances are summed up: of more, the last tile is half full
_PAGE_BYTES = 4096
_PAGES_KNOWN = 2048  # of the second-level TLB of Zen 3 and Golden Cove; 1536 to 4096 in others


def touched(used_ratio: float, tokens: float) -> float:
    """The expected share of a layer's experts that some token of a batch chooses."""
    return float(1.0 - (1.0 - used_ratio) ** tokens)


def add(parts: Parts, name: str, seconds: float) -> None:
    if seconds:
        parts[name] = parts.get(name, 0.0) + seconds


def prompt_seconds(work: Work, host: HostRates, t: Traffic, tokens: int) -> float:
    """Seconds of arithmetic on the cores for a micro-batch of a prompt; only its last token goes through the head."""
    dense = tokens * (t.dense_flops - t.head_flops) + t.head_flops
    seconds = _products(work, host, t.dense_bytes, dense, tiles=tokens >= _LEAST_TILED)
    if work.host_experts_prefill is None:
        share = touched(t.expert_used_ratio, tokens)
        return seconds + _expert_rows(work, host, t, tokens, share)
    return (
        seconds + _products(work, host, t.expert_bytes, tokens * t.expert_flops) / work.host_experts_prefill
    )


def _products(
    work: Work, host: HostRates, sizes: Mapping[str, int], flops: float, *, tiles: bool = False
) -> float:
    """Seconds of the cores for `flops` operations, spread over weights of several types by their bytes."""
    total, rate = sum(sizes.values()), _tile_rate if tiles else _core_rate
    cores_s = (flops * size / total / rate(work.constants, host, name) for name, size in sizes.items())
    return sum(cores_s) / host.cores_prefill


def _core_rate(k: Constants, host: HostRates, name: str) -> float:
    """Operations per second of one core on weights of a type, in prompts; for ik_llama.cpp, which unpacks any type to
    8 bits first, those of Q8_0."""
    if host.own_kernels:
        return k.kernels["q8_0"].core_flops
    kernel = k.kernels.get(name, k.other_kernel)
    return kernel.core_flops * (kernel.repacked_prefill if name in host.interleaved else 1.0)


def _tile_rate(k: Constants, host: HostRates, name: str) -> float:
    """The same where many rows go through weights of a type at once."""
    return _core_rate(k, host, name) * (k.tiled_vnni if host.vnni and name in host.tiled else 1.0)


def _core_read(k: Constants, host: HostRates, name: str) -> float:
    """Seconds that one core spends on a byte of a type, for one token."""
    kernel = k.kernels.get(name, k.other_kernel)
    return kernel.core_s_per_byte / (kernel.repacked_decode if name in host.interleaved else 1.0)


def more_rows(work: Work, host: HostRates, t: Traffic, tokens: int, share: float) -> float:
    """Seconds of arithmetic that the tokens after the first add to a decode step on the CPU: matrices as in a prompt,
    experts row by row."""
    dense = _products(work, host, t.dense_bytes, (tokens - 1) * t.dense_flops)
    return dense + _expert_rows(work, host, t, tokens, share)


def _expert_rows(work: Work, host: HostRates, t: Traffic, tokens: int, share: float) -> float:
    """Seconds of the cores over the experts' rows, beyond the reading of those that some row chose.

    An expert that 8 rows or more chose is multiplied in tiles of 16 of them (ggml_compute_forward_mul_mat_id_tiled,
    ggml-cpu/tiled/tiled.cpp, b11434). With fewer, and for types that are interleaved or not tiled, llama.cpp goes row
    by row (ggml_compute_forward_mul_mat_id, ggml-cpu.c, and forward_mul_mat_id, repack.cpp), but from the cache after
    the first.
    """
    k, total = work.constants, sum(t.expert_bytes.values())
    if not total:
        return 0.0
    tiled, alone = _rows(tokens, t.expert_used_ratio)
    one_by_one = max(0.0, tokens * t.expert_used_ratio - share)
    row_flops = t.expert_flops / t.expert_used_ratio
    seconds = 0.0
    for name, size in t.expert_bytes.items():
        rows, others = (tiled, alone) if name in host.tiled else (0.0, one_by_one)
        row_s = rows / _tile_rate(k, host, name) + others / k.expert_rows / _core_rate(k, host, name)
        seconds += row_s * row_flops * size / total
    return seconds / host.cores_prefill


@cache
def _rows(tokens: int, ratio: float) -> tuple[float, float]:
    """Of an expert that each token chooses with the same chance: the rows that are expected in tiles, those that fill
    the last one counted, and those after the first where there are too few for tiles."""
    if ratio >= 1.0:
        return (-(-tokens // _TILE) * _TILE, 0.0) if tokens >= _LEAST_TILED else (0.0, tokens - 1.0)
    chance = (1.0 - ratio) ** tokens  # of no row
    tiled = alone = within = rows_within = 0.0
    for count in range(min(tokens, _COUNTED) + 1):
        if count:
            chance *= (tokens - count + 1) / count * ratio / (1.0 - ratio)
        within, rows_within = within + chance, rows_within + count * chance
        if count < _LEAST_TILED:
            alone += max(0, count - 1) * chance
        else:
            tiled += -(-count // _TILE) * _TILE * chance
    return tiled + tokens * ratio - rows_within + (_TILE - 1) / 2 * (1.0 - within), alone


def read_weights(parts: Parts, work: Work, host: HostRates, t: Traffic, share: float) -> None:
    """The CPU reads its dense weights and a share of its experts once.

    While it computes with a block it reads the next one, so that a byte takes less than reading and computing one
    after the other. Each has the share of it by which a faster one would shorten it.
    """
    k = work.constants
    dense, experts = sum(t.dense_bytes.values()), share * sum(t.expert_bytes.values())
    for label, sizes, ratio, efficiency in (
        ("dense weights", t.dense_bytes, 1.0, 1.0),
        ("experts", t.expert_bytes, share, k.ram_experts),
    ):
        read = 1 / (host.ram * efficiency)
        ram_s = cores_s = 0.0
        for name, size in sizes.items():
            a, b = read**k.overlap, (_core_read(k, host, name) / host.cores_decode) ** k.overlap
            both = ratio * size * (a + b) ** (1 / k.overlap)
            ram_s += both * a / (a + b)
            cores_s += both * b / (a + b)
        add(parts, f"RAM {label}", ram_s)
        add(parts, f"CPU {label}", cores_s)
    add(parts, "crossings", t.crossings * k.crossing_s)
    add(parts, "disk", from_disk(work, host, dense + experts))


def _quantised(work: Work) -> float:
    """How much of the cache is in blocks: neither K nor V, one of them, or both."""
    floats = ("f32", "f16")
    return (2 - (work.settings.kv_type_k in floats) - (work.settings.kv_type_v in floats)) / 2


def refused(parts: Parts, work: Work, t: Traffic, share: float) -> HostRates:
    """Experts that the CPU has to multiply with: those on a card are first copied to it, all of them in every batch
    (ggml_backend_sched_compute_splits copies the used ones alone only from the host, ggml-backend.cpp, b11434).

    Returns the rates of that CPU.
    """
    host = work.host
    assert host is not None  # noqa: S101 - resolved for it
    if t.device != HOST:
        size = sum(t.expert_bytes.values())
        add(parts, "PCIe copy of refused weights", size / work.refusing[t.device])
        add(parts, "crossings", t.expert_layers * work.constants.crossing_s)
        work = replace(work, resident_ratio=1.0)
    read_weights(parts, work, host, t, share)
    return host


def attend_decode(
    parts: Parts, work: Work, host: HostRates, t: Traffic, depth: float, tokens: int, caches: int
) -> None:
    """Attention of `tokens` new ones over `caches` caches of `depth` tokens.

    Flash attention then goes through the cache head by head and value by value
    (ggml_compute_forward_flash_attn_ext_f16_one_chunk, ggml/src/ggml-cpu/ops.cpp, b11434); without it the scores are
    products of matrices. ik_llama.cpp has kernels of its own for it, of every cache type.
    """
    k, flash = work.constants, work.settings.flash_attn
    score_s, rate = (k.core_score_s if flash else k.core_plain_score_s), k.core_attention_flops
    if host.own_kernels:
        score_s = 0.0
    else:
        rate *= k.core_attention_decode * float(k.core_quantised_decode ** _quantised(work))
    seconds = 0.0
    for c in t.cache:
        cells = c.cells(depth)
        seconds += caches * cells * c.bytes_per_cell / host.ram
        a_cell_s = c.heads * score_s + (c.flops_per_cell / rate if flash or not c.heads else 0.0)
        seconds += tokens * cells * a_cell_s / host.cores_prefill
        if flash and not host.own_kernels:
            seconds += tokens * c.heads * _far_pages(c, cells, host.threads) * k.core_page_s / host.threads
    add(parts, "CPU cache", seconds)


def _far_pages(cache: CacheReads, cells: float, threads: int) -> float:
    """Pages of memory that every head of a layer leads through, where the share of a thread is more than a core's table
    of addresses holds: each head reads its part of every row, so that the next head finds none of them there."""
    if not cache.layers:
        return 0.0
    pages = cells * min(2.0, cache.bytes_per_cell / cache.layers / _PAGE_BYTES)
    return pages * min(1.0, max(0.0, pages / threads / _PAGES_KNOWN - 1.0))


def attend_prompt(parts: Parts, work: Work, host: HostRates, t: Traffic, depth: float, tokens: int) -> None:
    """Attention of many new tokens: tiles of a cache of floats serve them all, a quantised one is read value by value
    (use_tiled in ggml_compute_forward_flash_attn_ext_f16), and without flash attention there are products of matrices.
    """
    k, rate = work.constants, work.constants.core_attention_flops
    if not host.own_kernels:
        rate *= float(k.core_quantised_prefill ** _quantised(work))
        rate *= 1.0 if work.settings.flash_attn else k.core_attention_plain
    seconds = 0.0
    for c in t.cache:
        cells = c.cells(depth)
        seconds += cells * c.bytes_per_cell / host.ram
        seconds += tokens * cells * c.flops_per_cell / (rate * host.cores_prefill)
    add(parts, "CPU cache", seconds)


def from_disk(work: Work, host: HostRates, size: float) -> float:
    """What does not stay in RAM is read again on every pass, at what page faults get out of the drive."""
    return size * (1.0 - work.resident_ratio) / (host.disk * work.constants.mapped_read)
