"""Whole plans: the best choice, verdicts, pins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plan_llama.hardware.types import Machine
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import Verdict
from plan_llama.memory.patterns import n_cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.solver import plan as plans
from plan_llama.solver.place import Filled
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import UBATCHES, Task, base_settings, evaluate, score
from plan_llama.solver.types import Plan, Wishes
from plan_llama.units import GIB, MIB
from tests.oracle_cases import machine_with, table
from tests.small_models import qwen3moe_like

GLM = "glm-5.1-ud-iq2"
SMALL = ModelTable(qwen3moe_like(layers=8, width=2048, experts=64, used=8, hidden=1024))
RANK: dict[Verdict, int] = {"fits": 0, "tight": 1, "pages-from-disk": 2, "does-not-fit": 3, "invalid": 4}


def task_of(model: ModelTable, machine: Machine, **wishes: Any) -> Task:
    """A task with the chat workload."""
    return make_task(model, machine, Wishes(workload=workload("chat"), **wishes), beyond())


def plan_of(model: ModelTable, machine: Machine, **wishes: Any) -> Plan:
    """Its plan."""
    plan = solve(task_of(model, machine, **wishes), ladder=False)
    assert plan is not None
    return plan


def one_card(mib: int, ram_gib: int = 512) -> Machine:
    """A machine with one card."""
    return machine_with(((mib, 0),), ram_bytes=ram_gib * GIB)


@pytest.mark.parametrize("prompt", [64, 3000, 30000])
@pytest.mark.parametrize("mib", [2900, 3600])
def test_no_number_of_host_experts_is_better(mib: int, prompt: int) -> None:
    """Against every micro-batch with every -ncmoe; what else there is to choose is in test_exact."""
    task = task_of(SMALL, one_card(mib), context=32768, prompt_tokens=prompt)
    plan = solve(task, ladder=False)
    assert plan is not None
    scores = []
    for ubatch in UBATCHES:
        base = base_settings(task, 32768, ubatch, "f16")
        limit = task.filler.budgets(base)[0]
        for count in range(SMALL.layers + 1):
            settings = replace(base, gpu_layers=SMALL.blocks + 1, overrides=n_cpu_moe(count))
            made = buffers(SMALL, settings, task.filler.devices)
            if made.devices[0].peak_bytes <= limit:
                scores.append(score(task, evaluate(task, Filled(settings, made))))
    assert score(task, plan.chosen) <= min(scores)


@pytest.mark.slow
def test_more_ram_is_never_a_worse_verdict() -> None:
    ranks = [
        RANK[plan_of(table(GLM), one_card(24064, ram)).chosen.footprint.verdict]
        for ram in (64, 192, 240, 256, 512)
    ]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == RANK["pages-from-disk"]
    assert ranks[-1] == RANK["fits"]


@pytest.mark.slow
def test_no_context_fits_weights_that_are_more_than_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not looked at would not have been chosen: the same plans where every context is tried."""
    size = SMALL.loaded_bytes / GIB
    machines = [
        machine_with(cards, ram_bytes=int(ram * GIB))
        for cards in ((), ((3000, 0),), ((3000, 0), (2500, 0)))
        for ram in (0.25, 0.5 * size, 0.8 * size, size, size + 16)
    ]
    quick = [solve(task_of(SMALL, machine), ladder=False) for machine in machines]
    monkeypatch.setattr(plans, "_outweighs_memory", lambda _: False)
    assert quick == [solve(task_of(SMALL, machine), ladder=False) for machine in machines]
    assert {found.chosen.footprint.verdict for found in quick if found} >= {"pages-from-disk", "fits"}


def test_a_larger_card_is_never_a_slower_plan() -> None:
    times = [
        plan_of(table(GLM), one_card(mib)).chosen.speed.request_s
        for mib in (20480, 24576, 32768, 49152, 98304)
    ]
    assert times == sorted(times, reverse=True)


@pytest.mark.slow
def test_paging_says_how_much_stays_resident() -> None:
    used = plan_of(table(GLM), one_card(24064, 128)).chosen.footprint
    assert used.verdict == "pages-from-disk"
    assert 0.4 < used.resident_ratio < 0.65  # 125 GiB available for the caches and 205 GiB of experts


def test_pages_on_a_cpu_without_memory() -> None:
    plan = plan_of(table(GLM), machine_with((), ram_bytes=64 * GIB))
    assert plan.chosen.footprint.verdict == "pages-from-disk"
    assert plan_of(table(GLM), machine_with((), ram_bytes=512 * GIB)).chosen.footprint.verdict == "fits"


@pytest.mark.slow
def test_four_cards_fit_with_256_gib() -> None:
    plan = plan_of(table(GLM), machine_with(((24576, 512),) * 4, ram_bytes=256 * GIB))
    assert plan.chosen.footprint.verdict == "fits"
    assert 40 <= plan.chosen.cpu_moe_layers <= 60
    assert plan.chosen.gpu_block_layers == 78


def test_one_pool_adds_device_and_host_up() -> None:
    machine = machine_with(((200 * 1024, 0),), ram_bytes=512 * GIB, unified=True)
    used = plan_of(table(GLM), machine, context=8192).chosen.footprint
    (pool,) = used.pools
    assert pool.used_bytes == used.host.total_bytes + sum(device.total_bytes for device in used.devices)


