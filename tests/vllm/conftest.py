"""vLLM 0.33's own parser, in a process of its own. A test that wants it and finds none fails: nothing here skips."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm_parse.py"


def ask(words: Sequence[str], text: str = "") -> Any:
    """The answer of scripts/vllm_parse.py."""
    python = os.environ.get("PLAN_LLAMA_VLLM_PYTHON")
    if not python or not Path(python).is_file():
        pytest.fail(
            "PLAN_LLAMA_VLLM_PYTHON names no interpreter; run: "
            'PLAN_LLAMA_VLLM_PYTHON="$(python scripts/vllm_environment.py)" python -m pytest -m vllm',
            pytrace=False,
        )
    ended = subprocess.run(
        [python, str(SCRIPT), *words], input=text, capture_output=True, text=True, check=False, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout)


@pytest.fixture(scope="session")
def refusals() -> Callable[[Sequence[Sequence[str]]], list[str | None]]:
    """What vLLM says to each of many commands (the words behind `vllm serve`); None where it takes one."""

    def said(commands: Sequence[Sequence[str]]) -> list[str | None]:
        found: list[str | None] = ask((), json.dumps([list(words) for words in commands]))
        assert len(found) == len(commands)
        return found

    return said


@pytest.fixture(scope="session")
def arguments() -> list[dict[str, Any]]:
    """Every argument of the real parser."""
    found: list[dict[str, Any]] = ask(("--arguments",))
    return found
