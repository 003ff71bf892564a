"""Seconds of one pass over the model: a decoded token, or a micro-batch of a prompt.

A pass is a sum over what it touches, because llama.cpp runs the devices one after the other: weights on
each card at its bandwidth, launches per layer, the host's weights through RAM and cores, the way between
them, and the cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from plan_llama.hardware.types import Machine
from plan_llama.memory.types import HOST, Settings
from plan_llama.speed import cores
from plan_llama.speed.constants import Constants
from plan_llama.speed.cores import Parts, add, touched
from plan_llama.speed.rates import Assumptions, GpuRates, HostRates, gpu_rates, host_rates, link_rate
from plan_llama.speed.types import CacheReads, Traffic

# ggml copies host weights to a GPU from this batch on (GGML_OP_OFFLOAD_MIN_BATCH, ggml-cuda.cu, b11434).
OFFLOAD_MIN_BATCH = 32
_WHOLE_TYPES = ("f32", "f16", "bf16")  # caches whose elements are no blocks


@dataclass(frozen=True, slots=True)
class Work:
    """A placement on a machine with its rates resolved, ready to be priced at any depth and batch."""

    traffic: tuple[Traffic, ...]
    gpus: Mapping[int, GpuRates]
    host: HostRates | None
    settings: Settings
    constants: Constants
    resident_ratio: float
    offload_gpu: GpuRates | None  # what computes large batches over host weights
    link: float  # bytes per second of host weights to that card
    link_name: str
    offload_from: float  # tokens
    host_experts_prefill: float | None  # None: row by row
    draft: tuple[Traffic, ...] = ()  # the block that drafts
    # bytes per second back to the host by GPU that refuses some experts' products; HOST: so does the one that computes
    # large batches
    refusing: Mapping[int, float] = field(default_factory=dict)
    # bytes per second from a card to the slowest other
    between: Mapping[int, float] = field(default_factory=dict)
    windows: frozenset[int] = (
        frozenset()
    )  # of the attention masks that are filled for every micro-batch; 0: no window


def resolve(
    machine: Machine,
    traffic: Sequence[Traffic],
    settings: Settings,
    constants: Constants,
    said: Assumptions,
    *,
    engine: str,
    resident_ratio: float,
    repacked: bool,
) -> Work:
    """Look up what every device of a placement delivers; each gap is added to `said`."""
    gpus = {t.device: gpu_rates(machine, t.device, constants, said) for t in traffic if t.device != HOST}
    main = tuple(t for t in traffic if not t.draft)
    if engine == "vllm" or settings.draft_layers:  # the hidden state of every token is wanted
        main = tuple(replace(t, late=False) for t in main)
    on_host = next((t for t in main if t.device == HOST), None)
    refusing = _refusing(machine, main, settings, constants, said)
    host = None
    if refusing or any(t.dense_bytes or t.expert_bytes or t.cache for t in main if t.device == HOST):
        host = host_rates(machine, settings, constants, said, engine=engine, repacked=repacked)
    offload_gpu, link = None, 0.0
    if machine.gpus and host is not None and settings.op_offload and not repacked:
        first = settings.used_devices(len(machine.gpus))[0]  # large batches of the host's go to no other card
        offload_gpu = gpus.get(first) or gpu_rates(machine, first, constants, said)
        link = link_rate(machine, first, settings, constants, said)
    ratio = on_host.expert_used_ratio if on_host is not None and engine == "ik_llama.cpp" else 1.0
    return Work(
        traffic=main,
        gpus=gpus,
        host=host,
        settings=settings,
        constants=constants,
        resident_ratio=resident_ratio,
        offload_gpu=offload_gpu,
        link=link,
        link_name="memory copy of host weights" if machine.unified else "PCIe copy of host weights",
        offload_from=(settings.offload_min_batch or OFFLOAD_MIN_BATCH) / ratio,
        host_experts_prefill=constants.experts_core_prefill.get(engine),
        draft=tuple(t for t in traffic if t.draft) if settings.draft_layers else (),
        refusing=refusing,
        between=_between(machine, main, settings, constants, said),
        windows=frozenset() if engine == "vllm" else _windows(main),
    )


def _windows(traffic: Sequence[Traffic]) -> frozenset[int]:
    """One mask serves the layers that see the same cells; that of a sparse attention, which chooses, has none."""
    return frozenset(
        0 if c.most_cells is None or c.selecting else c.most_cells for t in traffic for c in t.cache
    )


def _refusing(
    machine: Machine, traffic: Sequence[Traffic], settings: Settings, constants: Constants, said: Assumptions
) -> dict[int, float]:
    """The devices whose refused products the CPU makes. What it copies from a card goes to its compute buffer, which is
    pinned."""
    devices = {t.device for t in traffic if t.refused}
    own = [i for i, gpu in enumerate(machine.gpus) if gpu.backend in ("cuda", "rocm")]
    pinned = replace(settings, load_mode="none")
    rates = {i: link_rate(machine, i, pinned, constants, said) for i in own if i in devices}
    if HOST in devices and machine.gpus and settings.used_devices(len(machine.gpus))[0] in own:
        rates[HOST] = 0.0  # it stays where it is
    return rates


def _between(
    machine: Machine, traffic: Sequence[Traffic], settings: Settings, constants: Constants, said: Assumptions
) -> dict[int, float]:
    """For cards with experts of another card's layers: what is carried between them goes through pinned memory of the
    host, and at most as fast as the slower link."""
    apart = {t.device for t in traffic if t.crossings and t.device != HOST}
    pinned, cards = replace(settings, load_mode="none"), {t.device for t in traffic} - {HOST}
    links = {i: link_rate(machine, i, pinned, constants, said) for i in cards} if apart else {}
    return dict.fromkeys(apart, min(links.values(), default=0.0))


def token(work: Work, depth: float, streams: int = 1) -> Parts:
    """Named seconds of a token of each of `streams` conversations: a decode step, or with a block that drafts what a
    step of drafting and verifying takes for each token that it brings.

    llama-server lets the block draft up to `draft_tokens` one after the other, each with the output head, and verifies
    them in one batch (common/speculative.cpp, b11434). A drafted token counts if it and all before it are right, by a
    chance that is assumed.
    """
    if not work.draft or not work.settings.draft_tokens:
        return decode(work, depth, streams)
    count, chance = work.settings.draft_tokens, work.constants.assumed["draft_accepted"]
    brought = sum(chance**n for n in range(count + 1))
    parts = decode(work, depth, streams, 1 + count)
    drafting = decode(replace(work, traffic=work.draft), 0, streams)
    add(parts, "drafting", count * sum(drafting.values()))
    return {name: seconds / brought for name, seconds in parts.items()}


def decode(work: Work, depth: float, streams: int = 1, rows: int = 1) -> Parts:
    """Named seconds of one decode step of `streams` conversations, each with `depth` tokens in the cache and `rows` new
    ones.

    They share the reading of the weights; every token but the first adds its arithmetic. From `offload_from` on a step
    is a batch like that of a prompt: the host's weights are copied to the GPU.
    """
    k, parts = work.constants, Parts()
    tokens = streams * rows
    for t in work.traffic:
        share = touched(t.expert_used_ratio, tokens)
        if t.refused and t.device in work.refusing:
            host = cores.refused(parts, work, t, share)
            add(parts, "CPU compute", cores.more_rows(work, host, t, tokens, share))
            continue
        if t.device == HOST:
            if work.host is None:
                continue
            if work.offload_gpu is not None and tokens >= work.offload_from:
                _streamed(parts, work, work.host, work.offload_gpu, t, tokens)
            else:
                cores.read_weights(parts, work, work.host, t, share)
                add(parts, "CPU compute", cores.more_rows(work, work.host, t, tokens, share))
            cores.attend_decode(parts, work, work.host, t, depth, tokens, streams)
            continue
        gpu = work.gpus[t.device]
        name = f"GPU{t.device}"
        add(parts, f"{name} dense weights", _gpu_read(k, gpu, t.dense_bytes))
        add(parts, f"{name} experts", share * _gpu_read(k, gpu, t.expert_bytes) / k.experts_decode)
        add(parts, f"{name} compute", _gpu_rows(k, gpu, t, tokens))
        add(parts, f"{name} launches", _launches(work, gpu, t))
        _cross(parts, work, t, tokens)
        reading = gpu.bandwidth * k.cache_read
        if not work.settings.flash_attn:
            reading *= k.plain_read
        elif work.settings.kv_type_k not in _WHOLE_TYPES:
            reading *= k.cache_read_blocks
        cache_s = 0.0
        for c in t.cache:
            cells = c.cells(depth) * streams
            cache_s += cells * c.bytes_per_cell / reading
            cache_s += rows * cells * c.flops_per_cell / (gpu.flops * k.attention_decode)
            cache_s += _selection(k, gpu, c, c.cells(depth), tokens)
            cache_s += _scores(work, gpu, c, cells, rows)
        add(parts, f"{name} cache", cache_s)
    return _tensor_split(work, parts)


def prefill(work: Work, tokens: int, depth: float) -> Parts:
    """Named seconds of one micro-batch of `tokens`, with `depth` tokens cached before it on average. No output is asked
    for, so that nothing goes through what is late."""
    k, parts = work.constants, Parts()
    offload = work.offload_gpu if tokens >= work.offload_from else None
    for t in work.traffic:
        if t.late:
            continue
        share = touched(t.expert_used_ratio, tokens)
        if t.refused and t.device in work.refusing:
            host = cores.refused(parts, work, t, share)
            add(parts, "CPU compute", cores.prompt_seconds(work, host, t, tokens))
            continue
        if t.device == HOST:
            if work.host is None:
                continue
            if offload is not None:
                _streamed(parts, work, work.host, offload, t, tokens)
            else:
                cores.read_weights(parts, work, work.host, t, share)
                add(parts, "CPU compute", cores.prompt_seconds(work, work.host, t, tokens))
            cores.attend_prompt(parts, work, work.host, t, depth, tokens)
            continue
        gpu = work.gpus[t.device]
        name = f"GPU{t.device}"
        add(
            parts,
            f"{name} weights",
            _gpu_read(k, gpu, t.dense_bytes) + share * _gpu_read(k, gpu, t.expert_bytes),
        )
        add(parts, f"{name} compute", _gpu_flops(work, gpu, t, tokens))
        add(parts, f"{name} launches", _launches(work, gpu, t))
        _cross(parts, work, t, tokens)
        flops = sum(c.cells(depth) * c.flops_per_cell for c in t.cache)
        beside = sum(
            _selection(k, gpu, c, c.cells(depth), tokens) + _scores(work, gpu, c, c.cells(depth), tokens)
            for c in t.cache
        )
        add(parts, f"{name} cache", tokens * flops / (gpu.flops * k.attention_prefill) + beside)
    add(parts, "attention mask", _masks(work, tokens))
    return parts


def _masks(work: Work, tokens: int) -> float:
    """Seconds in which one core fills the masks of a micro-batch, before the cards get to it. For each token it visits
    the cells of the batch and of the window before it (set_input_kq_mask_impl, llama-kv-cache.cpp, b11434)."""
    return tokens * sum(tokens + window for window in work.windows) * work.constants.mask_cell_s


def _cross(parts: Parts, work: Work, t: Traffic, tokens: int) -> None:
    """To another card and back: the hand-overs, and a state for every token."""
    if t.crossings and t.device in work.between:
        add(parts, "crossings", t.crossings * work.constants.crossing_s)
        carried = tokens * t.crossings * t.carried_bytes
        add(parts, "PCIe between cards", carried / work.between[t.device])


def _launches(work: Work, gpu: GpuRates, t: Traffic) -> float:
    k = work.constants
    layer_s = gpu.family.layer_s + (0.0 if work.settings.flash_attn else k.plain_layer_s)
    return t.layers * layer_s + t.expert_layers * gpu.family.expert_layer_s


def _selection(k: Constants, gpu: GpuRates, cache: CacheReads, cells: float, tokens: float) -> float:
    """Seconds in which the layers of a sparse attention sort the scores of all cells for every token."""
    sorting = k.select_cell_s + tokens * k.select_cell_bytes / gpu.bandwidth
    return cache.selecting * (k.select_layer_s + cells * sorting)


def _scores(work: Work, gpu: GpuRates, cache: CacheReads, cells: float, tokens: float) -> float:
    """Seconds in which the scores of all heads are written, turned into shares and read, without flash attention."""
    if work.settings.flash_attn:
        return 0.0
    return tokens * cells * cache.heads * work.constants.score_bytes / gpu.bandwidth


def prompt(work: Work, tokens: int, depth: float) -> Parts:
    """Named seconds for a prompt of `tokens` new tokens after `depth` cached ones, in micro-batches; its last token
    alone goes through what is late."""
    size = max(1, min(work.settings.ubatch, work.settings.batch, tokens))
    full, rest = divmod(tokens, size)
    middle = depth + tokens / 2
    total = Parts()
    for count, batch in ((full, size), (1, rest)):
        if count and batch:
            for name, seconds in prefill(work, batch, middle).items():
                total[name] = total.get(name, 0.0) + count * seconds
    if late := late_part(work):
        for name, seconds in decode(replace(work, traffic=late), 0.0).items():
            add(total, name, seconds)
    ratio = _pipelined(work, full + bool(rest))
    return {name: seconds * ratio for name, seconds in total.items()} if ratio < 1 else total


def late_part(work: Work) -> tuple[Traffic, ...]:
    """What only tokens go through whose output is asked for."""
    return tuple(t for t in work.traffic if t.late)


def _pipelined(work: Work, batches: int) -> float:
    """What is left of the time when several cards work on successive micro-batches. Any tensor override or
    layer on the host switches llama.cpp's pipeline off."""
    cards = len(work.gpus)
    plain = work.host is None and not work.settings.overrides and work.settings.split_mode == "layer"
    return pipelined(work, cards, batches) if plain and batches else 1.0


