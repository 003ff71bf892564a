"""Op-offload: over a fast link weights are copied, over a slow one the CPU reads short prompts or all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import command
from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.catalog_models import resolve as model_of
from plan_llama.solver.offload import CPU_GAIN, break_even
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond, workload
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Plan, Wishes
from plan_llama.solver.whatif import what_ifs
from tests.unit.engine_fixtures import glm
from tests.unit.engine_fixtures import machine as engine_machine

AIR = ModelTable(model_of("glm-4.5-air", "Q4_K_M"))


def desktop(link_bytes_per_s: float) -> Machine:
    """A card of 24 GiB behind a link of this rate."""
    made = resolve(HardwareChoice(gpu=("RTX 4090",), ram="128GiB", cpu_cores=16))
    return replace(made, gpus=(replace(made.gpus[0], link_bytes_per_s=link_bytes_per_s),))


def task_of(link: float, **wishes: Any) -> Task:
    """GLM-4.5-Air behind that link, for a chat."""
    asked = Wishes(workload=workload("chat"), can_set_threshold=True, **wishes)
    return make_task(AIR, desktop(link), asked, beyond())


def plan_of(task: Task) -> Plan:
    """Its plan."""
    plan = solve(task, ladder=False)
    assert plan is not None
    return plan


def test_a_fast_link_copies_from_the_engines_own_threshold_on() -> None:
    settings = plan_of(task_of(25e9)).chosen.settings
    assert settings.op_offload
    assert settings.offload_min_batch is None


def test_short_prompts_stay_on_the_cpu_over_a_slow_link() -> None:
    task = task_of(1.5e9, prompt_tokens=4096, reuse=0.95)
    plan = plan_of(task)
    chosen = plan.chosen
    least = chosen.settings.offload_min_batch
    assert least is not None
    assert 205 < least <= chosen.settings.ubatch
    plain = judged(task, replace(chosen.settings, offload_min_batch=None), chosen.footprint)
    assert chosen.speed.follow_up_ttft_s * CPU_GAIN <= plain.speed.follow_up_ttft_s
    assert chosen.speed.request_s <= plain.speed.request_s
    assert "op-offload-threshold" in {item.id for item in plan.findings}
    made = command(chosen.settings, model=AIR.spec, machine=task.machine, model_path="m.gguf")
    assert made.env == {"GGML_OP_OFFLOAD_MIN_BATCH": str(least)}


def test_the_threshold_is_where_both_take_as_long() -> None:
    task = task_of(1.5e9, prompt_tokens=4096, reuse=0.95)
    chosen = plan_of(task).chosen
    plain = replace(chosen, settings=replace(chosen.settings, offload_min_batch=None))
    least = break_even(task, plain)

    def first_token(tokens: int, *, copied: bool) -> float:
        alone = replace(task, wishes=replace(task.wishes, prompt_tokens=tokens))
        return judged(alone, replace(plain.settings, op_offload=copied), plain.footprint).speed.ttft_s

    assert first_token(least - 32, copied=False) < first_token(least - 32, copied=True)
    assert first_token(least, copied=True) <= first_token(least, copied=False)


def test_nothing_is_copied_where_the_cpu_reads_everything_sooner() -> None:
    plan = plan_of(task_of(0.2e9))
    assert not plan.chosen.settings.op_offload
    assert "op-offload-off" in {item.id for item in plan.findings}
    kept = plan_of(task_of(0.2e9, pins={"op_offload": "on"})).chosen
    assert kept.settings.op_offload
    assert plan.chosen.speed.request_s * CPU_GAIN <= kept.speed.request_s


def test_a_build_that_does_not_read_the_variable_gets_none() -> None:
    task = task_of(1.5e9, prompt_tokens=4096, reuse=0.95)
    unable = replace(task, wishes=replace(task.wishes, can_set_threshold=False))
    assert plan_of(unable).chosen.settings.offload_min_batch is None


@pytest.mark.parametrize(
    ("value", "least", "offloads"), [("128", 128, True), ("513", None, False), ("x", None, True)]
)
def test_check_reads_the_variable(value: str, least: int | None, offloads: bool) -> None:
    """A threshold beyond the micro-batch of 512 leaves everything to the CPU."""
    words = [f"GGML_OP_OFFLOAD_MIN_BATCH={value}", "llama-server", "-m", "m.gguf"]
    parsed = parse(words, table=FlagTable.load())
    found = to_settings(parsed, model=glm(), machine=engine_machine(1)).settings
    assert (found.offload_min_batch, found.op_offload) == (least, offloads)


@pytest.mark.slow
def test_all_of_a_cache_on_the_host_is_an_alternative() -> None:
    """Llama 3.1 70B with two long conversations: plain decode gains by weights on the cards, a prompt does not."""
    table = ModelTable(model_of("llama-3.1-70b", "Q4_K_M"))
    machine = resolve(HardwareChoice(hardware="4090-3060-64"))
    wishes = Wishes(workload=workload("agent"), context=65536)
    task = make_task(table, machine, wishes, beyond())
    chosen = plan_of(task).chosen
    assert chosen.settings.kv_offload
    assert chosen.footprint.host.context_bytes > 0
    told = {item.what: item.effect for item in what_ifs(task, chosen)}
    assert "attention on the CPU" in told["--pin kv-offload=off"]
    pinned = plan_of(make_task(table, machine, replace(wishes, pins={"kv_offload": "off"}), beyond()))
    assert not pinned.chosen.settings.kv_offload
    assert pinned.chosen.settings.threads == machine.cpu.physical_cores
    assert "kv-cache-on-host" in {item.id for item in pinned.findings}
    assert pinned.chosen.footprint.devices[0].context_bytes == 0


def test_locking_beyond_the_limit_is_said() -> None:
    for limit, warns in ((8 << 30, True), (None, False)):
        task = task_of(25e9, pins={"load_mode": "mlock"})
        ram = replace(task.machine.ram, memlock_bytes=limit)
        machine = replace(task.machine, ram=ram)
        plan = plan_of(make_task(AIR, machine, task.wishes, beyond()))
        assert ("mlock-rlimit" in {item.id for item in plan.findings}) == warns
