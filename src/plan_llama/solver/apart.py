"""Cards of the slowest kind with nothing but experts of layers that other cards have.

Of unequal cards the slowest is worst at attention, and a run of layers on it has both. With its room for experts alone
(`-ot ...=CUDA1`) fewer stay on the host. Each such layer hands its tokens over twice, which the speed model counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from plan_llama.hardware.types import Machine
from plan_llama.memory.patterns import expert_layers
from plan_llama.memory.types import Override, Settings
from plan_llama.solver.orders import firsts, kind_of_card

Overrides = tuple[Override, ...]


def lenders(machine: Machine) -> tuple[int, ...]:
    """The cards of the kind with the least bandwidth, of unequal ones with memory of their own; none where it is not
    known."""
    cards = machine.gpus
    if machine.unified or any(gpu.integrated for gpu in cards) or len(firsts(machine)) < 2:
        return ()
    rates = {i: cards[i].bandwidth_bytes_per_s or 0.0 for i in firsts(machine)}
    slowest = min(rates, key=lambda i: rates[i])
    if not rates[slowest]:
        return ()
    kind = kind_of_card(machine, slowest)
    return tuple(i for i in range(len(cards)) if kind_of_card(machine, i) == kind)


def lent(
    settings: Settings,
    lenders: Sequence[int],
    away: Sequence[int],
    left: Callable[[Sequence[int]], Overrides],
    fits: Callable[[Settings], bool],
) -> Settings | None:
    """A placement over other cards with the experts of as many of the layers `away` as there is room for on the
    lenders: the last ones first. None where there is no room for any. `left` are the overrides for those that stay on
    the host."""
    taken: dict[int, list[int]] = {}
    best, rest = None, list(away)
    every = (*settings.devices, *lenders)
    shares = settings.tensor_split or tuple(float(i == settings.main_gpu) for i in range(max(every) + 1))
    base = replace(settings, devices=every, tensor_split=shares)
    if every == tuple(range(len(every))):
        base = replace(base, devices=())

    def with_more(card: int, count: int) -> Settings:
        lending = {**taken, card: rest[len(rest) - count :]}
        apart = tuple(expert_layers(layers, device) for device, layers in lending.items() if layers)
        return replace(base, overrides=(*apart, *left(rest[: len(rest) - count])))

    for card in lenders:
        low, high = 0, len(rest)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(with_more(card, middle)) else (low, middle - 1)
        if low:
            best = with_more(card, low)
            taken[card] = rest[len(rest) - low :]
            rest = rest[: len(rest) - low]
    return best
