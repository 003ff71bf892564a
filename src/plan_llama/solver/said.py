"""What has to be said beside a plan's or a command's numbers: what is wrong or odd, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from plan_llama.findings import Finding
from plan_llama.memory.caches import kv_type
from plan_llama.memory.compute import is_described
from plan_llama.memory.footprint import DeviceUse, footprint
from plan_llama.memory.types import HOST
from plan_llama.solver import said_host, serving
from plan_llama.solver.choice import DRAFT_GAIN, DRAFT_STREAMS, gains, resident
from plan_llama.solver.offload import late_bytes, streams
from plan_llama.solver.search import Task, cache_ram_bytes, judged, repack_crash
from plan_llama.solver.types import Candidate, Rung
from plan_llama.solver.whatif import smaller_context
from plan_llama.speed.constants import shipped
from plan_llama.speed.passes import OFFLOAD_MIN_BATCH
from plan_llama.units import MIB, gib, rate, seconds, tokens

_LARGE_POOL_BYTES = 256 * MIB


def per_slot(candidate: Candidate) -> int:
    """Tokens of one conversation."""
    return candidate.settings.slot_limit or candidate.settings.context_per_slot


def context_reduced(task: Task, wanted: int, chosen: Candidate) -> Finding:
    """A smaller context than the workload wants is the first thing to say."""
    work = task.wishes.workload
    got = per_slot(chosen)
    below = got < work.context_floor
    return Finding(
        id="ctx-shrunk-by-fit",
        severity="warning" if not below else "error",
        text=f"the context is {tokens(got)} tokens, not the {tokens(wanted)} that {work.name} wants: more does not "
        f"fit beside the model"
        + (f"; below {tokens(work.context_floor)} this use is not served" if below else ""),
        fix="a smaller quant, another card, or --ctx with the number you need to see what is missing",
    )


def context_for_gpu(task: Task, chosen: Candidate, ladder: Iterable[Rung]) -> Iterator[Finding]:
    """For a context that the workload chose and that leaves work to the CPU: the one that would not."""
    found = smaller_context(task, chosen, (rung.candidate for rung in ladder if rung.candidate))
    if found is not None:
        yield Finding(id="smaller-context-faster", severity="note", text=found[1], fix=f"--ctx {found[0]}")


def about(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """Everything else, the worst first."""
    yield from memory_findings(task, chosen)
    yield from _cache_chosen(task, chosen)
    yield from _prompt_cache(task, chosen)
    yield from remarks(task, chosen)


def remarks(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """What holds of settings on a machine whatever the verdict, also for a command that somebody else wrote."""
    yield from _quantised_cache(task, chosen)
    yield from serving.findings(task, chosen)
    yield from _context(task, chosen)
    yield from _refused_product(task, chosen)
    yield from _engine(task, chosen)
    yield from _unsure(task, chosen)


def memory_findings(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """What does not fit, or only just, with its parts."""
    used = chosen.footprint
    ram = used.pools[0]
    shared = task.machine.unified
    for device in used.devices:
        if device.peak_bytes > device.free_bytes:
            yield Finding(
                id="gpu-oom-weights",
                severity="error",
                text=f"{device.pool} ({device.name}) would need {gib(device.peak_bytes)}: weights "
                f"{gib(device.weights_bytes)}, context {gib(device.context_bytes)}, compute "
                f"{gib(device.compute_bytes)}, {_projector(device)}driver {gib(device.driver_bytes)}"
                + (f", {gib(device.pool_bytes)} more on a long prompt" if device.pool_bytes else "")
                + f"; {'the GPU may have' if shared else 'it has'} {gib(device.free_bytes)}"
                + ("" if shared else " free"),
                fix="what does not fit goes to the CPU: fewer layers, or the experts of more layers there",
            )
    if used.verdict == "pages-from-disk":
        share = max(1, (1 - used.resident_ratio) * 100)
        yield Finding(
            id="mmap-paging-thrash",
            severity="error" if not task.wishes.allow_paging else "warning",
            text=f"{gib(used.host.weights_bytes)} of weights stay on the host, and {gib(ram.available_bytes)} of "
            f"memory is available: about {share:.0f} % of them would be read from disk for every token, at about "
            f"{rate(chosen.speed.decode_tok_s.expected)} tok/s",
            fix="a smaller quant, more memory or another card; --allow-paging accepts it",
        )
    elif ram.peak_bytes > ram.available_bytes:
        growth = f", {gib(ram.growth_bytes)} of it on a long prompt" if ram.growth_bytes else ""
        yield Finding(
            id="host-alloc-failed",
            severity="error",
            text=f"{ram.name} would need {gib(ram.peak_bytes)}{growth} and has {gib(ram.available_bytes)} available",
            fix="a smaller quant, a smaller context, --load-mode mmap, or more memory",
        )
    elif used.verdict == "tight":
        for pool in used.pools:
            if pool.spare_bytes < 0:
                left = pool.available_bytes - pool.used_bytes
                yield Finding(
                    id="tight-margin",
                    severity="warning",
                    text=f"{pool.name}: {gib(left)} would stay free; {gib(pool.margin_bytes)} is the margin to keep",
                    fix="close what else uses it, or --reserve and --margin to say what you accept",
                )


def _projector(device: DeviceUse) -> str:
    return f"projector {gib(device.projector_bytes)}, " if device.projector_bytes else ""


def _cache_chosen(task: Task, chosen: Candidate) -> Iterator[Finding]:
    if task.wishes.kv_type is None and kv_type(chosen.settings.kv_type_k).quantised:
        yield Finding(
            id="kv-quant-chosen",
            severity="note",
            text=f"the cache is {chosen.settings.kv_type_k}: with f16 less than the "
            f"{tokens(task.wishes.workload.context_floor)} tokens that {task.wishes.workload.name} needs would fit",
            fix="--kv-type f16 keeps it exact",
        )


def _prompt_cache(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """A prompt cache that is smaller than the workload's, for want of memory."""
    settings = chosen.settings
    wanted = cache_ram_bytes(task, per_slot(chosen), settings.kv_type_k)
    if "cache_ram" in task.wishes.pins or settings.cache_ram_bytes >= wanted:
        return
    got = f"is {gib(settings.cache_ram_bytes)}" if settings.cache_ram_bytes else "is off"
    yield Finding(
        id="prompt-cache-reduced",
        severity="note",
        text=f"the server's prompt cache {got}, not the {gib(wanted)} for {task.wishes.workload.name}: memory has no "
        "room for more beside its margin. A conversation that is in no slot is then read from the start again",
        fix="more memory, or --pin cache-ram=MIB",
    )


