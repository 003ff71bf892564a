"""The same log gets the same answer however it was carried: every stored log in every carrier."""

from __future__ import annotations

import pytest

from tests.unit.doctor.carriers import CARRIERS, WRAPS
from tests.unit.doctor.test_carriers import beside, changed, stored

MOST_CHANGED = 0.005  # of the answers, where words are cut in two


@pytest.mark.slow
@pytest.mark.parametrize("name", CARRIERS)
def test_a_carrier_changes_no_answer(name: str) -> None:
    assert changed(CARRIERS[name], stored()) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPS)
def test_a_terminal_that_cuts_lines_changes_few_answers(name: str) -> None:
    different = changed(WRAPS[name], stored())
    assert len(different) <= MOST_CHANGED * len(stored()), different
    assert [log for log, (before, _) in different.items() if not before] == []


@pytest.mark.slow
def test_a_healthy_log_beside_it_changes_few_causes() -> None:
    """What stands before the line with which a process begins is of the start before it."""
    different, sick = beside(stored())
    assert len(different) <= MOST_CHANGED * len(stored()), different
    assert sick == {}
