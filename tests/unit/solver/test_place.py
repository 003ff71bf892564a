"""Filling the cards: budgets are kept, more memory never holds less, and the count is the largest there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plan_llama.memory.context import reserved_batch
from plan_llama.memory.footprint import footprint
from plan_llama.memory.patterns import expert_layers, n_cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Settings
from plan_llama.memory.weights import place
from plan_llama.solver.costs import Goal
from plan_llama.solver.place import Filled, Filler
from plan_llama.solver.profiles import beyond
from plan_llama.speed.types import Request
from plan_llama.units import GIB
from tests.oracle_cases import machine_with, table
from tests.small_models import qwen3moe_like

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
GLM = "glm-5.1-ud-iq2"
BASE = Settings(context=32768, ubatch=512)
# 256 MB of experts in each of 8 layers
SMALL = ModelTable(qwen3moe_like(layers=8, width=2048, experts=64, used=8, hidden=1024))


def filler_of(model: ModelTable, *cards_mib: int, unified: bool = False, ram: int = 512 * GIB) -> Filler:
    """A filler for cards of these sizes, all free."""
    cards = tuple((size, 0) for size in cards_mib)
    return Filler(model, machine_with(cards, ram_bytes=ram, unified=unified), beyond(), None)


def host_experts(filler: Filler, filled: Filled) -> int:
    """Layers with experts on the host."""
    model = filler.table
    placed = place(model, filled.settings, [device.free_bytes for device in filler.devices])
    return sum(
        any(placed.device_of[i] == HOST for i in model.expert_indices[il]) for il in range(model.layers)
    )


@pytest.mark.slow
@QUICK
@given(
    cards=st.lists(
        st.sampled_from([12288, 16384, 24576, 32768, 49152, 81920, 98304]), min_size=1, max_size=5
    ),
    ubatch=st.sampled_from([512, 2048, 4096]),
    context=st.sampled_from([4096, 32768, 131072]),
)
def test_every_card_keeps_its_margin(cards: list[int], ubatch: int, context: int) -> None:
    filler = filler_of(table(GLM), *cards)
    base = replace(BASE, context=context, ubatch=ubatch, batch=max(2048, ubatch), load_mode="mmap")
    filled = filler.best(base)
    if filled is None:
        return
    used = footprint(filler.table, filled.settings, filler.machine, beyond())
    assert (
        used.devices
        == footprint(filler.table, filled.settings, filler.machine, beyond(), known=filled.made).devices
    ), "the buffers handed on are those of the settings handed on"
    for device, pool in zip(used.devices, used.pools[1:], strict=True):
        if device.total_bytes:
            assert device.peak_bytes + pool.margin_bytes <= pool.available_bytes


@pytest.mark.slow
@QUICK
@given(st.integers(12, 90), st.integers(1, 12), st.integers(1, 3))
def test_more_memory_of_cards_never_leaves_more_experts_on_the_host(size: int, more: int, count: int) -> None:
    smaller = filler_of(table(GLM), *[size * 1024] * count)
    larger = filler_of(table(GLM), *[(size + more) * 1024] * count)
    before, after = smaller.best(BASE), larger.best(BASE)
    assert after is not None or before is None
    if before is not None and after is not None:
        # layer for layer: what is on the cards, the experts counted too
        assert after.settings.gpu_layers >= before.settings.gpu_layers
        assert host_experts(larger, after) <= host_experts(smaller, before)


def test_four_cards_of_24_gib() -> None:
    """GLM-5.1 on 4×24 GiB: the engine's own --fit leaves the experts of 48 to 51 of 75 layers on the host with 4K to
    32K of context (tests/data/oracle/fit_choices.jsonl); a driver's share of each card is a layer's experts."""
    filler = filler_of(table(GLM), *[24064] * 4)
    filled = filler.best(BASE)
    assert filled is not None
    assert 48 <= host_experts(filler, filled) <= 48 + 4


def test_eight_cards_of_80_gib_hold_it_all() -> None:
    filler = filler_of(table(GLM), *[81408] * 8)
    filled = filler.best(replace(BASE, context=202752))
    assert filled is not None
    assert host_experts(filler, filled) == 0
    assert not filled.settings.overrides


def test_without_a_card_everything_is_on_the_host() -> None:
    filled = filler_of(table(GLM)).best(BASE)
    assert filled is not None
    assert filled.made.devices == ()
    assert filled.made.host.weights_bytes == 230_825_875_456


def test_the_last_layers_experts_stay_on_the_host_first() -> None:
    """A prompt needs them for one token only: no other layer's cost as little there."""
    filler = filler_of(SMALL, 2900)
    filled = filler.best(BASE, Goal(Request(prompt_tokens=4000, output_tokens=100)))
    assert filled is not None
    assert filled.settings.overrides == (expert_layers([7], HOST), *n_cpu_moe(4))
    assert host_experts(filler, filled) == 5
    # with the block that drafts every token of a prompt goes through all of the last layer
    drafting = filler.best(
        replace(BASE, draft_layers=True), Goal(Request(prompt_tokens=4000, output_tokens=100))
    )
    assert drafting is not None
    assert expert_layers([7], HOST) not in drafting.settings.overrides


def test_one_pool_leaves_nothing_to_the_cpu() -> None:
    filler = filler_of(SMALL, 16384, unified=True, ram=32 * GIB)
    filled = filler.best(BASE)
    assert filled is not None
    assert filled.settings.gpu_layers == SMALL.blocks + 1
    assert not filled.settings.overrides


def test_a_card_too_small_for_anything() -> None:
    filler = filler_of(table(GLM), 2048)
    filled = filler.best(BASE)
    assert filled is None or filled.made.devices[0].total_bytes == 0


def test_the_reserved_batch_is_that_of_the_settings() -> None:
    """A micro-batch larger than the context is cut to it (llama_context)."""
    assert reserved_batch(replace(BASE, context=1024, ubatch=4096, batch=4096)).tokens == 1024
