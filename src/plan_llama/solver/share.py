"""One card's share of a split: what it holds of a run of layers, and what of their movable weights is on the host."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate, combinations_with_replacement
from math import inf
from operator import sub
from typing import NamedTuple

_ALIKE = 0.99  # of what a byte saves: two that differ by less are taken together while the split is sought


@dataclass(frozen=True, slots=True)
class Option:
    """Some of a block's movable weights on a card: their bytes, the seconds that this saves over having them all on the
    host, and the names of those that stay there."""

    size: int
    saved: float
    left: tuple[str, ...] = ()


def worthwhile(options: Iterable[Option]) -> tuple[Option, ...]:
    """By size, each saving more than all that are smaller."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, -o.saved, len(o.left))):
        if option.size and option.saved > (found[-1].saved if found else 0.0):
            found.append(option)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Card:
    """A card's room in bytes, and by block the bytes and seconds of what it would hold; `options` has for each block
    what of its movable weights may be here."""

    room: int
    cache_bytes: Sequence[int]
    rest_bytes: Sequence[int]
    cache_s: Sequence[float]
    rest_s: Sequence[float]
    options: Sequence[tuple[Option, ...]]
    output_bytes: int
    output_s: float


def holding(card: Card, fixed: Collection[int], away_s: Sequence[float]) -> Card:
    """A card on which the movable weights of the blocks `fixed` are not moved by themselves."""
    tops = {il: card.options[il][-1] for il in fixed if card.options[il]}
    blocks = range(len(card.options))
    return replace(
        card,
        rest_bytes=[card.rest_bytes[il] + (tops[il].size if il in tops else 0) for il in blocks],
        rest_s=[card.rest_s[il] + (away_s[il] - tops[il].saved if il in tops else 0.0) for il in blocks],
        options=[() if il in tops else card.options[il] for il in blocks],
    )


def with_some_away(card: Card) -> Card:
    """The card without the choice that leaves nothing of the last layer's movable weights on the host."""
    last = max((il for il, options in enumerate(card.options) if options), default=0)
    return replace(
        card,
        options=[options[:-1] if il == last else options for il, options in enumerate(card.options)],
    )


def nearly_all(cards: Sequence[Card], last: int) -> bool:
    """Whether the cards have room for all but the movable weights of this layer, and can multiply with it."""
    options = cards[0].options
    size = sum(cards[0].cache_bytes) + sum(cards[0].rest_bytes)
    size += sum(choice[-1].size for il, choice in enumerate(options) if choice and il != last)
    whole = not any(choice and choice[-1].left for choice in options)
    return whole and size <= sum(max(0, card.room) for card in cards)


@dataclass(frozen=True, slots=True)
class _Make:
    """Blocks with the same choice: what each of `levels` (the first is nothing) takes and saves, how many of them the
    blocks before the n-th have, and which are of this make."""

    levels: tuple[Option, ...]
    counts: Sequence[int]
    members: Sequence[int]


_State = tuple[int, int]  # a make, and a level that a block of it has


class _Step(NamedTuple):
    """Blocks of a make from one level to a higher one."""

    before: _State
    after: _State
    size: int
    saved: float


def _makes(options: Sequence[tuple[Option, ...]]) -> list[_Make]:
    alike: dict[tuple[Option, ...], list[int]] = {}
    for il, choice in enumerate(options):
        if choice:
            alike.setdefault(choice, []).append(il)
    found = []
    for choice, members in alike.items():
        counts = [0] * (len(options) + 1)
        for il in members:
            counts[il + 1] = 1
        found.append(_Make((Option(0, 0.0), *choice), list(accumulate(counts)), members))
    return found


def _steps(makes: Sequence[_Make]) -> list[_Step]:
    """By what a byte saves, the most first: of each make the levels on the way that always saves most per byte."""
    found = []
    for number, make in enumerate(makes):
        level, levels = 0, make.levels
        while level + 1 < len(levels):
            here = levels[level]

            def gain(after: int, here: Option = here, levels: Sequence[Option] = levels) -> float:
                return (levels[after].saved - here.saved) / (levels[after].size - here.size)

            after = max(range(level + 1, len(levels)), key=lambda n: (gain(n), n))
            size, saved = levels[after].size - here.size, levels[after].saved - here.saved
            found.append(_Step((number, level), (number, after), size, saved))
            level = after
    return sorted(found, key=lambda step: -step.saved / step.size)


