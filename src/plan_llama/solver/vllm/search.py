"""The best start of vLLM on a machine: how the work is cut, the KV dtype, and the context that fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from plan_llama.errors import InputError
from plan_llama.findings import Finding
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory.vllm.backends import attention_of
from plan_llama.memory.vllm.budget import Card, Start, assumed, batch_defaults
from plan_llama.memory.vllm.weights import Ranks
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.solver.types import Alternative, Wishes
from plan_llama.solver.vllm.judge import Judged, card_of, judge
from plan_llama.solver.vllm.rules import Setup, refusals
from plan_llama.speed.types import Request
from plan_llama.units import GIB, tokens

_RANK = {"fits": 0, "tight": 1, "pages-from-disk": 2, "does-not-fit": 3, "invalid": 4}
_HIGHER = 0.95  # of a card's memory, where the default leaves too little for the cache
_FEW_SEQUENCES = (
    16  # --max-num-seqs for few users: graphs and logits of 1024 would take memory from the cache
)
_MOST_CONTEXT = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmTask:
    """One checkpoint on a machine, or on `nodes` machines of its kind."""

    checkpoint: Checkpoint
    machine: Machine
    wishes: Wishes
    nodes: int = 1

    @property
    def conversations(self) -> int:
        """How many of full length the cache is to hold."""
        return self.wishes.parallel or self.wishes.users or self.wishes.workload.slots

    @property
    def request(self) -> Request:
        """The request whose time is minimised."""
        wishes, work = self.wishes, self.wishes.workload
        return Request(
            prompt_tokens=wishes.prompt_tokens or work.prompt_tokens,
            output_tokens=wishes.output_tokens or work.output_tokens,
            reuse_ratio=work.reuse if wishes.reuse is None else wishes.reuse,
            streams=wishes.users or 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPlan:
    """The choice, what else there was, and what is to be said of it."""

    chosen: Judged
    machine: Machine  # with the GPUs that are used, of one kind
    alternatives: tuple[Alternative, ...]
    findings: tuple[Finding, ...]
    trace: tuple[str, ...]


def solve(task: VllmTask) -> VllmPlan:
    """The best start. Raises InputError where there is no GPU that vLLM could use."""
    machine, said = _one_kind(task.machine)
    wanted = _context(task)
    considered: list[Judged] = []
    longest: Judged | None = None
    for ranks in _cuts(task, len(machine.gpus)):
        for dtype in _kv_dtypes(task):
            found = _best_share(task, machine, ranks, dtype, wanted)
            considered.append(found)
            if found.longest and (longest is None or found.longest > longest.longest):
                longest = found
    if not considered:
        raise InputError(
            f"no way to cut the work over {len(machine.gpus) * task.nodes} GPUs is what was pinned",
            hint="leave --pin out, or pin sizes whose product divides the GPUs",
        )
    considered.sort(key=lambda item: _score(task, item))
    chosen = considered[0]
    if _RANK[chosen.verdict] > 1 and longest is not None and task.wishes.context in (None, "max"):
        shorter = _shortened(task, machine, longest)
        if shorter is not None:
            said.append(_shrunk(task, wanted, shorter))
            chosen = shorter
    if chosen.verdict == "does-not-fit" and task.nodes == 1:
        offloaded = _offloaded(task, machine, considered)
        if offloaded is not None:
            chosen = offloaded
            said.append(_in_host_memory(chosen))
    if chosen.verdict == "invalid":
        least = min(considered, key=lambda item: (len(item.findings), -item.setup.start.ranks.world))
        chosen = judge(least.setup, machine, task.request, wanted=_per_replica(task, least.setup.start.ranks))
    others = [item for item in considered if item is not chosen and item.capacity is not None][:6]
    return VllmPlan(
        chosen=chosen,
        machine=machine,
        alternatives=tuple(_alternative(item) for item in others if item.verdict in ("fits", "tight"))[:4],
        findings=(*said, *chosen.findings, *_about(task, chosen)),
        trace=tuple(_line(item) for item in (chosen, *others)),
    )


def _one_kind(machine: Machine) -> tuple[Machine, list[Finding]]:
    """The machine with its largest set of equal cards: ranks of unequal ones would all be as small as the smallest."""
    kinds: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in machine.gpus:
        if gpu.backend in ("cuda", "rocm") and not gpu.integrated:
            kinds.setdefault((gpu.name, gpu.total_bytes), []).append(gpu)
    if not kinds:
        have = machine.gpus[0].name if machine.gpus else "no GPU"
        raise InputError(
            f"vLLM runs on CUDA and ROCm GPUs, and this machine has {have}",
            hint="--engine llama.cpp plans for it",
        )
    best = max(kinds.values(), key=lambda gpus: sum(gpu.free_bytes for gpu in gpus))
    free = min(gpu.free_bytes for gpu in best)
    said = []
    if len(best) < len(machine.gpus):
        left = ", ".join(sorted({gpu.name for gpu in machine.gpus if gpu not in best}))
        said.append(
            Finding(
                id="vllm-unequal-gpus",
                severity="note",
                text=f"vLLM wants equal GPUs: only {len(best)} x {best[0].name} is used, {left} is not",
                fix="CUDA_VISIBLE_DEVICES of the command names the ones it uses",
            )
        )
    return replace(machine, gpus=tuple(replace(gpu, free_bytes=free) for gpu in best)), said


def _cuts(task: VllmTask, gpus: int) -> Iterator[Ranks]:
    """Ways to cut the work: TP inside a node, PP over nodes or where heads do not divide, DP for many users."""
    spec = task.checkpoint.spec
    experts = spec.int_param("expert_count", 0) > 0
    latent = attention_of(spec) != "heads"
    everything = gpus * task.nodes
    pinned = task.wishes.pins
    for tensor in range(1, everything + 1):
        for pipeline in range(1, everything // tensor + 1):
            for data in range(1, everything // (tensor * pipeline) + 1):
                world = tensor * pipeline * data
                if everything % world or (task.nodes > 1 and world % task.nodes):
                    continue
                if tensor > gpus and tensor % gpus:
                    continue
                if pipeline > 1 and data > 1:
                    continue
                if data > 1 and task.conversations < data and world > 1:
                    continue
                if task.nodes > 1 and world != everything:
                    continue
                for context in (1, tensor) if latent and tensor > 1 else (1,):
                    ranks = Ranks(
                        tensor=tensor,
                        pipeline=pipeline,
                        data=data,
                        expert=experts and data > 1,
                        context=context,
                    )
                    if _as_pinned(ranks, pinned):
                        yield ranks


def _as_pinned(ranks: Ranks, pins: object) -> bool:
    if not isinstance(pins, dict):
        return True
    named = {
        "tensor_parallel": ranks.tensor,
        "pipeline_parallel": ranks.pipeline,
        "data_parallel": ranks.data,
    }
    return all(int(pins[key]) == value for key, value in named.items() if key in pins)


def _kv_dtypes(task: VllmTask) -> tuple[str, ...]:
    given = task.wishes.kv_type
    if given is not None:
        return ({"f16": "auto", "bf16": "auto", "q8_0": "fp8"}.get(given, given),)
    return ("auto", "fp8")


def start_of(task: VllmTask, card: Card, ranks: Ranks, context: int, utilisation: float) -> Start:
    """A start with vLLM's defaults, less the room for sequences that nobody asked for."""
    sequences, batched = batch_defaults(card)
    few = task.conversations <= _FEW_SEQUENCES
    sequences = min(sequences, _FEW_SEQUENCES if few else max(64, 4 * task.conversations))
    pinned = task.wishes.pins.get("batch") or task.wishes.pins.get("ubatch")
    batched = int(pinned) if pinned else batched
    return Start(
        ranks=ranks,
        max_model_len=context,
        max_num_seqs=min(sequences, batched),
        max_num_batched_tokens=batched,
        utilisation=utilisation,
    )


