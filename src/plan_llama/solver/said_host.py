"""What has to be said of work and weights that are left to the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from plan_llama.findings import Finding
from plan_llama.memory.caches import kv_type
from plan_llama.memory.flash_attention import cuda_refuses
from plan_llama.solver.offload import may_go_without
from plan_llama.solver.search import PINNED_GAIN, Task, judged, why_mapped
from plan_llama.solver.types import Candidate
from plan_llama.units import gib, rate, seconds


def findings(task: Task, chosen: Candidate, *, streamed: bool) -> Iterator[Finding]:
    """Batches, caches and attention there; `streamed`: a card computes with weights of the host."""
    yield from _offload(task, chosen, streamed=streamed)
    yield from _cache_on_host(task, chosen)
    yield from _plain_attention(task, chosen)
    yield from _no_kernel(task, chosen)


def mapped(task: Task, chosen: Candidate, what: str) -> Finding:
    """That weights stay pages of the file, why, and what that costs."""
    host, now = chosen.footprint.host, chosen.speed
    pinned = judged(task, replace(chosen.settings, load_mode="none"), chosen.footprint).speed
    costs = pinned.request_s * PINNED_GAIN <= now.request_s
    why = why_mapped(task, host.weights_bytes, host.total_bytes, clear=costs)
    text = f"the {what} on the CPU are mapped from the file, not pinned: prompts stream them more slowly than the link "
    text += "allows"
    if costs:
        text += (
            f"; the request takes {seconds(now.request_s)} instead of {seconds(pinned.request_s)}, prompts "
        )
        text += f"{rate(now.prefill_tok_s.expected)} instead of {rate(pinned.prefill_tok_s.expected)} tok/s"
    fix = "--load-mode none"
    if why is not None:
        text += f". llama.cpp will suggest --load-mode none; {why}"
        fix = "more memory; --pin load-mode=none where nothing else will need what is left" if costs else ""
    return Finding(
        id="mmap-with-cpu-override-slow", severity="warning" if costs else "note", text=text, fix=fix
    )


def _cache_on_host(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """All of the context in system memory, with layers on cards."""
    if not chosen.settings.kv_offload and chosen.gpu_block_layers and not task.machine.unified:
        yield Finding(
            id="kv-cache-on-host",
            severity="note",
            text=f"the context ({gib(chosen.footprint.host.context_bytes)}) stays in system memory and attention runs "
            "on the CPU (-nkvo): the room on the cards goes to weights",
            fix="--pin kv-offload=on, or a command without -nkvo, keeps the context of a layer where the layer is",
        )


def _plain_attention(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """Attention without flash attention that nobody asked for."""
    if chosen.settings.flash_attn or not may_go_without(task, chosen):
        return
    before = judged(task, replace(chosen.settings, flash_attn=True), chosen.footprint).speed
    after = chosen.speed
    rates = f"{rate(after.decode_tok_s.expected)} instead of {rate(before.decode_tok_s.expected)} tok/s"
    yield Finding(
        id="flash-attn-off",
        severity="note",
        text="no flash attention (-fa off): its kernel on the CPU is slow with single tokens over a deep cache; decode "
        f"{rates}, the request {seconds(after.request_s)} instead of {seconds(before.request_s)}. A prompt's scores "
        "take more memory, which is counted",
        fix="--pin flash-attn=on",
    )


def _no_kernel(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """Flash attention that the cards' backend has no kernel for: the CPU runs it, over caches on the cards."""
    settings, on_cards = chosen.settings, sum(use.context_bytes for use in chosen.footprint.devices)
    cuda = any(gpu.backend in ("cuda", "rocm") for gpu in task.machine.gpus)
    given_up = settings.flash_attn_auto and not kv_type(settings.kv_type_v).quantised
    if not (cuda and on_cards and settings.flash_attn) or given_up:
        return
    if cuda_refuses(task.table.spec, settings.kv_type_k, settings.kv_type_v):
        yield Finding(
            id="flash-attn-no-kernel",
            severity="warning",
            text="llama.cpp's CUDA backend has no flash attention for this model's heads or this type of cache: the "
            "CPU runs it, with all of the cache copied from the card for every token; the speed here is too high",
            fix="-fa off, or an f16 cache",
        )


def _offload(task: Task, chosen: Candidate, *, streamed: bool) -> Iterator[Finding]:
    """What it means that batches over the CPU's weights stay there: short ones, or all."""
    settings = chosen.settings
    if not streamed or task.machine.unified:
        return
    if settings.op_offload and settings.offload_min_batch is not None:
        plain = judged(task, replace(settings, offload_min_batch=None), chosen.footprint)
        yield Finding(
            id="op-offload-threshold",
            severity="note",
            text=f"GGML_OP_OFFLOAD_MIN_BATCH={settings.offload_min_batch}: shorter prompts are read by the CPU, which "
            "is done sooner than the link with the weights; a follow-up has its first token after "
            f"{seconds(chosen.speed.follow_up_ttft_s)} instead of {seconds(plain.speed.follow_up_ttft_s)}",
            fix="without the variable llama.cpp copies from 32 tokens on",
        )
    if not settings.op_offload and "op_offload" not in task.wishes.pins:
        copying = judged(task, replace(settings, op_offload=True), chosen.footprint)
        yield Finding(
            id="op-offload-off",
            severity="note",
            text="prompts are read by the CPU where it has the weights: by the same placement the request would take "
            f"{seconds(copying.speed.request_s)} instead of {seconds(chosen.speed.request_s)} if they were copied to a "
            "card for every micro-batch",
            fix="--pin op-offload=on copies them",
        )