def _quantised_cache(task: Task, chosen: Candidate) -> Iterator[Finding]:
    breaks = task.table.spec.kv_quantisation_breaks
    if breaks and kv_type(chosen.settings.kv_type_k).quantised:
        yield Finding(
            id="kv-quant-corrupts",
            severity="warning",
            text=f"a {chosen.settings.kv_type_k} cache is known to spoil this model's output: {breaks}",
            fix="an f16 cache: leave --kv-type, -ctk and -ctv out",
        )


def _context(task: Task, chosen: Candidate) -> Iterator[Finding]:
    got, trained = per_slot(chosen), task.table.spec.context_train
    if trained and got > trained:
        yield Finding(
            id="ctx-beyond-training",
            severity="warning",
            text=f"{tokens(got)} tokens are more than the {tokens(trained)} that the model was trained for",
            fix=f"--ctx {trained} or less",
        )
    if chosen.settings.parallel > 1 and chosen.settings.kv_unified:
        yield Finding(
            id="ctx-shared-pool-exhausted",
            severity="note",
            text=f"{chosen.settings.parallel} slots share one pool of {tokens(chosen.settings.context)} tokens, at "
            f"most {tokens(got)} each",
        )
    floor = task.wishes.workload.context_floor
    if isinstance(task.wishes.context, int) and got < floor:
        yield Finding(
            id="context-below-floor",
            severity="warning",
            text=f"{tokens(got)} tokens are less than the {tokens(floor)} that {task.wishes.workload.name} needs",
            fix=f"--ctx {floor} or more",
        )


