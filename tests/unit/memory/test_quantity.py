"""Sizes that remember how they came about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_llama.memory.quantity import Guards, Quantity, evaluate

VALUES = (512, 4096)
TOKENS, CELLS = 0, 1

FORMULAS: tuple[Callable[[int, int], int], ...] = (
    lambda t, c: 3 * t + c * t - 7,
    lambda t, c: -(-(t + 13) // 64) * 64 + c,
    lambda t, c: (t * c * 2) // 4 + t % 3,
    lambda t, c: min(2048, c) * t,
    lambda t, c: max(t, c) - (1 if t == 512 else 0),
    lambda t, c: (t * c) // t + (5 - c) * (t - c),
    lambda t, c: sum(range(t)) if t < 100 else 100 // (c // c),
)


def variables(values: tuple[int, int]) -> tuple[Guards, int, int]:
    guards = Guards(values)
    return guards, guards.variable(TOKENS), guards.variable(CELLS)


def worked_out(made: int, values: tuple[int, int]) -> int:
    return evaluate(tuple(made.terms.items()), values) if isinstance(made, Quantity) else made


@pytest.mark.parametrize("formula", FORMULAS)
@given(
    first=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    other=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
)
def test_what_the_guards_admit_is_what_plain_numbers_give(
    formula: Callable[[int, int], int], first: tuple[int, int], other: tuple[int, int]
) -> None:
    guards, tokens, cells = variables(first)
    made = formula(tokens, cells)
    assert worked_out(made, first) == formula(*first)
    if guards.hold(other):
        assert worked_out(made, other) == formula(*other)


def test_a_sum_of_positive_parts_needs_no_guard() -> None:
    guards, tokens, cells = variables(VALUES)
    assert tokens * cells + 3 > 0
    assert bool(tokens)
    assert guards.hold((1, 1))


def test_a_comparison_is_a_guard() -> None:
    guards, tokens, cells = variables(VALUES)
    assert min(2048, cells) == 2048
    assert guards.hold((64, 2304))
    assert not guards.hold((64, 2048 - 256))
    assert tokens >= 32
    assert not guards.hold((31, 4096))


def test_a_remainder_is_a_guard() -> None:
    guards, tokens, _ = variables(VALUES)
    assert tokens // 64 == 8
    assert guards.hold(VALUES)
    assert not guards.hold((513, 4096))


def test_a_loop_over_a_size_holds_for_that_size_alone() -> None:
    guards, tokens, _ = variables(VALUES)
    assert len(range(tokens)) == 512
    assert not guards.hold((1024, 4096))


def test_what_is_the_same_for_all_values_is_no_guard() -> None:
    guards, tokens, cells = variables(VALUES)
    assert (tokens + cells) - cells == tokens
    assert tokens * 2 // 2 == tokens
    assert guards.hold((7, 9))


def test_a_difference_that_cancels_is_a_number() -> None:
    _, tokens, _ = variables(VALUES)
    assert type(tokens - tokens) is int
    assert type(tokens * 0) is int


def test_a_size_is_no_key() -> None:
    _, tokens, _ = variables(VALUES)
    with pytest.raises(TypeError):
        hash(tokens)
