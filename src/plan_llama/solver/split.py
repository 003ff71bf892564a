"""The cheapest split of a model's layers: how many stay on the host, how many go to each card, and of how many layers
on a card the movable weights, or all weights, stay on the host.

Exact for its prices and room: a recurrence over the cards in their order. Within a card weights are taken by the
seconds that a byte saves; weights of one size leave nothing to choose, those of several sizes less than one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

_PLAINER = 0.003  # share of the time that may pass, per card, for a command that names the first layers only
_FEW_STATES = 200  # splits (cards times layers) up to which every length of a card's share is tried


def many(cards: int, blocks: int) -> bool:
    """Whether there are too many splits to try every length of each card's share."""
    return cards * blocks > _FEW_STATES


@dataclass(frozen=True, slots=True)
class Card:
    """A card's room in bytes, and by block the bytes and seconds of what it would hold."""

    room: int
    cache_bytes: Sequence[int]
    rest_bytes: Sequence[int]
    movable_bytes: Sequence[int]
    cache_s: Sequence[float]
    rest_s: Sequence[float]
    movable_s: Sequence[float]
    output_bytes: int
    output_s: float


@dataclass(frozen=True, slots=True)
class Split:
    """Blocks on the host, blocks per card in their order, and of these the ones whose movable weights stay on the
    host (`away`); all weights of some of them (`bare`), whose cache alone is on the card."""

    host_blocks: int
    per_card: tuple[int, ...]
    away: tuple[int, ...]
    bare: tuple[int, ...]
    seconds: float


