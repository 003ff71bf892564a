"""Lines of a comparison: what is printed of which device, how precisely, and what is made of it."""

from __future__ import annotations

import pytest

from plan_llama.engines.dry_run import RealBytes
from plan_llama.engines.verification import compare, corrected
from plan_llama.memory.types import Buffers, DeviceBytes
from plan_llama.units import MIB

CARD = DeviceBytes(
    weights_bytes=4000 * MIB,
    context_bytes=500 * MIB,
    compute_bytes=300 * MIB,
    pool_bytes=70 * MIB,
    fused_bytes=50 * MIB,
)
MADE = Buffers(devices=(CARD,), host=DeviceBytes(weights_bytes=100 * MIB, compute_bytes=10 * MIB))
HOST = RealBytes(100 * MIB, 0, 10 * MIB)


@pytest.mark.parametrize(
    ("name", "holds"), [("CUDA0", True), ("ROCm0", True), ("RPC0", False), ("Vulkan0", False)]
)
def test_what_fused_kernels_hold_is_in_the_buffer_of_a_card_that_fuses(name: str, holds: bool) -> None:
    real = {name: RealBytes(4000 * MIB, 500 * MIB, (350 if holds else 300) * MIB), "Host": HOST}
    lines = compare(MADE, MADE, real, [name], upper_bound=False)
    assert {line.verdict for line in lines} == {"same"}
    assert corrected(MADE, MADE, real, [name]) == MADE


def test_a_correction_keeps_what_no_line_shows() -> None:
    """The real compute buffer is 20 MiB larger than predicted; pool and fused kernels come on top as before."""
    real = {"RPC0": RealBytes(4000 * MIB, 500 * MIB, 320 * MIB), "Host": HOST}
    (card,) = corrected(MADE, MADE, real, ["RPC0"]).devices
    assert (card.compute_bytes, card.pool_bytes, card.fused_bytes) == (320 * MIB, 70 * MIB, 50 * MIB)


def test_rounded_numbers_may_be_off_on_both_sides() -> None:
    for off, verdict in ((-6000, "same"), (6000, "same"), (3 * MIB, "within"), (-30 * MIB, "below")):
        real = {
            "RPC0": RealBytes(4000 * MIB, 500 * MIB, 300 * MIB - off, above_bytes=6000, below_bytes=6000),
            "Host": HOST,
        }
        (line,) = [
            line for line in compare(MADE, MADE, real, ["RPC0"], upper_bound=False) if line.part == "compute"
        ][:1]
        assert line.verdict == verdict


def test_weights_that_are_not_to_be_compared() -> None:
    real = {"RPC0": RealBytes(None, 500 * MIB, 300 * MIB), "Host": HOST}
    lines = compare(MADE, MADE, real, ["RPC0"], upper_bound=False)
    found = {line.part: line.verdict for line in lines if line.device == "gpu0"}
    assert found == {"model": "not-checked", "context": "same", "compute": "same", "total": "not-checked"}
    assert corrected(MADE, MADE, real, ["RPC0"]) == MADE
