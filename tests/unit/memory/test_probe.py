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


GLM_5_3 = "glm-5.3-flash-q4_k_m"


@pytest.mark.parametrize(
    ("name", "flags", "card", "host"),
    [
        # `fused DeepSeek V4 HC post not supported, set to disabled` with layers on both sides, or the output
        (GLM_5_3, "-ngl 23 -c 4096 -ub 512 --no-op-offload -np 1", 606_405_760, 254_518_976),
        (GLM_5_3, "-ngl 23 -c 4096 -ub 2048 --no-op-offload -np 1", 2_427_401_344, 1_017_640_640),
        (GLM_5_3, "-ngl 10 -c 4096 -ub 2048 --no-op-offload -fa off -np 1", 4_470_936_512, 2_916_808_576),
        (GLM_5_3, "-ngl 1 -c 4096 -ub 512 --no-op-offload -np 1", 561_798_688, None),
        (GLM_5_3, "-ngl 23 -c 4096 -ub 2048 -np 1", 2_664_628_928, 172_479_808),
        (GLM_5_3, "-ngl 999 -c 4096 -ub 2048 --no-op-offload -ncmoe 99 -np 1", 989_394_912, 507_934_016),
        # `Flash Attention not supported, set to disabled`: the states of the next layer are read on its card
        ("lfm2-1.2b-q4_0", "-ngl 8 -c 4096 -np 4 --no-op-offload", 90_177_568, 94_390_336),
        ("lfm2-1.2b-q4_0", "-ngl 8 -c 4096 -nkvo -np 2", 68_159_744, 159_402_048),
        ("ai21-jamba-mini-1.6-q4_k_m", "-ngl 16 -c 4096 -nkvo -np 2", 863_014_912, 180_371_520),
        ("nvidia-nemotron-nano-9b-v2-q4_k_m", "-ngl 28 -c 4096 -nkvo -np 2", 190_024_000, 217_858_112),
        # the attention that chooses adapters, of a last layer and before the first one
        ("granite-3.3-8b-switch-q8_0", "-ngl 20 -c 4096 -nkvo -np 2", 188_747_776, 13_125_664),
    ],
)
def test_what_is_given_up_between_two_sides(name: str, flags: str, card: int, host: int | None) -> None:
    """`MEMBYTES_MODE=server membytes -m HEADER --rpc CARD FLAGS -nr` of b11434; -fa is auto unless it is there."""
    asked = Asked(program="llama-server", cards=(24576,), flags=(*flags.split(), "-nr"))
    found = predicted(asked, table("real", name))
    assert found["GPU0"].compute_bytes == card
    assert host is None or found["Host"].compute_bytes == host
