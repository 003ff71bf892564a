"""The estimate of a placement for a request, with its range and what bounds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from plan_llama.errors import UsageError
from plan_llama.hardware.types import Machine
from plan_llama.memory.types import HOST, Settings
from plan_llama.speed import load, passes
from plan_llama.speed.constants import Constants, shipped
from plan_llama.speed.rates import Assumptions, disk_rate, widened
from plan_llama.speed.types import Engine, Rate, Request, SpeedEstimate, Traffic

# What a part of a pass waits for, by a word of its name, and what would make it shorter.
_BOUNDS = (
    ("disk", "disk", "more memory, a smaller quant or a faster drive"),
    ("PCIe", "PCIe link", "a wider link, a larger micro-batch or more of the weights on a card"),
    (
        "RAM",
        "RAM bandwidth",
        "more memory channels, faster memory, more of the weights on a card or a smaller quant",
    ),
    (
        "CPU",
        "CPU cores",
        "more or newer cores, or more of the weights on a card",
    ),
    ("mask", "the mask of attention, which one core fills", "a smaller micro-batch"),
    ("crossings", "hand-overs between GPU and CPU", "a card that holds the experts"),
    ("launches", "GPU kernel launches", "nothing of the memory; several requests at once fill the gaps"),
    ("compute", "GPU compute", "a card with more FLOP/s"),
    ("", "GPU memory bandwidth", "a card with more bandwidth or a smaller quant"),
)

_TABLES = ("iq1", "iq2", "iq3")  # looked up weight by weight, which is what takes the cores' time
_OTHER_QUANT = "; or a quant without tables (not IQ1 to IQ3)"


def placement_class(machine: Machine, traffic: Iterable[Traffic]) -> str:
    """Which measured runs a placement is like: `cpu`, `unified`, `offload` (weights on both sides),
    `gpu_moe`, `gpu`.

    The spread of the runs of that class is the range of the estimate.
    """
    host = gpu = moe = False
    for t in traffic:
        busy = bool(t.dense_bytes or t.expert_bytes)
        host = host or (busy and t.device == HOST)
        gpu = gpu or (busy and t.device != HOST)
        moe = moe or bool(t.expert_bytes)
    if not gpu:
        return "cpu"
    if machine.unified:
        return "unified"
    if host:
        return "offload"
    return "gpu_moe" if moe else "gpu"


def estimate(
    machine: Machine,
    traffic: Sequence[Traffic],
    settings: Settings,
    request: Request,
    *,
    engine: Engine = "llama.cpp",
    resident_ratio: float = 1.0,
    host_repacked: bool | None = None,
    constants: Constants | None = None,
) -> SpeedEstimate:
    """How fast `traffic` runs on `machine` for `request`.

    `resident_ratio` is the share of the host's weights that stays in RAM (the rest is read from disk on
    every pass). `host_repacked` says that the host's weights are in the CPU's own layout, which large
    batches are not copied from; unknown, llama.cpp's rule is used: only without a GPU. Raises UsageError
    for a request that asks for nothing.
    """
    if request.prompt_tokens < 1 or request.output_tokens < 1 or request.streams < 1 or request.depth < 0:
        raise UsageError("a request needs at least one prompt token, one output token and one stream")
    if request.users is not None and request.users < 1:
        raise UsageError("a server has at least one user")
    if not 0.0 <= request.reuse_ratio <= 1.0 or not 0.0 <= resident_ratio <= 1.0:
        raise UsageError("a ratio of reuse or residence is between 0 and 1")
    k = constants or shipped()
    said = Assumptions()
    repacked = settings.repack and not machine.gpus if host_repacked is None else host_repacked
    if engine == "vllm":
        said.add("vLLM's kernels are not modelled: llama.cpp's are charged", k.widen["engine"])
    work = passes.resolve(
        machine, traffic, settings, k, said, engine=engine, resident_ratio=resident_ratio, repacked=repacked
    )
    size_class = placement_class(machine, traffic)
    depth = request.depth + request.prompt_tokens + request.output_tokens / 2
    parts = passes.token(work, depth, request.streams)
    if work.draft:
        chance = k.assumed["draft_accepted"]
        said.add(f"{chance * 100:.0f} % of drafted tokens assumed to be right", k.widen["draft"])
    token_s = _positive(sum(parts.values()))
    prefill_parts = passes.prompt(work, request.prompt_tokens, request.depth)
    prompt_s = _positive(sum(prefill_parts.values()))
    if resident_ratio < 1.0 and "disk" in parts:
        said.add(
            "host weights exceed the available RAM: part of every pass is read from disk", k.widen["disk"]
        )
        if machine.disk is None or machine.disk.read_bytes_per_s is None:
            rate = disk_rate(machine, k)
            said.add(f"drive not measured: {rate / 1e9:.1f} GB/s assumed", k.widen["disk"])
    new = max(1, round(request.prompt_tokens * (1.0 - request.reuse_ratio)))
    again = passes.prompt(work, new, request.depth + request.prompt_tokens - new)
    ttft_s = prompt_s + token_s
    bound, moves, share = _bound(parts)
    served = load.serve(work, request, request.users) if request.users else None
    return SpeedEstimate(
        decode_tok_s=_rate(1 / token_s, k.spread_decode[size_class], said),
        prefill_tok_s=_rate(request.prompt_tokens / prompt_s, k.spread_prefill[size_class], said),
        aggregate_tok_s=served.aggregate_tok_s if served else request.streams / token_s,
        ttft_s=ttft_s,
        follow_up_ttft_s=sum(again.values()) + token_s,
        request_s=prompt_s + request.output_tokens * token_s,
        load_s=_load(machine, traffic),
        bound_by=_with_bytes(bound, work.traffic),
        bound_share=share,
        moved_by=moves + (_OTHER_QUANT if bound == "CPU cores" and _has_tables(work.traffic) else ""),
        prefill_bound_by=_bound(prefill_parts)[0],
        parts=parts,
        prefill_parts=prefill_parts,
        load=served,
        assumptions=tuple(said.texts),
    )


def _positive(seconds: float) -> float:
    """A placement without weights takes no time: a nanosecond keeps its rates finite."""
    return max(seconds, 1e-9)


def _rate(expected: float, spread: float, said: Assumptions) -> Rate:
    factor = widened(spread, said.factors)
    return Rate(low=expected / factor, expected=expected, high=expected * factor)


def _has_tables(traffic: Iterable[Traffic]) -> bool:
    """Whether weights of a table-based type lie on the host."""
    host = (t for t in traffic if t.device == HOST)
    return any(name.startswith(_TABLES) for t in host for name in (*t.dense_bytes, *t.expert_bytes))


def _load(machine: Machine, traffic: Iterable[Traffic]) -> float | None:
    """A cold load reads every weight once from the drive; a guess at an unmeasured drive would mislead."""
    if machine.disk is None or machine.disk.read_bytes_per_s is None:
        return None
    size = sum(sum(t.dense_bytes.values()) + sum(t.expert_bytes.values()) for t in traffic if not t.draft)
    return size / machine.disk.read_bytes_per_s


def _bound(parts: Mapping[str, float]) -> tuple[str, str, float]:
    """The resource that takes the most of a pass, what would move it, and its share of the time."""
    if not parts:
        return "nothing", "nothing", 0.0
    groups: dict[tuple[str, str], float] = {}
    for name, seconds in parts.items():
        _, label, moves = next(row for row in _BOUNDS if row[0] in name)
        groups[label, moves] = groups.get((label, moves), 0.0) + seconds
    label, moves = max(groups, key=lambda group: groups[group])
    return label, moves, groups[label, moves] / sum(parts.values())


def _with_bytes(label: str, traffic: Iterable[Traffic]) -> str:
    """The resource, with the bytes behind it where the host's memory is meant."""
    if label != "RAM bandwidth":
        return label
    host = [t for t in traffic if t.device == HOST]
    experts = sum(sum(t.expert_bytes.values()) * t.expert_used_ratio for t in host)
    dense = sum(sum(t.dense_bytes.values()) for t in host)
    what, size = ("experts", experts) if experts > dense else ("dense weights", dense)
    return f"{label}: {size / 1e9:.1f} GB of {what} per token"
