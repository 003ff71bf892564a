"""What other choices would bring: llama.cpp's own placement, another card, faster or more memory, half the context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.footprint import footprint
from plan_llama.memory.types import Settings
from plan_llama.solver.choice import best_at, may_draft
from plan_llama.solver.offload import may_go_without
from plan_llama.solver.place import Filler
from plan_llama.solver.search import SMALLEST_CONTEXT, Task, candidates, judged, score
from plan_llama.solver.types import Alternative, Candidate
from plan_llama.units import gib, rate, seconds, tokens

_FASTER_RAM = 1.5
_ALIKE = 0.03
_FIT_TARGET_BYTES = 1 << 30  # --fit-target, common/common.h, b11434
_FIT_CONTEXT = 4096
_FIT_UBATCH, _FIT_BATCH = 512, 2048


def what_ifs(task: Task, chosen: Candidate) -> Iterator[Alternative]:
    """For a plan that fits, each with the time of the request."""
    context = chosen.settings.slot_limit or chosen.settings.context_per_slot
    kv_type = chosen.settings.kv_type_k
    machine = task.machine
    on_host = chosen.footprint.host.weights_bytes > task.table.lookup_bytes
    if machine.gpus and on_host and not machine.unified:
        card = machine.gpus[-1]
        more = _on(task, replace(machine, gpus=(*machine.gpus, card)))
        yield from _told(f"one more {card.name}", chosen, best_at(more, context, kv_type))
    if on_host or machine.unified or not machine.gpus:
        if "RAM" in chosen.speed.bound_by:
            faster = _on(task, _with_faster_ram(machine))
            same = judged(faster, chosen.settings, chosen.footprint)
            yield from _told(f"memory {_FASTER_RAM:g} times as fast", chosen, same)
        if on_host and chosen.settings.load_mode == "mmap" and not machine.unified and machine.gpus:
            ram = machine.ram
            twice = replace(
                ram, total_bytes=2 * ram.total_bytes, available_bytes=ram.available_bytes + ram.total_bytes
            )
            roomy = best_at(_on(task, replace(machine, ram=twice)), context, kv_type)
            yield from _told("twice the memory", chosen, roomy)
    yield from _drafting(task, chosen, context, kv_type)
    yield from _cache_on_host(task, chosen, context, kv_type)
    yield from _attention(task, chosen, context, kv_type)
    asked = task.request.prompt_tokens + task.request.output_tokens
    if context // 2 >= max(SMALLEST_CONTEXT, asked):
        yield from _told(
            f"--ctx {context // 2}", chosen, best_at(task, context // 2, kv_type), least_gain=0.99
        )


def _drafting(task: Task, chosen: Candidate, context: int, kv_type: str) -> Iterator[Alternative]:
    """The other choice about the model's own block for drafting, where the plan made it."""
    if not may_draft(task):
        return
    pin = "off" if chosen.settings.draft_layers else "on"
    for other in candidates(_pinned(task, chosen, draft_layers=pin), context, kv_type):
        before, after = chosen.speed, other.speed
        whole = [speed.load.request_s if speed.load else speed.request_s for speed in (before, after)]
        effect = f"{other.footprint.verdict}: decode {rate(after.decode_tok_s.expected)} instead of "
        effect += f"{rate(before.decode_tok_s.expected)} tok/s, the request {seconds(whole[1])} instead of "
        effect += seconds(whole[0])
        if other.cpu_moe_layers != chosen.cpu_moe_layers:
            effect += (
                f", experts of {other.cpu_moe_layers} instead of {chosen.cpu_moe_layers} layers on the CPU"
            )
        yield Alternative(what=f"--pin draft-layers={pin}", effect=effect)


