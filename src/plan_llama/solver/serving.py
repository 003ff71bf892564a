"""Sizing a server: how many slots for the users, and what to say where the wished first token is not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from plan_llama.findings import Finding
from plan_llama.solver.choice import best_at
from plan_llama.solver.place import Filler
from plan_llama.solver.search import (
    SMALLEST_CONTEXT,
    Task,
    first_token_s,
    judged,
    kept,
    misses_ttft,
    score,
    slots_for,
)
from plan_llama.solver.types import Alternative, Candidate
from plan_llama.speed.types import SpeedEstimate
from plan_llama.units import rate, seconds, tokens

_MORE = 1.25  # times the tokens per second of all users that are worth a word


def with_slots(task: Task, slots: int) -> Task:
    """The task with its slots and users fixed."""
    return replace(task, wishes=replace(task.wishes, parallel=slots, users=task.users))


def by_slots(task: Task) -> list[Task]:
    """The task for each number of slots to try: the one that was asked for, or enough for all users and then for half
    of them each time, since fewer slots leave more of the model on the GPUs."""
    users = task.users
    if users is None or task.wishes.parallel is not None:
        return [task]
    work, counts = task.wishes.workload, [users]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    return [with_slots(task, slots) for slots in dict.fromkeys(slots_for(work, count) for count in counts)]


def other_slots(chosen: Candidate, others: Sequence[Candidate]) -> list[Alternative]:
    """What each other number of slots would have meant, by its best micro-batch (the first of `others`)."""
    seen, made = {chosen.settings.parallel}, []
    for other in others:
        if other.settings.parallel not in seen:
            seen.add(other.settings.parallel)
            what = f"--parallel {other.settings.parallel}"
            made.append(Alternative(what=what, effect=f"{other.footprint.verdict}: {effect(other)}"))
    return made


def fewer_slots(task: Task, chosen: Candidate) -> list[Alternative]:
    """The most slots at this context that fit, for a plan that does not."""
    slots = chosen.settings.parallel
    context = chosen.settings.slot_limit or chosen.settings.context_per_slot
    while slots > 1:
        slots = slots // 2
        made = best_at(with_slots(task, slots), context, chosen.settings.kv_type_k)
        if made is not None and made.footprint.verdict in ("fits", "tight"):
            return [Alternative(what=f"--parallel {slots}", effect=f"fits: {effect(made)}")]
    return []


def findings(task: Task, chosen: Candidate) -> Iterator[Finding]:
    """What users and the wished first token mean for the plan."""
    load = chosen.speed.load
    if load is not None and load.users > load.slots:
        waiting = load.users - load.slots
        fix = f"--parallel {load.users} gives each a slot" if task.wishes.parallel is not None else ""
        yield Finding(
            id="users-wait-for-slots",
            severity="note",
            text=f"{load.slots} slot{'s' if load.slots > 1 else ''} for {load.users} users: {waiting} of them "
            f"wait{'s' if waiting == 1 else ''}, each request {seconds(load.slot_wait_s)} on average"
            + ("" if fix else "; with more slots all would be slower, or not fit"),
            fix=fix,
        )
    if load is not None and load.kept_ratio < 1 and task.request.reuse_ratio > 0:
        yield Finding(
            id="prompt-cache-too-small",
            severity="warning",
            text=f"slots and prompt cache hold the conversations of {load.kept_ratio * 100:.0f} % of the users: the "
            "others' follow-ups are read from the start again",
            fix="a larger --pin cache-ram, or more slots",
        )
    if misses_ttft(task, chosen):
        assert task.wishes.ttft_s is not None  # noqa: S101
        yield Finding(
            id="ttft-not-kept",
            severity="warning",
            text=f"the first token of a new prompt comes after {seconds(first_token_s(chosen))}, not the "
            f"{seconds(task.wishes.ttft_s)} that were asked for: {_why(task, chosen.speed)}",
        )


def _why(task: Task, speed: SpeedEstimate) -> str:
    """The largest part of the time to the first token."""
    load = speed.load
    alone = speed.ttft_s
    what = max(speed.prefill_parts, key=lambda name: speed.prefill_parts[name], default="nothing")
    what = what.replace("CPU cache", "attention on the CPU")
    own = f"reading {task.request.prompt_tokens:,} tokens takes {seconds(alone)} alone, most of it {what}"
    if load is None:
        return own
    parts = {
        f"{seconds(load.slot_wait_s)} of it pass until a slot is free": load.slot_wait_s,
        f"{seconds(load.ttft_s - load.slot_wait_s - alone)} of it go to the others' prompts": load.ttft_s
        - load.slot_wait_s
        - alone,
        own: alone,
    }
    return max(parts, key=lambda text: parts[text])


def unserved(task: Task, chosen: Candidate) -> bool:
    """Whether users stand in line because there is no room for a slot for each."""
    load = chosen.speed.load
    return load is not None and load.users > load.slots and task.wishes.parallel is None


def satisfied(task: Task, chosen: Candidate) -> bool:
    """Whether a plan that fits gives what was wished of a server."""
    return not misses_ttft(task, chosen) and not unserved(task, chosen)


def relaxations(task: Task, chosen: Candidate) -> Iterator[Alternative]:
    """The cheapest changes that keep the wished first token and serve all users at once, each with its effect; nothing
    where that is so."""
    if satisfied(task, chosen):
        return
    if misses_ttft(task, chosen):
        yield from _fewer(task, chosen)
    context = (chosen.settings.slot_limit or chosen.settings.context_per_slot) // 2
    asked = task.request.prompt_tokens + task.request.output_tokens
    while context >= max(SMALLEST_CONTEXT, asked):
        smaller = _best(task, context, chosen)
        if smaller is not None:
            yield Alternative(what=f"--ctx {context}", effect=effect(smaller))
            break
        context //= 2
    if task.machine.unified or not task.machine.gpus:
        return
    card = task.machine.gpus[0]
    machine = replace(task.machine, gpus=(*task.machine.gpus, card))
    filler = Filler(task.table, machine, task.beyond, task.wishes.margin_bytes)
    context = chosen.settings.slot_limit or chosen.settings.context_per_slot
    better = _best(replace(task, machine=machine, filler=filler), context, chosen)
    if better is not None:
        yield Alternative(what=f"one more {card.name}", effect=effect(better))


def _best(task: Task, context: int, chosen: Candidate) -> Candidate | None:
    """What the plan for another context or machine would be, where it keeps the first token and serves all users, or a
    good deal more of them."""
    made = (best_at(each, context, chosen.settings.kv_type_k) for each in by_slots(task))
    found = min((item for item in made if item is not None), key=lambda item: score(task, item), default=None)
    if found is None or not kept(task, found):
        return None
    more = found.speed.aggregate_tok_s >= _MORE * chosen.speed.aggregate_tok_s
    return found if more or misses_ttft(task, chosen) or not unserved(task, found) else None


def _fewer(task: Task, chosen: Candidate) -> Iterator[Alternative]:
    """Fewer users, or shorter prompts, on the same placement."""
    wish = task.wishes.ttft_s
    assert wish is not None  # noqa: S101

    def other(users: int | None, prompt: int) -> Candidate:
        wishes = replace(task.wishes, users=users, prompt_tokens=prompt)
        return judged(replace(task, wishes=wishes), chosen.settings, chosen.footprint)

    own = task.request.prompt_tokens
    if task.users is not None and task.users > 1:
        most = _largest(task.users, lambda n: first_token_s(other(n, own)) <= wish)
        if most:
            yield Alternative(what=f"--users {most}", effect=effect(other(most, own)))
    prompt = _largest(own, lambda n: first_token_s(other(task.users, n)) <= wish)
    if prompt:
        yield Alternative(
            what=f"--prompt-tokens {prompt}",
            effect=f"prompts of up to {tokens(prompt)} tokens keep it",
        )


def _largest(limit: int, keeps: Callable[[int], bool]) -> int:
    """The largest number below `limit` that keeps the wish, 0 where none does."""
    low, high = 0, limit - 1
    while low < high:
        middle = (low + high + 1) // 2
        if keeps(middle):
            low = middle
        else:
            high = middle - 1
    return low


def effect(candidate: Candidate) -> str:
    """A candidate in a clause: its slots, its first token, its speed."""
    load = candidate.speed.load
    first = f"first token after {seconds(first_token_s(candidate))}"
    if load is None:
        return f"{first}, decode {rate(candidate.speed.decode_tok_s.expected)} tok/s"
    return f"{load.slots} slot{'s' if load.slots > 1 else ''}, {first}, {rate(load.aggregate_tok_s)} tok/s in all"
