"""Which cases of a test with many are in the fast run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Every value as a case, marked slow where it is not one of `fast`; several parameters stand in a tuple."""
    given = list(values)
    if missing := [value for value in fast if value not in given]:
        raise ValueError(f"not among the values: {missing}")
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if value in fast else pytest.mark.slow,
        )
        for value in given
    ]
