"""Which layers of a model need not be built, because others like them were."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_LONGEST_PERIOD = 12  # layers of different kinds take turns: three recurrent ones and one with attention, say
# Repeats that are built before others are left out. The last two show whether equal layers allocate alike; that is gone
# through again for those that are left out (replay.py).
_BUILT = 4


@dataclass(frozen=True, slots=True)
class Stretch:
    """Layers from `first` on: `built` of them, then `left_out` repeats of the last `period` of those."""

    first: int
    built: int
    period: int = 1
    left_out: int = 0

    @property
    def end(self) -> int:
        """The layer after the stretch."""
        return self.first + self.built + self.left_out * self.period


def stretches(layers: Sequence[Hashable]) -> tuple[Stretch, ...]:
    """Splits layers, given by what makes them alike, into stretches. The last layer is always built."""
    numbers: dict[Hashable, int] = {}
    alike = [numbers.setdefault(layer, len(numbers)) for layer in layers]
    found: list[Stretch] = []
    first, last = 0, len(alike) - 1
    while first < last:
        period, repeats = _longest_repeat(alike, first, last)
        left_out = max(0, repeats - _BUILT - 1)  # the last one is where inputs are read for the last time
        built = period * _BUILT if left_out else 1
        if found and not left_out and not found[-1].left_out:
            found[-1] = Stretch(found[-1].first, found[-1].built + built)
        else:
            found.append(Stretch(first, built, period, left_out))
        first = found[-1].end
    return (*found, Stretch(last, 1)) if layers else ()


def _longest_repeat(alike: Sequence[int], first: int, end: int) -> tuple[int, int]:
    """The period, and how often it repeats, that covers the most layers from `first` on."""
    best, covered = (1, 1), 1
    for period in range(1, _LONGEST_PERIOD + 1):
        if first + (_BUILT + 1) * period > end and period > 1:
            break
        after = first + period
        while after < end and alike[after] == alike[after - period]:
            after += 1
        repeats = (after - first) // period
        if repeats * period > covered and (period == 1 or repeats > _BUILT):
            best, covered = (period, repeats), repeats * period
        if covered * 2 > end - first:
            break
    return best
