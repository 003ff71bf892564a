"""What a plan has to say beside its numbers: warnings with the fix, the working for --explain, and where facts are from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plan_llama.findings import Finding
from plan_llama.hardware.types import Source
from plan_llama.memory.compute import is_described
from plan_llama.memory.context import bytes_per_token, kv_type
from plan_llama.memory.footprint import gpu_margin_bytes, host_margin_bytes
from plan_llama.models.spec import is_expert
from plan_llama.solver.search import Task, repack_crash, wanted_context
from plan_llama.solver.types import Candidate
from plan_llama.units import gib, mib_exact, rate, tokens


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


def about(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """Everything else, the worst first."""
    yield from _verdict(task, chosen)
    yield from remarks(task, chosen)


def remarks(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """What holds of settings on a machine whatever the verdict, also for a command that somebody else wrote."""
    yield from _quantised_cache(task, chosen)
    yield from _context(task, chosen)
    yield from _engine(task, chosen)
    yield from _unsure(task, chosen)


def _verdict(task: Task, chosen: Candidate) -> Iterator[Finding]:
    used = chosen.footprint
    ram = used.pools[0]
    host = used.host
    if used.verdict == "pages-from-disk":
        yield Finding(
            id="mmap-paging-thrash",
            severity="error" if not task.wishes.allow_paging else "warning",
            text=f"{gib(host.weights_bytes)} of weights stay on the host, and {gib(ram.available_bytes)} of memory "
            f"is available: about {max(1, (1 - used.resident_ratio) * 100):.0f} % of them would be read from disk "
            f"for every token, at about {rate(chosen.speed.decode_tok_s.expected)} tok/s",
            fix="a smaller quant, more memory or another card; --allow-paging accepts it",
        )
    elif used.verdict == "does-not-fit":
        for device, pool in zip(used.devices, used.pools[1:], strict=False):
            if device.peak_bytes > pool.available_bytes:
                yield Finding(
                    id="gpu-oom-weights",
                    severity="error",
                    text=f"{pool.name} ({device.name}) would need {gib(device.peak_bytes)} and has "
                    f"{gib(pool.available_bytes)} free",
                    fix="see what would make it fit, below",
                )
        if ram.used_bytes > ram.available_bytes:
            yield Finding(
                id="host-alloc-failed",
                severity="error",
                text=f"{ram.name} would need {gib(ram.used_bytes)} and has {gib(ram.available_bytes)} available",
                fix="a smaller quant, a smaller context, or more memory",
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


def _engine(task: Task, chosen: Candidate) -> Iterator[Finding]:
    settings, host = chosen.settings, chosen.footprint.host
    offloaded = chosen.cpu_moe_layers > 0 and bool(task.machine.gpus)
    if offloaded and settings.load_mode == "mmap" and not task.machine.unified:
        yield Finding(
            id="mmap-with-cpu-override-slow",
            severity="note",
            text="the experts on the CPU are mapped from the file, not pinned: prompts stream them more slowly than "
            "the link allows. llama.cpp will suggest --load-mode none; with it, weights and caches would leave less "
            f"than {gib(task.beyond.pinned_spare_bytes)} of memory",
        )
    if offloaded and chosen.settings.op_offload and not task.machine.unified:
        yield Finding(
            id="op-offload-pcie-bound",
            severity="note",
            text=f"a prompt of 32 tokens or more streams the experts of {chosen.cpu_moe_layers} layers "
            f"({gib(host.weights_bytes)}) over PCIe once per {settings.ubatch} tokens: even a short follow-up "
            f"takes about {chosen.speed.follow_up_ttft_s:.0f} s to its first token",
        )
    if task.table.blocks > task.table.layers:
        drafts = task.table.blocks - task.table.layers
        unused = sum(
            tensor.nbytes
            for tensor, block in zip(task.table.spec.tensors, task.table.block_of, strict=True)
            if block is not None and block >= task.table.layers
        )
        yield Finding(
            id="draft-block-unused",
            severity="note",
            text=f"the file's draft block{'s' if drafts > 1 else ''} ({gib(unused)}) "
            f"{'are' if drafts > 1 else 'is'} not loaded"
            + ("; drafting with experts on the CPU has been measured as a loss" if offloaded else ""),
        )
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


# -- the working ------------------------------------------------------------------------------------------------------


def trace(task: Task, chosen: Candidate, others: Sequence[Candidate]) -> tuple[str, ...]:
    """The numbers behind the plan, line by line."""
    return tuple(_trace(task, chosen, others))


def _trace(task: Task, chosen: Candidate, others: Sequence[Candidate]) -> Iterator[str]:
    spec, table, settings = task.table.spec, task.table, chosen.settings
    experts = sum(t.nbytes for t in spec.tensors if is_expert(t))
    yield f"Model: {len(spec.tensors):,} tensors, {spec.parameters / 1e9:.3f} B parameters, {gib(spec.file_bytes)} of file."
    yield (
        f"  {table.layers} layers run"
        + (f", {table.blocks - table.layers} draft block is left out" if table.blocks > table.layers else "")
        + (
            f"; routed experts are {gib(experts)}, {gib(max(table.expert_bytes))} in one layer"
            if experts
            else ""
        )
    )
    per_token = bytes_per_token(spec, settings.kv_type_k, settings.kv_type_v)
    yield (
        f"  context costs {per_token:,} bytes per token at {settings.kv_type_k}: "
        + ", ".join(f"{tokens(step)} = {gib(step * per_token)}" for step in (4096, 32768, 131072))
    )
    yield f"Wanted: {tokens(wanted_context(task))} tokens for {task.wishes.workload.name}; the request is {_request(task)}."
    for gpu, device, pool in zip(
        task.machine.gpus, chosen.footprint.devices, chosen.footprint.pools[1:], strict=False
    ):
        margin = gpu_margin_bytes(task.machine, gpu, task.beyond, task.wishes.margin_bytes)
        yield (
            f"{pool.name} {gpu.name}: {gib(gpu.free_bytes)} free - {gib(margin)} margin - "
            f"{gib(device.overhead_bytes)} driver - {mib_exact(device.peak_bytes - device.total_bytes)} growth on long "
            f"prompts leaves {gib(pool.available_bytes - margin - device.overhead_bytes - (device.peak_bytes - device.total_bytes))}"
        )
        yield (
            f"  uses {mib_exact(device.weights_bytes)} weights + {mib_exact(device.context_bytes)} context + "
            f"{mib_exact(device.compute_bytes)} compute"
        )
    host = chosen.footprint.host
    yield (
        f"host: {gib(host.available_bytes)} available - {gib(host_margin_bytes(task.machine, task.beyond))} margin; uses "
        f"{mib_exact(host.weights_bytes)} weights + {mib_exact(host.context_bytes)} context + "
        f"{mib_exact(host.compute_bytes)} compute + {mib_exact(host.cache_bytes)} prompt cache"
    )
    yield "Micro-batches tried (prefill and decode in tok/s, the request in seconds):"
    for candidate in sorted((chosen, *others), key=lambda c: c.settings.ubatch):
        speed = candidate.speed
        mark = "  <- chosen" if candidate is chosen else ""
        yield (
            f"  -ub {candidate.settings.ubatch:<5} {candidate.footprint.verdict:<16} prefill "
            f"{speed.prefill_tok_s.expected:7.1f}  decode {speed.decode_tok_s.expected:6.2f}  request "
            f"{speed.request_s:7.1f}  CPU experts in {candidate.cpu_moe_layers} layers{mark}"
        )
    yield f"A decoded token takes {1000 / chosen.speed.decode_tok_s.expected:.1f} ms:"
    for name, seconds in sorted(chosen.speed.parts.items(), key=lambda item: -item[1]):
        yield f"  {seconds * 1000:8.2f} ms  {name}"


def _request(task: Task) -> str:
    request = task.request
    return (
        f"{request.prompt_tokens:,} tokens in, {request.output_tokens:,} out, "
        f"{request.reuse_ratio * 100:.0f} % of a follow-up cached"
    )


def provenance(task: Task) -> dict[str, Source]:
    """How each part of the answer is known."""
    machine, wishes = task.machine, task.wishes
    ram_source = machine.ram.sources.get("bandwidth_bytes_per_s", "assumed")
    found: dict[str, Source] = {
        "model": task.table.spec.source,
        "memory.weights": "file" if task.table.spec.source == "file" else "modelled",
        "memory.context": "modelled",
        "memory.compute": "modelled" if is_described(task.table.spec) else "assumed",
        "memory.overhead": "assumed",
        "speed": "modelled",
        "machine.ram": machine.ram.sources.get("total_bytes", "probe"),
        "machine.ram.bandwidth": ram_source,
        "settings.context": "user" if wishes.context is not None else "catalog",
        "settings.kv_type": "user" if wishes.kv_type else "catalog",
    }
    for index, gpu in enumerate(machine.gpus):
        found[f"machine.gpus[{index}].total_bytes"] = gpu.sources.get("total_bytes", "probe")
        found[f"machine.gpus[{index}].bandwidth"] = gpu.sources.get("bandwidth_bytes_per_s", "assumed")
    for key in wishes.pins:
        found[f"settings.{key}"] = "user"
    return found
