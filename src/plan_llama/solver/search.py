"""The search: over context, cache type and micro-batch, each filled onto the machine, judged by the request's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plan_llama.hardware.types import Machine
from plan_llama.memory.caches import bytes_per_token
from plan_llama.memory.flash_attention import NEVER, cuda_refuses
from plan_llama.memory.footprint import (
    Beyond,
    Footprint,
    checkpoints_bytes,
    footprint,
    host_margin_bytes,
    projector_use,
    server_cache_bytes,
)
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, LoadMode, Settings, offload_threshold
from plan_llama.memory.weights import Placement, place
from plan_llama.solver.costs import Goal
from plan_llama.solver.place import Filled, Filler
from plan_llama.solver.types import Breakage, Candidate, Wishes, Workload
from plan_llama.speed.estimate import estimate
from plan_llama.speed.traffic import LayerTable
from plan_llama.speed.types import Request, Traffic
from plan_llama.units import MIB, gib

LADDER = (8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
UBATCHES = (512, 1024, 2048, 4096)
SMALLEST_CONTEXT = 4096
_BATCH = 2048
_MUCH_BYTES = 1024 * MIB
WORTH_MEMORY = 1.02  # times the best's time that may pass where that leaves _MUCH_BYTES free
PINNED_GAIN = 1.25  # what pinned weights have to gain of the request's time where they leave little memory
_CHECKPOINTS = 32  # llama-server's default; kept only by models with a sliding window or recurrent state


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One model on one machine for one request: what every step of the search needs."""

    table: ModelTable
    layers: LayerTable
    machine: Machine
    wishes: Wishes
    beyond: Beyond
    filler: Filler
    breakages: tuple[Breakage, ...] = ()

    def placed(self, settings: Settings) -> Placement:
        """Where every tensor goes."""
        return place(self.table, settings, [gpu.free_bytes for gpu in self.machine.gpus])

    def pinned(self, **pins: str) -> Task:
        """The task with these pins as well."""
        return replace(self, wishes=self.wishes.pinned(**pins))

    @property
    def users(self) -> int | None:
        """Requests in flight at all times, None for one alone: asked for, or the workload's (one for each slot)."""
        wishes, work = self.wishes, self.wishes.workload
        if wishes.users is not None:
            return wishes.users
        return (wishes.parallel or work.users) if work.users > 1 else None

    @property
    def slots(self) -> int:
        """Conversations kept apart."""
        return self.wishes.parallel or slots_for(self.wishes.workload, self.users or 1)

    @property
    def goal(self) -> Goal:
        """What a placement is filled for."""
        return Goal(self.request, decode_only=self.wishes.objective == "speed")

    @property
    def request(self) -> Request:
        """The request whose time is minimised."""
        wishes, work = self.wishes, self.wishes.workload
        return Request(
            prompt_tokens=wishes.prompt_tokens or work.prompt_tokens,
            output_tokens=wishes.output_tokens or work.output_tokens,
            reuse_ratio=work.reuse if wishes.reuse is None else wishes.reuse,
            users=self.users,
        )


