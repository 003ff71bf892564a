"""What the engine's --fit makes of a command, against what llama.cpp b11434 chose itself."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from plan_llama.memory.types import HOST, Settings
from plan_llama.memory.weights import place
from plan_llama.solver import fit
from plan_llama.solver.place import Filler
from plan_llama.solver.profiles import beyond
from tests.oracle_cases import Case, devices, fit_choices, machine_with, reading, table

GLM = "glm-5.1-ud-iq2"


def case_of(row: dict[str, Any], *more: str) -> Case:
    """A line of fit_choices.jsonl as a command."""
    return Case(
        model=row["model"],
        program="llama-fit-params",
        flags=(*row["flags"], *more),
        cards=tuple((card["mib"], card["used_mib"]) for card in row["sim_gpus"]),
        variant=None,
        bytes={},
        other_host_bytes={},
        refused=False,
    )


def host_layers(case: Case, settings: Settings) -> int:
    """Layers whose experts are on the host, wholly or in part."""
    model = table(case.model)
    placed = place(model, settings, [device.free_bytes for device in devices(case)])
    return sum(
        any(placed.device_of[i] == HOST for i in model.expert_indices[il]) for il in range(model.layers)
    )


@pytest.mark.parametrize("model", [GLM, "glm-4.5-air-q4_k_m"])
def test_the_choice_is_close_to_the_engines(model: str) -> None:
    bare = replace(beyond(), context_bytes=dict.fromkeys(beyond().context_bytes, 0))
    compared = 0
    for row in fit_choices(model):
        case = case_of(row)
        given = reading(case)
        assert given.fit_enabled
        fitted = fit.apply(
            table(model),
            Filler(table(model), machine_with(case.cards), bare, max(given.fit_targets_bytes)),
            given.settings,
            user_set=given.user_set,
            targets_bytes=given.fit_targets_bytes,
            minimum_context=given.fit_min_context,
        )
        chosen = reading(case_of(row, *shlex.split(row["chosen"]))).settings
        assert fitted.settings.context == chosen.context, case.label
        apart = host_layers(case, fitted.settings) - host_layers(case, chosen)
        assert -1 <= apart <= 2, (case.label, apart)
        assert bool(fitted.changes) == (fitted.settings != given.settings)
        compared += 1
    assert compared >= 4


def test_what_was_given_is_not_touched() -> None:
    row = next(iter(fit_choices(GLM)))
    given = reading(case_of(row, "-c", "32768", "-ngl", "99"))
    bare = replace(beyond(), context_bytes=dict.fromkeys(beyond().context_bytes, 0))
    machine = machine_with(case_of(row).cards)
    fitted = fit.apply(
        table(GLM),
        Filler(table(GLM), machine, bare, None),
        given.settings,
        user_set=given.user_set,
        targets_bytes=given.fit_targets_bytes,
        minimum_context=given.fit_min_context,
    )
    assert fitted.settings == given.settings