def pipelined(work: Work, cards: int, batches: int) -> float:
    """The share of a prompt's time that so many cards take which work on successive micro-batches."""
    return float(((batches + cards - 1) / (batches * cards)) ** work.constants.pipeline)


def _tensor_split(work: Work, parts: Parts) -> Parts:
    """A token's time when tensor split runs the cards together, exchanging the result of every layer.
    Prompts gain nothing: over PCIe the exchange of a micro-batch eats what the arithmetic saves."""
    cards, k = len(work.gpus), work.constants
    if work.settings.split_mode != "tensor" or cards < 2:
        return parts
    ratio = max(1 / cards, 1 / (cards * k.tensor_split))
    split = {
        name: seconds * (ratio if name.startswith("GPU") and not name.endswith("launches") else 1.0)
        for name, seconds in parts.items()
    }
    add(split, "PCIe exchange between cards", k.split_layer_s * sum(t.layers for t in work.traffic))
    return split


def _gpu_read(k: Constants, gpu: GpuRates, sizes: Mapping[str, int]) -> float:
    base = gpu.bandwidth * gpu.family.decode
    return sum(size / (base * k.kernels.get(name, k.other_kernel).decode) for name, size in sizes.items())


def _gpu_flops(work: Work, gpu: GpuRates, t: Traffic, tokens: int) -> float:
    """Seconds of arithmetic on a card.

    The output head, which only one token goes through, is charged for all: prompts of small models are slower on cards
    than their arithmetic, and the published runs are met better with it.
    """
    k = work.constants
    peak = gpu.flops * gpu.family.prefill
    return tokens * t.dense_flops * _mixed(k, t.dense_bytes) / peak + _tiles(k, gpu, t, tokens)


