"""A recording answers for other batches what building the graph for them would."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from plan_llama.memory.context import reserved_batch
from plan_llama.memory.cuda_pool import Chip
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.graph_room import count, counted
from plan_llama.memory.patterns import n_cpu_moe
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.units import GIB
from tests.oracle_cases import spec

CARD = [DeviceMemory(free_bytes=24 * GIB)]
CARDS = [DeviceMemory(free_bytes=24 * GIB), DeviceMemory(free_bytes=12 * GIB)]
BASE = Settings(context=4096, gpu_layers=999)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["glm-5.1-ud-iq2", "gpt-oss-20b-mxfp4", "gemma-3-27b-q4_0"])
def test_a_table_that_remembers_says_what_a_new_one_says(model: str) -> None:
    drawn = random.Random(model)  # noqa: S311 - no secret
    header = spec(model)
    remembering = ModelTable(header)
    asked = []
    for _ in range(80):
        chosen = replace(
            BASE,
            context=256 * drawn.randrange(2, 512),
            ubatch=drawn.choice([96, 512, 1000, 2048]),
            flash_attn=drawn.random() < 0.7,
            gpu_layers=drawn.choice([999, 999, 20]),
            overrides=n_cpu_moe(drawn.choice([0, 5, 20, 21, 40, 999])),
        )
        cards = CARDS[: drawn.choice([1, 1, 2])]
        asked.append((chosen, cards, buffers(remembering, chosen, cards)))
    for chosen, cards, found in drawn.sample(asked, 12):
        assert buffers(ModelTable(header), chosen, cards) == found, chosen


def test_a_graph_is_recorded_once_for_all_chips() -> None:
    header = spec("glm-5.1-ud-iq2")
    remembering = ModelTable(header)
    chosen = replace(BASE, ubatch=1024, overrides=n_cpu_moe(40))
    for chip in ("", "7.0", "6.1", "gfx1100", "gfx90a"):
        kind = BackendKind(alignment=128, cuda_sizes=True, chip=Chip(chip))
        cards = [DeviceMemory(free_bytes=24 * GIB, kind=kind)]
        assert buffers(remembering, chosen, cards) == buffers(ModelTable(header), chosen, cards), chip
    assert len(remembering.recordings) == 1


@pytest.mark.slow
def test_experts_that_move_from_host_to_card_one_by_one() -> None:
    # with so much context what comes last is nearly as large as what layers that are left out hold
    header = spec("glm-5.1-ud-iq2")
    remembering = ModelTable(header)
    for layers in (*range(20, 70), *range(20, 70, 7)):
        chosen = replace(BASE, context=131072, ubatch=2048, overrides=n_cpu_moe(layers))
        found = buffers(remembering, chosen, CARD)
        if layers % 7 == 6:
            assert buffers(ModelTable(header), chosen, CARD) == found, layers


@pytest.mark.parametrize("model", ["granite-4.0-h-small-q4_k_m", "gemma-3-27b-q4_0"])
def test_a_count_that_is_remembered_is_that_of_the_graph(model: str) -> None:
    table = ModelTable(spec(model))
    for context in (4096, 65536, 8192):
        for ubatch in (512, 96, 2048):
            for parallel in (1, 2):
                chosen = replace(BASE, context=context, ubatch=ubatch, parallel=parallel)
                batch = reserved_batch(chosen, table.windows)
                assert counted(table, batch) == count(table, batch), chosen
