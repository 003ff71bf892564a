"""Changes of a split by one layer or matrix, or two, each measured: they find room that the arithmetic leaves unused.

How large a graph is depends on which layers have what on the host. The arithmetic over whole runs knows that for the
graphs that were measured; here every change is one more graph, and what was seen of graphs of a kind decides which
changes are worth measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations_with_replacement, permutations
from typing import TypeVar

from plan_llama.solver.share import Card, Option
from plan_llama.solver.split import Split, Splitter

_GAIN = 1e-7  # of the time, that a change brings at least
_FEW_BLOCKS = 3  # alike on a card, up to which every order of their levels is tried
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class State:
    """A split by blocks: those on the host, those on each card, and of each one on a card how much of it is there: 0 is
    its cache alone, 1 all but its movable weights, from 2 on the card's options."""

    host: int
    per_card: tuple[int, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """What a block has on a card: bytes, the seconds it takes so, and what of it stays on the host."""

    size: int
    seconds: float
    left: tuple[str, ...]
    option: Option | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What measuring a split has shown: whether it keeps every margin, and what each card holds beside the weights and
    the cache that the split put there."""

    fits: bool
    beside: tuple[int, ...]


_Priced = tuple[State, float, tuple[int, ...]]
_BARE, _AWAY = ("*",), ("+",)
_Kind = tuple[object, ...]
_MOST_WAYS = 600  # changes of one state that are tried
_UNSEEN_BYTES = 4 << 20  # by which a graph of a kind that was not measured may be smaller than all that were


@dataclass(frozen=True, slots=True)
class _Change:
    """A block of a card and a make from one level to another; or, with card -1, one over a boundary: from a share
    (`make`) to another (`before`), where it has the level `after`. Share 0 is the host's, the cards follow."""

    card: int
    make: int
    before: int
    after: int


def _fits(held: int, one: int, two: int, room: int) -> bool:
    return held + one + two <= room or one + two <= 0


class Polisher:
    """Changes of splits over one list of cards."""

    def __init__(
        self,
        cards: Sequence[Card],
        host_s: Sequence[float],
        away_s: Sequence[float],
        bare_s: Sequence[float],
        look: Callable[[Split], Look],
        *,
        unseen: bool = False,
    ) -> None:
        """`unseen`: graphs of kinds that were not measured are tried where they may be a little smaller than others."""
        self.unseen = unseen
        self.cards, self.host_s, self.blocks = cards, host_s, len(host_s)
        self.look_at, self.away_s, self.bare_s = look, away_s, bare_s
        self.levels = [_levels(card, away_s, bare_s) for card in cards]
        self.seen: dict[State, Look] = {}
        self.kinds: dict[_Kind, tuple[int, ...]] = {}
        self.floor: list[int | None] = [None] * len(cards)

    # -- states -------------------------------------------------------------------------------------------------------

    def state(self, split: Split) -> State:
        """A split by blocks."""
        bare, away, parts = set(split.bare), set(split.away), dict(split.parts)
        levels = []
        for card, il in self._placed(split.host_blocks, split.per_card):
            own = self.levels[card][il]
            if il in bare:
                levels.append(0)
            elif il in away or len(own) <= 2:
                levels.append(1)
            else:
                option = parts.get(il)
                levels.append(
                    next(
                        (
                            k
                            for k, level in enumerate(own)
                            if option and level.option and level.left == option.left
                        ),
                        len(own) - 1,
                    )
                )
        return State(split.host_blocks, split.per_card, tuple(levels))

    def split(self, state: State) -> Split:
        """The same as a split."""
        away, bare, parts = [], [], []
        for (card, il), k in zip(self._placed(state.host, state.per_card), state.levels, strict=True):
            level = self.levels[card][il][k]
            if k == 0:
                bare.append(il)
            elif k == 1 and len(self.levels[card][il]) > 2:
                away.append(il)
            elif level.option is not None and level.option.left:
                parts.append((il, level.option))
        return Split(
            state.host,
            state.per_card,
            tuple(away),
            tuple(parts),
            tuple(bare),
            self._whole_s(self._priced(state)),
        )

    def _placed(self, host: int, per_card: Sequence[int]) -> Iterator[tuple[int, int]]:
        il = host
        for card, count in enumerate(per_card):
            for _ in range(count):
                yield card, il
                il += 1

    def _kind(self, state: State) -> _Kind:
        """What the size of its graph depends on, as far as that is foreseen."""
        used = tuple(min(count, 2) for count in state.per_card)
        lefts: list[set[object]] = [set() for _ in self.cards]
        before = -1
        end = self.blocks - 1
        for (card, il), k in zip(self._placed(state.host, state.per_card), state.levels, strict=True):
            level = self.levels[card][il][k]
            where = "last" if il == end else "first" if card != before else ""
            if level.left:
                lefts[card].add((where, level.left))
            before = card
        return (bool(state.host), used, *map(frozenset, lefts))

    # -- measuring ----------------------------------------------------------------------------------------------------

    def look(self, state: State) -> Look:
        """Measures it, once."""
        if state not in self.seen:
            self.learn(state, self.look_at(self.split(state)))
        return self.seen[state]

    def sound(self) -> None:
        """Measures the splits with the smallest graphs: shares by room, everything on the cards; all but what can be
        moved of the last block; and all but a part of the first block of a card."""
        rooms = [max(1, card.room) for card in self.cards]
        bounds = [round(self.blocks * part / sum(rooms)) for part in accumulate(rooms)]
        per_card = tuple(end - start for start, end in zip((0, *bounds), bounds, strict=False))
        whole = tuple(len(self.levels[card][il]) - 1 for card, il in self._placed(0, per_card))
        firsts = {start for start, count in zip((0, *bounds), per_card, strict=False) if count}
        lacking = ((n, max(1, whole[n] - 1)) for n in sorted(firsts))
        for n, level in ((0, whole[0]), (self.blocks - 1, 1), *lacking):
            self.look(State(0, per_card, _with(whole, n, level)))

    def least(self) -> list[int]:
        """The least that each card may hold beside its share: what was seen."""
        return [max(0, (size or 0) - self.unseen * _UNSEEN_BYTES) for size in self.floor]

    def boldest(self) -> list[Split]:
        """For every number of blocks on the host and on each card what is cheapest beside the smallest graph seen, so
        that it may not fit; the cheapest first."""
        least = self.least()
        roomy = [replace(card, room=card.room - least[i]) for i, card in enumerate(self.cards)]
        lines = Splitter(roomy, self.host_s, self.away_s, self.bare_s).lines
        found = []
        for bounds in combinations_with_replacement(range(self.blocks + 1), len(self.cards)):
            ends = (*bounds[1:], self.blocks)
            per_card = tuple(end - start for start, end in zip(bounds, ends, strict=True))
            last = _last(per_card)
            held = [
                line.placed(start, end, last=i == last, slack_s=0.0)
                for i, (line, start, end) in enumerate(zip(lines, bounds, ends, strict=True))
            ]
            split = Split(
                bounds[0],
                per_card,
                tuple(il for here in held for il in here.away),
                tuple(part for here in held for part in here.parts),
                tuple(il for here in held for il in here.bare),
                0.0,
            )
            state = self.state(split)
            if self._within(self._priced(state), [card.room for card in roomy]):
                found.append(self.split(state))
        return sorted(found, key=lambda split: split.seconds)

    def learn(self, state: State, look: Look) -> None:
        """Remembers what a split's graph takes."""
        self.seen[state] = look
        kind = self._kind(state)
        before = self.kinds.get(kind, look.beside)
        self.kinds[kind] = tuple(map(min, before, look.beside))
        for i, count in enumerate(state.per_card):
            if count:
                known = self.floor[i]
                self.floor[i] = look.beside[i] if known is None else min(known, look.beside[i])

    def _may_fit(self, state: State, *, known_only: bool) -> bool:
        beside = self.kinds.get(self._kind(state))
        if beside is None:
            return not known_only
        room = [card.room - size for card, size in zip(self.cards, beside, strict=True)]
        return self._within(self._priced(state), room)

    # -- changes ------------------------------------------------------------------------------------------------------

    def best(
        self, start: State, looks: int, *, known_only: bool = False, below_s: float | None = None
    ) -> State:
        """The best that is reached from a state by changes that each make it faster, with so many measured. `below_s`:
        the state is not known to fit, and what fits shall be faster than that. `known_only`: only graphs of kinds that
        were seen are measured."""
        best = start
        limit_s = self._whole_s(self._priced(start)) if below_s is None else below_s
        first = (start,) if below_s is not None else ()
        while looks > 0:
            better = None
            for state in (*first, *self._improving(best, limit_s)):
                for arranged in self._arranged(state):
                    if not self._may_fit(arranged, known_only=known_only):
                        continue
                    looks -= arranged not in self.seen
                    if self.look(arranged).fits:
                        better = arranged
                        break
                    if looks <= 0:
                        return best
                if better is not None:
                    break
            if better is None:
                break
            best, first = better, ()
            limit_s = self._whole_s(self._priced(best))
        return best

    def _improving(self, start: State, limit_s: float) -> Iterator[State]:
        """The states one change or two away that are faster by their prices, and for which there is room beside the
        smallest graph that was seen; about the fastest first."""
        base = self._priced(start)
        limit = limit_s * (1 - _GAIN)
        least = base[1] + limit - self._whole_s(base)
        room = [card.room - floor for card, floor in zip(self.cards, self.least(), strict=True)]
        ones = sorted(self._changes(base), key=lambda one: one[0])
        ways: list[tuple[float, tuple[_Change, ...]]] = []
        for i, (seconds, held, change) in enumerate(ones):
            if base[1] + seconds < least:
                ways.append((seconds, (change,)))
            for more_s, more, other in ones[i:]:
                if base[1] + seconds + more_s >= least:
                    break
                if all(map(_fits, base[2], held, more, room)):
                    ways.append((seconds + more_s, (other, change)))
        ways.sort(key=lambda way: way[0])
        known = {start}
        for _, changes in ways[:_MOST_WAYS]:
            state: State | None = start
            for change in changes:
                state = self._after(state, change) if state is not None else None
            if state is None or state in known:
                continue
            known.add(state)
            priced = self._priced(state)
            if self._whole_s(priced) < limit and self._within(priced, room):
                yield state

    def _changes(self, priced: _Priced) -> Iterator[tuple[float, tuple[int, ...], _Change]]:
        """One block on a card at another level, or one over a boundary; with seconds and bytes by card."""
        state, _, _ = priced
        nothing = (0,) * len(self.cards)
        alike: set[object] = set()
        for (card, il), k in zip(self._placed(state.host, state.per_card), state.levels, strict=True):
            own = self.levels[card][il]
            if (card, id(own), k) in alike:
                continue
            alike.add((card, id(own), k))
            for other, level in enumerate(own):
                if other != k:
                    held = _with(nothing, card, level.size - own[k].size)
                    yield level.seconds - own[k].seconds, held, _Change(card, id(own), k, other)
        counts = (state.host, *state.per_card)
        bounds = list(accumulate(counts))
        for left in range(len(counts) - 1):
            for right in range(left + 1, len(counts)):
                if counts[left]:
                    yield from self._shifts(state, left, right, bounds[left] - 1)
                if counts[right]:
                    yield from self._shifts(state, right, left, bounds[left])
                    break  # only empty ones are passed

    def _shifts(
        self, state: State, out: int, into: int, il: int
    ) -> Iterator[tuple[float, tuple[int, ...], _Change]]:
        seconds, held = -self.host_s[il], (0,) * len(self.cards)
        if out:
            level = self.levels[out - 1][il][state.levels[il - state.host]]
            seconds, held = -level.seconds, _with(held, out - 1, -level.size)
        if not into:
            yield seconds + self.host_s[il], held, _Change(-1, out, into, 0)
            return
        for k, level in enumerate(self.levels[into - 1][il]):
            yield seconds + level.seconds, _with(held, into - 1, level.size), _Change(-1, out, into, k)

    def _after(self, state: State, change: _Change) -> State | None:
        """The state with a change; None where another one before it left no block for it."""
        if change.card >= 0:
            for n, ((card, il), k) in enumerate(
                zip(self._placed(state.host, state.per_card), state.levels, strict=True)
            ):
                if card == change.card and k == change.before and id(self.levels[card][il]) == change.make:
                    return State(state.host, state.per_card, _with(state.levels, n, change.after))
            return None
        out, into = change.make, change.before
        counts = [state.host, *state.per_card]
        if not counts[out] or any(counts[min(out, into) + 1 : max(out, into)]):
            return None
        il = sum(counts[: out + 1]) - 1 if out < into else sum(counts[:out])
        if into and change.after >= len(self.levels[into - 1][il]):
            return None
        at = max(il - state.host, 0)
        counts[out] -= 1
        counts[into] += 1
        levels = (*state.levels[:at], *((change.after,) if into else ()), *state.levels[at + bool(out) :])
        return State(counts[0], tuple(counts[1:]), levels)

    def _priced(self, state: State) -> _Priced:
        """A state with the seconds and the bytes by card of its blocks."""
        seconds, held = sum(self.host_s[: state.host]), [0] * len(self.cards)
        for (card, il), k in zip(self._placed(state.host, state.per_card), state.levels, strict=True):
            seconds += self.levels[card][il][k].seconds
            held[card] += self.levels[card][il][k].size
        return state, seconds, tuple(held)

    def _whole_s(self, priced: _Priced) -> float:
        return priced[1] + self.cards[_last(priced[0].per_card)].output_s

    def _within(self, priced: _Priced, room: Sequence[int]) -> bool:
        state, _, held = priced
        last = _last(state.per_card)
        return all(
            not count or held[i] + (self.cards[i].output_bytes if i == last else 0) <= room[i]
            for i, count in enumerate(state.per_card)
        )

    def _arranged(self, state: State) -> Iterator[State]:
        """The state with the levels of blocks that are alike in other orders, which cost the same."""
        groups: dict[object, list[int]] = {}
        for n, (card, il) in enumerate(self._placed(state.host, state.per_card)):
            groups.setdefault((card, id(self.levels[card][il])), []).append(n)
        members = list(groups.values())
        ways = [list(_orders([state.levels[n] for n in group])) for group in members]
        made = {state.levels: None}
        for number in range(max(map(len, ways), default=0)):
            levels = list(state.levels)
            for group, way in zip(members, ways, strict=True):
                for n, k in zip(group, way[min(number, len(way) - 1)], strict=True):
                    levels[n] = k
            made[tuple(levels)] = None
        for arranged in made:
            yield State(state.host, state.per_card, arranged)


def _orders(levels: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Orders of levels: the lowest first, the lowest last, one of the lowest last; of few ones every order."""
    low = sorted(levels)
    ways = [tuple(low), tuple(low[::-1]), (*low[1:], low[0])]
    if len(low) <= _FEW_BLOCKS:
        ways += permutations(low)
    yield from dict.fromkeys(ways)


def _last(per_card: Sequence[int]) -> int:
    """The card that holds the output."""
    return max((i for i, count in enumerate(per_card) if count), default=0)


def _with(values: tuple[_T, ...], at: int, value: _T) -> tuple[_T, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _levels(card: Card, away_s: Sequence[float], bare_s: Sequence[float]) -> list[tuple[Level, ...]]:
    """By block; blocks that are alike have the same one."""
    known: dict[object, tuple[Level, ...]] = {}
    found = []
    for il, options in enumerate(card.options):
        key = (
            *(card.cache_bytes[il], card.rest_bytes[il], card.cache_s[il], card.rest_s[il]),
            *(away_s[il], bare_s[il], options),
        )
        if key not in known:
            cache, rest = card.cache_bytes[il], card.cache_bytes[il] + card.rest_bytes[il]
            own_s = card.cache_s[il] + card.rest_s[il] + away_s[il]
            known[key] = (
                Level(cache, card.cache_s[il] + bare_s[il] + away_s[il], _BARE),
                Level(rest, own_s, _AWAY if away_s[il] else ()),
                *(Level(rest + o.size, own_s - o.saved, o.left, o) for o in options),
            )
        found.append(known[key])
    return found