def _best_share(task: VllmTask, machine: Machine, ranks: Ranks, dtype: str, context: int) -> Judged:
    """The first share of the cards' memory with which it fits: vLLM's default, then a larger one."""
    card = card_of(machine.gpus[0])
    margin = task.wishes.margin_bytes or 0
    most = math.floor(100 * (card.free_bytes - margin) / card.total_bytes) / 100 if card.total_bytes else 0.0
    shares = [min(assumed().utilisation, most)]
    if most > assumed().utilisation:
        shares.append(min(_HIGHER, most))
    found: Judged | None = None
    for share in shares:
        setup = Setup(
            checkpoint=task.checkpoint,
            start=start_of(task, card, ranks, context, max(0.01, share)),
            card=card,
            gpus=len(machine.gpus),
            nodes=task.nodes,
            kv_dtype=dtype,
        )
        if refusals(setup):
            return Judged(setup=setup, verdict="invalid", findings=tuple(refusals(setup)))
        found = judge(setup, machine, task.request, wanted=_per_replica(task, ranks))
        if found.verdict in ("fits", "tight"):
            break
    assert found is not None  # noqa: S101 - there is at least one share
    return found


def _per_replica(task: VllmTask, ranks: Ranks) -> int:
    return -(-task.conversations // ranks.data)


def _score(task: VllmTask, item: Judged) -> tuple[float, ...]:
    """Lower is better: what fits, exact caches, plain layouts, vLLM's default share, then time."""
    ranks = item.setup.start.ranks
    if item.speed is None or item.capacity is None:
        return (_RANK[item.verdict], 0, 0, 0, 0, math.inf)
    time = item.speed.request_s
    if task.conversations > 1 and task.wishes.objective != "speed":
        time = task.conversations / max(item.speed.aggregate_tok_s, 1e-9)
    reduced = 0.0 if item.setup.kv_dtype == "auto" or task.wishes.objective == "speed" else 1.0
    if task.wishes.objective == "context":
        return (_RANK[item.verdict], -item.capacity.tokens * ranks.data, reduced, 0, 0, time)
    higher = float(item.setup.start.utilisation > assumed().utilisation)
    across = float(ranks.tensor > item.setup.gpus)
    short = 0.0
    if item.verdict not in ("fits", "tight"):  # the one that comes nearest
        short = -float(item.longest) or -min(stage.kv_bytes() for stage in item.stages) / (1 << 30)
        short += 0.0 if item.longest else 1e9
    return (_RANK[item.verdict], short, across + higher, reduced, float(ranks.context > 1), time)


def _context(task: VllmTask) -> int:
    trained = task.checkpoint.spec.context_train or _MOST_CONTEXT
    wish = task.wishes.context
    if wish == "max" or (wish is None and task.wishes.objective == "context"):
        return trained
    if isinstance(wish, int):
        return wish
    request = task.request
    asked = -(-(request.prompt_tokens + request.output_tokens) // 1024) * 1024
    return min(max(task.wishes.workload.context_tokens, asked), trained)


def _offloaded(task: VllmTask, machine: Machine, considered: list[Judged]) -> Judged | None:
    """The widest cut with the least of its weights in the host's memory that makes room for the cache (UVA)."""
    whole = [item for item in considered if item.verdict == "does-not-fit" and item.stages]
    if not whole:
        return None
    start = max(whole, key=lambda item: (item.setup.start.ranks.tensor, item.setup.kv_dtype == "auto")).setup
    most = max(stage.weights_bytes for stage in whole[0].stages)
    low, high = 0, -(-most // GIB)
    found: Judged | None = None
    while low < high:
        middle = (low + high) // 2
        setup = replace(start, start=replace(start.start, offload_bytes=middle * GIB))
        got = judge(setup, machine, task.request, wanted=_per_replica(task, start.start.ranks))
        if got.verdict in ("fits", "tight"):
            found, high = got, middle
        else:
            low = middle + 1
    if found is None or found.footprint is None or not _host_holds(found):
        return None
    return found


def _host_holds(item: Judged) -> bool:
    """Offloaded weights are pinned: they must be in memory as a whole."""
    assert item.footprint is not None  # noqa: S101 - the caller looked
    return item.footprint.pools[0].used_bytes <= item.footprint.pools[0].available_bytes


def _in_host_memory(item: Judged) -> Finding:
    size = item.setup.start.offload_bytes
    return Finding(
        id="vllm-cpu-offload",
        severity="warning",
        text=f"{size / GIB:.0f} GiB of each GPU's weights stay in the host's memory and cross the PCIe link for every "
        "pass: it runs, and slowly",
        fix="a smaller checkpoint or more GPUs; llama.cpp computes such weights where they are",
    )


def _shortened(task: VllmTask, machine: Machine, longest: Judged) -> Judged | None:
    """The same start with the context that it holds, rounded to whole blocks of 1024 tokens."""
    most = longest.longest // 1024 * 1024
    for context in (most, most * 3 // 4 // 1024 * 1024, most // 2 // 1024 * 1024):
        if context < 1024:
            continue
        setup = replace(longest.setup, start=replace(longest.setup.start, max_model_len=context))
        found = judge(setup, machine, task.request, strict=False)
        if found.verdict in ("fits", "tight"):
            return found
    return None


def _shrunk(task: VllmTask, wanted: int, found: Judged) -> Finding:
    got = found.setup.start.max_model_len
    floor = task.wishes.workload.context_floor
    return Finding(
        id="ctx-shrunk-by-fit",
        severity="warning",
        text=f"{tokens(wanted)} tokens of context do not fit; {tokens(got)} do"
        + (f", less than the {tokens(floor)} that {task.wishes.workload.name} needs" if got < floor else ""),
        fix="more GPUs, or a smaller checkpoint",
    )


def _about(task: VllmTask, item: Judged) -> list[Finding]:
    """What the reader must know of any vLLM plan, and what was decided for him."""
    said = []
    if item.stages:
        worst = max(item.stages, key=lambda stage: stage.overhead_bytes)
        said.append(
            Finding(
                id="vllm-overhead-assumed",
                severity="note",
                text=f"{worst.overhead_bytes / 2**30:.1f} GiB per GPU beside weights and cache (activations, graphs, "
                "context, NCCL) is assumed, not measured: the cache may come out smaller",
                fix="compare the log's GPU KV cache size with this plan",
            )
        )
    if item.setup.kv_dtype == "fp8" and task.wishes.kv_type is None and item.verdict in ("fits", "tight"):
        said.append(
            Finding(
                id="kv-type-reduced",
                severity="note",
                text="the KV cache is FP8: in 16 bits the context does not fit",
                fix="--kv-type f16 with a smaller --ctx",
            )
        )
    return said


def cut_text(item: Judged) -> str:
    """How the work is cut, in a few words."""
    ranks = item.setup.start.ranks
    parts = [f"TP {ranks.tensor}"]
    parts += [f"PP {ranks.pipeline}"] if ranks.pipeline > 1 else []
    parts += [f"DP {ranks.data}"] if ranks.data > 1 else []
    parts += ["EP"] if ranks.expert else []
    parts += [f"DCP {ranks.context}"] if ranks.context > 1 else []
    return " x ".join(parts)


def _line(item: Judged) -> str:
    start = item.setup.start
    if item.capacity is None or item.speed is None:
        return f"{cut_text(item)}: {item.findings[0].text if item.findings else item.verdict}"
    return (
        f"{cut_text(item)}, KV {item.setup.kv_dtype}, {start.utilisation:g} of the memory: {item.verdict}; "
        f"{item.capacity.tokens:,} tokens in the cache, {item.capacity.concurrency:.2f} x {start.max_model_len:,}; "
        f"decode {item.speed.decode_tok_s.expected:.0f} tok/s"
    )


def _alternative(item: Judged) -> Alternative:
    ranks = item.setup.start.ranks
    pins = f"--pin tensor-parallel={ranks.tensor}"
    pins += f" --pin pipeline-parallel={ranks.pipeline}" if ranks.pipeline > 1 else ""
    pins += f" --pin data-parallel={ranks.data}" if ranks.data > 1 else ""
    pins += f" --kv-type {item.setup.kv_dtype}" if item.setup.kv_dtype != "auto" else ""
    return Alternative(what=pins, effect=_line(item).partition(": ")[2])
