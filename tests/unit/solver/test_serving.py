"""A server for several users: slots, the wished first token, and what would keep it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.catalog_models import resolve as model_of
from plan_llama.solver.choice import best_at
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task, first_token_s, judged, misses_ttft
from plan_llama.solver.serving import by_slots, with_slots
from plan_llama.solver.types import Objective, Plan, Wishes
from plan_llama.speed.types import Load

TABLE = ModelTable(model_of("qwen3-8b", "Q4_K_M"))
ONE_CARD = resolve(HardwareChoice(gpu=("RTX 3090",), ram="64GiB", cpu_cores=8, cpu_isa="avx2"))


def task_of(machine: Machine = ONE_CARD, name: str = "chat", **wishes: Any) -> Task:
    """A task for the 8B model."""
    return make_task(TABLE, machine, Wishes(workload=workload(name), **wishes), beyond())


def plan_of(machine: Machine = ONE_CARD, name: str = "chat", **wishes: Any) -> Plan:
    """Its plan."""
    plan = solve(task_of(machine, name, **wishes), ladder=False)
    assert plan is not None
    return plan


def load_of(plan: Plan) -> Load:
    """What its users get."""
    assert plan.chosen.speed.load is not None
    return plan.chosen.speed.load


def ids(plan: Plan) -> set[str]:
    """The findings."""
    return {item.id for item in plan.findings}


def test_every_user_has_a_slot_where_there_is_room() -> None:
    plan = plan_of(context=8192, users=8)
    assert plan.chosen.settings.parallel == 8
    assert plan.chosen.settings.context == 8 * 8192
    assert load_of(plan).slot_wait_s == 0
    assert plan.relaxations == ()
    assert "users-wait-for-slots" not in ids(plan)


@pytest.mark.slow
def test_slots_are_those_that_serve_best() -> None:
    """Sixteen caches of 16K push half of the model off the card: fewer slots and a line serve more."""
    task = task_of(context=16384, users=16)
    plan = solve(task, ladder=False)
    assert plan is not None
    best = {each.slots: best_at(each, 16384, "f16") for each in by_slots(task)}
    assert sorted(best) == [1, 2, 4, 8, 16]
    served = {slots: found.speed.load for slots, found in best.items() if found and found.speed.load}
    whole = {slots: load.request_s + load.follow_up_ttft_s for slots, load in served.items()}
    assert plan.chosen.settings.parallel == min(whole, key=lambda slots: whole[slots]) == 4
    assert plan.chosen.gpu_block_layers == TABLE.layers
    assert "users-wait-for-slots" in ids(plan)
    assert any(item.what == "--parallel 16" for item in plan.alternatives)


@pytest.mark.slow
def test_what_would_serve_all_does() -> None:
    plan = plan_of(context=16384, users=16)
    named = {item.what: item.effect for item in plan.relaxations}
    assert set(named) == {"--ctx 8192", "one more NVIDIA GeForce RTX 3090"}
    cards = replace(ONE_CARD, gpus=ONE_CARD.gpus * 2)
    for better in (plan_of(context=8192, users=16), plan_of(cards, context=16384, users=16)):
        assert load_of(better).aggregate_tok_s > 1.25 * load_of(plan).aggregate_tok_s
        assert any(f"{load_of(better).aggregate_tok_s:.0f} tok/s" in text for text in named.values())
        assert any(text.startswith(f"{load_of(better).slots} slots") for text in named.values())


def test_given_slots_are_kept_and_the_line_is_said() -> None:
    plan = plan_of(context=8192, users=10, parallel=2)
    load = load_of(plan)
    assert plan.chosen.settings.parallel == load.slots == 2
    assert load.slot_wait_s > 0.7 * load.request_s  # four of five users stand in line
    said = next(item for item in plan.findings if item.id == "users-wait-for-slots")
    assert "8 of them wait" in said.text
    assert "--parallel 10" in said.fix
    state = 1424 * 147456  # tokens of a conversation by bytes of each
    assert plan.chosen.settings.cache_ram_bytes >= 8 * state
    assert load.kept_ratio == 1


def test_a_small_prompt_cache_is_said() -> None:
    plan = plan_of(context=8192, users=10, parallel=2, pins={"cache_ram": "300"})
    assert load_of(plan).kept_ratio == pytest.approx(0.3)  # two in slots, one in the cache
    assert "prompt-cache-too-small" in ids(plan)


def test_a_first_token_that_cannot_be_kept_says_why_and_what_keeps_it() -> None:
    task = task_of(context=8192, users=8, prompt_tokens=6000, ttft_s=1.8)
    plan = solve(task, ladder=False)
    assert plan is not None
    assert misses_ttft(task, plan.chosen)
    assert "ttft-not-kept" in ids(plan)
    named = dict(item.what.split(" ") for item in plan.relaxations if item.what.startswith("--"))
    users, prompt = int(named["--users"]), int(named["--prompt-tokens"])
    fixed = with_slots(task, plan.chosen.settings.parallel)

    def keeps(wishes: Wishes) -> bool:
        same = judged(replace(fixed, wishes=wishes), plan.chosen.settings, plan.chosen.footprint)
        return first_token_s(same) <= 1.8

    assert keeps(replace(fixed.wishes, users=users))
    assert not keeps(replace(fixed.wishes, users=users + 1))
    assert keeps(replace(fixed.wishes, prompt_tokens=prompt))
    assert not keeps(replace(fixed.wishes, prompt_tokens=prompt + 1))


@pytest.mark.slow
def test_a_first_token_decides_between_plans() -> None:
    free = plan_of(context=16384, users=16)
    wanted = plan_of(context=16384, users=16, ttft_s=first_token_s(free.chosen) / 2)
    assert first_token_s(wanted.chosen) <= first_token_s(free.chosen) / 2
    assert load_of(wanted).aggregate_tok_s < load_of(free).aggregate_tok_s
    assert "ttft-not-kept" not in ids(wanted)


@pytest.mark.parametrize(
    ("name", "wishes", "users", "slots"),
    [
        ("chat", {}, None, 1),
        ("agent", {}, None, 2),
        ("agent", {"users": 2}, 2, 4),
        ("server", {}, 4, 4),
        ("server", {"parallel": 6}, 6, 6),
        ("batch", {}, 4, 4),
        ("chat", {"parallel": 3}, None, 3),
        ("chat", {"users": 5}, 5, 5),
    ],
)
def test_users_and_slots_of_workloads(
    name: str, wishes: dict[str, Any], users: int | None, slots: int
) -> None:
    task = task_of(name=name, **wishes)
    assert (task.users, task.slots) == (users, slots)
    assert task.request.users == users


@pytest.mark.slow
def test_more_users_are_never_served_sooner() -> None:
    times = [load_of(plan_of(context=8192, users=users)).request_s for users in (1, 2, 4, 8, 16, 32)]
    assert times == sorted(times)


def test_the_objective_decides() -> None:
    """On a card that holds a part of the experts: the whole request, plain decode, or the longest context."""
    model = ModelTable(model_of("qwen3-30b-a3b", "Q8_0"))
    made = {}
    objectives: tuple[Objective, ...] = ("balanced", "speed", "context")
    for objective in objectives:
        wishes = Wishes(workload=workload("rag"), objective=objective)
        plan = solve(make_task(model, ONE_CARD, wishes, beyond()), ladder=False)
        assert plan is not None
        made[objective] = plan.chosen
    times = {name: chosen.speed.request_s for name, chosen in made.items()}
    rates = {name: chosen.speed.decode_tok_s.expected for name, chosen in made.items()}
    assert times["balanced"] == min(times.values())
    assert rates["speed"] == max(rates.values())
    assert times["balanced"] < times["speed"]
    assert rates["speed"] > rates["balanced"]
    assert made["context"].settings.context == model.spec.context_train > made["balanced"].settings.context