def _whole(makes: Sequence[_Make], steps: Sequence[_Step]) -> list[_Step] | None:
    """One step to all of its weights for every make, where those on the way save next to no more per byte."""
    found = [
        _Step((number, 0), (number, len(make.levels) - 1), make.levels[-1].size, make.levels[-1].saved)
        for number, make in enumerate(makes)
    ]
    best = {step.before[0]: step.saved / step.size for step in steps if not step.before[1]}
    if any(step.saved / step.size < _ALIKE * best[step.before[0]] for step in found):
        return None
    return sorted(found, key=lambda step: -step.saved / step.size)


@dataclass(frozen=True, slots=True)
class _Changes:
    """Changes of one block, or of two, by the room that they take: each saves more than all that take less. `states`
    are what the blocks had, `made[i]` the levels that they then have."""

    states: tuple[_State, ...]
    sizes: Sequence[int]
    saved: Sequence[float]
    made: Sequence[tuple[int, ...]]


def _changes(makes: Sequence[_Make], states: tuple[_State, ...]) -> _Changes:
    ways: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for number, level in states:
        levels = makes[number].levels
        ways = [
            (
                size + other.size - levels[level].size,
                saved + other.saved - levels[level].saved,
                (*made, index),
            )
            for size, saved, made in ways
            for index, other in enumerate(levels)
        ]
    best = 0.0
    kept = []
    for size, saved, made in sorted(ways, key=lambda way: (way[0], -way[1])):
        if saved > best * (1 + 1e-9) + 1e-15:
            best = saved
            kept.append((size, saved, made))
    return _Changes(states, [k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept])


@dataclass(frozen=True, slots=True)
class Placed:
    """What of a run of blocks stays on the host."""

    away: list[int]
    parts: list[tuple[int, Option]]
    bare: list[int]


