"""What a graph's allocations need: recorded once, and worked out for as few batches as answer for the others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from plan_llama.memory.cuda_pool import Chip, Operations
from plan_llama.memory.quantity import Guards
from plan_llama.memory.replay import BATCH, CELLS, Passed, Tape, few

_SETTLED = 4  # rounds after which equal layers mostly allocate alike


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
        self.lines = tuple(_Line(tape) for tape in tapes)
        self.fused = None if fused is None else tuple(_Line(tape) for tape in fused)
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

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._known: dict[tuple[int, ...], tuple[list[int], list[Passed]]] = {}

    def size(self, values: tuple[int, ...]) -> int:
        """Bytes for these values."""
        if self.tape.held:
            return self._passed(values).size_bytes
        less = values[:BATCH] + tuple(min(count, _SETTLED) for count in values[BATCH:])
        passed = self._passed(less)
        while (more := _longer(passed, less, values)) != less:
            less = more
            passed = self._passed(less)
        return passed.size_bytes

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
