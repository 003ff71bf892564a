"""Other quants of a model than the one that is planned: what there is room for, and what they would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from plan_llama.cli.options import ModelOptions
from plan_llama.cli.tables import Tables
from plan_llama.engines.refusals import unreadable
from plan_llama.errors import ModelError
from plan_llama.hardware.types import Machine
from plan_llama.memory.caches import bytes_per_token
from plan_llama.models.resolve import Choice, all_choices
from plan_llama.models.types import ModelSpec
from plan_llama.solver.choice import resident
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond
from plan_llama.solver.serving import effect, satisfied
from plan_llama.solver.types import Alternative, Candidate, Plan, Wishes
from plan_llama.units import publisher_gb, rate, tokens

_BITS_TO_KEEP = 4  # below four bits per weight the loss of quality shows: nothing to advise for speed alone


def room(machine: Machine) -> int:
    """Bytes of memory that weights can be in, of all kinds."""
    return machine.ram.available_bytes + (0 if machine.unified else sum(g.free_bytes for g in machine.gpus))


def smaller_quants(
    options: ModelOptions, tables: Tables, spec: ModelSpec, machine: Machine, wanted: Wishes
) -> list[Alternative]:
    """The largest smaller quant that fits and gives what was wished, of the repository or the catalog."""
    try:
        assert options.model is not None  # noqa: S101
        offered = all_choices(options.model, spec)
        for choice in offered:
            if choice.size_bytes >= spec.file_bytes or choice.size_bytes > room(machine):
                continue
            table = tables.of(choice)
            if unreadable(table.spec, wanted.engine):
                continue
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
    tables: Tables,
    machine: Machine,
    wanted: Wishes,
) -> tuple[str, str] | None:
    """For a plan with a part of the model on the CPU: the largest quant that leaves none there, and what that brings;
    with a smaller context where the workload's, which nobody asked for, leaves room for none.

    None where nothing is on the CPU, or no quant of four bits or more does so.
    """
    apart = chosen.cpu_moe_layers + chosen.cpu_ffn_layers + chosen.cpu_weight_layers
    if machine.unified or not machine.gpus or (not apart and chosen.gpu_block_layers >= spec.layers):
        return None
    free = sum(gpu.free_bytes for gpu in machine.gpus)
    own = chosen.settings.slot_limit or chosen.settings.context_per_slot
    contexts = [own]
    while wanted.context is None and contexts[-1] // 2 >= wanted.workload.context_floor:
        contexts.append(contexts[-1] // 2)
    each = (
        bytes_per_token(spec, chosen.settings.kv_type_k, chosen.settings.kv_type_v) * chosen.settings.parallel
    )
    for context in contexts:
        for choice in offered:
            bits = 8 * choice.size_bytes / max(1, spec.parameters)
            too_large = choice.size_bytes >= spec.file_bytes or choice.size_bytes + context * each > free
            if too_large or bits < _BITS_TO_KEEP:
                continue
            plan = _resident(choice, tables, machine, replace(wanted, context=context))
            if plan is not None:
                fast, slow = (rate(item.speed.decode_tok_s.expected) for item in (plan.chosen, chosen))
                where = f" with {tokens(context)} tokens of context" if context != own else ""
                text = f"{choice.quant} ({publisher_gb(choice.size_bytes)}){where} would be all on the GPU, and decode "
                fix = f"--quant {choice.quant}" + (f" --ctx {context}" if context != own else "")
                return f"{text}{fast} instead of {slow} tok/s", fix
    return None


def _resident(choice: Choice, tables: Tables, machine: Machine, wanted: Wishes) -> Plan | None:
    """The plan for a quant, where it fits and leaves nothing to the CPU."""
    table = tables.of(choice)
    if unreadable(table.spec, wanted.engine):
        return None
    plan = solve(make_task(table, machine, wanted, beyond()), ladder=False)
    fits = plan is not None and plan.chosen.footprint.verdict == "fits" and resident(table, plan.chosen)
    return plan if fits else None
