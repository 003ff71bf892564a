"""What is left to the CPU: prompts over the host's weights, and attention over a cache in system memory.

llama.cpp copies from 32 tokens on (op-offload), whatever that costs. Over a slow link, or with weights of which a few
tokens need most, the CPU is done sooner with a short prompt, and now and then with every one.
"""

from __future__ import annotations

from dataclasses import replace

from plan_llama.memory.caches import kv_type as table_kv_type
from plan_llama.memory.flash_attention import NEVER
from plan_llama.memory.types import HOST, Settings
from plan_llama.solver.search import Task, candidates, judged, score
from plan_llama.solver.types import Candidate
from plan_llama.speed.passes import OFFLOAD_MIN_BATCH

# What leaving work to the CPU has to gain: how fast it reads a prompt is predicted less well than cards and links.
CPU_GAIN = 1.25
# What attention without flash attention has to gain of the request's time.
PLAIN_GAIN = 1.1
# Where both were measured; on ARM flash attention is the faster one with a token, and loses far more with prompts
# (github.com/ggml-org/llama.cpp/issues/26559 and 27086).
_MEASURED_ISA = frozenset({"avx2", "avx512", "avx512_vnni", "amx"})


def streams(task: Task, candidate: Candidate) -> bool:
    """Whether large batches copy weights to a card that has memory of its own."""
    on_host = candidate.footprint.host.weights_bytes - late_bytes(task, candidate) > task.table.lookup_bytes
    offloads = candidate.settings.op_offload and bool(task.machine.gpus)
    return offloads and on_host and not task.machine.unified


def late_bytes(task: Task, candidate: Candidate) -> int:
    """What of the last layer is on the host and copied for no prompt, whose last token alone goes through it."""
    if candidate.settings.draft_layers:
        return 0
    placed = task.placed(candidate.settings)
    tensors = task.table.spec.tensors
    return sum(tensors[i].nbytes for i in task.layers.late if placed.device_of[i] == HOST)


def left_to_cpu(task: Task, found: list[Candidate], context: int, kv_type: str) -> list[Candidate]:
    """The candidates, with those that copy nothing in front where these do the request much sooner."""
    best = found[0]
    if "op_offload" in task.wishes.pins or not streams(task, best):
        return found
    if not _better(task, judged(task, replace(best.settings, op_offload=False), best.footprint), best):
        return found
    others = candidates(task.pinned(op_offload="off"), context, kv_type)
    return others + found if others and _better(task, others[0], best) else found


def _better(task: Task, mine: Candidate, other: Candidate) -> bool:
    """Whether one keeps what the other keeps and does the work much sooner."""
    ours, theirs = score(task, mine), score(task, other)
    return ours[:-1] <= theirs[:-1] and ours[-1] * CPU_GAIN <= theirs[-1]


def cache_on_host(task: Task, found: list[Candidate], context: int, kv_type: str) -> list[Candidate]:
    """The candidates, with those that keep all of the cache in system memory in front where only these fit.

    Cards then hold more weights, and the CPU runs all of the attention. No measured run says how fast that is.
    """
    best = found[0]
    if not task.machine.gpus or task.machine.unified or "kv_offload" in task.wishes.pins:
        return found
    if best.footprint.verdict in ("fits", "tight") or not best.footprint.host.context_bytes:
        return found
    on_host = task.pinned(ubatch=str(best.settings.ubatch), kv_offload="off")
    others = candidates(on_host, context, kv_type)
    return others + found if others and score(task, others[0])[:-1] < score(task, best)[:-1] else found


def plain_attention(task: Task, found: list[Candidate], context: int, kv_type: str) -> list[Candidate]:
    """The candidates, with those without flash attention in front where the CPU has a cache to attend to and the
    request gains by it: over a deep one its kernel of flash attention is slow with single tokens."""
    best = found[0]
    if not best.settings.flash_attn or not may_go_without(task, best):
        return found
    plain = judged(task, replace(best.settings, flash_attn=False), best.footprint)
    if not _gains_without(task, plain, best):
        return found
    others = candidates(task.pinned(flash_attn="off"), context, kv_type)
    return others + found if others and _gains_without(task, others[0], best) else found


def may_go_without(task: Task, candidate: Candidate) -> bool:
    """Whether there is a choice, whichever this one has: attention on a CPU of a measured kind over a cache of floats,
    and no wish."""
    if task.table.spec.architecture in NEVER:
        return False
    settings, cpu = candidate.settings, task.machine.cpu
    on_cpu = bool(candidate.footprint.host.context_bytes)
    x86 = bool(_MEASURED_ISA.intersection(cpu.isa)) or (not cpu.isa and cpu.architecture == "x86_64")
    floats = not table_kv_type(settings.kv_type_v).quantised
    return on_cpu and x86 and floats and "flash_attn" not in task.wishes.pins


def _gains_without(task: Task, plain: Candidate, flash: Candidate) -> bool:
    mine, theirs = score(task, plain), score(task, flash)
    return mine[:-1] <= theirs[:-1] and mine[-1] * PLAIN_GAIN <= theirs[-1]


def tuned(task: Task, chosen: Candidate) -> Candidate:
    """With the threshold from which copying pays (GGML_OP_OFFLOAD_MIN_BATCH), where the first token of a follow-up turn
    then comes much sooner and the request no later."""
    wishes = task.wishes
    if not wishes.can_set_threshold or {"op_offload", "offload_min_batch"} & wishes.pins.keys():
        return chosen
    if not streams(task, chosen):
        return chosen
    least = break_even(task, chosen)
    if least <= OFFLOAD_MIN_BATCH:
        return chosen
    other = judged(task, replace(chosen.settings, offload_min_batch=least), chosen.footprint)
    sooner = other.speed.follow_up_ttft_s * CPU_GAIN <= chosen.speed.follow_up_ttft_s
    return other if sooner and score(task, other) <= score(task, chosen) else chosen


def break_even(task: Task, chosen: Candidate) -> int:
    """From how many tokens on copying is faster: a multiple of 32, at most the micro-batch."""
    low, high = 1, max(1, chosen.settings.ubatch // OFFLOAD_MIN_BATCH)
    while low < high:
        middle = (low + high) // 2
        if _copying_pays(task, chosen, middle * OFFLOAD_MIN_BATCH):
            high = middle
        else:
            low = middle + 1
    return low * OFFLOAD_MIN_BATCH


def _copying_pays(task: Task, chosen: Candidate, size: int) -> bool:
    """Whether a prompt of this size is read no later with copying."""
    wishes = replace(task.wishes, prompt_tokens=size, users=None)
    alone = replace(task, wishes=wishes)

    def seconds(settings: Settings) -> float:
        return judged(alone, settings, chosen.footprint).speed.ttft_s

    return seconds(chosen.settings) <= seconds(replace(chosen.settings, op_offload=False))
