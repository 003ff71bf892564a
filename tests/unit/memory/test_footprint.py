"""Whether what a placement uses fits: pools, what grows in them, and what a GPU may have of one pool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.hardware.types import Machine
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import Footprint, device_memory, footprint
from plan_llama.memory.types import Settings
from plan_llama.solver.profiles import beyond
from plan_llama.units import GIB, MIB
from tests.oracle_cases import machine_with, table

MODEL = table("qwen3-30b-a3b-q4_k_m")
# without flash attention a CUDA device's pool takes a copy of one layer's scores
CHOSEN = Settings(context=32768, gpu_layers=99, flash_attn=False, ubatch=2048, load_mode="none")


def used_on(machine: Machine, settings: Settings = CHOSEN) -> Footprint:
    return footprint(MODEL, settings, machine, beyond())


def one_pool(available: int, gpu_limit: int | None = None) -> Machine:
    """A GPU that shares the memory; `gpu_limit` is what it may have of it."""
    machine = machine_with(((128 * 1024, 0),), ram_bytes=128 * GIB, unified=True)
    gpu = replace(machine.gpus[0], free_bytes=available if gpu_limit is None else gpu_limit)
    return replace(machine, gpus=(gpu,), ram=replace(machine.ram, available_bytes=available))


def test_in_one_pool_all_that_a_card_takes_adds_up() -> None:
    """Buffers of host and card, the context, what fused kernels hold, and the pool that grows on a long prompt."""
    machine = one_pool(100 * GIB)
    made = buffers(MODEL, CHOSEN, device_memory(machine))
    card = made.devices[0]
    assert card.pool_bytes > 256 * MIB
    assert card.fused_bytes > 0
    driver = beyond().context_bytes["cuda"]
    lazy = MODEL.lazy_bytes(CHOSEN.lazy_mode)
    need = made.host.total_bytes - lazy + made.host.pool_bytes + card.peak_bytes + driver
    assert used_on(one_pool(need)).verdict == "tight"
    assert used_on(one_pool(need - 1)).verdict == "does-not-fit"
    (pool,) = used_on(one_pool(need)).pools
    assert (pool.peak_bytes, pool.growth_bytes) == (need, card.pool_bytes + made.host.pool_bytes)


@pytest.mark.parametrize("unified", [True, False])
def test_a_card_that_is_too_small(unified: bool) -> None:
    """Metal keeps back a part of the memory, and so does the GTT: less than the pool, and it has to do."""
    peak = used_on(one_pool(100 * GIB)).devices[0].peak_bytes
    for limit, fits in ((peak, True), (peak - 1, False)):
        machine = one_pool(100 * GIB, gpu_limit=limit)
        verdict = used_on(replace(machine, unified=unified)).verdict
        assert (verdict != "does-not-fit") is fits
