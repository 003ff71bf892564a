"""The main job: plan a model for a machine, print the plan, write the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli import images, other_quants, render_plan
from plan_llama.cli.address import NOWHERE_SAID, Address, address_of
from plan_llama.cli.engine_choice import Writer, writer
from plan_llama.cli.model_notes import about_file
from plan_llama.cli.options import (
    EngineOptions,
    HardwareOptions,
    ModelOptions,
    OutputOptions,
    ServeOptions,
    WishOptions,
)
from plan_llama.cli.said import in_order, machine_notes
from plan_llama.cli.screen import Screen, print_json
from plan_llama.cli.tables import Tables
from plan_llama.cli.wishes import check_against_model, hardware_choice, wishes
from plan_llama.engines import llama_server, other_programs, refusals
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, InputError, ModelError, RemoteError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.probe import measured
from plan_llama.hardware.types import InstalledEngine, Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.locate import download_folder
from plan_llama.models.resolve import choices, resolve_model, spelled
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond
from plan_llama.solver.search import Task
from plan_llama.solver.serving import satisfied
from plan_llama.solver.types import Alternative, Plan, Wishes
from plan_llama.units import publisher_gb


def run(
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
    serve: ServeOptions,
) -> int:
    """Plans, prints, writes. Returns 0 for a plan that fits, 3 for one that does not."""
    if engine.engine == "vllm":
        from plan_llama.cli import vllm_plan

        address_of(serve).refuse(engine.engine)
        folder = None if serve.write is None else Path(serve.write)
        return vllm_plan.run(model, hardware, wish_options, engine, output, write=folder, force=serve.force)
    if serve.write is not None and (engine.nodes > 1 or engine.node_address):
        hint = "the commands for all of them are printed"
        raise UsageError("--write: a launcher is for one machine", hint=hint)
    wanted = wishes(wish_options)
    address = address_of(serve)
    made = make_plan(model, hardware, wanted, engine, address=address)
    task, plan, machine, launch, findings = made.task, made.plan, made.machine, made.launch, made.findings
    table = task.table
    usable = plan.chosen.footprint.verdict in ("fits", "tight")
    accepted = plan.chosen.footprint.verdict == "pages-from-disk" and wanted.allow_paging
    settings = plan.chosen.settings
    context = settings.slot_limit or settings.context_per_slot
    programs = (
        other_programs.others(launch, context=context, prompt_tokens=task.request.prompt_tokens)
        if launch.engine == llama_server.ENGINE
        else ()
    )
    written: list[Path] = []
    if serve.write is not None:
        if not usable and not accepted:
            raise InputError(
                f"--write: there is nothing to launch, the verdict is {plan.chosen.footprint.verdict}",
                hint="see what would make it fit",
            )
        from plan_llama.cli.launcher import write_files, write_plan

        target = Path(serve.write)
        if launch.files:
            written = write_files(target, launch, serve.launcher, force=serve.force)
        else:
            written, about_launchers = write_plan(target, made, address, serve.launcher, force=serve.force)
            findings = in_order([*findings, *about_launchers])
    if output.json or output.explain:
        from plan_llama.cli import frontier

        if usable:
            plan = replace(plan, alternatives=(*plan.alternatives, *_other_choices(made)))
        worth = frontier.points(made)
    if output.json:
        from plan_llama.cli import plan_json

        answer = plan_json.answer(
            table=table,
            machine=machine,
            chosen=plan.chosen,
            verdict=plan.chosen.footprint.verdict,
            command=launch,
            findings=findings,
            provenance=plan.provenance,
        )
        answer |= plan_json.plan_extras(plan)
        answer["frontier"] = frontier.as_json(worth)
        answer["programs"] = [plan_json.further(item) for item in programs]
        if written:
            answer["written"] = [str(path) for path in written]
        print_json(answer)
    else:
        screen = Screen()
        text = render_plan.plan(
            screen,
            table,
            machine,
            plan,
            launch,
            task.request,
            explain=output.explain,
            said=findings,
            programs=programs,
            frontier=list(frontier.table(screen, worth)) if output.explain else [],
        )
        if written:
            text += "\n" + "".join(f"written: {path}\n" for path in written)
        screen.write(text)
    return EXIT_OK if usable or accepted else EXIT_NO_FIT


def _other_choices(made: Made) -> Iterator[Alternative]:
    """What takes a while to work out: llama.cpp's own choice, and what other hardware or wishes would bring."""
    from plan_llama.solver.whatif import against_fit, what_ifs

    theirs = against_fit(made.task, made.plan.chosen) if made.launch.engine == "llama.cpp" else None
    if theirs is not None:
        yield theirs
    yield from what_ifs(made.task, made.plan.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A plan with its command and everything there is to say about it."""

    task: Task
    tables: Tables
    plan: Plan
    machine: Machine
    launch: LaunchCommand
    findings: list[Finding]
    writer: Writer


def make_plan(
    model: ModelOptions,
    hardware: HardwareOptions,
    wanted: Wishes,
    engine: EngineOptions,
    *,
    installed: InstalledEngine | None = None,
    address: Address = NOWHERE_SAID,
) -> Made:
    """The plan for what the options name. `installed` is the engine to write the command for; left out, the machine's.

    Raises PlanLlamaError for a model, machine or wish that cannot be planned for.
    """
    assert model.model is not None  # noqa: S101 - the command checked it
    own = writer(engine, installed)
    tables = Tables(model)
    table, machine, said = choose_model(model, tables, hardware, wanted, engine, own)
    spec = table.spec
    check_against_model(wanted, spec)
    wanted = own.wishes(wanted, spec, machine)
    task, plan, about_gpus = solved(make_task(table, machine, wanted, beyond()))
    said += about_gpus
    if plan is not None and not (
        plan.chosen.footprint.verdict in ("fits", "tight")
        and (satisfied(task, plan.chosen) or model.quant is None)  # then every quant was tried already
    ):
        plan = replace(
            plan,
            relaxations=(
                *other_quants.smaller_quants(model, tables, spec, machine, wanted),
                *plan.relaxations,
            ),
        )
    if plan is None:
        raise InputError(
            f"{spec.name} {spec.quant}: with what was pinned, not even its smallest part fits this machine's GPUs",
            hint="leave --pin out, or --no-gpu plans for the CPU alone",
        )
    _refuse_invalid(task, plan)
    if engine.nodes > 1 or engine.node_address:
        from plan_llama.cli.nodes import private_nodes
        from plan_llama.engines import rpc

        nodes = private_nodes(engine)
        local = len(machine.gpus) // nodes.count
        plan = rpc.counted(plan, nodes, local, spec.int_param("embedding_length"), task.request)
    launch, about_build = own.command(task, plan)
    launch = address.of(launch)
    about_images = images.findings(
        spec, plan.chosen.settings, plan.chosen.footprint, wanted=not model.no_mmproj
    )
    findings = in_order([*said, *plan.findings, *about_images, *machine_notes(machine), *about_build])
    return Made(
        task=task, tables=tables, plan=plan, machine=machine, launch=launch, findings=findings, writer=own
    )


def _machine(hardware: HardwareOptions, engine: EngineOptions, model_path: str | None) -> Machine:
    """The machine that the options mean; with several, the first one with the cards of the others."""
    machine = measured(
        resolve(hardware_choice(hardware), model_path=model_path, engine_path=engine.engine_path)
    )
    if engine.nodes > 1 or engine.node_address:
        from plan_llama.cli.nodes import joined, private_nodes

        return joined(machine, private_nodes(engine))
    return machine


def solved(task: Task, *, ladder: bool = True) -> tuple[Task, Plan | None, list[Finding]]:
    """The plan; where the GPUs are too small for any share of the work, the one that leaves them alone."""
    plan = solve(task, ladder=ladder)
    if plan is not None or not task.machine.gpus or "op_offload" in task.wishes.pins:
        return task, plan, []
    task = make_task(task.table, task.machine, task.wishes.pinned(op_offload="off"), task.beyond)
    text = "no GPU has room for a share of this model and its buffers: everything stays on the CPU"
    said = Finding(id="gpu-too-small", severity="warning", text=text, fix="a smaller --ctx, or a larger card")
    return task, solve(task, ladder=ladder), [said]


def choose_model(
    options: ModelOptions,
    tables: Tables,
    hardware: HardwareOptions,
    wanted: Wishes,
    engine: EngineOptions,
    own: Writer,
) -> tuple[ModelTable, Machine, list[Finding]]:
    """The model and the machine; where --model leaves the quant open, the largest file that fits.

    The table remembers what was worked out on the way.
    """
    assert options.model is not None  # noqa: S101
    best = (options.quant or "").lower() == "best"
    open_to = choices(options.model) if options.quant is None or best else ()
    if best and not open_to:
        raise UsageError(
            f"--quant best: {options.model} leaves no quant open", hint="a catalog name or hf:OWNER/REPO does"
        )
    if not open_to:
        named = images.with_projector(resolve_model(options.model, options.quant), options)
        machine = _machine(hardware, engine, named.path)
        return ModelTable(named), machine, about_file(named)
    folder = str(download_folder(open_to[0].repo))
    machine = _machine(hardware, engine, folder)
    if best:
        from plan_llama.cli.best_quant import choose

        worth, why = choose(options, tables, open_to, machine, wanted, own)
        return worth, machine, [why, *about_file(worth.spec)]
    enough = ("fits", "tight") if wanted.objective == "quality" else ("fits",)
    table: ModelTable | None = None
    plan: Plan | None = None
    tried: list[str] = []
    unkept: list[
        tuple[ModelTable, Plan]
    ] = []  # they fit, and are too slow or too large for all users at once
    unread: list[Finding] = []
    for choice in open_to:
        if choice.size_bytes > other_quants.room(machine) and choice is not open_to[-1]:
            tried.append(f"{choice.quant} ({publisher_gb(choice.size_bytes)})")
            continue
        try:
            read = tables.of(choice)
            asking = own.wishes(wanted, read.spec, machine)
        except RemoteError:
            raise
        except ModelError as error:  # a file for another engine, or one that is damaged
            unread.append(Finding(id="quant-unusable", severity="note", text=error.line()))
            continue
        table = read
        task = make_task(table, machine, asking, beyond())
        plan = solve(task, ladder=False)
        if plan is not None and plan.chosen.footprint.verdict in enough:
            if satisfied(task, plan.chosen):
                break
            unkept.append((table, plan))
            continue
        tried.append(f"{choice.quant} ({publisher_gb(choice.size_bytes)})")
    if table is None:
        what = unread[-1].text if unread else f"{options.model}: has no quant for llama.cpp"
        raise ModelError(what, hint="give a GGUF file")
    if unkept and (
        plan is None or plan.chosen.footprint.verdict not in enough or len(unkept) == len(open_to)
    ):
        table, plan = unkept[0]
        unkept = []
    spec = table.spec
    kept = "" if wanted.objective == "quality" else " with every margin kept"
    text = f"{spec.quant} is the largest published quant that fits{kept}"
    if unkept:
        text += " and gives what was wished"
    if tried:
        text += f"; too large: {', '.join(tried[-4:])}"
    if spec.quant in (item.split(" ")[0] for item in tried):
        text = f"no published quant fits; {spec.quant} is the smallest"
    fix = "--quant names another"
    on_hub = spelled(options.model).lower().startswith("hf:")  # each header would be asked for
    if plan is not None and plan.chosen.footprint.verdict == "fits" and not on_hub:
        faster = other_quants.all_on_gpu(
            spec, plan.chosen, open_to, tables, machine, own.wishes(wanted, spec, machine)
        )
        if faster is not None:
            text, fix = f"{text}; {faster[0]}", f"{faster[1]}, or another"
    chosen = Finding(id="quant-chosen", severity="note", text=text, fix=fix)
    return table, machine, [chosen, *unread[:3], *about_file(spec)]


def _refuse_invalid(task: Task, plan: Plan) -> None:
    """Wishes that llama.cpp refuses for this model are told, not planned."""
    wrong = refusals.refusals(plan.chosen.settings, table=task.table, flash_attn="on")
    if wrong:
        raise UsageError(wrong[0].text, hint=wrong[0].fix)