def slots_for(work: Workload, users: int) -> int:
    """The slots that so many users of a workload want: an agent's sub-agent would push its main prompt out of one."""
    return max(1, users * work.slots // work.users)


def wanted_context(task: Task) -> int:
    """Tokens of one conversation that the plan aims at: asked for, or the workload's, at most the model's own."""
    wishes, trained = task.wishes, task.table.spec.context_train
    if isinstance(wishes.context, int):
        return wishes.context
    if wishes.context == "max" or wishes.objective == "context":
        return trained or wishes.workload.context_tokens
    asked = task.request.prompt_tokens + task.request.output_tokens
    wanted = max(wishes.workload.context_tokens, -(-asked // 1024) * 1024)
    return min(wanted, trained) if trained else wanted


def cache_ram_bytes(task: Task, context: int, kv_type: str) -> int:
    """The server's prompt cache: the workload's fixed size, or room for its full conversations; whole MiB."""
    work = task.wishes.workload
    size = work.cache_ram_bytes
    users, request = task.users or 1, task.request
    each = bytes_per_token(task.table.spec, kv_type, kv_type)
    if work.cache_states:
        size = max(work.cache_states, task.slots) * context * each
    if users > task.slots:  # who has no slot comes back to a conversation that is kept there
        size = max(size, users * min(context, request.prompt_tokens + request.output_tokens) * each)
    return -(-size // MIB) * MIB


def base_settings(task: Task, context: int, ubatch: int, kv_type: str) -> Settings:
    """Everything but the placement. `context` is of one conversation; several slots share one unified pool."""
    slots = task.slots
    pool = context * slots
    shared = slots > 1 and not task.wishes.slots_apart
    return Settings(
        context=pool,
        parallel=slots,
        kv_unified=shared,
        slot_limit=context if shared else None,
        batch=min(ubatch if task.wishes.one_batch else max(_BATCH, ubatch), pool),
        ubatch=min(ubatch, pool),
        flash_attn=has_flash_attention(task, kv_type),
        kv_type_k=kv_type,
        kv_type_v=kv_type,
        load_mode="mmap",
        lazy_mode="off" if any(gpu.integrated for gpu in task.machine.gpus) else "auto",
        threads=threads(task.machine),
        cache_ram_bytes=cache_ram_bytes(task, context, kv_type),
        repack=repack_crash(task) is None,
        mmproj=task.table.projector is not None,
        older=task.wishes.older,
    )


def has_flash_attention(task: Task, kv_type: str) -> bool:
    """Whether flash attention is to be had: by the model's architecture, and by the cards' kernels for its heads."""
    spec = task.table.spec
    cuda = any(gpu.backend in ("cuda", "rocm") for gpu in task.machine.gpus)
    return spec.architecture not in NEVER and not (cuda and cuda_refuses(spec, kv_type, kv_type))


def checkpoints(table: ModelTable, settings: Settings) -> int:
    """As many context checkpoints as take no more than the prompt cache does, at least one; the engine's own number
    for models that have none."""
    each = checkpoints_bytes(table, replace(settings, ctx_checkpoints=1))
    return max(1, min(_CHECKPOINTS, settings.cache_ram_bytes // each)) if each else _CHECKPOINTS


def repack_crash(task: Task) -> Breakage | None:
    """The known crash of repacked weights that this model and machine would meet, if any."""
    if task.machine.gpus:
        return None  # weights on the host are then not repacked
    architecture, isa = task.table.spec.architecture, task.machine.cpu.isa
    return next((b for b in task.breakages if b.architecture == architecture and b.isa in isa), None)


def threads(machine: Machine) -> int:
    """Physical performance cores of one NUMA node, and no more than may be used."""
    cpu = machine.cpu
    cores = cpu.performance_cores or cpu.physical_cores
    if cpu.numa_nodes > 1:
        cores = max(1, cores // cpu.numa_nodes)
    return max(1, min(cores, cpu.usable_cores or cores))


def why_mapped(task: Task, weights_bytes: int, held_bytes: int, *, clear: bool = False) -> str | None:
    """What speaks against pinning the host's weights, as a clause; None where nothing does.

    `held_bytes` is all that the server may hold in system memory, its caches included; `clear`: pinned the request is
    done clearly sooner. What is pinned cannot be paged out, so that a program which needs more than is left ends, or
    the server does.
    """
    machine = task.machine
    if machine.unified or not machine.gpus:
        return "there is no link that pinned memory would speed up"
    if weights_bytes <= task.table.lookup_bytes:
        return "only tables that are looked up by row are there"
    if machine.os == "windows" and held_bytes > machine.ram.total_bytes // 2:
        return "Windows pins about half of the memory at most"
    spare = machine.ram.available_bytes - machine.ram.reserved_bytes - held_bytes
    wanted = pinned_spare_bytes(task, clear=clear)
    if spare < wanted:
        return f"with it, weights and caches would leave less than {gib(wanted)} of memory"
    return None


def pinned_spare_bytes(task: Task, *, clear: bool) -> int:
    """What is to stay free beside pinned weights: 16 GiB, or for a clear gain the host's margin and half of it again
    where that is less, because nothing gives way where other programs need more than the margin."""
    margin = host_margin_bytes(task.machine, task.beyond) - task.machine.ram.reserved_bytes
    spare = task.beyond.pinned_spare_bytes
    return min(spare, margin + margin // 2) if clear else spare


def evaluate(task: Task, filled: Filled) -> Candidate:
    """A placement with its footprint and speed; with a smaller prompt cache where the memory has no room for all of
    it, which costs an old conversation's prompt and nothing else."""
    made = _evaluated(task, filled)
    short = -made.footprint.pools[0].spare_bytes
    cache = filled.settings.cache_ram_bytes
    if short <= 0 or not cache or "cache_ram" in task.wishes.pins:
        return made
    smaller = max(0, cache - short) // MIB * MIB
    if smaller < _conversation_bytes(task, filled.settings):
        smaller = 0
    settings = replace(filled.settings, cache_ram_bytes=smaller)
    settings = replace(settings, ctx_checkpoints=checkpoints(task.table, settings))
    return _evaluated(task, replace(filled, settings=settings))


def _conversation_bytes(task: Task, settings: Settings) -> int:
    """What the prompt cache takes for one conversation as long as the request."""
    request = task.request
    each = bytes_per_token(task.table.spec, settings.kv_type_k, settings.kv_type_v)
    return (request.depth + request.prompt_tokens + request.output_tokens) * each


def _evaluated(task: Task, filled: Filled) -> Candidate:
    """With the file mapped, or pinned where memory allows: if that leaves little, for a clear gain of the request."""
    pinned = task.wishes.pins.get("load_mode")
    if pinned is not None:
        return _evaluated_as(task, filled, pinned)  # type: ignore[arg-type]
    host = filled.made.host
    held = host.total_bytes + server_cache_bytes(task.table, filled.settings)
    if images := projector_use(task.table, filled.settings, task.machine):
        held += images.host_bytes
    if why_mapped(task, host.weights_bytes, held) is None:
        return _evaluated_as(task, filled, "none")
    mapped = _evaluated_as(task, filled, "mmap")
    if why_mapped(task, host.weights_bytes, held, clear=True) is not None:
        return mapped
    fast = _evaluated_as(task, filled, "none")
    mine, theirs = score(task, fast), score(task, mapped)
    return fast if mine[:-1] <= theirs[:-1] and mine[-1] * PINNED_GAIN <= theirs[-1] else mapped


def _evaluated_as(task: Task, filled: Filled, mode: LoadMode) -> Candidate:
    settings = replace(filled.settings, load_mode=mode)
    if (
        task.machine.gpus
        and filled.made.host.weights_bytes <= task.table.lookup_bytes
        and not filled.made.host.context_bytes
        and "threads" not in task.wishes.pins
    ):
        settings = replace(settings, threads=None)  # the CPU has nothing to compute
    used = footprint(
        task.table,
        settings,
        task.machine,
        task.beyond,
        margin_bytes=task.wishes.margin_bytes,
        known=filled.made,
    )
    return judged(task, settings, used)


def judged(task: Task, settings: Settings, used: Footprint) -> Candidate:
    """Adds the speed to a footprint, and counts what is where."""
    table, placed = task.table, task.placed(settings)
    speed = estimate(
        task.machine,
        _traffic(task.layers, placed, settings),
        settings,
        task.request,
        resident_ratio=used.resident_ratio,
        engine=task.wishes.engine,
    )
    on_host = [
        il
        for il in range(table.layers)
        if table.expert_bytes[il] and any(placed.device_of[i] == HOST for i in table.expert_indices[il])
    ]
    apart, bare = _apart(task, placed)
    return Candidate(
        settings=settings,
        footprint=used,
        speed=speed,
        cpu_moe_layers=len(on_host),
        cpu_moe_parts=sum(
            any(placed.device_of[i] != HOST for i in table.expert_indices[il]) for il in on_host
        ),
        gpu_block_layers=sum(device != HOST for device in placed.layer_device[: table.layers]),
        cpu_ffn_layers=len(apart - bare),
        cpu_weight_layers=len(bare),
    )


def _traffic(layers: LayerTable, placed: Placement, settings: Settings) -> tuple[Traffic, ...]:
    """What a token reads where: the same for every threshold and micro-batch that a placement is tried with."""
    key = settings.kv_type_k, settings.kv_type_v, settings.kv_offload
    if key not in placed.traffic:
        own = placed.layer_device[: placed.table.layers]
        placed.traffic[key] = layers.of_tensors(
            placed.device_of, own, settings, output_device=placed.output_device
        )
    found: tuple[Traffic, ...] = placed.traffic[key]
    return found


def _apart(task: Task, placed: Placement) -> tuple[set[int], set[int]]:
    """Layers on GPUs with weights besides experts on the host, and of these those with weights of their attention."""
    apart, bare = set(), set()
    for il, moved in enumerate(placed.moves.by_block[: task.table.layers]):
        if moved and placed.layer_device[il] != HOST:
            there = {index for index, device in moved if device == HOST} - task.layers.routed
            if there:
                apart.add(il)
            if there & task.layers.of_attention:
                bare.add(il)
    return apart, bare


def candidates(task: Task, context: int, kv_type: str) -> list[Candidate]:
    """The best filled placement for each micro-batch, best first."""
    pins = task.wishes.pins
    pinned = pins.get("ubatch")
    found: list[Candidate] = []
    for ubatch in (int(pinned),) if pinned else UBATCHES:
        if found and ubatch // 2 >= task.request.prompt_tokens:
            break  # it would never be filled
        base = pinned_settings(task, base_settings(task, context, ubatch, kv_type))
        base = replace(base, ctx_checkpoints=checkpoints(task.table, base))
        if any(base.ubatch == other.settings.ubatch for other in found):
            continue
        placed: dict[Settings, Filled] = {}
        for filled in _options(task, base):
            placed.setdefault(filled.settings, filled)  # orders of the cards come to the same placements
        options = [evaluate(task, filled) for filled in placed.values()]
        if not options:
            break
        found.append(min(options, key=lambda candidate: score(task, candidate)))
    if not found:
        return []
    return _thrifty_first(task, sorted(found, key=lambda candidate: score(task, candidate)))


def _thrifty_first(task: Task, found: list[Candidate]) -> list[Candidate]:
    """With one in front that takes much less memory where the best gains next to nothing by it."""
    best = score(task, found[0])

    def taken(candidate: Candidate) -> int:
        used = sum(pool.used_bytes for pool in candidate.footprint.pools)
        return used - candidate.footprint.host.cache_bytes  # the prompt cache takes what is left

    def near(candidate: Candidate) -> bool:
        mine = score(task, candidate)
        return mine[:-1] == best[:-1] and mine[-1] <= best[-1] * WORTH_MEMORY

    least = min(filter(near, found), key=taken)
    if taken(found[0]) - taken(least) < _MUCH_BYTES:
        return found
    return [least, *(candidate for candidate in found if candidate is not least)]


def _options(task: Task, base: Settings) -> list[Filled]:
    """Fillings; the projector goes to the first GPU, or where that leaves more of the model on GPUs to another one, or
    to the CPU, which then reads images, where no GPU has room beside a share of the model."""
    found = list(task.filler.options(base, task.goal))
    if not base.mmproj or not base.mmproj_offload:
        return found
    least = task.table.lookup_bytes
    for device in range(1, 0 if task.machine.unified else len(task.machine.gpus)):
        if any(filled.made.host.weights_bytes <= least for filled in found):
            break
        found += task.filler.options(replace(base, mmproj_device=device), task.goal)
    if not found and "mmproj_offload" not in task.wishes.pins:
        found = list(task.filler.options(replace(base, mmproj_offload=False), task.goal))
    return found


_RANK = {"fits": 0, "tight": 1, "pages-from-disk": 2, "does-not-fit": 3, "invalid": 4}


def first_token_s(candidate: Candidate) -> float:
    """Seconds to the first token of a new prompt; with users, among the others."""
    load = candidate.speed.load
    return load.ttft_s if load else candidate.speed.ttft_s


def misses_ttft(task: Task, candidate: Candidate) -> bool:
    """Whether the first token comes later than was wished."""
    return task.wishes.ttft_s is not None and first_token_s(candidate) > task.wishes.ttft_s


def kept(task: Task, candidate: Candidate) -> bool:
    """Whether a candidate keeps the memory and the wished first token."""
    return candidate.footprint.verdict in ("fits", "tight") and not misses_ttft(task, candidate)


def score(task: Task, candidate: Candidate) -> tuple[float, float, float]:
    """Less is better: first what fits, then what keeps the wished first token, then the time.

    The time of the request, or of a token where plain decode was asked for. With users it is the request's under load,
    and where somebody waits for it the first token's as well: in a queue the whole may be as fast as in slots.
    """
    rank, speed = _RANK[candidate.footprint.verdict], candidate.speed
    late = float(misses_ttft(task, candidate))
    if task.wishes.objective == "speed":
        return rank, late, 1 / (speed.load.decode_tok_s if speed.load else speed.decode_tok_s.expected)
    if speed.load is None:
        return rank, late, speed.request_s
    wait = speed.load.follow_up_ttft_s if task.wishes.workload.interactive else 0.0
    return rank, late, speed.load.request_s + wait


def pinned_settings(task: Task, settings: Settings) -> Settings:
    """The settings with what the user pinned. Keys were checked when the wishes were made."""
    pins = task.wishes.pins
    changes: dict[str, object] = {}
    for key in ("batch", "threads", "threads_batch", "image_max_tokens"):
        if key in pins:
            changes[key] = int(pins[key])
    for key in ("flash_attn", "op_offload", "mmproj_offload", "draft_layers", "kv_offload"):
        if key in pins:
            changes[key] = pins[key] == "on"
    if "offload_min_batch" in pins:
        changes |= offload_threshold(int(pins["offload_min_batch"]), settings.ubatch)
    if "cache_ram" in pins:
        changes["cache_ram_bytes"] = int(pins["cache_ram"]) * MIB
    return replace(settings, **changes) if changes else settings  # type: ignore[arg-type]


def kv_types(wishes: Wishes) -> Sequence[str]:
    """Cache types in the order in which they are tried; a quantised one only where the user named it."""
    return (wishes.kv_type,) if wishes.kv_type else ("f16",)


def may_quantise_cache(task: Task) -> bool:
    """Whether a q8_0 cache is to be thought of: the model is not known to spoil its output with one, and its heads are
    whole blocks of 32 (llama_init_from_model refuses others, b11434)."""
    spec = task.table.spec
    allowed = "flash_attn" not in task.wishes.pins or task.wishes.pins["flash_attn"] == "on"
    return (
        allowed
        and not spec.kv_quantisation_breaks
        and all(row and row % 32 == 0 for row in spec.head_sizes())
    )