class Line:
    """One card's share of any run of blocks."""

    def __init__(self, card: Card, away_s: Sequence[float], bare_s: Sequence[float], *, twos: bool) -> None:
        self.card, self.twos = card, twos
        self.bytes = list(accumulate(card.cache_bytes, initial=0))
        least = [sum(parts) for parts in zip(card.cache_s, bare_s, away_s, strict=True)]
        self.least_sum = list(accumulate(least, initial=0.0))
        known: dict[tuple[int, float], tuple[Option, ...]] = {}
        rest = []
        for key in zip(card.rest_bytes, map(sub, bare_s, card.rest_s), strict=True):
            if key not in known:
                known[key] = worthwhile([Option(*key)])
            rest.append(known[key])
        self.rest = _makes(rest)
        self.rest_steps = _steps(self.rest)
        self.rest_sum = list(accumulate(card.rest_bytes, initial=0))
        gains = [away - here for away, here in zip(bare_s, card.rest_s, strict=True)]
        self.rest_gain = list(accumulate(gains, initial=0.0))
        self.moved = [seconds > 0 for seconds in away_s]
        self.movable = _makes(card.options)
        self.steps = _steps(self.movable)
        self.changes: dict[tuple[_State, ...], _Changes] = {}
        self.quick = None
        if not twos and (whole := _whole(self.movable, self.steps)) is not None:
            self.quick = [
                (size, saved, self.movable[before[0]].counts, _changes(self.movable, (before,)))
                for before, _, size, saved in whole
            ]
        tops = [choice[-1].saved if choice else 0.0 for choice in card.options]
        self.floor_s = [
            all_away - max(0.0, gain) - top for all_away, gain, top in zip(least, gains, tops, strict=True)
        ]
        self.known: dict[tuple[int, int, int], list[float]] = {}

    def with_room(self, card: Card) -> Line:
        """The same for a card that differs from this one in its room."""
        made = copy(self)
        made.card, made.known = card, {}
        return made

    def _room(self, start: int, end: int, *, last: bool) -> int:
        room = self.card.room - (self.bytes[end] - self.bytes[start])
        return room - self.card.output_bytes if last else room

    def last_seconds(self, start: int) -> float:
        """What all blocks from `start` on cost here, with the output."""
        end = len(self.bytes) - 1
        return self._seconds(start, end, end + 1, self.card.output_bytes, self.card.output_s)[0]

    def run_seconds(self, start: int, first: int, end: int) -> list[float]:
        """What the blocks from `start` on cost here: those before `first`, and so on to those before `end` - 1."""
        key = start, first, end
        if key not in self.known:
            self.known[key] = self._seconds(start, first, end, 0, 0.0)
        return self.known[key]

    def _seconds(self, start: int, first: int, end: int, taken: int, more_s: float) -> list[float]:
        """With as many of their weights as there is room for: the movable ones once all others have theirs."""
        free = self.card.room + self.bytes[start] - taken
        least, rest_bytes, gain = self.least_sum[start], self.rest_sum[start], self.rest_gain[start]
        quick = [(*row, row[2][start]) for row in self.quick] if self.quick is not None else None
        single = quick[0] if quick is not None and len(quick) == 1 else None
        found = []
        for last in range(first, end):
            room = free - self.bytes[last]
            if room < 0:
                found += [inf] * (end - last)
                break
            total = self.least_sum[last] - least + more_s
            rest = self.rest_sum[last] - rest_bytes
            if rest > room:
                for step in self.rest_steps:
                    counts = self.rest[step.before[0]].counts
                    count = min(counts[last] - counts[start], room // step.size)
                    room -= count * step.size
                    total -= count * step.saved
            else:
                room -= rest
                total -= self.rest_gain[last] - gain
                if single is not None:  # as _quickly
                    size, saved, counts, parts, before = single
                    count = counts[last] - before
                    if room >= count * size:
                        total -= count * saved
                    else:
                        count = room // size
                        at = bisect_right(parts.sizes, room - count * size)
                        total -= count * saved + (parts.saved[at - 1] if at else 0.0)
                elif quick is None:
                    total -= self._gained(start, last, room)
                else:
                    total -= _quickly(quick, last, room)
            found.append(total)
        return found

    def _gained(self, start: int, end: int, room: int) -> float:
        """What the movable weights that are here save, with the best use of the room that is left."""
        taken = _taken(self.movable, self.steps, start, end, room)
        if self.twos:
            change = self._change(taken, twos=True)
            return taken.saved + (change[0] if change else 0.0)
        best, room = 0.0, taken.room  # as _change, of which this is the most frequent part
        for state, count in taken.blocks.items():
            if count:
                changes = self.changes.get((state,)) or self._changed((state,))
                at = bisect_right(changes.sizes, room)
                if at and changes.saved[at - 1] > best:
                    best = changes.saved[at - 1]
        return taken.saved + best

    def _change(self, taken: _Taken, *, twos: bool) -> tuple[float, _Changes, int] | None:
        """The best use of the room that is left: a block, or two, that change their levels."""
        best: tuple[float, _Changes, int] | None = None
        states = [state for state, count in taken.blocks.items() if count]
        ones: list[tuple[_State, ...]] = [(state,) for state in states]
        pairs = combinations_with_replacement(states, 2) if twos else ()
        for some in (*ones, *pairs):
            if len(some) == 2 and some[0] == some[1] and taken.blocks[some[0]] < 2:
                continue
            changes = self.changes.get(some) or self._changed(some)
            at = bisect_right(changes.sizes, taken.room) - 1
            if at >= 0 and (best is None or changes.saved[at] > best[0]):
                best = changes.saved[at], changes, at
        return best

    def _changed(self, states: tuple[_State, ...]) -> _Changes:
        made = self.changes[states] = _changes(self.movable, states)
        return made

    def placed(self, start: int, end: int, *, last: bool, slack_s: float) -> Placed:
        """What of the run stays on the host: of each make the first blocks; or the first of all, with the last where
        that is faster, without parts or with one, where that loses no more than `slack_s`."""
        room = self._room(start, end, last=last)
        rest = self.rest_sum[end] - self.rest_sum[start]
        run = range(start, end)
        if rest > room:
            levels = _levels(self.rest, _taken(self.rest, self.rest_steps, start, end, room).blocks, run)
            bare = [il for il in run if self.card.rest_bytes[il] and not levels.get(il, (0, 0))[1]]
            return Placed([il for il in run if self.moved[il]], [], bare)
        taken = _taken(self.movable, self.steps, start, end, room - rest)
        plain = dict(taken.blocks)
        for number, make in enumerate(self.movable):  # whole steps only, to the level that saves most
            top = len(make.levels) - 1
            for level in range(1, top):
                plain[number, 0] = plain.get((number, 0), 0) + plain.pop((number, level), 0)
        saved = taken.saved
        blocks = dict(taken.blocks)
        change, other = (self._change(taken, twos=twos) for twos in (False, True))
        if other is not None and other[0] - (change[0] if change else 0.0) > slack_s:
            change = other
        if change is not None:
            gain, changes, at = change
            saved += gain
            for state, level in zip(changes.states, changes.made[at], strict=True):
                blocks[state] -= 1
                blocks[state[0], level] = blocks.get((state[0], level), 0) + 1
        firsts = [self._first(run, room - rest, with_end=end) for end in (False, True)]
        first = max(firsts, key=self._saved)
        for simple in (first, self._with_part(first, room - rest), _levels(self.movable, plain, run)):
            if saved - self._saved(simple) <= slack_s:
                return self._named(run, simple)
        return self._named(run, _levels(self.movable, blocks, run))

    def _first(self, run: range, room: int, *, with_end: bool) -> dict[int, _State]:
        """Without parts, the first blocks of the run left on the host so that the others' weights fit; `with_end`:
        before these the last one of all."""
        states = {
            il: (number, len(make.levels) - 1)
            for number, make in enumerate(self.movable)
            for il in make.members
            if il in run
        }
        size = sum(self.movable[number].levels[level].size for number, level in states.values())
        order = sorted(states)
        if with_end and order and order[-1] == max(il for make in self.movable for il in make.members):
            order.insert(0, order.pop())
        for il in order:
            if size <= room:
                break
            number, level = states[il]
            size -= self.movable[number].levels[level].size
            states[il] = number, 0
        return states

    def _with_part(self, states: Mapping[int, _State], room: int) -> dict[int, _State]:
        """With a part of the last block that is left on the host, if there is room for one."""
        made = dict(states)
        room -= sum(self.movable[number].levels[level].size for number, level in states.values())
        away = [il for il, (_, level) in states.items() if not level]
        if away:
            last = max(away[:-1] if len(away) > 1 and max(away) == max(states) else away)
            number = states[last][0]
            sizes = [option.size for option in self.movable[number].levels]
            made[last] = number, bisect_right(sizes, room) - 1
        return made

    def _saved(self, states: Mapping[int, _State]) -> float:
        return sum(self.movable[number].levels[level].saved for number, level in states.values())

    def _named(self, run: range, states: Mapping[int, _State]) -> Placed:
        placed = Placed([il for il in run if self.moved[il] and il not in states], [], [])
        for il, (number, level) in states.items():
            option = self.movable[number].levels[level]
            if not level:
                placed.away.append(il)
            elif option.left:
                placed.parts.append((il, option))
        return placed


class _Taken(NamedTuple):
    """Blocks by make and level, what that saves, and the room that is left."""

    blocks: dict[_State, int]
    saved: float
    room: int


def _quickly(makes: Sequence[tuple[int, float, Sequence[int], _Changes, int]], end: int, room: int) -> float:
    """What the movable weights of a run save where every make has one step, and one block has part of it."""
    saved, best, short = 0.0, 0.0, []
    for size, gain, counts, parts, before in makes:
        count = counts[end] - before
        if room < count * size:
            count = room // size
            short.append(parts)
        room -= count * size
        saved += count * gain
    for parts in short:
        at = bisect_right(parts.sizes, room)
        if at and parts.saved[at - 1] > best:
            best = parts.saved[at - 1]
    return saved + best


def _taken(makes: Sequence[_Make], steps: Sequence[_Step], start: int, end: int, room: int) -> _Taken:
    """The blocks of a run raised step by step, as long as there is room."""
    blocks = {(number, 0): make.counts[end] - make.counts[start] for number, make in enumerate(makes)}
    saved, room = 0.0, max(0, room)  # a card that is left empty may have none
    for before, after, size, gain in steps:
        count = blocks.get(before)
        if count:
            if count * size > room and not (count := room // size):
                continue
            room -= count * size
            saved += count * gain
            blocks[before] -= count
            blocks[after] = count
    return _Taken(blocks, saved, room)


def _levels(makes: Sequence[_Make], blocks: dict[_State, int], run: range) -> dict[int, _State]:
    """Which block of a run has which level: the last ones the highest."""
    found: dict[int, _State] = {}
    for number, make in enumerate(makes):
        members = [il for il in make.members if il in run]
        for level in range(len(make.levels)):
            for _ in range(blocks.get((number, level), 0)):
                found[members.pop(0)] = number, level
    return found
