"""How much work a plan is, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from plan_llama.memory import estimate
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers, Settings
from plan_llama.solver import place
from plan_llama.solver.costs import Costs
from plan_llama.solver.lineup import Lineup
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task
from plan_llama.solver.types import Wishes
from tests.oracle_cases import machine_with
from tests.small_models import llama_like


def three_cards(*sizes_mib: int) -> Task:
    """A model on three cards of these sizes and several speeds, at one context."""
    wishes = Wishes(workload=workload("chat"), context=4096, pins={"ubatch": "512"})
    model = ModelTable(llama_like(layers=8, width=4096, heads=32))
    machine = machine_with(tuple((size, 0) for size in sizes_mib))
    gpus = tuple(
        replace(gpu, name=f"card {n}", bandwidth_bytes_per_s=(936e9, 448e9, 360e9)[n])
        for n, gpu in enumerate(machine.gpus)
    )
    return make_task(model, replace(machine, gpus=gpus), wishes, beyond())


def test_orders_of_the_cards_share_what_they_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """No placement is measured twice, and a piece of the model is priced once for all contexts."""
    measured: Counter[Settings] = Counter()
    priced: Counter[object] = Counter()
    real = estimate.buffers

    def counting(table: ModelTable, settings: Settings, *rest: Any) -> Buffers:
        measured[settings] += 1
        return real(table, settings, *rest)

    def noting(
        self: Costs,
        table: object,
        layers: object,
        movable: object,
        machine: object,
        settings: Settings,
        *rest: Any,
        at_once: int,
    ) -> None:
        priced[replace(settings, context=0), at_once] += 1
        begin(self, table, layers, movable, machine, settings, *rest, at_once=at_once)

    begin: Any = Costs.__init__
    monkeypatch.setattr(place, "buffers", counting)
    monkeypatch.setattr(Costs, "__init__", noting)
    plan = solve(three_cards(2560, 2304, 2176))
    assert plan is not None
    assert set(measured.values()) == {1}
    assert set(priced.values()) == {1}


def test_cards_at_once_are_sought_once_though_several_orders_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sought: Counter[object] = Counter()
    settle: Any = Lineup._settle

    def counting(
        self: Lineup,
        order: tuple[int, ...],
        costs: Any,
        cards: Any,
        beside: list[int],
        *rest: Any,
        **more: Any,
    ) -> bool:
        if more.get("every_card"):
            sought[self.base, order, tuple(beside)] += 1
        return bool(settle(self, order, costs, cards, beside, *rest, **more))

    monkeypatch.setattr(Lineup, "_settle", counting)
    assert solve(three_cards(2560, 2560, 2560), ladder=False) is not None
    assert set(sought.values()) == {1}


def test_what_layers_cost_on_a_card_is_worked_out_once_for_all_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    priced: Counter[object] = Counter()
    rest: Any = Costs._rest

    def counting(self: Costs, il: int, device: int, apart: bool) -> float:
        if device != HOST:
            priced[replace(self.settings, devices=(), main_gpu=0), self.at_once, device, il] += 1
        return float(rest(self, il, device, apart))

    monkeypatch.setattr(Costs, "_rest", counting)
    assert solve(three_cards(2560, 2304, 2176), ladder=False) is not None
    assert set(priced.values()) == {1}
