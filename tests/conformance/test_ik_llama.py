"""ik_llama.cpp: what it was measured to reserve, beside what is predicted for the same command.

tests/data/ik_llama has the cases; tests/engine/record_ik.py makes them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines import ik_llama
from plan_llama.engines.commandline import parse
from plan_llama.engines.ik_reading import ik_settings, latent
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import DeviceBytes, Settings
from plan_llama.units import GIB, MIB
from tests.engine.real_headers import headers
from tests.unit.engine_fixtures import machine

DATA = Path(__file__).parents[1] / "data" / "ik_llama"
# Its RPC server stands in for a card: tensors have the sizes of the CPU, and nothing is offloaded to it.
STAND_IN = BackendKind(alignment=64, cuda_sizes=False)
ROUNDED_MIB = 0.011  # it prints hundredths
# GLM-5.1 comes with a layer for drafting, of which this engine keeps some tensors more.
MORE_WEIGHTS_MIB = {"glm-5.1-ud-iq2": 11.88}


@cache
def tables() -> dict[str, ModelTable]:
    wanted = {case["model"] for case in rows()}
    return {name: ModelTable(spec) for name, spec in headers() if name in wanted}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / "memory.jsonl").read_text("utf-8").splitlines()]


def cases() -> Iterator[tuple[str, Settings, str, dict[str, float], DeviceBytes]]:
    """Each place of each command: its settings, what is there in MiB, what is predicted."""
    for case in rows():
        if "refused" in case:
            continue
        table = tables()[case["model"]]
        parsed = parse(("llama-server", "-m", "x.gguf", *case["arguments"]), table=ik_llama.flags())
        assert parsed.accepted, parsed.refused
        settings = ik_settings(parsed, model=table.spec, machine=machine(case["cards"])).settings
        settings = replace(settings, op_offload=False, repack=False)
        made = buffers(table, settings, [DeviceMemory(free_bytes=9000 * GIB, kind=STAND_IN)] * case["cards"])
        predicted = {"Host": made.host} | {f"GPU{i}": part for i, part in enumerate(made.devices)}
        label = f"{case['model']} {' '.join(case['arguments'])}"
        for place, found in case["mib"].items():
            yield f"{label}: {place}", settings, place, found, predicted[place]


def state_mib(label: str, settings: Settings) -> float:
    """A hidden state of the micro-batch."""
    embedding = tables()[label.split(" ")[0]].spec.int_param("embedding_length", 0)
    return embedding * settings.ubatch * 4 / MIB


@pytest.mark.slow
def test_no_compute_buffer_is_larger_than_said() -> None:
    beyond = ik_llama.notes().beyond_bytes / MIB
    wrong, exact, cards = [], 0, 0
    for label, settings, place, found, predicted in cases():
        more = found["compute"] - predicted.compute_bytes / MIB
        allowed = beyond + state_mib(label, settings)
        if not settings.flash_attn:
            allowed += 0.05 * found["compute"]  # not what a plan writes
        if more > allowed:
            wrong.append((label, more))
        if place == "GPU0":
            cards += 1
            exact += abs(more) <= 1
    assert wrong == []
    assert cards > 150
    assert exact / cards > 0.6


@pytest.mark.slow
def test_weights_and_caches_are_what_it_loads() -> None:
    wrong = []
    for label, settings, place, found, predicted in cases():
        model = label.split(" ")[0]
        spec = tables()[model].spec
        more = found["model"] - predicted.weights_bytes / MIB
        if (
            place == "Host"
            and not settings.gpu_layers
            and not any(t.name == "output.weight" for t in spec.tensors)
        ):
            # without a mapped file, tied embeddings are there twice
            table = next(tensor for tensor in spec.tensors if tensor.name == "token_embd.weight")
            more -= table.nbytes / MIB if more > ROUNDED_MIB else 0
        if not -ROUNDED_MIB <= more <= MORE_WEIGHTS_MIB.get(model, ROUNDED_MIB):
            wrong.append((label, "weights", more))
        # its indexer is kept for some layers only, and Gemma 4's V for none without flash attention
        if found["KV"] - predicted.context_bytes / MIB > ROUNDED_MIB:
            wrong.append((label, "cache", found["KV"] - predicted.context_bytes / MIB))
    assert wrong == []


def test_a_file_of_today_gets_one_way_of_latent_attention() -> None:
    """Without attn_kv_b it changes every -mla to 1, and -amb has no part in it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in rows():
        if "-mla" in case["arguments"] and "-ub" in case["arguments"]:
            ubatch = case["arguments"][case["arguments"].index("-ub") + 1]
            found.setdefault(f"{case['model']} {ubatch}", []).append(case["mib"])
    assert len(found) >= 10
    for model, each in found.items():
        assert all(mib == each[0] for mib in each), model
        assert latent(tables()[model.split(" ")[0]].spec)