def _cache_on_host(task: Task, chosen: Candidate, context: int, kv_type: str) -> Iterator[Alternative]:
    """All of the cache in system memory, where some of it is there already: what that would free is weights' room."""
    if "kv_offload" in task.wishes.pins or task.machine.unified or not task.machine.gpus:
        return
    if not chosen.settings.kv_offload or not chosen.footprint.host.context_bytes:
        return
    for other in candidates(_pinned(task, chosen, kv_offload="off"), context, kv_type):
        effect = f"{other.footprint.verdict}: attention on the CPU, {_against(chosen, other)}"
        yield Alternative(what="--pin kv-offload=off", effect=effect)


def _attention(task: Task, chosen: Candidate, context: int, kv_type: str) -> Iterator[Alternative]:
    """The other choice about flash attention, where the CPU has a cache to attend to."""
    if not may_go_without(task, chosen):
        return
    pin = "off" if chosen.settings.flash_attn else "on"
    for other in candidates(_pinned(task, chosen, flash_attn=pin), context, kv_type):
        more = other.footprint.host.compute_bytes - chosen.footprint.host.compute_bytes
        memory = f"{gib(abs(more))} {'more' if more > 0 else 'less'} of compute memory"
        effect = f"{other.footprint.verdict}: {_against(chosen, other)}, {memory}"
        yield Alternative(what=f"--pin flash-attn={pin}", effect=effect)


def _pinned(task: Task, chosen: Candidate, **pins: str) -> Task:
    """The task of the chosen slots and micro-batch with another choice beside them."""
    wishes = replace(task.wishes, parallel=chosen.settings.parallel, users=task.users)
    return replace(task, wishes=wishes).pinned(ubatch=str(chosen.settings.ubatch), **pins)


def _against(chosen: Candidate, other: Candidate) -> str:
    """Request and decode of another choice beside those of the chosen one."""
    before, after = chosen.speed, other.speed
    return (
        f"the request {seconds(after.request_s)} instead of {seconds(before.request_s)}, decode "
        f"{rate(after.decode_tok_s.expected)} instead of {rate(before.decode_tok_s.expected)} tok/s"
    )


def _told(
    what: str, chosen: Candidate, other: Candidate | None, *, least_gain: float = 1.0
) -> Iterator[Alternative]:
    """The effect, where there is one."""
    if other is None or other.footprint.verdict not in ("fits", "tight"):
        return
    if other.speed.request_s > chosen.speed.request_s * least_gain:
        return
    yield Alternative(what=what, effect=_against(chosen, other))


def _on(task: Task, machine: Machine) -> Task:
    filler = Filler(task.table, machine, task.beyond, task.wishes.margin_bytes, layers=task.layers)
    return replace(task, machine=machine, filler=filler)


def _with_faster_ram(machine: Machine) -> Machine:
    ram = machine.ram
    if ram.bandwidth_bytes_per_s is not None:
        return replace(
            machine, ram=replace(ram, bandwidth_bytes_per_s=_FASTER_RAM * ram.bandwidth_bytes_per_s)
        )
    return (
        machine
        if ram.speed_mt_s is None
        else replace(machine, ram=replace(ram, speed_mt_s=round(_FASTER_RAM * ram.speed_mt_s)))
    )


def fitted(task: Task, chosen: Candidate) -> Candidate:
    """What llama-server would run with at the plan's context without any word about placement: its own `--fit`, a
    micro-batch of 512, the file mapped."""
    settings = replace(
        chosen.settings,
        devices=(),
        main_gpu=0,
        tensor_split=(),
        overrides=(),
        gpu_layers=task.filler.everything,
        ubatch=min(_FIT_UBATCH, chosen.settings.context),
        batch=min(_FIT_BATCH, chosen.settings.context),
        load_mode="none" if any(gpu.integrated for gpu in task.machine.gpus) else "mmap",
        flash_attn=True,
        threads=None,
    )
    from plan_llama.solver import fit

    made = fit.apply(
        task.table,
        replace(task.machine, gpus=tuple(_as_asked(task, gpu) for gpu in task.machine.gpus)),
        settings,
        user_set=frozenset({"ctx"}),
        targets_bytes=(_FIT_TARGET_BYTES,),
        minimum_context=_FIT_CONTEXT,
    ).settings
    used = footprint(task.table, made, task.machine, task.beyond, margin_bytes=task.wishes.margin_bytes)
    return judged(task, made, used)


