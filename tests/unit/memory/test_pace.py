"""How long placements take: a search asks for hundreds."""

from __future__ import annotations

import gc
import time
import timeit

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.ggml import Node
from plan_llama.memory.patterns import n_cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.units import GIB
from tests.conformance_cases import spec as real_spec
from tests.oracle_cases import spec

CARD = [DeviceMemory(free_bytes=24 * GIB)]
IDLE_LOOP_S = 15e-6  # the loop below on an idle machine of today


def slowness() -> float:
    """By how much this machine is slower right now than an idle one."""
    return max(1.0, min(timeit.repeat("sum(range(1000))", number=20, repeat=5)) / 20 / IDLE_LOOP_S)


def pace(name: str, asked: list[Settings]) -> tuple[float, float]:
    """Seconds of processor time: of what is prepared for a model with its first placement, and of the placements."""
    header = spec(name)
    start = time.process_time()
    model = ModelTable(header)
    buffers(model, Settings(context=4096, gpu_layers=99, overrides=n_cpu_moe(40)), CARD)
    prepared = time.process_time()
    for chosen in asked:
        buffers(model, chosen, CARD)
    return prepared - start, time.process_time() - prepared


# 0.4 s and 1.0 s on a machine of two cores; the limits catch what makes it twice as slow. Layers of GLM-5.1 have
# constants: all are gone through, where of others those that are left out repeat what the last one did.
@pytest.mark.parametrize(
    ("model", "on_host", "most_s"),
    [("gpt-oss-20b-mxfp4", range(7, 17), 0.8), ("glm-5.1-ud-iq2", range(20, 70), 2.0)],
)
def test_many_placements_of_one_kind(model: str, on_host: range, most_s: float) -> None:
    asked = [
        Settings(context=context, ubatch=ubatch, gpu_layers=99, overrides=n_cpu_moe(layers))
        for context in (8192, 16384, 32768, 65536, 131072)
        for ubatch in (512, 1024, 2048, 4096)
        for layers in on_host
    ]
    before = slowness()
    rounds = [pace(model, asked) for _ in range(3)]
    factor = max(before, slowness())
    assert min(prepared for prepared, _ in rounds) < 0.1 * factor
    assert min(placed for _, placed in rounds) < most_s * factor


@pytest.mark.slow
def test_graphs_are_given_back_with_their_recordings() -> None:
    """A plan makes dozens, and nothing collects what holds on to itself (gc.disable in the command)."""
    built = ("kimi-k3-bf16", "glm-5.3-flash-q4_k_m", "minimax-m3-q3_k_m")
    gc.collect()
    gc.disable()
    try:
        for name in built:
            table = ModelTable(real_spec("real", name))
            buffers(table, Settings(context=4096, gpu_layers=99), CARD)
            assert table.recordings, name
        assert not any(type(item) is Node for item in gc.get_objects())
    finally:
        gc.enable()
