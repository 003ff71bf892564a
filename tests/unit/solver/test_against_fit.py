"""The plan's request against that of what llama.cpp's own --fit chose, at the same context and by the same models."""

from __future__ import annotations

from statistics import median

import pytest
from scripts import fit_table

from tests import fit_cases


def ratios(*models: str) -> dict[tuple[str, str], float]:
    """The plan's seconds over the other's."""
    return {
        (choice.model, choice.machine): fit_cases.plan(choice.model, choice.machine).chosen.speed.request_s
        / fit_cases.theirs(choice).speed.request_s
        for choice in fit_cases.choices()
        if choice.model in models
    }


def offloaded(model: str, machine: str) -> bool:
    """Whether the plan leaves experts on the CPU."""
    return fit_cases.plan(model, machine).chosen.cpu_moe_layers > 0


def test_every_model_was_asked_for_on_every_machine() -> None:
    asked = {(choice.model, choice.machine) for choice in fit_cases.choices()}
    assert asked == {(model, machine) for model in fit_cases.MODELS for machine in fit_cases.MACHINES}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt-oss-120b"])
def test_no_plan_is_slower(model: str) -> None:
    found = ratios(model)
    assert len(found) == len(fit_cases.MACHINES)
    assert max(found.values()) <= 1.0
    assert median(ratio for key, ratio in found.items() if offloaded(*key)) <= 0.6


@pytest.mark.slow
def test_no_plan_of_any_model_is_slower() -> None:
    found = ratios(*fit_cases.MODELS)
    assert len(found) == 54
    assert max(found.values()) <= 1.0
    assert median(ratio for key, ratio in found.items() if offloaded(*key)) <= 0.6


@pytest.mark.slow
def test_the_page_is_what_the_program_writes() -> None:
    assert fit_table.PAGE.read_text(encoding="utf-8") == fit_table.page()