@pytest.mark.parametrize(
    ("pins", "key", "value"),
    [
        ({"ubatch": "1024"}, "ubatch", 1024),
        ({"batch": "4096", "ubatch": "512"}, "batch", 4096),
        ({"threads": "7"}, "threads", 7),
        ({"cache_ram": "512"}, "cache_ram_bytes", 512 * MIB),
        ({"flash_attn": "off"}, "flash_attn", False),
        ({"op_offload": "off"}, "op_offload", False),
        ({"load_mode": "mlock"}, "load_mode", "mlock"),
    ],
)
def test_pins_are_kept(pins: dict[str, str], key: str, value: object) -> None:
    plan = plan_of(SMALL, one_card(3600), pins=pins)
    assert getattr(plan.chosen.settings, key) == value


@pytest.mark.parametrize("cache_ram", ["0", "512", "4096"])
def test_context_checkpoints_take_no_more_than_the_prompt_cache(cache_ram: str) -> None:
    chosen = plan_of(
        table("gemma-3-27b-q4_0"), one_card(24 * 1024), context=16384, pins={"cache_ram": cache_ram}
    ).chosen
    kept, limit = chosen.footprint.host.checkpoint_bytes, chosen.settings.cache_ram_bytes
    assert chosen.settings.ctx_checkpoints >= 1
    assert kept > 0
    assert kept <= limit or chosen.settings.ctx_checkpoints == 1
    assert chosen.footprint.host.cache_bytes == limit + kept


def test_a_wished_margin_is_kept() -> None:
    for margin in (0, GIB, 2 * GIB):
        used = plan_of(SMALL, one_card(4600), margin_bytes=margin).chosen.footprint
        assert used.verdict == "fits"
        assert used.pools[1].margin_bytes == margin
        assert used.devices[0].peak_bytes + margin <= used.devices[0].free_bytes


def test_slots_share_one_pool() -> None:
    settings = plan_of(SMALL, one_card(8192), parallel=4, context=8192).chosen.settings
    assert (settings.context, settings.kv_unified, settings.parallel) == (4 * 8192, True, 4)
    assert settings.context_per_slot == 8192


def test_a_context_that_was_asked_for_is_never_reduced() -> None:
    plan = plan_of(table(GLM), one_card(16384), context=202752)
    assert plan.chosen.settings.context == 202752


def agent_plan(model: ModelTable, ram_gib: int) -> Plan:
    """For an agent on a CPU with this much memory."""
    wishes = Wishes(workload=workload("agent"))
    plan = solve(make_task(model, machine_with((), ram_bytes=ram_gib * GIB), wishes, beyond()), ladder=False)
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", ["llama-3.1-8b-q4_k_m", "gemma-3-27b-q4_0"])
def test_a_larger_micro_batch_has_to_gain_two_percent_for_a_gib(name: str) -> None:
    """Without a GPU a prompt gains next to nothing by it, and its buffers are system memory."""
    model = table(name)
    chosen = agent_plan(model, 96).chosen
    machine = machine_with((), ram_bytes=96 * GIB)
    for ubatch in (512, 1024, 2048):
        wishes = Wishes(workload=workload("agent"), pins={"ubatch": str(ubatch)})
        plan = solve(make_task(model, machine, wishes, beyond()), ladder=False)
        assert plan is not None
        saves = chosen.footprint.host.total_bytes - plan.chosen.footprint.host.total_bytes
        if saves >= GIB:
            assert plan.chosen.speed.request_s > 1.02 * chosen.speed.request_s, ubatch
    assert chosen.settings.ubatch < 2048


def test_a_prompt_cache_gives_way_before_the_context_does() -> None:
    """Llama 3.1 8B's two states of 128K tokens take 32 GiB in f16; a card of 48 GiB has room for both."""
    llama = table("llama-3.1-8b-q4_k_m")
    found = {}
    for ram in (16, 24, 64):
        machine = machine_with(((48 * 1024, 0),), ram_bytes=ram * GIB)
        plan = solve(make_task(llama, machine, Wishes(workload=workload("agent")), beyond()), ladder=False)
        assert plan is not None
        assert plan.chosen.footprint.verdict == "fits"
        assert plan.chosen.settings.kv_type_k == "f16"
        assert plan.chosen.settings.slot_limit == 131072
        found[ram] = plan.chosen.settings.cache_ram_bytes
        reduced = [item for item in plan.findings if item.id == "prompt-cache-reduced"]
        assert bool(reduced) == (found[ram] < 32 * GIB)
    assert found[16] < found[24] < found[64] == 32 * GIB


def test_a_pinned_prompt_cache_is_left_alone() -> None:
    machine = machine_with(((48 * 1024, 0),), ram_bytes=16 * GIB)
    wishes = Wishes(workload=workload("agent"), context=32768, pins={"cache_ram": "8192"})
    plan = solve(make_task(table("llama-3.1-8b-q4_k_m"), machine, wishes, beyond()), ladder=False)
    assert plan is not None
    assert plan.chosen.settings.cache_ram_bytes == 8 * GIB
    assert plan.chosen.footprint.verdict == "tight"


def test_a_quantised_cache_only_where_f16_does_not_reach_the_floor() -> None:
    """Two conversations of 64K tokens of Llama 3.1 8B take 16 GiB with f16 (131,072 bytes a token), 8.5 with q8_0."""
    llama = table("llama-3.1-8b-q4_k_m")
    short = agent_plan(llama, 20)
    assert short.chosen.settings.kv_type_k == short.chosen.settings.kv_type_v == "q8_0"
    assert short.chosen.settings.slot_limit == 65536
    assert "kv-quant-chosen" in {item.id for item in short.findings}
    assert agent_plan(llama, 64).chosen.settings.kv_type_k == "f16"
    breaks = ModelTable(replace(llama.spec, kv_quantisation_breaks="it was seen to"))
    assert agent_plan(breaks, 20).chosen.settings.kv_type_k == "f16"
