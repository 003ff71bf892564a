"""`-ot` patterns: what --cpu-moe and its kin turn into, and the shortest pattern for a set of layers.

Patterns are those of common/common.h (LLM_FFN_EXPS_REGEX, LLM_FFN_DENSE_REGEX, llm_ffn_block_regex), b11434.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from plan_llama.errors import InputError
from plan_llama.memory.types import HOST, Override

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE_FFN = r"\.ffn_(up|down|gate)\."
MovableKind = Literal["experts", "dense"]
# `-ncmoe 4000` makes 4,000 patterns; llama_max_tensor_buft_overrides() is 4,096.
MOST_OVERRIDES = 4096


def cpu_moe() -> Override:
    """What `--cpu-moe` becomes: all experts of all layers on the host."""
    return Override(pattern=EXPERTS, device=HOST)


def n_cpu_moe(layers: int) -> tuple[Override, ...]:
    """What `--n-cpu-moe N` becomes: one pattern for each of the first N layers."""
    return _per_block(layers, EXPERTS)


def n_cpu_ffn(layers: int) -> tuple[Override, ...]:
    """What `--n-cpu-ffn N` becomes: the dense feed-forward weights of the first N layers on the host."""
    return _per_block(layers, DENSE_FFN)


def expert_layers(layers: Iterable[int], device: int) -> Override:
    """One override that puts the experts of exactly these layers on a device (or HOST)."""
    return Override(pattern=rf"blk\.{regex_for_layers(layers)}{EXPERTS}", device=device)


def movable_layers(
    kind: MovableKind, named: Sequence[int], away: Sequence[int], every: Sequence[int]
) -> tuple[Override, ...]:
    """What keeps the experts, or the dense feed-forward weights, of the layers `away` on the host, as short as it can
    be said: with a flag where `named`, which may hold more, are the first of `every` layer that has some; the last one
    may be named beside it."""
    if kind == "experts" and list(named) == list(every):
        return (cpu_moe(),)
    pattern = EXPERTS if kind == "experts" else DENSE_FFN
    firsts = [il for il in named if il != every[-1]]
    if firsts and firsts == list(every[: len(firsts)]):
        flag = n_cpu_moe if kind == "experts" else n_cpu_ffn
        last = [Override(pattern=rf"blk\.{il}{pattern}", device=HOST) for il in named[len(firsts) :]]
        return (*last, *flag(firsts[-1] + 1))
    return (Override(pattern=rf"blk\.{regex_for_layers(away)}{pattern}", device=HOST),)


def whole_blocks(layers: Sequence[int]) -> Override:
    """All weights of these layers on the host; their cache stays where the layer is."""
    return Override(pattern=rf"blk\.{regex_for_layers(layers)}\.", device=HOST)


def movable_parts(layers: Iterable[int] | None, stems: Sequence[str]) -> Override:
    """Some tensors of these layers, or of all, on the host: `ffn_down_exps`, `ffn_up_exps`."""
    names = stems[0] if len(stems) == 1 else f"({'|'.join(stems)})"
    if layers is None:
        return Override(pattern=names, device=HOST)
    return Override(pattern=rf"blk\.{regex_for_layers(layers)}\.{names}\.", device=HOST)


def regex_for_layers(layers: Iterable[int]) -> str:
    """A group that matches exactly these layer numbers, between two literals: `([3-9]|[1-7][0-9]|8[01])`.

    Without a comma, which separates overrides inside `-ot`. Raises ValueError for an empty or negative set.
    """
    wanted = sorted(set(layers))
    if not wanted or wanted[0] < 0:
        raise ValueError("a set of layers needs numbers from 0 on")
    if len(wanted) == 1:
        return str(wanted[0])
    # Numbers by all digits but the last, then runs of such heads that share the same last digits.
    tails: dict[str, list[str]] = {}
    for number in wanted:
        tails.setdefault(str(number)[:-1], []).append(str(number)[-1])
    groups: list[tuple[list[str], list[str]]] = []
    for head, digits in tails.items():
        if groups and groups[-1][1] == digits and head and groups[-1][0][0]:
            before = groups[-1][0][-1]
            if before[:-1] == head[:-1]:
                groups[-1][0].append(head)
                continue
        groups.append(([head], digits))
    parts = []
    for heads, digits in groups:
        front = heads[0][:-1] + _digits([head[-1] for head in heads]) if heads[0] else ""
        parts.append(front + _digits(digits))
    return "(" + "|".join(parts) + ")"


def _digits(digits: Sequence[str]) -> str:
    """A class for ascending digits: `7`, `[3-9]`, `[0158]`."""
    if len(digits) == 1:
        return digits[0]
    runs: list[str] = []
    start = last = digits[0]
    for digit in (*digits[1:], ""):
        if digit and int(digit) == int(last) + 1:
            last = digit
            continue
        width = int(last) - int(start)
        runs.append(start if width == 0 else start + last if width == 1 else f"{start}-{last}")
        start = last = digit
    return "[" + "".join(runs) + "]"


def _per_block(layers: int, pattern: str) -> tuple[Override, ...]:
    if not 0 <= layers <= MOST_OVERRIDES:
        raise InputError(f"{layers} layers on the host", hint=f"expected 0 to {MOST_OVERRIDES}")
    return tuple(Override(pattern=rf"blk\.{index}{pattern}", device=HOST) for index in range(layers))
