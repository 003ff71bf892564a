"""Per-layer embeddings that are read row by row (llama_model_loader::lazy_read::add, b11434)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.memory.footprint import footprint, staging_bytes
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import LazyMode, LoadMode, Settings
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import Tensor
from plan_llama.solver.profiles import beyond
from plan_llama.units import GIB, MIB
from tests.oracle_cases import machine_with
from tests.small_models import llama_like

SPEC = llama_like()
BASE = Settings(context=4096, gpu_layers=99)


def with_embeddings(size_bytes: int) -> ModelTable:
    """A model with so many bytes of per-layer embeddings in f16."""
    extra = Tensor("per_layer_token_embd.weight", by_name("f16"), (1024, size_bytes // 2048))
    return ModelTable(replace(SPEC, tensors=(*SPEC.tensors, extra)))


@pytest.mark.parametrize(
    ("mode", "gib", "lazy"),
    [("auto", 5, True), ("auto", 4, False), ("on", 1, True), ("off", 5, False)],
)
def test_large_ones_stay_out_of_memory(mode: LazyMode, gib: int, lazy: bool) -> None:
    size = gib * GIB
    model = with_embeddings(size)
    without = footprint(ModelTable(SPEC), BASE, machine_with(((24576, 512),)), beyond())
    for load_mode in ("none", "mmap", "mlock"):
        chosen = replace(BASE, lazy_mode=mode, load_mode=load_mode)
        used = footprint(model, chosen, machine_with(((24576, 512),)), beyond())
        assert used.host.weights_bytes == without.host.weights_bytes + size
        held = used.pools[0].used_bytes - without.pools[0].used_bytes
        assert held == (0 if lazy else size)


def test_what_is_never_held_does_not_page() -> None:
    model = with_embeddings(40 * GIB)
    machine = machine_with(((24576, 512),), ram_bytes=32 * GIB)
    assert footprint(model, BASE, machine, beyond()).verdict == "fits"
    assert footprint(model, replace(BASE, lazy_mode="off"), machine, beyond()).verdict == "pages-from-disk"
    locked = replace(BASE, lazy_mode="off", load_mode="mlock")
    assert footprint(model, locked, machine, beyond()).verdict == "does-not-fit"


@pytest.mark.parametrize(
    ("load_mode", "mib"), [("mmap", 0), ("mmap+mlock", 0), ("none", 4), ("mlock", 4), ("dio", 256)]
)
def test_staging_buffers(load_mode: LoadMode, mib: int) -> None:
    model = ModelTable(SPEC)
    chosen = replace(BASE, load_mode=load_mode)
    assert staging_bytes(model, chosen, machine_with(((24576, 512),)), beyond()) == mib * MIB
    assert staging_bytes(model, chosen, machine_with(()), beyond()) == 0