def _tiles(k: Constants, gpu: GpuRates, t: Traffic, tokens: int) -> float:
    """Seconds of arithmetic with the experts on a card for a batch. Every expert that some token chooses takes whole
    tiles, however few of their columns are filled.

    CUDA takes the largest tile that a batch of so many tokens fills, on RDNA3 and RDNA4 that which the mean rows of an
    expert fill (ggml_cuda_mul_mat_q and mul_mat_q_case, ggml-cuda/mmq.cu and mmq.cuh, b11434). An expert's rows
    scatter, so that half a tile is empty on average where there are several.
    """
    if not t.expert_flops:
        return 0.0
    rows = tokens * t.expert_used_ratio  # of an expert, on average
    fills = math.ceil((rows if gpu.family.tile_by_rows else tokens) / 8) * 8
    columns = min(gpu.family.tile_columns, fills)
    tiles = touched(t.expert_used_ratio, tokens) * max(1.0, rows / columns + 0.5)
    row_flops = t.expert_flops / t.expert_used_ratio  # of one row in each expert
    peak = gpu.flops * gpu.family.prefill * k.experts_prefill
    return tiles * columns * row_flops * _mixed(k, t.expert_bytes) / peak


def _gpu_rows(k: Constants, gpu: GpuRates, t: Traffic, tokens: int) -> float:
    """Seconds of arithmetic that the tokens of a decode step beside the first add; its weights are read anyway.

    Up to some columns the backends multiply vectors (MMVQ_MAX_BATCH_SIZE, ggml-cuda/mmvq.cuh, b11434: eight; Metal's
    experts up to 31 tokens, ne21_mm_id_min, ggml-metal-ops.cpp), then tiles of a matrix that stay half empty. Of dense
    weights the faster of both counts.
    """
    if tokens < 2:
        return 0.0
    peak = gpu.flops * gpu.family.prefill
    dense = t.dense_flops * _mixed(k, t.dense_bytes) / peak
    columns = min((tokens - 1) * gpu.family.vector_columns, tokens + k.few_columns)
    if tokens > gpu.family.vector_most:
        return columns * dense + _tiles(k, gpu, t, tokens)
    experts = t.expert_flops * _mixed(k, t.expert_bytes) / (peak * k.experts_prefill)
    return columns * dense + (tokens - 1) * experts


def _mixed(k: Constants, sizes: Mapping[str, int]) -> float:
    """One over the mean prompt rate of the types, relative to 16-bit weights."""
    total = sum(sizes.values())
    if not total:
        return 1.0
    return sum(size / k.kernels.get(name, k.other_kernel).prefill for name, size in sizes.items()) / total


def _streamed(parts: Parts, work: Work, host: HostRates, gpu: GpuRates, t: Traffic, tokens: int) -> None:
    """A batch over the host's weights on a GPU: what it touches is copied there and computed."""
    experts = touched(t.expert_used_ratio, tokens) * sum(t.expert_bytes.values())
    size = sum(t.dense_bytes.values()) + experts
    add(parts, work.link_name, size / work.link)
    add(parts, "GPU0 compute for the host", _gpu_flops(work, gpu, t, tokens))
    add(parts, "disk", cores.from_disk(work, host, size))
