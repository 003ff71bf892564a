"""From wishes to a plan: the search, what has to be said about its result, and what other choices would bring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from weakref import WeakKeyDictionary

from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import Beyond
from plan_llama.memory.table import ModelTable
from plan_llama.solver import said, serving
from plan_llama.solver.choice import best_at, choices, rungs
from plan_llama.solver.offload import tuned
from plan_llama.solver.place import Filler
from plan_llama.solver.profiles import repack_breakages
from plan_llama.solver.search import (
    LADDER,
    SMALLEST_CONTEXT,
    Task,
    kv_types,
    may_quantise_cache,
    score,
    wanted_context,
)
from plan_llama.solver.trace import provenance, trace
from plan_llama.solver.types import Alternative, Candidate, Plan, Wishes
from plan_llama.speed.traffic import LayerTable, prepare
from plan_llama.units import gib, rate, tokens

_USABLE = ("fits", "tight")
_LAYERS: WeakKeyDictionary[ModelTable, LayerTable] = WeakKeyDictionary()


def make_task(table: ModelTable, machine: Machine, wishes: Wishes, beyond: Beyond) -> Task:
    """Everything the search needs, prepared once per model and machine."""
    layers = _layers(table)
    return Task(
        table=table,
        layers=layers,
        machine=machine,
        wishes=wishes,
        beyond=beyond,
        filler=Filler(
            table,
            machine,
            beyond,
            wishes.margin_bytes,
            layers=layers,
        ),
        breakages=repack_breakages(),
    )


def _layers(table: ModelTable) -> LayerTable:
    """What a token reads of each layer, summed once per model."""
    if table not in _LAYERS:
        behind = table.windows
        lengths = [behind.cells if il in behind.layers else None for il in range(table.layers)]
        _LAYERS[table] = prepare(table.spec, windows=lengths if behind.cells else None)
    return _LAYERS[table]


def solve(task: Task, *, ladder: bool = True) -> Plan | None:
    """The best plan, or the nearest to one (its verdict says so); None where nothing can be placed at all."""
    context = wanted_context(task)
    found, reduced = _search(task, context)
    if found is None:
        return None
    found = [tuned(task, found[0]), *found[1:]]
    chosen = found[0]
    findings: list[Finding] = []
    if reduced:
        findings.append(said.context_reduced(task, context, chosen))
    findings += said.about(task, chosen)
    lacking = (*serving.relaxations(task, chosen), *relaxations(task, chosen))
    if task.users is not None:
        task = serving.with_slots(task, chosen.settings.parallel)
    others = found[1:]
    kv_type = chosen.settings.kv_type_k
    per_slot = chosen.settings.slot_limit or chosen.settings.context_per_slot
    steps = rungs(task, kv_type, chosen, per_slot) if ladder else ()
    if task.wishes.context is None:
        findings += said.context_for_gpu(task, chosen, steps)
    return Plan(
        chosen=chosen,
        ladder=steps,
        relaxations=lacking,
        alternatives=()
        if chosen.footprint.verdict not in _USABLE
        else tuple(_other_settings(chosen, others)),
        findings=tuple(findings),
        trace=trace(task, chosen, others),
        provenance=provenance(task),
    )


def _search(task: Task, context: int) -> tuple[list[Candidate] | None, bool]:
    """The search with f16 caches; with q8_0 ones only where nothing was said of them, f16 does not reach the context
    that the workload needs at least, and the model is not known to break."""
    found, reduced = _searched(task, context, kv_types(task.wishes))
    floor = min(task.wishes.workload.context_floor, context)
    quantises = task.wishes.kv_type is None and may_quantise_cache(task) and not _outweighs_memory(task)
    if quantises and not _reaches(found, floor):
        smaller, _ = _searched(task, context, ("q8_0",), least=floor)
        if smaller is not None and _reaches(smaller, floor):
            return smaller, said.per_slot(smaller[0]) < context
    return found, reduced


def _reaches(found: list[Candidate] | None, context: int) -> bool:
    return found is not None and found[0].footprint.verdict in _USABLE and said.per_slot(found[0]) >= context


def _searched(
    task: Task, context: int, types: Sequence[str], *, least: int = 0
) -> tuple[list[Candidate] | None, bool]:
    """Candidates at the wanted context, best first; a smaller context only where none was asked for and only that fits.

    Where nothing fits, what would run from disk at the wanted context, else what comes nearest.
    """
    steps = [context]
    if task.wishes.context is None:
        steps += [step for step in reversed((SMALLEST_CONTEXT, *LADDER)) if least <= step < context]
    hopeless = _outweighs_memory(task)
    nearest: list[Candidate] | None = None
    for step in steps:
        for kv_type in types:
            by_slots = [made for each in serving.by_slots(task) if (made := choices(each, step, kv_type))]
            if not by_slots:
                continue
            # in each the first is the choice, though another may be a little faster
            by_slots.sort(key=lambda made: score(task, made[0]))
            found = list(chain.from_iterable(by_slots))
            if found[0].footprint.verdict in ("fits", "tight"):
                return found, step != context
            if nearest is None or (
                found[0].footprint.verdict == "pages-from-disk"
                and nearest[0].footprint.verdict == "does-not-fit"
            ):
                nearest = found
        if hopeless and nearest is not None and nearest[0].footprint.verdict == "pages-from-disk":
            break
    return nearest, False


def _outweighs_memory(task: Task) -> bool:
    """Whether the weights alone are more than all memory has room for: then no context fits."""
    machine = task.machine
    # where a device has pinned memory, no weight is in a format of the CPU
    isa = () if any(device.host_buffer for device in task.filler.devices) else machine.cpu.isa
    cards = 0 if machine.unified else sum(gpu.free_bytes for gpu in machine.gpus)
    return task.table.least_bytes(frozenset(isa)) > machine.ram.available_bytes + cards


def _other_settings(chosen: Candidate, others: list[Candidate]) -> list[Alternative]:
    """What each other micro-batch, and each other number of slots, would have meant."""
    slots = chosen.settings.parallel
    made = serving.other_slots(chosen, others)
    base = chosen.speed
    as_chosen = chosen.settings.draft_layers, chosen.settings.flash_attn
    alike = (
        c
        for c in others
        if c.settings.parallel == slots and (c.settings.draft_layers, c.settings.flash_attn) == as_chosen
    )
    for other in alike:
        speed = other.speed
        effect = (
            f"{other.footprint.verdict}: prefill {rate(speed.prefill_tok_s.expected)} instead of "
            f"{rate(base.prefill_tok_s.expected)} tok/s, decode {rate(speed.decode_tok_s.expected)} instead of "
            f"{rate(base.decode_tok_s.expected)} tok/s, the request {speed.request_s:.0f} instead of "
            f"{base.request_s:.0f} s"
        )
        if other.cpu_moe_layers != chosen.cpu_moe_layers:
            effect += (
                f", experts of {other.cpu_moe_layers} instead of {chosen.cpu_moe_layers} layers on the CPU"
            )
        made.append(Alternative(what=f"--pin ubatch={other.settings.ubatch}", effect=effect))
    return made


def relaxations(task: Task, chosen: Candidate) -> list[Alternative]:
    """What would make a plan fit that does not: the cheapest changes, each with what it brings."""
    if chosen.footprint.verdict in ("fits", "tight"):
        return []
    made = []
    ram = chosen.footprint.pools[0]
    lacks = ram.used_bytes + ram.margin_bytes - ram.available_bytes
    if lacks > 0:
        need = ram.total_bytes + lacks
        made.append(
            Alternative(
                what=f"{gib(lacks)} more memory", effect=f"a machine of about {gib(need)} keeps it resident"
            )
        )
    for device, pool in zip(chosen.footprint.devices, chosen.footprint.pools[1:], strict=False):
        short = device.peak_bytes - pool.available_bytes
        if short > 0:
            made.append(
                Alternative(
                    what=f"{gib(short)} more on {pool.name}", effect=f"{device.name} then holds its share"
                )
            )
    if chosen.footprint.verdict == "does-not-fit":
        made += serving.fewer_slots(task, chosen)
        context = (chosen.settings.slot_limit or chosen.settings.context_per_slot) // 2
        while context >= SMALLEST_CONTEXT:
            smaller = best_at(task, context, chosen.settings.kv_type_k)
            if smaller is not None and smaller.footprint.verdict in ("fits", "tight"):
                made.append(
                    Alternative(what=f"--ctx {context}", effect=f"fits with {tokens(context)} tokens")
                )
                break
            context //= 2
    return made
