"""In which order a machine's cards are tried, and which of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations

from plan_llama.hardware.types import Machine

FEW_CARDS = 4  # up to which cards are put in another order for their room alone, and any of them left out
_FEW_RUNS = 40_000  # orders times cards times squares of blocks, up to which every order is tried
_ALIKE = 0.9  # of the largest room, which the smallest one has in cards that need no other order for it


def kind_of_card(machine: Machine, index: int) -> object:
    """Equal for cards that are alike as far as speed goes."""
    gpu = machine.gpus[index]
    speed = (gpu.bandwidth_bytes_per_s, gpu.fp16_flops_per_s, gpu.pcie_gen, gpu.pcie_width)
    return (gpu.name, gpu.backend, gpu.compute_capability, *speed)


def firsts(machine: Machine) -> list[int]:
    """The first card of each kind."""
    kinds: dict[object, int] = {}
    for index in range(len(machine.gpus)):
        kinds.setdefault(kind_of_card(machine, index), index)
    return list(kinds.values())


def orders(
    machine: Machine, rooms: Sequence[int], host_s: Callable[[tuple[int, ...]], float] | None, blocks: int
) -> Iterator[tuple[int, ...]]:
    """The cards as they are; with another one first where host weights are faster to work with there (`host_s`, by the
    order; None: the CPU alone works with them); the roomiest one first and last, because the first holds copies of host
    weights and the last the output; of few cards and blocks every other order; and, where they are unequal, without one
    of a kind."""
    every = tuple(range(len(machine.gpus)))
    found = [every]
    if len(firsts(machine)) > 1 and host_s is not None:
        prices = {}
        for first in firsts(machine):
            order = (first, *(i for i in every if i != first))
            prices[order] = host_s(order)
        fastest = min(prices, key=lambda order: prices[order])
        if prices[fastest] < prices[every]:
            found.append(fastest)
    if len(every) <= FEW_CARDS and min(rooms) < max(rooms) * _ALIKE:
        by_room = sorted(every, key=lambda i: rooms[i])
        found += [tuple(by_room[::-1]), tuple(by_room)]
    if len(every) <= FEW_CARDS:
        others = _others(machine, rooms, found)
        if len(others) * len(every) * blocks**2 <= _FEW_RUNS:
            found += others
    found = list(dict.fromkeys(found))
    yield from found
    if len(firsts(machine)) < 2 or host_s is None:
        return
    # a slow card may cost more than it brings, and the search over all of them may not come to leave it out
    kinds = [kind_of_card(machine, index) for index in every]
    counts, last = Counter(kinds), dict(zip(kinds, every, strict=True))
    for kind, index in last.items():
        if len(every) > 2 or counts[kind] > 1:
            yield from dict.fromkeys(tuple(i for i in order if i != index) for order in found)


def _others(
    machine: Machine, rooms: Sequence[int], known: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The orders that differ from these in speed or room."""

    def alike(order: Sequence[int]) -> tuple[object, ...]:
        return tuple((kind_of_card(machine, i), rooms[i]) for i in order)

    seen = set(map(alike, known))
    found = []
    for order in permutations(range(len(rooms))):
        if alike(order) not in seen:
            seen.add(alike(order))
            found.append(order)
    return found


def shares(machine: Machine, order: Sequence[int], rooms: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Places in an order of cards that may work at once: of a few cards all choices of two and more, of many those with
    the most room."""
    places = range(len(order))
    if len(order) > FEW_CARDS:
        roomiest = sorted(places, key=lambda i: -rooms[i])
        yield from (tuple(sorted(roomiest[:count])) for count in range(len(order), 1, -1))
        return
    known = set()
    for count in range(len(order), 1, -1):
        for used in combinations(places, count):
            alike = tuple((kind_of_card(machine, order[i]), rooms[i]) for i in used)
            if alike not in known:
                known.add(alike)
                yield used
