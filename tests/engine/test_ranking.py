"""llama-bench on this CPU: what is predicted to be faster is, and as fast as said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine import ranking
from tests.engine.ranking import Bench, Result, Run

pytestmark = pytest.mark.engine
# Of each model the plan's choice, and what somebody else might have chosen: another quant, one thread, no repacking.
_CHOICES = (
    Run(model="qwen3-0.6b", mix="Q4_K_M"),
    Run(model="qwen3-0.6b", mix="Q4_K_M", flags=("-t", "1")),
    Run(model="qwen3-0.6b", mix="Q8_0"),
    Run(model="qwen3-0.6b", mix="IQ3_XXS"),
    Run(model="llama-3.2-1b", mix="Q4_K_M"),
    Run(model="llama-3.2-1b", mix="Q4_K_M", flags=("-t", "1")),
    Run(model="llama-3.2-1b", mix="Q8_0"),
    Run(model="gemma-3-1b", mix="Q4_0"),
    Run(model="gemma-3-1b", mix="Q4_0", flags=("--repack", "0")),
    Run(model="gemma-3-1b", mix="Q4_0", flags=("-t", "1")),
    Run(model="granite-3.1-1b-a400m", mix="Q4_K_M"),
    Run(model="granite-3.1-1b-a400m", mix="Q4_K_M", flags=("-t", "1")),
    Run(model="granite-3.1-1b-a400m", mix="IQ3_XXS"),
)
RUNS = tuple(replace(run, prompt=64) for run in _CHOICES)
MODELS = tuple(dict.fromkeys(run.model for run in RUNS))
_FURTHER_S = 60.0  # for more rounds of what is out of order, in all
_IN_RANGE = 0.8  # the share of measurements that the low and the high figure are said to hold


@pytest.fixture(scope="module")
def measured(
    engine_bin: Path, engine_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Result]]:
    """Every run, in rounds over all models, on the calibrated machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN_LLAMA_CACHE", str(tmp_path_factory.mktemp("calibration")))
        bench = Bench(engine_bin, engine_cache / "speed")
        for run in RUNS:
            bench.file(run)
        assert ranking.calibrate(bench.folder)["memory"]["bytes_per_s"] > 1e9
        found = ranking.results(bench, RUNS)
        yield ranking.decided(bench, found, time.monotonic() + _FURTHER_S)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_predicted_to_be_faster_is(measured: list[Result], model: str) -> None:
    own = [result for result in measured if result.run.model == model]
    pairs = list(ranking.compared(own))
    # one thread against all: two settings at least whose predictions lie apart, in both kinds
    assert {fast.kind for fast, _ in pairs} == {"prefill", "decode"}, "\n".join(map(str, own))
    wrong = ranking.out_of_order(own)
    assert not wrong, "\n".join(f"faster: {fast}\nslower: {slow}" for fast, slow in wrong)


def test_what_is_measured_lies_in_the_stated_range(measured: list[Result]) -> None:
    outside = [result for result in measured if not result.in_range]
    assert len(outside) <= (1 - _IN_RANGE) * len(measured), "\n".join(map(str, outside))