def _as_asked(task: Task, gpu: Gpu) -> Gpu:
    """The card as the engine sees it: its own context is there when it asks for free memory."""
    taken = task.beyond.context_bytes[gpu.backend]
    return replace(gpu, free_bytes=max(0, gpu.free_bytes - taken))


def against_fit(task: Task, chosen: Candidate) -> Alternative | None:
    """llama.cpp's own choice by the same models, and which of the plan's choices makes the most of the difference."""
    if not task.machine.gpus:
        return None
    other = fitted(task, chosen)
    mine, theirs = score(task, chosen)[-1], score(task, other)[-1]
    alike = abs(theirs / mine - 1) < _ALIKE
    words = "the request takes as long" if alike else f"the request takes {theirs / mine:.2g} times as long"
    words += f" ({seconds(theirs)}), decode "
    words += (
        f"{rate(other.speed.decode_tok_s.expected)} tok/s, prefill {rate(other.speed.prefill_tok_s.expected)}"
    )
    if other.footprint.verdict != "fits":
        words += (
            " (a margin is cut into)"
            if other.footprint.verdict == "tight"
            else f" ({other.footprint.verdict})"
        )
    if theirs > mine and not alike:
        words += f"; what the plan gains it gains most by {most_gained(task, chosen, other)}"
    return Alternative(what="llama.cpp's own --fit at this context", effect=words)


def most_gained(task: Task, chosen: Candidate, other: Candidate) -> str:
    """The choice without which the plan would lose most."""
    mine, theirs = chosen.settings, other.settings
    undone: dict[str, Settings] = {
        f"its micro-batch of {mine.ubatch} tokens": replace(mine, ubatch=theirs.ubatch, batch=theirs.batch),
        "reading the file into pinned memory": replace(mine, load_mode=theirs.load_mode),
        _placed(task, chosen, other): replace(
            mine,
            devices=theirs.devices,
            main_gpu=theirs.main_gpu,
            tensor_split=theirs.tensor_split,
            overrides=theirs.overrides,
            gpu_layers=theirs.gpu_layers,
        ),
    }
    lost = {
        what: score(task, judged(task, settings, chosen.footprint))[-1] for what, settings in undone.items()
    }
    return max(lost, key=lambda what: lost[what])


def _placed(task: Task, chosen: Candidate, other: Candidate) -> str:
    layers = task.table.layers
    if chosen.gpu_block_layers > other.gpu_block_layers:
        return (
            f"keeping the context of {chosen.gpu_block_layers} instead of {other.gpu_block_layers} of {layers} "
            "layers on the GPU"
        )
    if chosen.cpu_moe_layers < other.cpu_moe_layers:
        return f"experts of {chosen.cpu_moe_layers} instead of {other.cpu_moe_layers} layers on the CPU"
    return "its split of the layers"


def smaller_context(task: Task, chosen: Candidate, others: Iterator[Candidate]) -> tuple[int, str] | None:
    """Of other contexts the largest that leaves nothing to the CPU where the plan does, and what that brings."""
    least = task.table.lookup_bytes
    if not task.machine.gpus or chosen.footprint.host.weights_bytes <= least:
        return None
    context = chosen.settings.slot_limit or chosen.settings.context_per_slot
    best: tuple[int, str] | None = None
    for other in others:
        size = other.settings.slot_limit or other.settings.context_per_slot
        if (
            size < context
            and other.footprint.verdict == "fits"
            and other.footprint.host.weights_bytes <= least
        ):
            fast, slow = (item.speed.decode_tok_s.expected for item in (other, chosen))
            text = (
                f"with {tokens(size)} tokens of context instead of {tokens(context)} nothing is left to the CPU: "
                f"decode {rate(fast)} instead of {rate(slow)} tok/s"
            )
            best = max(best, (size, text)) if best else (size, text)
    return best
