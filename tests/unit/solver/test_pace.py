"""How much work a plan is, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from plan_llama.memory import estimate
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Buffers, Settings
from plan_llama.solver import place
from plan_llama.solver.costs import Costs
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.types import Wishes
from tests.oracle_cases import machine_with
from tests.small_models import llama_like

CARDS = ((2560, 0), (2304, 0), (2176, 0))


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
    wishes = Wishes(workload=workload("chat"), context=4096, pins={"ubatch": "512"})
    task = make_task(
        ModelTable(llama_like(layers=8, width=4096, heads=32)), machine_with(CARDS), wishes, beyond()
    )
    plan = solve(task)
    assert plan is not None
    assert set(measured.values()) == {1}
    assert set(priced.values()) == {1}