def _refused_product(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """Experts whose products the cards' backend refuses: the CPU makes them, with copies of what is on a card."""
    table, gpus = task.table, task.machine.gpus
    if not any(gpu.backend in ("cuda", "rocm") for gpu in gpus) or not chosen.gpu_block_layers:
        return
    placed = task.placed(chosen.settings)
    weights = [i for i in task.layers.refused if table.suffixes[i].endswith(".weight")]
    resident = sum(placed.device_of[i] not in (HOST, None) for i in weights)
    what = f"llama.cpp's CUDA backend cannot multiply the experts' down matrices of {table.spec.architecture} as the "
    what += "model asks for it"
    if resident:
        yield Finding(
            id="gpu-lacks-an-operation",
            severity="warning",
            text=f"{what}: those of {resident} layers are copied from the card to the CPU for every batch",
            fix="keep them in system memory: -ot ffn_down_exps=CPU, or --cpu-moe",
        )
    elif weights:
        yield Finding(
            id="gpu-lacks-an-operation",
            severity="note",
            text=f"{what}: they stay in system memory, and the CPU makes these products, those of prompts as well",
        )


def _lent(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """Cards that have experts of layers of another card."""
    cards = {item.device for item in chosen.settings.overrides if item.device != HOST}
    placed = task.placed(chosen.settings)
    for card in sorted(cards):
        layers = [
            il
            for il in range(task.table.layers)
            if placed.layer_device[il] != card
            and any(placed.device_of[i] == card for i in task.table.expert_indices[il])
        ]
        if layers:
            name = f"gpu{card} ({task.machine.gpus[card].name})"
            yield Finding(
                id="experts-on-another-card",
                severity="note",
                text=f"{name} has experts of {len(layers)} layers whose attention is on a faster card: its room holds "
                "more of them than of whole layers, and each hands its tokens over twice",
            )


def _engine(task: Task, chosen: Candidate) -> Iterator[Finding]:
    settings, host = chosen.settings, chosen.footprint.host
    offloaded = chosen.cpu_moe_layers > 0 and bool(task.machine.gpus)
    streamed = bool(task.machine.gpus) and host.weights_bytes > task.table.lookup_bytes
    what = "experts" if offloaded else "weights"
    if streamed and settings.load_mode == "mmap" and not task.machine.unified:
        yield said_host.mapped(task, chosen, what)
    yield from said_host.findings(task, chosen, streamed=streamed)
    yield from _lent(task, chosen)
    if streams(task, chosen) and chosen.speed.follow_up_ttft_s >= 1:
        late = late_bytes(task, chosen)
        layers = chosen.cpu_moe_layers - bool(late)
        yield Finding(
            id="op-offload-pcie-bound",
            severity="note",
            text=f"a prompt of {settings.offload_min_batch or OFFLOAD_MIN_BATCH} tokens or more streams "
            + (f"the experts of {layers} layers" if offloaded else "the weights on the CPU")
            + f" ({gib(host.weights_bytes - late)}) over PCIe once per {settings.ubatch} tokens: even a short "
            f"follow-up takes about {seconds(chosen.speed.follow_up_ttft_s)} to its first token",
        )
    growing: dict[tuple[str, str], list[str]] = {}
    for device in chosen.footprint.devices:
        if device.pool_bytes >= _LARGE_POOL_BYTES:
            growing.setdefault((device.name, gib(device.pool_bytes)), []).append(device.pool)
    for (name, size), cards in growing.items():
        why = "" if settings.flash_attn else ": without flash attention a layer's scores are copied"
        several = len(cards) > 1
        yield Finding(
            id="pool-growth",
            severity="note",
            text=f"{', '.join(cards)} ({name}) take{'' if several else 's'} another {size}{' each' if several else ''} "
            f"once a long prompt was read, which no buffer of the log shows{why}",
        )
    limit = task.machine.ram.memlock_bytes
    if "mlock" in settings.load_mode and limit is not None and host.weights_bytes > limit:
        yield Finding(
            id="mlock-rlimit",
            severity="warning",
            text=f"{gib(host.weights_bytes)} of weights are to be locked, and {gib(limit)} may be (ulimit -l): the "
            "rest can be paged out",
            fix="raise the limit: ulimit -l unlimited, or LimitMEMLOCK=infinity of the unit",
        )
    if host.lazy_bytes:
        yield Finding(
            id="lazy-embeddings",
            severity="note",
            text=f"per-layer embeddings ({gib(host.lazy_bytes)}) are read from the file row by row and stay out of "
            f"{chosen.footprint.pools[0].name}, whatever the load mode",
        )
    if task.table.blocks > task.table.layers:
        yield _draft_block(task, chosen)
    crash = repack_crash(task)
    if crash is not None and not settings.repack:
        yield Finding(
            id="repack-crash",
            severity="note",
            text=f"-nr keeps the weights in their own layout: {crash.text}",
        )
    if task.machine.wsl:
        yield Finding(
            id="wsl2-memory-limit",
            severity="note",
            text="WSL2 gives Linux only part of Windows' memory",
            fix="memory= in .wslconfig raises it",
        )


def _draft_block(task: Task, chosen: Candidate) -> Finding:
    """What the model's own block for drafting does to speed and memory, or would do."""
    drafts = task.table.blocks - task.table.layers
    blocks = "draft blocks" if drafts > 1 else "draft block"
    used = chosen.settings.draft_layers
    other = judged(task, replace(chosen.settings, draft_layers=not used), chosen.footprint)
    mine, theirs = (item.speed.decode_tok_s.expected for item in (chosen, other))
    if not used:
        size = sum(
            tensor.nbytes
            for tensor, block in zip(task.table.spec.tensors, task.table.block_of, strict=True)
            if block is not None and block >= task.table.layers
        )
        return Finding(
            id="draft-block-unused",
            severity="note",
            text=f"the file's {blocks} ({gib(size)}) {'are' if drafts > 1 else 'is'} not loaded; with it decode would "
            f"be about {rate(theirs)} instead of {rate(mine)} tok/s" + _why_unused(task, chosen, other),
        )
    plain = footprint(
        task.table,
        other.settings,
        task.machine,
        task.beyond,
        margin_bytes=task.wishes.margin_bytes,
    )
    takes = sum(pool.used_bytes for pool in chosen.footprint.pools) - sum(p.used_bytes for p in plain.pools)
    chance = shipped().assumed["draft_accepted"] * 100
    slower = mine < theirs
    return Finding(
        id="draft-block-used",
        severity="warning" if slower else "note",
        text=f"the model drafts up to {chosen.settings.draft_tokens} tokens with its own {blocks} and checks them "
        f"together: decode about {rate(mine)} instead of {rate(theirs)} tok/s if {chance:.0f} % of them are right, "
        f"for {gib(takes)} of memory",
        fix="--pin draft-layers=off, or a command without --spec-type"
        + (
            "" if slower else ", leaves it out; the server's log counts the drafted tokens that were accepted"
        ),
    )


def _why_unused(task: Task, chosen: Candidate, drafting: Candidate) -> str:
    """Why a block that would make decode faster is left out."""
    if drafting.speed.decode_tok_s.expected <= chosen.speed.decode_tok_s.expected:
        return ""
    if not task.wishes.can_draft:
        return ""
    if not resident(task.table, chosen):
        why = "which is not to be relied on while a part of the model is on the CPU"
    elif min(task.users or 1, task.slots) > DRAFT_STREAMS:
        why = f"which is not to be relied on with more than {DRAFT_STREAMS} answers at once"
    elif not gains(task, drafting, chosen):
        why = f"and the request gains less than {(DRAFT_GAIN - 1) * 100:.0f} %"
    else:
        why = "but there is no room for it and its cache beside this"
    return f", {why} (--pin draft-layers=on takes it)"


def _unsure(task: Task, chosen: Candidate) -> Iterator[Finding]:
    if not is_described(task.table.spec):
        yield Finding(
            id="architecture-assumed",
            severity="warning",
            text=f"the compute graph of '{task.table.spec.architecture}' is not described: its compute buffers are "
            "an upper bound, often twice what it takes",
            fix="measure with llama-fit-params before you rely on a tight fit",
        )
    for text in chosen.speed.assumptions:
        yield Finding(id="assumption", severity="note", text=text)
