"""The cheapest split of a model's layers: how many stay on the host, how many go to each card, and of how many layers
on a card the movable weights, parts of them, or all weights, stay on the host.

A recurrence over the cards in their order. Within a card (solver.share) the movable weights are taken by the seconds
that a byte saves, and what room is left goes to the best change of one layer, on small spaces of any two. That is exact
where layers are of one make and next to it elsewhere: at worst it misses what one tensor saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf

from plan_llama.solver.share import Card, Line, Option

_FEW_STATES = 200  # splits (cards times layers) up to which every length of a card's share is tried
_FEW_RUNS = 800  # runs of layers up to which two layers are changed at once
_ROUNDED = 1 - 1e-9  # sums in another order may differ by as much
_PLAINER = 0.003  # share of the time that may pass, per card, for a command that names the first layers only


def many(cards: int, blocks: int) -> bool:
    """Whether there are too many splits to try every length of each card's share."""
    return cards * blocks > _FEW_STATES


@dataclass(frozen=True, slots=True)
class Split:
    """Blocks on the host, blocks per card in their order, and of these the ones whose movable weights stay on the
    host (`away`), or of some of them the named ones (`parts`); all weights of some of them (`bare`), whose cache alone
    is on the card."""

    host_blocks: int
    per_card: tuple[int, ...]
    away: tuple[int, ...]
    parts: tuple[tuple[int, Option], ...]
    bare: tuple[int, ...]
    seconds: float


# seconds, the last card that is used with where it begins, and by card where it begins for each end of its blocks
_Cheapest = tuple[float, tuple[int, int], list[list[int]]]


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
        runs = self.blocks if len(cards) == 1 else len(cards) * self.blocks**2 // 2
        self.lines: list[Line] = []
        for card in cards:  # equal cards have equal shares
            known = next((line for line in self.lines if line.card == card), None)
            self.lines.append(known or Line(card, away_s, bare_s, twos=runs <= _FEW_RUNS))

    def with_rooms(self, rooms: Sequence[int]) -> Splitter:
        """The same over cards with these rooms."""
        made = copy(self)
        made.cards = [replace(card, room=room) for card, room in zip(self.cards, rooms, strict=True)]
        known: dict[tuple[int, int], Line] = {}
        for line, card in zip(self.lines, made.cards, strict=True):
            known.setdefault((id(line), card.room), line.with_room(card))
        made.lines = [known[id(line), room] for line, room in zip(self.lines, rooms, strict=True)]
        return made

    def best(
        self,
        around: Split | None = None,
        within: int = 0,
        *,
        every_card: bool = False,
        host: int | None = None,
    ) -> Split | None:
        """The cheapest split with at least the output on the last card that is used; None where no card has room for
        the output. `around`: only splits with boundaries `within` so many blocks of that one's; `every_card`: only
        those that leave no card without a block; `host`: only those with so many blocks on the host."""
        found = self._cheapest(inf, around, within, every_card=every_card, host=host)
        return found and self._read(*found)

    def has_cheaper(self, seconds: float) -> bool:
        """Whether a split takes less than that."""
        return self._cheapest(seconds) is not None

    def _cheapest(
        self,
        below: float,
        around: Split | None = None,
        within: int = 0,
        *,
        every_card: bool = False,
        host: int | None = None,
    ) -> _Cheapest | None:
        """Of the splits that take less than `below`."""
        blocks, cards = self.blocks, len(self.cards)
        near = _boundaries(around) if around is not None else None
        # cost of the first b blocks on the host and the first cards; where the last of these begins
        cost = [self.host_sum[b] if host in (None, b) else inf for b in range(blocks + 1)]
        began: list[list[int]] = []
        best, best_at = below, (-1, 0)
        longest = self._longest()
        ahead = self._ahead()
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
                if cost[a] == inf or (cost[a] + ahead[a]) * _ROUNDED >= best:
                    continue
                first, end = max(ends.start, a + 1), min(ends.stop, a + longest[index] + 1)
                for b, seconds in enumerate(line.run_seconds(a, first, end), first):
                    total = cost[a] + seconds
                    if total < following[b]:
                        following[b], begin[b] = total, a
            cost = following
            began.append(begin)
        return None if best_at[0] < 0 else (best, best_at, began)

    def _ahead(self) -> list[float]:
        """What the blocks from the n-th on cost at the least on any card, with all of their weights there."""
        least = [min(seconds) for seconds in zip(*(line.floor_s for line in self.lines), strict=True)]
        return list(accumulate(reversed(least), initial=0.0))[::-1]

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
        parts: list[tuple[int, Option]] = []
        bare: list[int] = []
        end = self.blocks
        slack_s = _PLAINER * seconds
        while True:
            per_card[index] = end - start
            here = self.lines[index].placed(start, end, last=index == last[0], slack_s=slack_s)
            away += here.away
            parts += here.parts
            bare += here.bare
            if index == 0:
                break
            end = start
            start = began[index - 1][end]
            index -= 1
        return Split(
            start,
            tuple(per_card),
            tuple(sorted(away)),
            tuple(sorted(parts, key=_block)),
            tuple(sorted(bare)),
            seconds,
        )


def _block(part: tuple[int, Option]) -> int:
    return part[0]


def _boundaries(split: Split) -> list[int]:
    return list(accumulate(split.per_card, initial=split.host_blocks))