class Splitter:
    """The recurrence over one list of cards. `host_s` is a whole block on the host; `away_s` its movable weights there
    and `bare_s` its others, while its cache is on a card."""

    def __init__(
        self,
        cards: Sequence[Card],
        host_s: Sequence[float],
        away_s: Sequence[float],
        bare_s: Sequence[float],
    ) -> None:
        self.cards, self.blocks = cards, len(host_s)
        self.host_sum = list(accumulate(host_s, initial=0.0))
        self.lines: list[_Line] = []
        for card in cards:  # equal cards have equal shares
            known = next((line for line in self.lines if line.card == card), None)
            self.lines.append(known or _Line(card, away_s, bare_s))

    def best(self, around: Split | None = None, within: int = 0, *, every_card: bool = False) -> Split | None:
        """The cheapest split with at least the output on the last card that is used; None where no card has room for
        the output. `around`: only splits with boundaries `within` so many blocks of that one's; `every_card`: only
        those that leave no card without a block."""
        blocks, cards = self.blocks, len(self.cards)
        near = _boundaries(around) if around is not None else None
        # cost of the first b blocks on the host and the first cards; where the last of these begins
        cost = [self.host_sum[b] for b in range(blocks + 1)]
        began: list[list[int]] = []
        best, best_at = inf, (-1, 0)
        longest = self._longest()
        for index, line in enumerate(self.lines):
            starts = ends = range(blocks + 1)
            if near is not None:
                starts = range(max(0, near[index] - within), min(blocks, near[index] + within) + 1)
                ends = range(max(0, near[index + 1] - within), min(blocks, near[index + 1] + within) + 1)
            for a in starts:  # the last card that is used
                if cost[a] < inf and (not every_card or (index == cards - 1 and a < blocks)):
                    total = cost[a] + line.last_seconds(a)
                    if total < best:
                        best, best_at = total, (index, a)
            if index == cards - 1:
                break
            following = [inf] * (blocks + 1) if every_card else list(cost)
            begin = list(range(blocks + 1))  # an empty card
            for a in starts:
                if cost[a] == inf:
                    continue
                first, end = max(ends.start, a + 1), min(ends.stop, a + longest[index] + 1)
                for b, seconds in enumerate(line.run_seconds(a, first, end), first):
                    total = cost[a] + seconds
                    if total < following[b]:
                        following[b], begin[b] = total, a
            cost = following
            began.append(begin)
        if best == inf:
            return None
        return self._read(best, best_at, began)

    def _longest(self) -> list[int]:
        """The most blocks that are tried on each card: of many cards about twice a fair share."""
        blocks, cards = self.blocks, len(self.cards)
        if not many(cards, blocks):
            return [blocks] * cards
        room = sum(max(0, card.room) for card in self.cards) or 1
        return [2 + 2 * blocks * max(0, card.room) // room for card in self.cards]

    def _read(self, seconds: float, last: tuple[int, int], began: Sequence[Sequence[int]]) -> Split:
        index, start = last
        per_card = [0] * len(self.cards)
        away: list[int] = []
        bare: list[int] = []
        end = self.blocks
        slack_s = _PLAINER * seconds
        while True:
            per_card[index] = end - start
            for found, those in zip(
                (away, bare),
                self.lines[index].away(start, end, last=index == last[0], slack_s=slack_s),
                strict=True,
            ):
                found += those
            if index == 0:
                break
            end = start
            start = began[index - 1][end]
            index -= 1
        return Split(start, tuple(per_card), tuple(sorted(away)), tuple(sorted(bare)), seconds)


def _boundaries(split: Split) -> list[int]:
    return list(accumulate(split.per_card, initial=split.host_blocks))


@dataclass(frozen=True, slots=True)
class _Make:
    """Weights of one size that save the same: how many of them the blocks before the n-th have, and which have some."""

    size: int
    saved: float
    counts: Sequence[int]
    members: Sequence[int]


def _makes(sizes: Sequence[int], here: Sequence[float], away: Sequence[float]) -> list[_Make]:
    """By what a byte saves, the most first; what costs less on the host is left there."""
    alike: dict[tuple[int, float], list[int]] = {}
    for il, size in enumerate(sizes):
        if size and away[il] > here[il]:
            alike.setdefault((size, away[il] - here[il]), []).append(il)
    found = []
    for (size, saved), members in sorted(alike.items(), key=lambda item: -item[0][1] / item[0][0]):
        counts = [0] * (len(sizes) + 1)
        for il in members:
            counts[il + 1] = 1
        counts = list(accumulate(counts))
        found.append(_Make(size, saved, counts, members))
    return found


class _Line:
    """One card's share of any run of blocks."""

    def __init__(self, card: Card, away_s: Sequence[float], bare_s: Sequence[float]) -> None:
        self.card = card
        self.bytes = list(accumulate(card.cache_bytes, initial=0))
        least = [sum(parts) for parts in zip(card.cache_s, bare_s, away_s, strict=True)]
        self.least_sum = list(accumulate(least, initial=0.0))
        self.rest = _makes(card.rest_bytes, card.rest_s, bare_s)
        self.rest_sum = list(accumulate(card.rest_bytes, initial=0))
        gains = [away - here for away, here in zip(bare_s, card.rest_s, strict=True)]
        self.rest_gain = list(accumulate(gains, initial=0.0))
        self.movable = _makes(card.movable_bytes, card.movable_s, away_s)
        self.movable_gain = [away - here for away, here in zip(away_s, card.movable_s, strict=True)]
        self.known: dict[tuple[int, int, int], list[float]] = {}

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
        rests = [(make.counts, make.counts[start], make.size, make.saved) for make in self.rest]
        movables = [(make.counts, make.counts[start], make.size, make.saved) for make in self.movable]
        least, rest_bytes, gain = self.least_sum[start], self.rest_sum[start], self.rest_gain[start]
        found = []
        for last in range(first, end):
            room = free - self.bytes[last]
            if room < 0:
                found += [inf] * (end - last)
                break
            total = self.least_sum[last] - least + more_s
            rest = self.rest_sum[last] - rest_bytes
            makes = rests
            if rest <= room:
                total -= self.rest_gain[last] - gain
                makes, room = movables, room - rest
            for counts, before, size, saved in makes:
                count = counts[last] - before
                if count:
                    if count * size > room:
                        count = room // size
                    room -= count * size
                    total -= count * saved
            found.append(total)
        return found

    def away(self, start: int, end: int, *, last: bool, slack_s: float) -> tuple[list[int], list[int]]:
        """The blocks of the run whose movable weights stay on the host, and those of which all do: of each make the
        first ones, or the first of all where that loses no more than `slack_s`."""
        room = self._room(start, end, last=last)
        rest = self.rest_sum[end] - self.rest_sum[start]
        run = range(start, end)
        movable = [il for il in run if self.card.movable_bytes[il]]
        if rest > room:
            here = self._taken(self.rest, run, room)
            return movable, [il for il in run if self.card.rest_bytes[il] and il not in here]
        here = self._taken(self.movable, run, room - rest)
        chosen = [il for il in movable if il not in here]
        first = self._first(movable, room - rest)
        lost = sum(self.movable_gain[il] for il in first) - sum(self.movable_gain[il] for il in chosen)
        return first if lost <= slack_s else chosen, []

    def _first(self, movable: Sequence[int], room: int) -> list[int]:
        """The first layers of a run whose movable weights have to stay on the host so that the others' fit."""
        size = sum(self.card.movable_bytes[il] for il in movable)
        count = 0
        while size > room:
            size -= self.card.movable_bytes[movable[count]]
            count += 1
        return list(movable[:count])

    def _taken(self, makes: Sequence[_Make], run: range, room: int) -> set[int]:
        here: set[int] = set()
        for make in makes:
            count = min(make.counts[run.stop] - make.counts[run.start], room // make.size)
            if count:
                room -= count * make.size
                here.update([il for il in make.members if il in run][-count:])
        return here
