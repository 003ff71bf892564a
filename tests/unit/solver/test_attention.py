"""With and without flash attention: where the CPU attends, the plan weighs both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plan_llama.engines.llama_server import command
from plan_llama.hardware.types import Machine
from plan_llama.memory.context import reserved_batch
from plan_llama.memory.estimate import buffers
from plan_llama.memory.table import ModelTable
from plan_llama.models.catalog_models import resolve as model_of
from plan_llama.solver.offload import PLAIN_GAIN
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Plan, Wishes
from plan_llama.solver.whatif import what_ifs
from plan_llama.units import GIB
from tests.oracle_cases import machine_with

LLAMA = ModelTable(model_of("llama-3.1-8b", "Q4_K_M"))
CPU_ONLY = machine_with((), ram_bytes=64 * GIB)


def task_of(machine: Machine = CPU_ONLY, *, table: ModelTable = LLAMA, **wishes: Any) -> Task:
    """A request of 16K tokens, of which the most are read again."""
    asked = {"context": 32768, "prompt_tokens": 16384, "reuse": 0.9, **wishes}
    return make_task(table, machine, Wishes(workload=workload("chat"), **asked), beyond())


def plan_of(task: Task) -> Plan:
    plan = solve(task, ladder=False)
    assert plan is not None
    return plan


def with_isa(*isa: str) -> Machine:
    return replace(CPU_ONLY, cpu=replace(CPU_ONLY.cpu, isa=isa))


def test_a_deep_cache_on_an_x86_cpu_is_read_without_flash_attention() -> None:
    task = task_of()
    plan = plan_of(task)
    chosen = plan.chosen
    assert not chosen.settings.flash_attn
    flash = judged(task, replace(chosen.settings, flash_attn=True), chosen.footprint)
    assert chosen.speed.request_s * PLAIN_GAIN <= flash.speed.request_s
    (said,) = (item for item in plan.findings if item.id == "flash-attn-off")
    assert said.fix == "--pin flash-attn=on"
    assert any(line.startswith("Flash attention: off") for line in plan.trace)
    argv = command(chosen.settings, model=LLAMA.spec, machine=CPU_ONLY, model_path="m.gguf").argv
    assert argv[argv.index("-fa") + 1] == "off"


def test_the_scores_of_a_prompt_are_counted() -> None:
    """Of each of 32 heads over all cells, in f32, for every token of the micro-batch (build_attn_mha, b11434)."""
    task = task_of()
    chosen = plan_of(task).chosen
    flash = replace(chosen.settings, flash_attn=True)
    made = [buffers(LLAMA, s, (), CPU_ONLY.cpu.isa).host.compute_bytes for s in (chosen.settings, flash)]
    batch = reserved_batch(chosen.settings, LLAMA.windows)
    assert made[0] - made[1] > 4 * 32 * batch.cells * batch.tokens * 0.9
    assert chosen.footprint.host.compute_bytes >= made[0]


@pytest.mark.parametrize(
    ("machine", "wishes"),
    [
        (CPU_ONLY, {"pins": {"flash_attn": "on"}}),
        (CPU_ONLY, {"kv_type": "q8_0"}),  # a quantised V needs it (llama_init_from_model, b11434)
        (with_isa("neon", "dotprod", "i8mm"), {}),  # not measured
        (machine_with(((24576, 512),)), {}),  # the card attends
    ],
)
def test_flash_attention_stays(machine: Machine, wishes: dict[str, Any]) -> None:
    plan = plan_of(task_of(machine, **wishes))
    assert plan.chosen.settings.flash_attn
    assert "flash-attn-off" not in {item.id for item in plan.findings}


def test_the_other_choice_has_its_numbers() -> None:
    task = task_of()
    chosen = plan_of(task).chosen
    told = {item.what: item.effect for item in what_ifs(task, chosen)}
    assert "less of compute memory" in told["--pin flash-attn=on"]
    quick = task_of(prompt_tokens=64, output_tokens=16, reuse=0.0)
    kept = plan_of(quick).chosen
    assert kept.settings.flash_attn  # nothing is gained after so few tokens
    assert (
        "more of compute memory" in {i.what: i.effect for i in what_ifs(quick, kept)}["--pin flash-attn=off"]
    )


def test_an_architecture_that_cannot_have_it_is_planned_without() -> None:
    """llama_init_from_model switches it off for grok (src/llama-context.cpp, b11434)."""
    grok = ModelTable(replace(LLAMA.spec, architecture="grok"))
    plan = plan_of(task_of(machine_with(((24576, 512),)), table=grok, context=8192))
    assert not plan.chosen.settings.flash_attn
    assert "flash-attn-off" not in {item.id for item in plan.findings}


def test_heads_without_a_kernel_on_cuda_are_planned_without_and_warned_of() -> None:
    """Heads of 100 (ggml_cuda_get_best_fattn_kernel, b11434): with -fa on the CPU attends to the card's cache."""
    shape = {"attention.key_length": 100, "attention.value_length": 100}
    odd = ModelTable(replace(LLAMA.spec, hparams={**LLAMA.spec.hparams, **shape}))
    card = machine_with(((24576, 512),))
    assert not plan_of(task_of(card, table=odd, context=8192)).chosen.settings.flash_attn
    asked = plan_of(task_of(card, table=odd, context=8192, pins={"flash_attn": "on"}))
    assert asked.chosen.settings.flash_attn
    assert "flash-attn-no-kernel" in {item.id for item in asked.findings}
    assert plan_of(task_of(card, context=8192)).chosen.settings.flash_attn
