"""What a graph's allocations need: recorded once, and worked out for as few batches as answer for the others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from plan_llama.memory.cuda_pool import Chip, Operations
from plan_llama.memory.quantity import Guards, evaluate, terms_of
from plan_llama.memory.replay import BATCH, CELLS, MOST_ROUNDS, Passed, Tape, few

_SETTLED = 4  # rounds after which equal layers mostly allocate alike
_FAR = 8  # steps that a line goes on where nothing ends it


class Recording:
    """What a graph's allocations need on every backend, for all batches that its guards admit.

    Values are those of the variables: the batch's, then how many layers are left out in each place.
    """

    def __init__(
        self,
        guards: Guards,
        tapes: Sequence[Tape],
        fused: Sequence[Tape] | None,
        operations: Sequence[Operations],
    ) -> None:
        self.guards = guards
        self.lines = tuple(_Line(tape, guards) for tape in tapes)
        self.fused = None if fused is None else tuple(_Line(tape, guards) for tape in fused)
        self.operations = tuple(operations)
        self._pools: dict[tuple[tuple[int, ...], int, Chip | None], int] = {}
        self._admitted: dict[tuple[int, ...], bool] = {}

    def admits(self, values: tuple[int, ...]) -> bool:
        """Whether the graph would be built alike."""
        if values not in self._admitted:
            self._admitted[values] = self.guards.hold(values)
        return self._admitted[values]

    def sizes(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes by backend."""
        return tuple(line.size(values) for line in self.lines)

    def held_sizes(self, values: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes that each GPU's buffer is larger by, than these sizes, with the tensors that fused kernels hold."""
        if self.fused is None:
            return (0,) * len(self.operations)
        both = zip(self.fused[:-1], sizes[:-1], strict=True)
        return tuple(max(0, fused.size(values) - size) for fused, size in both)

    def pool_sizes(self, values: tuple[int, ...], chips: Sequence[Chip | None]) -> tuple[int, ...]:
        """Bytes of the pool of temporary buffers by GPU."""
        batch = values[:BATCH]
        found = []
        for card, chip in enumerate(chips):
            key = batch, card, chip
            if key not in self._pools:
                self._pools[key] = self.operations[card].pool_size(batch, chip)
            found.append(self._pools[key])
        return tuple(found)


class _Line:
    """A tape's answers, remembered by the other variables along the cells of the cache.

    Every size is linear in the cells. Where two runs decided alike, step by step, and at the same step were largest, so
    does every run between them, and its size lies on the line. Steps after which nothing comes near the peak in either
    run may differ.
    """

    def __init__(self, tape: Tape, guards: Guards) -> None:
        self.tape = tape
        self.guards = guards
        self._first: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}  # by batch
        self._many = False  # several numbers of layers were asked for with one batch
        self._runs: dict[tuple[int, ...], dict[tuple[int, ...], Passed]] = {}
        self._known: dict[tuple[int, ...], tuple[list[int], list[Passed]]] = {}

    def size(self, values: tuple[int, ...]) -> int:
        """Bytes for these values. What layers that are left out hold lies below everything else until it is given
        back: it is added where nothing comes near the peak after that."""
        held = self.tape.held
        if held and (known := self._alone(values)) is not None:
            return known
        less = values[:BATCH] + tuple(min(count, _SETTLED) for count in values[BATCH:])
        passed = self._passed(less)
        if not passed.settled:
            less = values[:BATCH] + tuple(map(few, values[BATCH:]))
            passed = self._passed(less)
        if not held or less == values:
            return passed.size_bytes
        if passed.near_step < held[0][0]:
            more = (evaluate(terms_of(s), values) - evaluate(terms_of(s), less) for _, s in held)
            return passed.size_bytes + sum(more)
        return self._held(values, less)

    def _alone(self, values: tuple[int, ...]) -> int | None:
        """Bytes for the first numbers of layers that are asked for with a batch. A search asks for one or for many: not
        for the second ones, with which runs begin that answer for all."""
        batch = values[:BATCH]
        if batch in self._first:
            first, size = self._first[batch]
            if first == values:
                return size
            self._many = True
            return None
        if self._many:
            return None
        size = self.tape.run(values).size_bytes
        self._first[batch] = values, size
        return size

    def _held(self, values: tuple[int, ...], less: tuple[int, ...]) -> int:
        """Bytes where it matters to what is decided how much the layers that are left out hold. That is linear in their
        numbers: as along the cells, runs that decided alike tell of those on the line between them."""
        known = self._runs.setdefault(less, {})
        if values in known:
            return known[values].size_bytes
        for (low, a), (high, b) in combinations(known.items(), 2):
            if a.decisions == b.decisions and a.peak_step == b.peak_step:
                share = _between(low, high, values)
                if share is not None:
                    return a.size_bytes + round((b.size_bytes - a.size_bytes) * share)
        if len(known) > 1:
            # the end of the line from the last one helps with those that are asked for next
            end = _end(next(reversed(known)), values)
            if end != values and end not in known and self.guards.hold(end):
                known[end] = self.tape.run(end)
        known[values] = self.tape.run(values)
        return known[values].size_bytes

    def _passed(self, values: tuple[int, ...]) -> Passed:
        cells = values[CELLS]
        places, passed = self._known.setdefault(values[:CELLS] + values[CELLS + 1 :], ([], []))
        at = bisect_left(places, cells)
        if at < len(places) and places[at] == cells:
            return passed[at]
        if 0 < at < len(places):
            low, high = passed[at - 1], passed[at]
            if low.decisions == high.decisions and low.peak_step == high.peak_step:
                share = (cells - places[at - 1]) / (places[at] - places[at - 1])
                grown = round((high.size_bytes - low.size_bytes) * share)
                settled = low.settled and high.settled
                return replace(low, size_bytes=low.size_bytes + grown, settled=settled)
        made = self.tape.run(values)
        places.insert(at, cells)
        passed.insert(at, made)
        return made


def _between(low: tuple[int, ...], high: tuple[int, ...], values: tuple[int, ...]) -> float | None:
    """Where values lie on the line between two others: from 0 to 1; None where they do not."""
    whole, part = max(
        ((b - a, v - a) for a, b, v in zip(low, high, values, strict=True)), key=lambda p: abs(p[0])
    )
    share = part / whole
    if not 0 <= share <= 1:
        return None
    on = all((v - a) * whole == part * (b - a) for a, b, v in zip(low, high, values, strict=True))
    return share if on else None


def _end(first: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    """The last values on the line from `first` on which enough layers are left out everywhere."""
    steps = [v - f for f, v in zip(first, values, strict=True)]
    room = [(v - 1 - MOST_ROUNDS) // -step for v, step in zip(values, steps, strict=True) if step < 0]
    far = max(0, min(room, default=_FAR))
    return tuple(v + far * step for v, step in zip(values, steps, strict=True))
