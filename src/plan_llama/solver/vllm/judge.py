"""One start of vLLM on a machine: whether it starts, what it takes of every GPU, what its cache holds, its speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from plan_llama.findings import Finding
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.footprint import DeviceUse, Footprint, HostUse, Pool, Verdict
from plan_llama.memory.vllm import kv
from plan_llama.memory.vllm.attention import Backend, cache_layers
from plan_llama.memory.vllm.backends import NoBackend, backend_for, sixteen_bits
from plan_llama.memory.vllm.budget import Card, StageBytes, assumed, reported_bytes, room, stages
from plan_llama.solver.vllm.rules import Setup, refusals, remarks
from plan_llama.solver.vllm.speed import speed
from plan_llama.speed.types import Request, SpeedEstimate
from plan_llama.units import gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A start with everything known of it. Where vLLM refuses it outright, only `findings` and `verdict` are there."""

    setup: Setup
    verdict: Verdict
    findings: tuple[Finding, ...]
    backend: Backend | None = None
    stages: tuple[StageBytes, ...] = ()
    capacity: kv.Capacity | None = None
    longest: int = 0  # the largest max_model_len that starts, up to the one asked for
    footprint: Footprint | None = None
    speed: SpeedEstimate | None = None


def card_of(gpu: Gpu) -> Card:
    """A GPU as the vLLM model takes it: with the memory that CUDA reports, which a measured size is."""
    measured = gpu.sources.get("total_bytes") == "measured"
    total = gpu.total_bytes if measured else reported_bytes(gpu.name, gpu.total_bytes)
    return Card(
        name=gpu.name,
        total_bytes=total,
        free_bytes=max(0, min(gpu.free_bytes, total) - gpu.reserved_bytes),
        capability=gpu.compute_capability,
        gfx=gpu.gfx_target,
    )


def judge(
    setup: Setup, machine: Machine, request: Request, *, wanted: int = 1, strict: bool = True
) -> Judged:
    """Verdict, memory and speed of a start. `wanted` conversations of full length are to fit into the cache.

    A start whose cache holds one, and fewer than wanted, works: requests queue. With `strict` it does not fit.
    """
    wrong = refusals(setup)
    # memory is shown of whatever can be laid out, also where it is refused
    if setup.card is None or any(item.id == "vllm-pp" for item in wrong):
        return Judged(setup=setup, verdict="invalid", findings=tuple(wrong))
    card, start = setup.card, setup.start
    try:
        backend = backend_for(setup.checkpoint.spec, card, setup.kv_dtype)
    except NoBackend:
        backend = sixteen_bits(setup.checkpoint.spec)
    layers = cache_layers(setup.checkpoint.spec, start.ranks, backend, drafts=start.drafts)
    groups = kv.groups_of(layers, backend.block_size, hybrid=start.hybrid)
    need = kv.Request(
        max_model_len=start.max_model_len,
        in_flight_tokens=start.max_num_batched_tokens * (start.ranks.pipeline + 1),
        context_parallel=start.ranks.context,
    )
    found = stages(setup.checkpoint, start, card, backend)
    expected, careful = (room(found, start, share) for share in (1.0, 1.0 + assumed().uncertain))
    capacity = kv.capacity(groups, expected, need)
    verdict, said = _fits(setup, found, capacity, expected, wanted, strict=strict)
    if verdict == "fits":
        cautious = kv.capacity(groups, careful, need)
        if not cautious.holds_one or (strict and cautious.concurrency < wanted):
            verdict = "tight"
    longest = start.max_model_len if capacity.holds_one else kv.longest(groups, expected, need)
    if not capacity.holds_one and min(expected) > 0:
        said.append(_too_long(setup, capacity, longest))
    used = _footprint(setup, machine, found, capacity)
    if used.pools[0].used_bytes > used.pools[0].available_bytes:
        short = used.host.weights_bytes > used.host.available_bytes
        verdict = "does-not-fit" if short else verdict
        said.append(
            Finding(
                id="vllm-host-memory",
                severity="error" if short else "warning",
                text=f"the host needs about {gib(used.pools[0].used_bytes)} for processes and offloaded weights, and "
                f"{gib(used.pools[0].available_bytes)} are available",
            )
        )
    return Judged(
        setup=setup,
        verdict="invalid" if wrong else verdict,
        findings=(*wrong, *said, *remarks(setup)),
        backend=backend,
        stages=found,
        capacity=capacity,
        longest=longest,
        footprint=replace(used, verdict="invalid" if wrong else verdict),
        speed=speed(setup, machine, backend, request),
    )


