"""What several users of one llama-server get: how it schedules them, in a steady state.

tools/server/server-context.cpp (b11434): one loop over all slots. Every turn, each slot that writes adds one token,
and what is left of n_batch is filled with the prompts that wait, in slot order; the batch is computed in micro-batches.
So a prompt holds up everybody: while it is read, the others get one token per n_batch of it. A request that finds no
slot is deferred until one is free, first come, first served (server-queue.cpp).

The steady state is that of a closed system: `users` requests are in flight at all times, each a follow-up turn of the
request that is planned for. With C of them in slots, a turn of all of them takes C prompts one after the other, and the
steps that are left to write: R = C P + (O - (C - 1) chunks) step(C). Little's law gives the rest.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from plan_llama.speed import passes
from plan_llama.speed.passes import Work
from plan_llama.speed.types import Load, Request


def serve(work: Work, request: Request, users: int) -> Load:
    """The figures of `users` requests in flight on the slots of the work's settings."""
    settings = work.settings
    slots = settings.parallel
    busy = min(users, slots)
    kept = kept_ratio(work, request, users)
    new = max(1, round(request.prompt_tokens * (1.0 - request.reuse_ratio * kept)))
    again = max(1, round(request.prompt_tokens * (1.0 - request.reuse_ratio)))
    depth = request.depth + request.prompt_tokens + request.output_tokens / 2
    step_s = sum(passes.token(work, depth, busy).values())
    prompt_s = _prompt(work, request, new, busy, depth)
    turn_s = _turn(work, request, new, busy, prompt_s, step_s)
    # On arrival each of the others reads its prompt with the share of a turn that it spends on it.
    waiting_s = prompt_s / (1 - (busy - 1) * prompt_s / turn_s) if busy > 1 else prompt_s
    ahead_s = (busy - 1) * waiting_s / turn_s * prompt_s
    full_s = _prompt(work, request, request.prompt_tokens, busy, depth)
    slot_wait_s = (users / busy - 1) * turn_s
    rounds, rest = divmod(users - 1, slots)
    full_turn_s = _turn(work, request, request.prompt_tokens, busy, full_s, step_s)
    return Load(
        users=users,
        slots=slots,
        kept_ratio=kept,
        ttft_s=slot_wait_s + ahead_s + full_s + step_s,
        follow_up_ttft_s=slot_wait_s + ahead_s + _prompt(work, request, again, busy, depth) + step_s,
        burst_ttft_s=rounds * full_turn_s + (rest + 1) * full_s + step_s,
        slot_wait_s=slot_wait_s,
        request_s=slot_wait_s + turn_s,
        decode_tok_s=request.output_tokens / max(turn_s - waiting_s, 1e-9),
        aggregate_tok_s=busy * request.output_tokens / turn_s,
        prompt_tok_s=busy * new / turn_s,
        requests_per_s=busy / turn_s,
    )


def kept_ratio(work: Work, request: Request, users: int) -> float:
    """The share of the users whose conversation is still cached when they go on: in a slot, or in the server's prompt
    cache (--cache-ram), which keeps whole conversations in RAM."""
    tokens = request.depth + request.prompt_tokens + request.output_tokens
    size = sum(c.cells(tokens) * c.bytes_per_cell for t in work.traffic for c in t.cache)
    states = work.settings.cache_ram_bytes // size if size else users
    return min(1.0, (work.settings.parallel + states) / users)


def _prompt(work: Work, request: Request, tokens: int, busy: int, depth: float) -> float:
    """Seconds of a prompt while the other slots write: their caches are read once per batch of it, and their tokens go
    through what the prompt's do not."""
    own = passes.prompt(work, tokens, request.depth + request.prompt_tokens - tokens)
    others = 0.0
    if busy > 1:
        step = passes.decode(work, depth, busy - 1)
        late = passes.decode(replace(work, traffic=passes.late_part(work)), 0.0, busy - 1)
        others = sum(seconds for name, seconds in step.items() if name.endswith(" cache"))
        others += sum(late.values())
    return max(sum(own.values()) + _chunks(work, tokens) * others, 1e-9)


def _turn(work: Work, request: Request, tokens: int, busy: int, prompt_s: float, step_s: float) -> float:
    """Seconds that a request holds its slot when all busy slots do the same."""
    meanwhile = (busy - 1) * _chunks(work, tokens)
    return busy * prompt_s + max(0, request.output_tokens - meanwhile) * step_s


def _chunks(work: Work, tokens: int) -> int:
    """Turns of the server's loop that a prompt takes."""
    return ceil(tokens / max(1, work.settings.batch))
