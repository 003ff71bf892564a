"""The best placements for a context, with the model's own block drafting where that pays, and the context ladder."""

from __future__ import annotations

from dataclasses import replace

from plan_llama.memory.table import ModelTable
from plan_llama.solver.offload import cache_on_host, left_to_cpu, plain_attention
from plan_llama.solver.search import LADDER, Task, candidates, judged, score
from plan_llama.solver.types import Candidate, Rung
from plan_llama.units import gib

# What drafting has to gain of the request's time: how many of the drafted tokens are right is assumed, and differs
# from text to text.
DRAFT_GAIN = 1.1
# Answers that are written at once: with more, rows of other answers fill the same batch, and what drafting then gains
# nobody has measured here. Servers are commonly run without it from there on.
DRAFT_STREAMS = 4


def choices(task: Task, context: int, kv_type: str) -> list[Candidate]:
    """The best filled placement for each micro-batch, best first: those that draft with the model's own block in front
    of the others where they gain enough, nothing of the model is left to the CPU and few answers are written at once.

    With experts in system memory each of the tokens that are verified together brings experts of its own.
    """
    plain = candidates(task, context, kv_type)
    if plain:
        plain = cache_on_host(task, left_to_cpu(task, plain, context, kv_type), context, kv_type)
        plain = plain_attention(task, plain, context, kv_type)
    few = min(task.users or 1, task.slots) <= DRAFT_STREAMS
    if not plain or not may_draft(task) or not few or not resident(task.table, plain[0]):
        return plain
    at_best = judged(task, replace(plain[0].settings, draft_layers=True), plain[0].footprint)
    if not gains(task, at_best, plain[0]):
        return plain
    drafting = candidates(task.pinned(draft_layers="on"), context, kv_type)
    if drafting and resident(task.table, drafting[0]) and gains(task, drafting[0], plain[0]):
        return drafting + plain
    return plain


def may_draft(task: Task) -> bool:
    """Whether there is a choice: the file has such a block, the engine runs it, and the user did not choose."""
    return (
        task.wishes.can_draft
        and "draft_layers" not in task.wishes.pins
        and task.table.blocks > task.table.layers
    )


def resident(table: ModelTable, candidate: Candidate) -> bool:
    """Whether everything that is computed with is on GPUs."""
    apart = candidate.cpu_moe_layers + candidate.cpu_ffn_layers + candidate.cpu_weight_layers
    return not apart and candidate.gpu_block_layers == table.layers


def gains(task: Task, drafting: Candidate, plain: Candidate) -> bool:
    """Whether drafting is that much faster, and keeps what the other keeps."""
    mine, other = score(task, drafting), score(task, plain)
    return mine[:-1] <= other[:-1] and mine[-1] * DRAFT_GAIN <= other[-1]


def best_at(task: Task, context: int, kv_type: str) -> Candidate | None:
    """The best placement for a context, or None where nothing can be placed at all."""
    return next(iter(choices(task, context, kv_type)), None)


def rungs(task: Task, kv_type: str, chosen: Candidate, context: int) -> tuple[Rung, ...]:
    """The context ladder: from 8K to what the model was trained for, the chosen context among them."""
    trained = task.table.spec.context_train
    steps = sorted(
        {
            *(step for step in LADDER if step <= max(trained, context)),
            context,
            *([trained] if trained else []),
        }
    )
    found = []
    for step in steps:
        if step == context:
            found.append(Rung(context=step, candidate=chosen, reason=_lacks(chosen)))
            continue
        candidate = best_at(task, step, kv_type)
        reason = _lacks(candidate) if candidate else "no layer fits beside this context"
        found.append(Rung(context=step, candidate=candidate, reason=reason))
        if candidate is None or candidate.footprint.verdict == "does-not-fit":
            break
    return tuple(found)


def _lacks(candidate: Candidate) -> str:
    """Where memory is missing for a candidate that does not fit."""
    if candidate.footprint.verdict != "does-not-fit":
        return ""
    short = {pool.name: pool.peak_bytes - pool.available_bytes for pool in candidate.footprint.pools}
    return ", ".join(f"{gib(size)} too little in {name}" for name, size in short.items() if size > 0)
