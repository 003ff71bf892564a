"""The cards of a machine in one order: the splits over them, sought by arithmetic and measured by the memory model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

from plan_llama.memory.types import HOST, Settings
from plan_llama.solver.costs import Costs, Goal
from plan_llama.solver.orders import FEW_CARDS, shares
from plan_llama.solver.polish import Look, Polisher
from plan_llama.solver.share import Card, holding, nearly_all, with_some_away
from plan_llama.solver.split import Split, Splitter, many

if TYPE_CHECKING:  # place.py seeks over every order
    from plan_llama.solver.place import Filled, Filler

_MOST_STEPS = 16
_MOST_OPTIONS = 3  # of one order of the cards, to be estimated as a whole
_WITHIN = 4  # blocks by which a boundary moves when the room of a card turns out otherwise
_SLACK_BYTES = 32 << 20  # room found beyond what was reckoned with that is worth another look
_FEW_STATES = 12  # cards times layers, up to which every number of blocks on the host is tried
_SOME_STATES = 64  # up to which changes are measured though no graph of their kind was
_FEW_LOOKS = 8  # with fewer nothing is bettered
_LOOKS = 600  # placements that are measured to better a split, over cards times layers


@dataclass(slots=True)
class Seen:
    """What was found over orders of the cards: the seconds of the cheapest split, the least that a card holds beside
    its share, what was bettered, and the splits over cards at once by what they were sought from."""

    seconds: float = inf
    floor: int | None = None
    bettered: set[Settings] = field(default_factory=set)
    at_once: dict[object, dict[Settings, Filled]] = field(default_factory=dict)

    def add(self, seconds: float, floors: Iterable[int | None]) -> None:
        """Notes what another order has shown."""
        self.seconds = min(self.seconds, seconds)
        self.floor = min((floor for floor in (self.floor, *floors) if floor is not None), default=None)


class Lineup:
    """The cards in one order, and the splits over them that were found to keep every margin."""

    def __init__(self, filler: Filler, base: Settings, order: tuple[int, ...], goal: Goal) -> None:
        self.filler, self.base, self.order, self.goal = filler, base, order, goal
        self.blocks = filler.table.blocks
        self.costs = filler.costs(base, order, goal)
        self.cards = filler.cards(base, order, self.costs)
        self.found: dict[Settings, Filled] = {}

    @cached_property
    def splitter(self) -> Splitter:
        """All splits, whatever room a graph leaves on the cards."""
        return _splitter(self.cards, self.costs)

    @cached_property
    def polisher(self) -> Polisher:
        """Changes of these splits, with all that was measured of them."""
        away = self.costs.away()
        small = len(self.order) * self.blocks <= _FEW_STATES
        own = self.costs.on(HOST).whole
        return Polisher(self.cards, own, away.movable, away.rest, self._look, unseen=small)

    @property
    def seconds(self) -> float:
        """Of the cheapest split."""
        return min(map(_seconds, self.found.values()), default=inf)

    def kept(self) -> list[Filled]:
        """The cheapest of those that work one card after the other, and of those in which so many cards work at once:
        the prices do not know of that."""
        kinds: Counter[int] = Counter()
        kept = []
        for filled in sorted(self.found.values(), key=_seconds):
            split = filled.split
            plain = split is not None and not split.host_blocks and not filled.settings.overrides
            kind = sum(map(bool, split.per_card)) if split is not None and plain else 0
            kinds[kind] += 1
            if kinds[kind] <= _MOST_OPTIONS:
                kept.append(filled)
        return kept

    def may_beat(self, seen: Seen) -> bool:
        """Whether a split is cheaper than all seen if every card holds no more beside it than one was seen to; also
        where that is not known, or long to find."""
        states = len(self.order) * self.blocks
        if seen.floor is None or states <= _FEW_STATES or many(len(self.order), self.blocks):
            return seen.seconds > 0.0
        floor = seen.floor // 2
        rooms = [card.room - floor for card in self.cards]
        splitter = self.splitter
        if self.filler.table.loaded_bytes <= sum(max(0, room) for room in rooms):
            costs = self.filler.costs(self.base, self.order, self.goal, at_once=len(self.order))
            splitter = _splitter(self.filler.cards(self.base, self.order, costs), costs)
        return splitter.with_rooms(rooms).has_cheaper(seen.seconds)

    def seek(self, seen: Seen, *, briefly: bool = False) -> None:
        """The cheapest splits that the exact model agrees with; `briefly`: of those that leave experts to the host.

        What lies beside the weights depends on what is split how: it is sought from two sides, with all that can be
        moved on the host and with none of it; and with that of the last layer alone, whose products a prompt needs for
        one row only, so that nothing is copied for them (inp_out_ids, b11434).
        """
        filler, base, order, cards = self.filler, self.base, self.order, self.cards
        every = filler.all_movable()
        starts: list[tuple[Settings, Collection[int]]] = [
            (replace(base, gpu_layers=filler.everything, overrides=filler.overrides(every, (), 0)), every),
            (replace(base, gpu_layers=filler.everything // 2), every),
        ]
        if every and nearly_all(cards, every[-1]):
            last = filler.overrides(every[-1:], (), 0)
            starts.append((replace(base, gpu_layers=filler.everything, overrides=last), every[-1:]))
        plain = False
        for start, free in starts[: 1 if briefly else len(starts)]:
            made = filler.made(filler.ordered(start, order)).made
            beside = [made.devices[i].working_bytes for i in order]
            plain |= self._settle(order, self.costs, cards, beside, self.found, free=free)
            self._note()
        if len(order) > FEW_CARDS:
            plain = any(made.split and not made.settings.overrides for made in self.found.values())
        if plain and len(order) > 1:
            self._spread(beside, seen)
        self._note()
        seen.add(self.seconds, self.polisher.floor)

    def better(self, seen: Seen) -> None:
        """Betters the cheapest splits by single changes; on small spaces also what would be cheaper with every number
        of blocks on the host, were its graph the smallest one seen."""
        size = len(self.order) * self.blocks
        looks = _LOOKS // size
        small = size <= _FEW_STATES
        if looks < _FEW_LOOKS or not self.may_beat(seen):
            return
        if small:
            self.polisher.sound()
        for filled in sorted(self.found.values(), key=_seconds)[: _MOST_OPTIONS if small else 1]:
            if (
                filled.split is not None
                and filled.order == self.order
                and filled.settings not in seen.bettered
            ):
                seen.bettered.add(filled.settings)
                self.polisher.best(self.polisher.state(filled.split), looks, known_only=size > _SOME_STATES)
        for split in self.polisher.boldest() if small else ():
            if split.seconds < self.seconds:
                self.polisher.best(self.polisher.state(split), looks, below_s=self.seconds)
        seen.add(self.seconds, self.polisher.floor)

    def _look(self, split: Split) -> Look:
        filled = self._measured(split, self.order)
        fits = not self.filler.over(filled)
        if fits:
            self.found.setdefault(filled.settings, filled)
        return Look(fits, tuple(self._beside(filled, self.order, self.cards)))

    def _measured(self, split: Split, order: tuple[int, ...]) -> Filled:
        settings = self.filler.settings(self.base, order, split)
        return replace(self.filler.made(settings), split=split, order=order)

    def _note(self) -> None:
        best = min(self.found.values(), key=_seconds, default=None)
        if best is not None and best.split is not None:
            self.filler.around[self.order] = best.split

    def _spread(self, beside: Sequence[int], seen: Seen) -> None:
        """With nothing left to the host the cards work on successive micro-batches: splits over as many cards as have
        room for a share. Of a few cards any may be the best to leave out, of many the one with the least room."""
        filler, order = self.filler, self.order
        for used in shares(filler.machine, order, [card.room for card in self.cards]):
            before = len(self.found)
            some, theirs = tuple(order[i] for i in used), [beside[i] for i in used]
            near = filler.around.get(some) if many(len(some), self.blocks) else None
            key = some, tuple(theirs), near
            if key not in seen.at_once:  # the same cards are part of several orders
                made: dict[Settings, Filled] = {}
                seen.at_once[key] = made
                costs = filler.costs(self.base, some, self.goal, at_once=len(some))
                cards = filler.cards(self.base, some, costs)
                self._settle(some, costs, cards, theirs, made, every_card=True)
            self.found.update(seen.at_once[key])
            if len(self.found) > before and len(order) > FEW_CARDS:
                return

    def _settle(
        self,
        order: tuple[int, ...],
        costs: Costs,
        cards: Sequence[Card],
        beside: list[int],
        found: dict[Settings, Filled],
        *,
        free: Collection[int] | None = None,
        every_card: bool = False,
    ) -> bool:
        """Splits with what a graph leaves room for, measures the split's own graph, and again until both agree. Adds
        to `found` each that keeps every margin. Says whether one of them, fitting or not, left nothing to the
        host. Only the movable weights of the layers `free` (None: all) are moved. `every_card`: cards at once, each
        with a share."""
        filler = self.filler
        host_s, away_s, bare_s = costs.on(HOST).whole, costs.away().movable, costs.away().rest
        own = cards
        if free is not None and (fixed := [il for il in filler.all_movable() if il not in free]):
            own = [holding(card, fixed, away_s) for card in cards]
            bare_s = tuple(bare_s[il] + (away_s[il] if il in fixed else 0.0) for il in range(len(bare_s)))
            away_s = tuple(0.0 if il in fixed else away_s[il] for il in range(len(away_s)))
        least = [0] * len(order)
        tried: set[Settings] = set()
        plain = False
        around = filler.around.get(order) if many(len(order), self.blocks) else None
        whole = self.splitter if own is self.cards else Splitter(own, host_s, away_s, bare_s)
        for _ in range(_MOST_STEPS):
            splitter = whole.with_rooms([card.room - beside[i] for i, card in enumerate(own)])
            split = splitter.best(around, _WITHIN, every_card=every_card) if around is not None else None
            split = split or splitter.best(every_card=every_card)
            if split is None:
                break
            if many(len(order), self.blocks):
                around = split
            settings = filler.settings(self.base, order, split)
            if settings in tried:
                break
            tried.add(settings)
            on_cards = not split.host_blocks and not settings.overrides
            plain |= on_cards
            filled = self._measured(split, order)
            over = set(filler.over(filled))
            seen = self._beside(filled, order, cards)
            if not every_card:
                self.polisher.learn(self.polisher.state(split), Look(not over, tuple(seen)))
            if not over:
                # the price of cards at once holds for a split that leaves nothing to the host
                if on_cards if every_card else settings not in found:
                    found[settings] = filled
                if all(seen[i] + _SLACK_BYTES >= beside[i] for i, n in enumerate(split.per_card) if n):
                    break
            elif not every_card and on_cards and len(order) > 1:
                # the copies of a pipeline are for such a split alone
                own = [with_some_away(card) for card in own]
                whole = Splitter(own, host_s, away_s, bare_s)
                continue
            for i, device in enumerate(order):
                if split.per_card[i]:
                    if device in over:
                        least[i] = max(least[i], seen[i], beside[i] + 1)
                    beside[i] = max(least[i], seen[i])
        return plain

    def _beside(self, filled: Filled, order: Sequence[int], cards: Sequence[Card]) -> list[int]:
        """What each card holds besides what the split put there: the graph, the pool, and what lies outside blocks."""
        split = filled.split
        assert split is not None  # noqa: S101 - made by _split
        bounds = list(accumulate(split.per_card, initial=split.host_blocks))
        away, bare, parts = set(split.away), set(split.bare), dict(split.parts)
        last = max(i for i, count in enumerate(split.per_card) if count or i == len(cards) - 1)
        found = []
        for i, device in enumerate(order):
            run = range(bounds[i], bounds[i + 1])
            placed = sum(cards[i].cache_bytes[il] for il in run)
            placed += sum(cards[i].rest_bytes[il] for il in run if il not in bare)
            movable = self.filler.movable_bytes(device)
            whole = (il for il in run if il not in away and il not in bare)
            placed += sum(parts[il].size if il in parts else movable[il] for il in whole)
            placed += cards[i].output_bytes if i == last else 0
            found.append(filled.made.devices[device].peak_bytes - placed)
        return found


def _splitter(cards: Sequence[Card], costs: Costs) -> Splitter:
    return Splitter(cards, costs.on(HOST).whole, costs.away().movable, costs.away().rest)


def _seconds(filled: Filled) -> float:
    return filled.split.seconds if filled.split else 0.0
