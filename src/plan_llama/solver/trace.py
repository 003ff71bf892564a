"""The working behind a plan, line by line for --explain, and where its facts are from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plan_llama.hardware.types import Source
from plan_llama.memory.caches import bytes_per_token
from plan_llama.memory.compute import is_described
from plan_llama.memory.footprint import gpu_margin_bytes, host_margin_bytes
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.spec import is_expert
from plan_llama.solver.search import Task, wanted_context
from plan_llama.solver.types import Candidate
from plan_llama.units import gib, mib_exact, tokens


def trace(task: Task, chosen: Candidate, others: Sequence[Candidate]) -> tuple[str, ...]:
    """The numbers behind the plan, line by line."""
    return tuple(_trace(task, chosen, others))


def _trace(task: Task, chosen: Candidate, others: Sequence[Candidate]) -> Iterator[str]:
    spec, table, settings = task.table.spec, task.table, chosen.settings
    experts = sum(t.nbytes for t in spec.tensors if is_expert(t))
    yield (
        f"Model: {len(spec.tensors):,} tensors, {spec.parameters / 1e9:.3f} B parameters, "
        f"{gib(spec.file_bytes)} of file."
    )
    yield (
        f"  {table.layers} layers run"
        + (f", {_draft_blocks(table, settings)}" if table.blocks > table.layers else "")
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
    wanted = tokens(wanted_context(task))
    yield f"Wanted: {wanted} tokens for {task.wishes.workload.name}; the request is {_request(task)}."
    for gpu, device, pool in zip(
        task.machine.gpus, chosen.footprint.devices, chosen.footprint.pools[1:], strict=False
    ):
        margin = gpu_margin_bytes(task.machine, gpu, task.beyond, task.wishes.margin_bytes)
        growth = device.peak_bytes - device.total_bytes
        left = pool.available_bytes - margin - device.overhead_bytes - growth
        yield (
            f"{pool.name} {gpu.name}: {gib(gpu.free_bytes)} free - {gib(margin)} margin - "
            f"{gib(device.driver_bytes)} driver - "
            + (f"{gib(device.projector_bytes)} projector - " if device.projector_bytes else "")
            + f"{mib_exact(growth)} growth on long prompts leaves {gib(left)}"
        )
        yield (
            f"  uses {mib_exact(device.weights_bytes)} weights + {mib_exact(device.context_bytes)} context + "
            f"{mib_exact(device.compute_bytes)} compute"
        )
    host = chosen.footprint.host
    kept = gib(host_margin_bytes(task.machine, task.beyond))
    yield (
        f"host: {gib(host.available_bytes)} available - {kept} margin; uses "
        f"{mib_exact(host.weights_bytes)} weights + {mib_exact(host.context_bytes)} context + "
        f"{mib_exact(host.compute_bytes)} compute + {mib_exact(host.cache_bytes)} prompt cache and checkpoints"
    )
    yield _threads(task, settings)
    if not settings.flash_attn:
        pinned = "as pinned" if "flash_attn" in task.wishes.pins else "the CPU attends faster so"
        yield f"Flash attention: off, {pinned}; a quantised cache would need it."
    yield "Micro-batches tried (prefill and decode in tok/s, the request in seconds):"
    experts = any(table.expert_bytes)
    both = len({c.settings.draft_layers for c in (chosen, *others)}) > 1
    flash = len({c.settings.flash_attn for c in (chosen, *others)}) > 1
    several = len({c.settings.parallel for c in (chosen, *others)}) > 1
    for candidate in sorted((chosen, *others), key=lambda c: (c.settings.parallel, c.settings.ubatch)):
        speed = candidate.speed
        mark = "  <- chosen" if candidate is chosen else ""
        if several and speed.load:
            mark = f", {speed.load.aggregate_tok_s:.1f} tok/s in all{mark}"
        yield (
            f"  {f'-np {candidate.settings.parallel:<3} ' if several else ''}"
            f"-ub {candidate.settings.ubatch:<5} {candidate.footprint.verdict:<16} prefill "
            f"{speed.prefill_tok_s.expected:7.1f}  decode {speed.decode_tok_s.expected:6.2f}  request "
            f"{speed.request_s:7.1f}"
            + (f"  drafting {'on ' if candidate.settings.draft_layers else 'off'}" if both else "")
            + (f"  -fa {'on ' if candidate.settings.flash_attn else 'off'}" if flash else "")
            + (f"  CPU experts in {candidate.cpu_moe_layers} layers" if experts else "")
            + mark
        )
    yield f"A decoded token takes {1000 / chosen.speed.decode_tok_s.expected:.1f} ms:"
    for name, seconds in sorted(chosen.speed.parts.items(), key=lambda item: -item[1]):
        yield f"  {seconds * 1000:8.2f} ms  {name}"


def _threads(task: Task, settings: Settings) -> str:
    """Where the number of threads is from."""
    cpu = task.machine.cpu
    if settings.threads is None:
        return "Threads: none are given, the CPU has nothing to compute."
    if "threads" in task.wishes.pins:
        return f"Threads: {settings.threads}, as pinned."
    kind = "performance cores" if cpu.performance_cores else "physical cores"
    where = f" of one of {cpu.numa_nodes} NUMA nodes" if cpu.numa_nodes > 1 else ""
    return f"Threads: {settings.threads}, the {kind}{where} that may be used; prompts take as many."


def _draft_blocks(table: ModelTable, settings: Settings) -> str:
    count = table.blocks - table.layers
    what = "draft blocks" if count > 1 else "draft block"
    if settings.draft_layers:
        return f"{count} {what} beside them"
    return f"{count} {what} {'are' if count > 1 else 'is'} left out"


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
        found[f"machine.gpus[{index}].link"] = gpu.sources.get(
            "link_bytes_per_s", gpu.sources.get("pcie_width", "assumed")
        )
    if machine.disk and machine.disk.read_bytes_per_s:
        found["machine.disk.read"] = machine.disk.sources.get("read_bytes_per_s", "file")
    for key in wishes.pins:
        found[f"settings.{key}"] = "user"
    return found
