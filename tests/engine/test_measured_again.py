"""The measurements of tests/data/conformance are what the engine says today, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance_cases import SETS, Measured, measured, models, spec
from tests.engine.record_memory import Meter, header, meter, wanted

pytestmark = pytest.mark.engine

RECORDED = {(kind, case.model, case.asked): case for kind in SETS for case in measured(kind)}


@pytest.fixture(scope="module")
def stand_ins(engine_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meter]:
    """One engine with four simulated cards, for all measurements."""
    with meter(engine_bin, tmp_path_factory.mktemp("cards")) as found:
        yield found


def same(found: Measured, recorded: Measured) -> bool:
    """A refusal is one whatever its words: they name lines of the source."""
    return found.places == recorded.places and bool(found.refused) == bool(recorded.refused)


@pytest.mark.parametrize("model", models("real"))
def test_a_model_of_real_size(model: str, stand_ins: Meter, tmp_path: Path) -> None:
    path = header(spec("real", model), tmp_path)
    wrong = [
        found.asked
        for asked in wanted(model, spec("real", model), real=True)
        if not same(found := stand_ins.measure(model, path, asked), RECORDED["real", model, asked])
    ]
    assert not wrong


@pytest.mark.parametrize("model", models("tiny"))
def test_a_tiny_model(model: str, stand_ins: Meter, tiny_archs: dict[str, Path]) -> None:
    wrong = [
        found.asked
        for asked in wanted(model, spec("tiny", model), real=False)
        if not same(
            found := stand_ins.measure(model, tiny_archs[model], asked), RECORDED["tiny", model, asked]
        )
    ]
    assert not wrong
