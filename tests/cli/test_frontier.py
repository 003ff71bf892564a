"""Quants against contexts: which points are worth a look, and that they are what a plan for them would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plan_llama.models.writer import write_header
from tests.cli.conftest import Cli
from tests.small_models import llama_like

AIR = ("--model", "glm-4.5-air", "--gpu", "RTX 4090", "--ram", "64GiB", "--cpu-cores", "16")


def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one has and is as much as the other, and more in something."""
    pairs = [(one[key], other[key]) for key in ("context", "bits_per_weight", "decode_tok_s")]
    pairs.append((-one["request_s"], -other["request_s"]))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@pytest.mark.slow
def test_points_that_nothing_beats_are_marked(cli: Cli) -> None:
    points = cli(*AIR, "--json").json["frontier"]
    fit = [point for point in points if point["verdict"] in ("fits", "tight")]
    assert len(fit) > 8
    for point in points:
        wanted = point in fit and not any(beats(other, point) for other in fit)
        assert point["undominated"] == wanted, point
    assert {point["undominated"] for point in fit} == {True, False}
    assert any(point["verdict"] not in ("fits", "tight") for point in points)


@pytest.mark.slow
def test_the_plan_is_one_of_them_and_others_are_as_planned(cli: Cli) -> None:
    answer = cli(*AIR, "--quant", "Q4_K_M", "--json").json
    points = {(point["quant"], point["context"]): point for point in answer["frontier"]}
    own = points["Q4_K_M", answer["settings"]["context_per_slot"]]
    assert own["request_s"] == answer["speed"]["request_s"]
    assert own["cpu_moe_layers"] == answer["settings"]["cpu_moe_layers"]
    pins = ("--pin", f"ubatch={answer['settings']['ubatch']}")
    other = cli(*AIR, "--quant", "Q3_K_M", "--ctx", "8192", *pins, "--json").json
    assert points["Q3_K_M", 8192]["decode_tok_s"] == pytest.approx(other["speed"]["decode_tok_s"]["expected"])


def test_a_file_of_nobodys_has_its_own_quant_alone(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_header(llama_like(), path)
    points = cli("--model", str(path), "--no-gpu", "--ram", "64GiB", "--json").json["frontier"]
    assert len({point["quant"] for point in points}) == 1
    assert points


@pytest.mark.slow
def test_the_table_is_asked_for(cli: Cli) -> None:
    assert "Quants and contexts" not in cli(*AIR).out
    shown = cli(*AIR, "--explain").out
    table = shown[shown.index("Quants and contexts") :].split("\n\n", maxsplit=1)[0]
    assert "Q4_K_M" in table
    assert "*" in table
    assert max(map(len, table.splitlines())) <= 120
