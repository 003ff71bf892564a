"""When `--flash-attn auto` ends without flash attention. The bytes are those of the engine (tests/data/conformance)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import GIB
from tests.conformance_cases import measured, predicted, table

CARD = DeviceMemory(free_bytes=24 * GIB)
MODEL = "ernie-4.5-0.3b-pt-q8_0"


def test_a_block_away_from_its_layer() -> None:
    """1.2 GB for 86 MB: the scores of 32,768 cells, and V turned round for each layer."""
    (case,) = (
        case
        for case in measured("real")
        if case.model == MODEL and "-fa" not in case.asked.flags and r"blk\.1\.=CUDA1" in case.asked.flags
    )
    found = predicted(case.asked, table("real", MODEL))
    assert case.places["GPU1"].compute_bytes > 1_200_000_000
    assert {place: part for place, part in found.items() if place in case.places} == case.places


@pytest.mark.parametrize(
    "given",
    [
        Settings(context=32768, gpu_layers=99, flash_attn_auto=True),
        Settings(context=32768, gpu_layers=9, flash_attn_auto=True),
        Settings(
            context=32768,
            gpu_layers=99,
            flash_attn_auto=True,
            kv_type_v="q8_0",
            overrides=(Override(pattern=r"blk\.1\.", device=HOST),),
        ),
    ],
)
def test_otherwise_auto_is_on(given: Settings) -> None:
    on = replace(given, flash_attn_auto=False)
    assert buffers(table("real", MODEL), given, [CARD]) == buffers(table("real", MODEL), on, [CARD])
