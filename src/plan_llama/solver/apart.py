"""Cards of the slowest kinds with nothing but experts of layers that other cards have.

Of unequal cards the slowest is worst at attention, and a run of layers on it has both. With its room for experts alone
(`-ot ...=CUDA1`) fewer stay on the host. Each such layer hands its tokens over twice, which the speed model counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from plan_llama.hardware.types import Machine
from plan_llama.memory.patterns import expert_layers
from plan_llama.memory.types import Override, Settings
from plan_llama.solver.orders import firsts, kind_of_card

Overrides = tuple[Override, ...]


def lenders(machine: Machine) -> list[tuple[int, ...]]:
    """The cards of the slowest kind, of the two slowest and so on, by bandwidth and by arithmetic, of unequal ones with
    memory of their own; none where a bandwidth is not known. All of them, because a faster card must not end what was
    tried with the slower one."""
    cards = machine.gpus
    if machine.unified or any(gpu.integrated or not gpu.bandwidth_bytes_per_s for gpu in cards):
        return []
    speeds = [(gpu.bandwidth_bytes_per_s or 0.0, gpu.fp16_flops_per_s or 0.0) for gpu in cards]
    found: dict[tuple[int, ...], None] = {}
    for key in (lambda i: speeds[i], lambda i: speeds[i][::-1]):
        kinds = [kind_of_card(machine, i) for i in sorted(firsts(machine), key=key)]
        for count in range(1, len(kinds)):
            slow = [i for i in range(len(cards)) if kind_of_card(machine, i) in kinds[:count]]
            found[tuple(slow)] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class Lender:
    """A card, and what each layer's experts take there."""

    card: int
    room: int
    sizes: Sequence[int]


def lent(
    settings: Settings,
    lenders: Sequence[Lender],
    away: Sequence[int],
    left: Callable[[Sequence[int]], Overrides],
    over: Callable[[Settings, int], int | None],
) -> Settings | None:
    """A placement over other cards with the experts of as many of the layers `away` as there is room for on the
    lenders: the last ones first. None where there is no room for any. `left` are the overrides for those that stay on
    the host; `over` is what a placement lacks on a card, less than 0 where it leaves room, and None where another card
    lacks some."""
    taken: dict[int, list[int]] = {}
    best, rest = None, list(away)
    every = (*settings.devices, *(lender.card for lender in lenders))
    shares = settings.tensor_split or tuple(float(i == settings.main_gpu) for i in range(max(every) + 1))
    base = replace(settings, devices=every, tensor_split=shares)
    if every == tuple(range(len(every))):
        base = replace(base, devices=())

    def with_more(card: int, count: int) -> Settings:
        lending = {**taken, card: rest[len(rest) - count :]}
        apart = tuple(expert_layers(layers, device) for device, layers in lending.items())
        return replace(base, overrides=(*apart, *left(rest[: len(rest) - count])))

    for lender in lenders:
        held = list(accumulate(lender.sizes[il] for il in reversed(rest)))  # by the number of layers
        count, most = 0, min(1, len(rest))
        while count < most:  # its graph grows little with more layers: what one takes beside tells of all
            lacks = over(with_more(lender.card, most), lender.card)
            if lacks is None or lacks > 0:
                most = min(most - 1, bisect_right(held, held[most - 1] - (lacks or 0)))
                continue
            count, more = most, bisect_right(held, held[most - 1] - lacks)
            most = more if count == 1 else count
        if count:
            best = with_more(lender.card, count)
            taken[lender.card] = rest[len(rest) - count :]
            rest = rest[: len(rest) - count]
    return best
