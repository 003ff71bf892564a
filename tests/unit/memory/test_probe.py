"""Which fused operations the engine gives up. The bytes are the engine's (tests/data/conformance, or as told)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import GIB
from tests.conformance_cases import measured, predicted, table
from tests.flag_sets import Asked

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


@pytest.mark.parametrize(
    ("flags", "card", "host"),
    [
        ("-ngl 23 -c 4096 -ub 512 --no-op-offload -np 1", 606_405_760, 254_518_976),
        ("-ngl 23 -c 4096 -ub 2048 --no-op-offload -np 1", 2_427_401_344, 1_017_640_640),
        ("-ngl 10 -c 4096 -ub 2048 --no-op-offload -fa off -np 1", 4_470_936_512, 2_916_808_576),
        ("-ngl 23 -c 4096 -ub 2048 -np 1", 2_664_628_928, 172_479_808),
        ("-ngl 999 -c 4096 -ub 2048 --no-op-offload -ncmoe 99 -np 1", 989_394_912, 507_934_016),
    ],
)
def test_streams_are_spread_by_many_operations_where_layers_are_on_the_host(
    flags: str, card: int, host: int
) -> None:
    """`MEMBYTES_MODE=server membytes -m HEADER --rpc CARD FLAGS -nr` of b11434, whose log says of the one operation
    that is not used with layers on both sides: `fused DeepSeek V4 HC post not supported, set to disabled`.
    """
    model = table("real", "glm-5.3-flash-q4_k_m")
    found = predicted(Asked(program="llama-server", cards=(24576,), flags=(*flags.split(), "-nr")), model)
    assert (found["GPU0"].compute_bytes, found["Host"].compute_bytes) == (card, host)
