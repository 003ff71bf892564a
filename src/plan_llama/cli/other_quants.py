"""Other quants of a model than the one that is planned: what there is room for, and what they would bring."""

from __future__ import annotations

from collections.abc import Sequence

from plan_llama.cli import images
from plan_llama.cli.options import ModelOptions
from plan_llama.engines.refusals import unreadable
from plan_llama.errors import ModelError
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.resolve import Choice, all_choices
from plan_llama.models.types import ModelSpec
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond
from plan_llama.solver.serving import effect, satisfied
from plan_llama.solver.types import Alternative, Candidate, Wishes
from plan_llama.units import publisher_gb, rate

_BITS_TO_KEEP = 4  # below four bits per weight the loss of quality shows: nothing to advise for speed alone


def room(machine: Machine) -> int:
    """Bytes of memory that weights can be in, of all kinds."""
    return machine.ram.available_bytes + (0 if machine.unified else sum(g.free_bytes for g in machine.gpus))


def smaller_quants(
    options: ModelOptions, spec: ModelSpec, machine: Machine, wanted: Wishes
) -> list[Alternative]:
    """The largest smaller quant that fits and gives what was wished, of the repository or the catalog."""
    try:
        assert options.model is not None  # noqa: S101
        offered = all_choices(options.model, spec)
        for choice in offered:
            if choice.size_bytes >= spec.file_bytes or choice.size_bytes > room(machine):
                continue
            other = images.with_projector(choice.load(), options)
            if unreadable(other, wanted.engine):
                continue
            table = ModelTable(other)
            task = make_task(table, machine, wanted, beyond())
            plan = solve(task, ladder=False)
            usable = plan is not None and plan.chosen.footprint.verdict in ("fits", "tight")
            if plan is not None and usable and satisfied(task, plan.chosen):
                size = f"{publisher_gb(choice.size_bytes)} instead of {publisher_gb(spec.file_bytes)}"
                return [Alternative(what=f"--quant {choice.quant}", effect=f"{size}: {effect(plan.chosen)}")]
    except ModelError:
        pass  # a server that does not answer now: the plan stands without this advice
    return []


def all_on_gpu(
    spec: ModelSpec,
    chosen: Candidate,
    offered: Sequence[Choice],
    options: ModelOptions,
    machine: Machine,
    wanted: Wishes,
) -> tuple[str, str] | None:
    """For a plan with whole layers on the CPU: the largest quant that leaves none there, and what that brings.

    None where nothing is on the CPU, or no quant of four bits or more does so.
    """
    free = sum(gpu.free_bytes for gpu in machine.gpus)
    if machine.unified or chosen.cpu_moe_layers or chosen.gpu_block_layers >= spec.layers:
        return None
    for choice in offered:
        bits = 8 * choice.size_bytes / max(1, spec.parameters)
        if choice.size_bytes >= min(spec.file_bytes, free) or bits < _BITS_TO_KEEP:
            continue
        other = images.with_projector(choice.load(), options)
        if unreadable(other, wanted.engine):
            continue
        table = ModelTable(other)
        plan = solve(make_task(table, machine, wanted, beyond()), ladder=False)
        if plan is None or plan.chosen.footprint.verdict != "fits":
            continue
        if plan.chosen.gpu_block_layers == spec.layers:
            fast, slow = (rate(item.speed.decode_tok_s.expected) for item in (plan.chosen, chosen))
            size = publisher_gb(choice.size_bytes)
            text = (
                f"{choice.quant} ({size}) would be all on the GPU, and decode {fast} instead of {slow} tok/s"
            )
            return text, f"--quant {choice.quant}"
    return None
