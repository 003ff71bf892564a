"""The allocations of one graph on one backend, gone through again for other batches.

A tape holds the order in which blocks are taken and given back, and each size as a polynomial of the batch's variables.
Going through it again costs a fraction of building the graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from plan_llama.memory.quantity import Polynomial, Size, evaluate, terms_of

_ENDLESS = 1 << 62
TOKENS, CELLS, WINDOW = 0, 1, 2  # the batch's variables, by number
MOST_ROUNDS = 6  # of equal layers; what their allocations come to mostly repeats itself after one or two
BATCH = 3  # from here on: how many layers are left out in one place

_NEAR = 9  # tenths of the peak that count as near it

# (block, number of its size) takes memory; (-1 - block, 0) gives it back; (block, -1 - number) keeps only that size.
# In a loop (-1 - block, 1) gives back a constant as large as this block, of those held for the loop's layers.
Step = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Passed:
    """One run over a backend's steps: its size, the step that decided it, the last step that came near it, (hashed)
    what was decided up to there, and the variables of which more equal layers would change more than what they hold:
    those where allocations take turns from layer to layer, and those where no state came again yet."""

    size_bytes: int
    peak_step: int
    near_step: int
    decisions: int
    in_turns: frozenset[int] = frozenset()
    unsettled: frozenset[int] = frozenset()


def few(count: int) -> int:
    """As good as so many rounds where the allocator finds room in turns, every second time."""
    return count if count <= MOST_ROUNDS else MOST_ROUNDS - (count - MOST_ROUNDS) % 2


@dataclass(frozen=True, slots=True)
class _Loop:
    """Steps that are gone through again after step number `after`, as often as a variable says.

    `own` are the blocks that they take, `carried` those of them that the next round gives back; a block of the round
    before has its number plus the number of all blocks.
    """

    after: int
    variable: int
    steps: tuple[Step, ...]
    own: tuple[int, ...]
    carried: tuple[int, ...]
    held: tuple[int, ...]  # where the constants of its layers begin, if they have any, and one layer's

    def state(self, offsets: list[int], lengths: list[int], where: list[int]) -> object:
        """All that the next round depends on."""
        return offsets[:], lengths[:], [where[block] for block in self.carried]


class Tape:
    """The steps of one backend."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.steps: list[Step] = []
        self.sizes: list[Polynomial | int] = []
        # steps that give back what all layers that are left out hold: the allocations of each depend on how many there
        # were before it
        self.held: list[int] = []
        self._numbers: dict[object, int] = {}
        # the same by the identity of sizes, which are kept: so none other comes to have it
        self._known: dict[int, tuple[Size, int]] = {}
        self._blocks = 0
        self._sections: dict[int, int] = {}  # where the parts of the graph begin, by mark
        self._loops: list[_Loop] = []
        # sizes that are as many times another as a variable says
        self._multiples: dict[int, tuple[int, int]] = {}

    def take(self, size: Size) -> int:
        """A new block."""
        block = self._blocks
        self._blocks = block + 1
        known = self._known.get(id(size)) or self._numbered(size)
        self.steps.append((block, known[1]))
        return block

    def give_back(self, block: int, *, held: bool = False) -> None:
        """The block is free again. `held`: it stands for constants of layers that are left out."""
        if held:
            self.held.append(len(self.steps))
        self.steps.append((-1 - block, 0))

    def shrink(self, block: int, size: Size) -> None:
        """Only the front of a block is kept."""
        known = self._known.get(id(size)) or self._numbered(size)
        self.steps.append((block, -1 - known[1]))

    def _numbered(self, size: Size) -> tuple[Size, int]:
        """A size that was not seen in this form, with its number."""
        terms = size if isinstance(size, int) else terms_of(size)
        number = self._numbers.get(terms)
        if number is None:
            number = self._numbers[terms] = len(self.sizes)
            self.sizes.append(terms)
        known = self._known[id(size)] = size, number
        return known

    def section(self, mark: int) -> None:
        """From here on the steps are those of the part of the graph with this mark."""
        self._sections[mark] = len(self.steps)

    def repeat(self, mark: int, variable: int) -> bool:
        """The part with this mark is gone through again, as often as the variable says, if it does what the part
        before it did; False if not. To be called when all steps are recorded."""
        parts = [self._part(m) for m in (mark - 2, mark - 1, mark)]
        if not any(parts):
            return True
        taken_by = [self._taken(part) for part in parts]
        before = self._pattern(taken_by[0], parts[1], taken_by[1])
        if before is None or before != self._pattern(taken_by[1], parts[2], taken_by[2]):
            return False
        held = self._held_for(mark)
        ones = sorted({-1 - block for block, _ in parts[2] if self._is_constant(block)})
        if len(held) != len(ones):
            return False  # something else of every layer lies before the first part: copies of its inputs
        earlier = taken_by[1]
        own = {number: block for block, number in taken_by[2].items()}
        taken = frozenset(own.values())
        steps: list[Step] = []
        carried: set[int] = set()
        for block, number in parts[2]:
            named = -1 - block if block < 0 else block
            if named in earlier:
                # what the round before took lies where this round's block of the same number did
                carried.add(own[earlier[named]])
                named = self._blocks + own[earlier[named]]
            elif named not in taken:
                number = 1  # a constant
            steps.append((-1 - named if block < 0 else named, number))
        for (step, block), one in zip(held, ones, strict=True):
            self._multiples[self._size_of[block]] = self._size_of[one], variable
            # the loop gives it back layer by layer: here it only keeps the size that it has
            self.steps[step] = block, -1 - self._size_of[block]
        first = (held[0][1], *ones) if held else ()
        end = self._range(mark)[1]
        loop = _Loop(end, variable, tuple(steps), tuple(own.values()), tuple(sorted(carried)), first)
        self._loops.append(loop)
        return True

    def _held_for(self, mark: int) -> list[tuple[int, int]]:
        """The steps after a part that give back the constants of layers that are left out, and their blocks."""
        first, end = self._range(mark + 1)
        return sorted(
            ((step, -1 - self.steps[step][0]) for step in self.held if first <= step < end),
            key=lambda item: item[1],
        )

    def _is_constant(self, block: int) -> bool:
        return block < 0 and -1 - block in self._constants

    @cached_property
    def _size_of(self) -> dict[int, int]:
        """The number of each block's size."""
        return {block: number for block, number in self.steps if block >= 0 and number >= 0}

    def _range(self, mark: int) -> tuple[int, int]:
        marks, starts = self._parts
        at = bisect_left(marks, mark)
        if at == len(marks) or marks[at] != mark:
            return len(self.steps), len(self.steps)
        return starts[at], starts[at + 1] if at + 1 < len(starts) else len(self.steps)

    @cached_property
    def _parts(self) -> tuple[list[int], list[int]]:
        """The marks of all parts, ascending, and where each begins."""
        return list(self._sections), list(self._sections.values())

    def _part(self, mark: int) -> list[Step]:
        return self.steps[slice(*self._range(mark))]

    def _taken(self, steps: Sequence[Step]) -> dict[int, int]:
        """The blocks that a part takes, numbered from the last one on: the first part may take more of them."""
        taken = [block for block, number in steps if block >= 0 and number >= 0]
        return {block: number for number, block in enumerate(reversed(taken))}

    @cached_property
    def _constants(self) -> frozenset[int]:
        """Blocks that are taken before the first part."""
        first = min(self._sections.values(), default=0)
        return frozenset(block for block, number in self.steps[:first] if number >= 0)

    def _pattern(
        self, earlier: dict[int, int], steps: Sequence[Step], own: dict[int, int]
    ) -> list[object] | None:
        """What a part does, by the numbers of its own blocks and of those that the part before it took; None where it
        does more than that."""
        constants = self._constants
        found: list[object] = []
        for block, number in steps:
            named = -1 - block if block < 0 else block
            if block >= 0 and number >= 0:
                found.append(number)
            elif named in own:
                found.append(("own", own[named], number))
            elif named in earlier:
                found.append(("earlier", earlier[named], number))
            elif named in constants:
                found.append("constant")
            else:
                return None
        return found

    def run(self, values: Sequence[int]) -> Passed:
        """What the steps need for these values of the variables."""
        return self._run(values)[0]

    def offsets(self, values: Sequence[int]) -> tuple[int, ...]:
        """Where each block lies, in the order in which they were taken."""
        return tuple(self._run(values)[1][: self._blocks])

    def _run(self, values: Sequence[int]) -> tuple[Passed, list[int]]:
        """ggml_dyn_tallocr with one chunk: best fit over the free blocks, the last of which has no end."""
        alignment = self.alignment
        sizes = [
            -(-(s if isinstance(s, int) else evaluate(s, values)) // alignment) * alignment
            for s in self.sizes
        ]
        for number, (one, variable) in self._multiples.items():
            sizes[number] = sizes[one] * values[variable]
        empty = 0 in sizes
        endless = 2 * _ENDLESS
        # the free blocks by address; the last has no end, and is taken where no other fits
        offsets, lengths = [0], [_ENDLESS]
        peak, peak_step, near = 0, -1, 0
        in_turns: set[int] = set()
        unsettled: set[int] = set()
        late: list[tuple[int, int, int]] = []
        where = [0] * (2 * self._blocks)
        held = [0] * (2 * self._blocks)
        decisions: list[int] = []
        decide = decisions.append
        for first, steps, loop in self._segments():
            rounds = 1 if loop is None else values[loop.variable]
            states: list[object] = [] if loop is None else [loop.state(offsets, lengths, where)]
            base, each = 0, 0
            behind: dict[int, int] = {}
            if loop is not None:
                unsettled.add(loop.variable)
                if loop.held:
                    # the constants of all layers lie in the order of the layers
                    base = where[loop.held[0]]
                    for block in loop.held[1:]:
                        behind[block] = each
                        each += held[block]
            while rounds:
                rounds -= 1
                if loop is not None:
                    for block in loop.own:
                        where[self._blocks + block] = where[block]
                        held[self._blocks + block] = held[block]
                for step, (block, number) in enumerate(steps, first):
                    if block >= 0 and number >= 0:
                        size = sizes[number]
                        best, best_length, fits = 0, endless, 1
                        for i, have in enumerate(lengths):
                            fits += fits
                            if have >= size:
                                fits += 1
                                if have <= best_length:
                                    best, best_length = i, have
                        offset = offsets[best]
                        if best_length == size:
                            del offsets[best], lengths[best]
                            fits += fits
                        else:
                            offsets[best] = offset + size
                            lengths[best] = best_length - size
                        where[block], held[block] = offset, size
                        decide(fits << 8 | best)
                        top = offset + size
                        if top > near:
                            late.append((step, top, len(decisions)))
                            if top > peak:
                                peak, peak_step = top, step
                                near = peak * _NEAR // 10
                        continue
                    if block < 0:
                        block = -1 - block
                        size = held[block]
                        offset = base + behind[block] if number else where[block]
                    else:
                        kept = sizes[-1 - number]
                        offset, size = where[block] + kept, held[block] - kept
                        held[block] = kept
                        if not size:
                            decide(0)
                            continue
                    if empty:
                        decide(_give_back_unsorted(offsets, lengths, offset, size))
                        continue
                    at = bisect_left(offsets, offset)
                    before = at - 1
                    joins = before >= 0 and offsets[before] + lengths[before] == offset
                    if offset + size == offsets[at]:  # the block without end lies behind all that was taken
                        if joins:
                            lengths[before] += size + lengths[at]
                            del offsets[at], lengths[at]
                        else:
                            offsets[at] = offset
                            lengths[at] += size
                        decide(at << 2 | joins << 1 | 1)
                        continue
                    if joins:
                        lengths[before] += size
                    else:
                        offsets.insert(at, offset)
                        lengths.insert(at, size)
                    decide(at << 2 | joins << 1)
                base += each
                if loop is not None:
                    state = loop.state(offsets, lengths, where)
                    if state in states:
                        # everything from here on goes as it did since then
                        period = len(states) - states.index(state)
                        if period <= 2:
                            unsettled.discard(loop.variable)
                        if period == 1:
                            break
                        in_turns.add(loop.variable)
                        rounds %= period
                    states.append(state)
        while late and late[-1][1] <= near:
            late.pop()
        near_step, _, decided = late[-1] if late else (-1, 0, 0)
        hashed = hash(tuple(decisions[:decided]))
        return Passed(peak, peak_step, near_step, hashed, frozenset(in_turns), frozenset(unsettled)), where

    @cached_property
    def first_loop(self) -> int:
        """The first step of those that are gone through again."""
        return min((loop.after - len(loop.steps) for loop in self._loops), default=len(self.steps))

    def _segments(self) -> Iterator[tuple[int, Sequence[Step], _Loop | None]]:
        """The steps between loops, and those of the loops, each with the number of its first step."""
        done = 0
        for loop in sorted(self._loops, key=lambda item: item.after):
            yield done, self.steps[done : loop.after], None
            yield loop.after - len(loop.steps), loop.steps, loop
            done = loop.after
        yield done, self.steps[done:], None


def _give_back_unsorted(offsets: list[int], lengths: list[int], offset: int, size: int) -> int:
    """ggml_dyn_tallocr_free_bytes block by block: an empty block (of states to copy beside the batch's, say, where
    there are none) may come to lie inside a free one, and then the list is not in order any more.
    """
    for i, start in enumerate(offsets):
        if start + lengths[i] == offset:
            lengths[i] += size
            joins_next = i + 1 < len(offsets) and start + lengths[i] == offsets[i + 1]
            if joins_next:
                lengths[i] += lengths[i + 1]
                del offsets[i + 1], lengths[i + 1]
            return i << 2 | 2 | joins_next
        if offset + size == start:
            offsets[i] = offset
            lengths[i] += size
            joins_previous = i > 0 and offsets[i - 1] + lengths[i - 1] == offset
            if joins_previous:
                lengths[i - 1] += lengths[i]
                del offsets[i], lengths[i]
            return i << 2 | 1 | joins_previous << 1
    at = next((i for i, start in enumerate(offsets) if start >= offset), len(offsets))
    offsets.insert(at, offset)
    lengths.insert(at, size)
    return at << 2
