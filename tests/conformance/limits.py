"""How far a prediction may be from what llama.cpp reserves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plan_llama.memory.types import DeviceBytes
from plan_llama.units import GIB, MIB

Part = Literal["weights", "context", "compute", "total"]
PARTS: tuple[Part, ...] = ("weights", "context", "compute", "total")
USUAL_SHARE = 0.95  # of the compute buffers and totals are within their limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One number beside the real one. `label` names model, command and place."""

    label: str
    part: Part
    ours: int
    real: int
    slack_bytes: int  # what never counts as a difference in compute buffers and totals

    @property
    def above(self) -> float:
        """The difference as a share of the real number (of 1 MiB at least); negative where ours is too low."""
        return (self.ours - self.real) / max(MIB, self.real)

    @property
    def within(self) -> bool:
        """Within the limit that the usual case must keep (weights and context: every case)."""
        ratio, slack = {
            "weights": (0.001, MIB),
            "context": (0.001, MIB),
            "compute": (0.05, self.slack_bytes),
            "total": (0.01, self.slack_bytes),
        }[self.part]
        return abs(self.ours - self.real) <= max(ratio * self.real, slack)

    @property
    def too_low(self) -> bool:
        """Below the real number by more than any case may be."""
        if self.part in ("weights", "context"):
            return self.ours < self.real and not self.within
        return self.real - self.ours > max(0.02 * self.real, self.slack_bytes)

    def __str__(self) -> str:
        sizes = f"{self.part} {self.ours:,} for {self.real:,} ({100 * self.above:+.1f} %)"
        return f"{self.label}: {sizes}"


def outside(found: Sequence[Compared], part: Part) -> list[Compared]:
    """The numbers of one kind that are outside their limit."""
    return [number for number in found if number.part == part and not number.within]


def mostly_within(found: Sequence[Compared]) -> bool:
    """Whether 95 % of the compute buffers and 95 % of the totals are within their limits."""
    share = 1 - USUAL_SHARE
    return all(
        len(outside(found, part)) <= share * sum(number.part == part for number in found)
        for part in PARTS[2:]
    )


def low(found: Sequence[Compared]) -> list[Compared]:
    """The numbers that are below the real ones by more than any may be."""
    return [number for number in found if number.too_low]


def compare(label: str, place: str, ours: DeviceBytes, real: DeviceBytes) -> list[Compared]:
    """The numbers of one place. A total is a device's: on the host nothing limits the sum."""
    slack = MIB if real.total_bytes < GIB else 16 * MIB
    return [
        Compared(
            label=f"{label} {place}",
            part=part,
            ours=getattr(ours, f"{part}_bytes"),
            real=getattr(real, f"{part}_bytes"),
            slack_bytes=slack,
        )
        for part in PARTS
        if part != "total" or place != "Host"
    ]
