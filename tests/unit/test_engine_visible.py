"""Cards that a command's environment hides."""

from __future__ import annotations

import pytest

from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.visible import names, visible
from tests.unit.engine_fixtures import glm, machine


@pytest.mark.parametrize(
    ("env", "left", "named"),
    [
        ({}, (0, 1, 2), ("CUDA0", "CUDA1", "CUDA2")),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, (2, 0), ("CUDA1", "", "CUDA0")),
        ({"CUDA_VISIBLE_DEVICES": "1,7,0"}, (1,), ("", "CUDA0", "")),
        ({"CUDA_VISIBLE_DEVICES": ""}, (), ("", "", "")),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, (), ("", "", "")),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, (0, 1, 2), ("CUDA0", "CUDA1", "CUDA2")),
        ({"NVIDIA_VISIBLE_DEVICES": "1,2", "CUDA_VISIBLE_DEVICES": "1"}, (2,), ("", "", "CUDA0")),
        ({"HIP_VISIBLE_DEVICES": "0"}, (0, 1, 2), ("CUDA0", "CUDA1", "CUDA2")),
    ],
)
def test_what_is_left(env: dict[str, str], left: tuple[int, ...], named: tuple[str, ...]) -> None:
    gpus = machine(3).gpus
    found, said = visible(gpus, env)
    assert (found, names(gpus, found)) == (left, named)
    assert len(said) == (0 if left == (0, 1, 2) else len(env))


@pytest.mark.parametrize(
    ("words", "devices", "gpu_layers"),
    [
        ("CUDA_VISIBLE_DEVICES=1 llama-server -ngl 99", (1,), 99),
        ("CUDA_VISIBLE_DEVICES= llama-server -ngl 99", (), 0),
        ("CUDA_VISIBLE_DEVICES=2,1 llama-server -ngl 99 -dev CUDA1", (1,), 99),
        ("CUDA_VISIBLE_DEVICES=2,1 llama-server -ngl 99 -sm none", (2,), 99),
    ],
)
def test_a_command_uses_what_it_sees(words: str, devices: tuple[int, ...], gpu_layers: int) -> None:
    reading = to_settings(parse(words.split(), table=FlagTable.load()), model=glm(), machine=machine(3))
    assert (reading.devices, reading.settings.gpu_layers) == (devices, gpu_layers)
    assert [item.id for item in reading.findings] == ["devices-hidden"]


def test_a_card_that_is_hidden_cannot_be_named() -> None:
    words = ["CUDA_VISIBLE_DEVICES=1", "llama-server", "-ot", "exps=CUDA1"]
    reading = to_settings(parse(words, table=FlagTable.load()), model=glm(), machine=machine(3))
    assert [item.id for item in reading.findings if item.severity == "error"]
