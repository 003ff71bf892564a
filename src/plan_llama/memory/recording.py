"""What a graph's allocations need: recorded once, and worked out for as few batches as answer for the others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from plan_llama.memory.cuda_pool import Chip, Operations
from plan_llama.memory.quantity import Guards
from plan_llama.memory.replay import BATCH, CELLS, Passed, Tape, few

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
        self._runs: dict[tuple[int, ...], dict[tuple[int, ...], Passed]] = {}  # by batch
        self._known: dict[tuple[int, ...], tuple[list[int], list[Passed]]] = {}

    def size(self, values: tuple[int, ...]) -> int:
        """Bytes for these values."""
        if self.tape.held:
            return self._held(values)
        less = values[:BATCH] + tuple(min(count, _SETTLED) for count in values[BATCH:])
        passed = self._passed(less)
        while (more := _longer(passed, less, values)) != less:
            less = more
            passed = self._passed(less)
        return passed.size_bytes

    def _held(self, values: tuple[int, ...]) -> int:
        """Bytes where layers that are left out have constants: each of them allocates otherwise than the one before, in
        the hole that their constants leave. Their numbers matter only to the sum of the constants where the peak comes
        before these layers. It is taken to do so everywhere on a line of numbers on which it does at both ends and
        between them, with sizes that lie on the line."""
        known = self._runs.setdefault(values[:BATCH], {})
        if values in known:
            return known[values].size_bytes
        if (size := self._on_line(known, values)) is not None:
            return size
        if known:
            # the end and the middle of the line from the last one help with those that are asked for next
            for other in _ahead(next(reversed(known)), values):
                if other not in known and self.guards.hold(other):
                    known[other] = self._passed(other)
        known[values] = self._passed(values)
        return known[values].size_bytes

    def _on_line(self, known: Mapping[tuple[int, ...], Passed], values: tuple[int, ...]) -> int | None:
        early = {v: passed for v, passed in known.items() if passed.peak_step < self.tape.first_loop}
        for (low, a), (high, b) in combinations(early.items(), 2):
            if a.peak_step != b.peak_step or (share := _between(low, high, values)) is None:
                continue
            inside = [
                (v, s) for v in known if v not in (low, high) and (s := _between(low, high, v)) is not None
            ]
            if inside and all(v in early and early[v].size_bytes == _share_of(a, b, s) for v, s in inside):
                return _share_of(a, b, share)
        return None

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
                return replace(
                    low,
                    size_bytes=low.size_bytes + grown,
                    in_turns=low.in_turns | high.in_turns,
                    unsettled=low.unsettled | high.unsettled,
                )
        made = self.tape.run(values)
        places.insert(at, cells)
        passed.insert(at, made)
        return made


def _longer(passed: Passed, less: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of layers to go through where fewer than all did not show what all come to."""
    return values[:BATCH] + tuple(
        few(count)
        if place in passed.in_turns | passed.unsettled and less[place] < few(count)
        else count
        if place in passed.unsettled
        else less[place]
        for place, count in enumerate(values[BATCH:], BATCH)
    )


def _share_of(low: Passed, high: Passed, share: float) -> int:
    return low.size_bytes + round((high.size_bytes - low.size_bytes) * share)


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


def _ahead(first: tuple[int, ...], values: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Values on the line from `first`: the last ones with which a layer is left out everywhere, and half way there."""
    steps = [v - f for f, v in zip(first, values, strict=True)]
    room = [(v - 1) // -step for v, step in zip(values, steps, strict=True) if step < 0]
    far = max(0, min(room, default=_FAR))
    for count in {far, far // 2} - {0}:
        yield tuple(v + count * step for v, step in zip(values, steps, strict=True))