def _fits(
    setup: Setup,
    found: tuple[StageBytes, ...],
    capacity: kv.Capacity,
    expected: tuple[int, ...],
    wanted: int,
    *,
    strict: bool,
) -> tuple[Verdict, list[Finding]]:
    card, start = setup.card, setup.start
    assert card is not None  # noqa: S101 - judge
    worst = max(found, key=lambda stage: stage.weights_bytes + stage.overhead_bytes)
    if start.kv_bytes is None and worst.budget_bytes > card.free_bytes:
        share = math.floor(100 * card.free_bytes / card.total_bytes) / 100
        return "does-not-fit", [
            Finding(
                id="vllm-free-memory",
                severity="error",
                text=f"{gib(card.free_bytes)} of {gib(card.total_bytes)} are free on {card.name}, less than "
                f"--gpu-memory-utilization {start.utilisation:g} asks for ({gib(worst.budget_bytes)})",
                fix=f"--gpu-memory-utilization {share:g}, or end what holds the memory",
            )
        ]
    if (
        start.kv_bytes is not None
        and worst.weights_bytes + worst.overhead_bytes + start.kv_bytes > card.free_bytes
    ):
        return "does-not-fit", [
            Finding(
                id="vllm-out-of-memory",
                severity="error",
                text=f"weights {gib(worst.weights_bytes)}, {gib(worst.overhead_bytes)} beside them and a cache of "
                f"{gib(start.kv_bytes)} are more than the {gib(card.free_bytes)} free on {card.name}",
                fix="a smaller --kv-cache-memory-bytes, or leave it out",
            )
        ]
    if min(expected) <= 0:
        return "does-not-fit", [
            Finding(
                id="vllm-no-cache-memory",
                severity="error",
                text=f"no memory is left for the KV cache: {gib(worst.weights_bytes)} of weights and about "
                f"{gib(worst.overhead_bytes)} beside them on a {gib(worst.budget_bytes)} share of {card.name}",
                fix="more GPUs, or a smaller checkpoint",
            )
        ]
    if not capacity.holds_one:
        return "does-not-fit", []
    if capacity.concurrency >= wanted:
        return "fits", []
    queue = Finding(
        id="vllm-concurrency",
        severity="warning",
        text=f"the cache holds {capacity.concurrency:.2f} conversations of {start.max_model_len:,} tokens, and "
        f"{wanted} are wanted: longer ones wait or are computed again",
        fix="a smaller --ctx or an FP8 cache",
    )
    return ("does-not-fit" if strict else "fits"), [queue]


def _too_long(setup: Setup, capacity: kv.Capacity, longest: int) -> Finding:
    fix = f"--max-model-len {longest}" if longest else "more GPUs, or a smaller checkpoint"
    return Finding(
        id="vllm-context-too-long",
        severity="error",
        text=f"one request of {setup.start.max_model_len:,} tokens needs {capacity.blocks_per_request:,} blocks of the "
        f"KV cache, and about {max(0, capacity.blocks - 1):,} are there",
        fix=fix,
    )


def _footprint(
    setup: Setup, machine: Machine, found: tuple[StageBytes, ...], capacity: kv.Capacity
) -> Footprint:
    """One device per GPU of a node: ranks of a replica in a row, tensor parallel ones inside a stage."""
    ranks, gpus = setup.start.ranks, machine.gpus
    devices = []
    for place, gpu in enumerate(gpus):
        used = place < ranks.world
        stage = found[place // ranks.tensor % ranks.pipeline]
        cache = capacity.blocks * capacity.stage_block_bytes[place // ranks.tensor % ranks.pipeline]
        devices.append(
            DeviceUse(
                name=gpu.name,
                pool=f"GPU{place}",
                weights_bytes=stage.weights_bytes if used else 0,
                context_bytes=cache if used else 0,
                compute_bytes=stage.workspace_bytes + stage.activation_bytes + stage.graph_bytes
                if used
                else 0,
                overhead_bytes=stage.context_bytes if used else 0,
                free_bytes=gpu.free_bytes,
                pool_bytes=0,
            )
        )
    local = min(ranks.world, len(gpus))
    offloaded = setup.start.offload_bytes * local
    host = HostUse(
        weights_bytes=offloaded,
        context_bytes=0,
        compute_bytes=assumed().host_bytes_per_rank * local,
        cache_bytes=0,
        checkpoint_bytes=0,
        lazy_bytes=0,
        repacked_bytes=0,
        available_bytes=machine.ram.available_bytes,
        peak_bytes=offloaded + assumed().host_bytes_per_rank * local,
    )
    pools = [
        Pool(
            name="RAM",
            total_bytes=machine.ram.total_bytes,
            available_bytes=machine.ram.available_bytes,
            used_bytes=host.total_bytes,
            margin_bytes=0,
        )
    ]
    pools += [
        Pool(
            name=f"GPU{place}",
            total_bytes=gpu.total_bytes,
            available_bytes=gpu.free_bytes,
            used_bytes=device.total_bytes,
            margin_bytes=0,
        )
        for place, (gpu, device) in enumerate(zip(gpus, devices, strict=True))
    ]
    return Footprint(
        devices=tuple(devices), host=host, pools=tuple(pools), verdict="fits", resident_ratio=1.0
    )
