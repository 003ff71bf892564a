"""Layers that are alike and do not all allocate alike.

Of GLM-5.1 and DeepSeek-V3.2 every layer has a constant as large as the mask, taken before the graph begins and given
back in the layer: the hole grows from layer to layer. A card's last layer gives back the inputs that its layers read.
"""

from __future__ import annotations

import pytest

from plan_llama.memory import repeats
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.patterns import n_cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import GIB
from tests.conformance_cases import Measured, equal_layers, predicted, spec, table

# experts on the host, and a layer on the second card that is unlike its neighbours
_OVERRIDES = (
    Override(r"blk\.36\.ffn_down", HOST),
    Override(rf"blk\.({'|'.join(map(str, range(15, 53)))})\.ffn_(up|down|gate)_exps", HOST),
)


@pytest.mark.parametrize("case", tuple(equal_layers()), ids=lambda case: case.label[:60])
def test_what_the_engine_reserves(case: Measured) -> None:
    """To the byte, as llama.cpp b11434 counts."""
    assert predicted(case.asked, table("real", case.model)) == case.places


@pytest.mark.parametrize(
    ("model", "chosen", "cards"),
    [
        ("glm-5.1-ud-iq2", Settings(context=8192, gpu_layers=39, ubatch=1024, overrides=_OVERRIDES), 4),
        ("glm-5.1-ud-iq2", Settings(context=8192, gpu_layers=78, ubatch=2048, batch=2048), 2),
        ("glm-5.3-flash-q4_k_m", Settings(context=4096, gpu_layers=99), 1),
        ("glm-5.3-flash-q4_k_m", Settings(context=32768, gpu_layers=99, ubatch=32, flash_attn=False), 1),
    ],
)
def test_fused_kernels_hold_what_they_hold_with_every_layer_built(
    model: str, chosen: Settings, cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's dry run does not show them."""
    devices = [DeviceMemory(free_bytes=24 * GIB)] * cards
    made = buffers(ModelTable(spec("real", model)), chosen, devices)
    monkeypatch.setattr(repeats, "_BUILT", 1000)
    assert made == buffers(ModelTable(spec("real", model)), chosen, devices)


@pytest.mark.parametrize(
    ("model", "cards"), [("glm-5.1-ud-iq2", 1), ("glm-5.1-ud-iq2", 2), ("deepseek-v3.2-q4_k_m", 1)]
)
def test_one_of_many_is_what_it_is_alone(model: str, cards: int) -> None:
    """Numbers of layers between others are worked out on the line."""
    devices = [DeviceMemory(free_bytes=24 * GIB)] * cards
    many, asked = table("real", model), range(20, 52)
    found = {
        count: buffers(many, Settings(context=8192, gpu_layers=99, overrides=n_cpu_moe(count)), devices)
        for count in asked
    }
    for count in asked[2::6]:
        chosen = Settings(context=8192, gpu_layers=99, overrides=n_cpu_moe(count))
        assert found[count] == buffers(ModelTable(spec("real", model)), chosen, devices)
