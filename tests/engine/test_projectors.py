"""Recorded sizes of projectors, measured again with a real build."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import GpuSimulation
from tests.engine.measure_projectors import ask
from tests.projector_cases import Case, recorded

pytestmark = pytest.mark.engine

CASES = {case.id: case for case in recorded()}
AGAIN = (
    "gemma-3-27b-F16-cpu",
    "gemma-4-26b-a4b-F16-gpu",
    "glm-4.5v-Q8_0-gpu",
    "kimi-vl-a3b-F16-gpu-fa-off",
    "llama-4-scout-F16-cpu",
    "mistral-small-3.2-24b-F16-gpu-max-100",
    "qwen2.5-vl-7b-F16-gpu-max-1280",
    "qwen3-vl-8b-BF16-gpu",
)


@pytest.mark.parametrize("case", [CASES[name] for name in AGAIN], ids=AGAIN)
def test_the_engine_takes_what_is_recorded(
    case: Case, engine_bin: Path, sim_gpus: GpuSimulation, tmp_path: Path
) -> None:
    with sim_gpus([81920] if case.gpu else [], [0] if case.gpu else []) as (env, rpc):
        assert ask(engine_bin, case, tmp_path, env, rpc) == case.answer
