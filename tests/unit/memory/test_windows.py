"""Caches behind sliding windows, caches that layers share, and inputs of vision models, in models of real size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_llama.memory.estimate import buffers
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.config_folder import spec_of

CONFIGS = json.loads(
    (Path(__file__).parents[2] / "data" / "model_configs" / "configs.json").read_text(encoding="utf-8")
)
MIB = 1 << 20

# MiB of context and of compute that llama-fit-params b11434 prints for headers of these configs with -fitp on -ngl 0
# -nr -np 1 -fa on and that -c. The graph of those without a compute number is not described here.
MEASURED: list[tuple[str, int, int, int | None]] = [
    ("LGAI-EXAONE/EXAONE-4.0-32B", 8192, 1376, None),
    ("LGAI-EXAONE/EXAONE-4.0-32B", 65536, 4960, None),
    ("Qwen/Qwen3-VL-235B-A22B-Instruct", 8192, 1504, 472),
    ("Qwen/Qwen3-VL-8B-Instruct", 8192, 1152, 472),
    ("google/gemma-3n-E4B-it", 8192, 96, None),
    ("google/gemma-3n-E4B-it", 65536, 544, None),
    ("google/gemma-4-26B-A4B-it", 8192, 460, None),
    ("google/gemma-4-26B-A4B-it", 65536, 1580, None),
    ("google/gemma-4-E2B-it", 65536, 396, None),
    ("google/gemma-4-E4B-it", 65536, 1064, None),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 8192, 1536, None),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 65536, 4296, None),
]


@pytest.mark.parametrize(("name", "context", "context_mib", "compute_mib"), MEASURED)
def test_the_engine_reserves_as_much(
    name: str, context: int, context_mib: int, compute_mib: int | None
) -> None:
    spec = spec_of(CONFIGS[name]["config"], "model", where=name, folder=Path("models"))
    settings = Settings(program="llama-fit-params", context=context, repack=False)
    made = buffers(ModelTable(spec), settings, []).host
    assert made.context_bytes / MIB == pytest.approx(context_mib, abs=1)
    if compute_mib is not None:
        assert made.compute_bytes / MIB == pytest.approx(compute_mib, abs=1)


def test_a_tied_output_is_a_second_tensor_in_gemma_4() -> None:
    """49,558 MiB are loaded without a GPU: the file's 48,150 and the token table (1,408) once more."""
    name = "google/gemma-4-26B-A4B-it"
    spec = spec_of(CONFIGS[name]["config"], "model", where=name, folder=Path("models"))
    made = buffers(ModelTable(spec), Settings(program="llama-fit-params", context=8192, repack=False), [])
    assert made.host.weights_bytes / MIB == pytest.approx(49558, abs=1)
