"""What the engine's --fit makes of a command, against what llama.cpp b11434 chose itself."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from plan_llama.engines.command_settings import CommandReading
from plan_llama.solver import fit
from tests.oracle_cases import Case, fit_choices, machine_with, reading, table
from tests.slow import slow_but

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


def fitted_to(case: Case, given: CommandReading) -> fit.Fitted:
    """What the port makes of a command."""
    return fit.apply(
        table(case.model),
        machine_with(case.cards),
        given.settings,
        user_set=given.user_set,
        targets_bytes=given.fit_targets_bytes,
        minimum_context=given.fit_min_context,
    )


@pytest.mark.parametrize(
    "model",
    slow_but(
        [GLM, "glm-4.5-air-q4_k_m", "gemma-3-27b-q4_0", "llama-3.1-8b-q4_k_m"],
        "gemma-3-27b-q4_0",
        "llama-3.1-8b-q4_k_m",
    ),
)
def test_the_choice_is_the_engines(model: str) -> None:
    compared = 0
    for row in fit_choices(model):
        case = case_of(row)
        given = reading(case)
        assert given.fit_enabled
        fitted = fitted_to(case, given)
        words = shlex.split(row["chosen"].replace("=GPU", "=CUDA"))
        if words[words.index("-ngl") + 1] == "-1":
            chosen = replace(given.settings, context=int(words[words.index("-c") + 1]))
            assert fitted.settings == chosen, case.label
        else:
            chosen = reading(case_of(row, *words)).settings
            assert fitted.settings.context == chosen.context, case.label
            assert fitted.settings.gpu_layers == chosen.gpu_layers, case.label
            assert fitted.settings.tensor_split == chosen.tensor_split, case.label
            assert [o.pattern for o in fitted.settings.overrides] == [o.pattern for o in chosen.overrides]
        assert bool(fitted.changes) == (fitted.settings != given.settings)
        compared += 1
    assert compared >= 4


def test_what_was_given_is_not_touched() -> None:
    row = next(iter(fit_choices(GLM)))
    case = case_of(row, "-c", "32768", "-ngl", "99")
    given = reading(case)
    assert fitted_to(case, given).settings == given.settings
