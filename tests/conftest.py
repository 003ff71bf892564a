"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest

# The program never collects (plan_llama.__main__): it makes many small objects and hardly a cycle. At Python's own pace
# that takes a fifth of the tests' time.
gc.set_threshold(200_000, 20, 20)

# .ci/run asks for each of them once; what has none is in the fast run.
_RUNS = frozenset(("slow", "engine", "vllm", "gpu"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a test that would be run twice."""
    for item in items:
        if len(_RUNS.intersection(mark.name for mark in item.iter_markers())) > 1:
            raise pytest.UsageError(f"{item.nodeid}: marked for more than one of {', '.join(sorted(_RUNS))}")
