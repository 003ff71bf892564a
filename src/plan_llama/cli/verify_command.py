"""Dry-run a plan, or a command that is given, with the engine of this machine, and show predicted beside real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli import plan_json, render_verify
from plan_llama.cli.checked_model import about_draft, model_of, with_draft, with_projector
from plan_llama.cli.interrupts import interruptible
from plan_llama.cli.options import EngineOptions, HardwareOptions, ModelOptions, OutputOptions, WishOptions
from plan_llama.cli.plan_command import make_plan
from plan_llama.cli.said import in_order, machine_notes
from plan_llama.cli.screen import Screen, print_json
from plan_llama.cli.wishes import engine_build, hardware_choice, wishes
from plan_llama.engines import llama_server, memory_rules, refusals
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.server_run import ServerRun
from plan_llama.engines.verify import verify
from plan_llama.engines.verify_run import DryRun, Subject
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, InputError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.engines import describe, llama_programs
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.probe import measured, probe
from plan_llama.hardware.types import InstalledEngine, Source
from plan_llama.memory.footprint import footprint
from plan_llama.memory.table import ModelTable
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Candidate, Wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What is verified, with what a plan's JSON says of it."""

    task: Task
    candidate: Candidate
    launch: LaunchCommand
    subject: Subject
    findings: list[Finding]
    provenance: dict[str, Source]


def run(
    argv: Sequence[str],
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
    *,
    rpc: str | None,
    program: str,
    timeout_s: float,
) -> int:
    """Returns 0 where all that could be compared agrees and it fits by the real numbers, else 3."""
    if engine.nodes > 1 or engine.node_address:
        raise UsageError("verify: --nodes and --node-address are for plans", hint="leave them out")
    if not argv and model.model is None:
        hint = "plan-llama verify --model glm-5.1, or plan-llama verify -- llama-server -m FILE ..."
        raise UsageError("verify: --model is missing", hint=hint)
    wanted = wishes(wish_options)
    asked = engine_build(engine)
    fit_params, server = llama_programs(engine.engine_path)
    runs = _program(program, fit_params, server)
    installed = describe(server or runs, "llama.cpp")
    engine = replace(engine, engine_path=str(server) if server else None)
    if installed.build is not None and installed.build > 1:  # the prediction is for the engine that is run
        if asked not in (None, installed.build):
            raise UsageError(
                f"verify: --engine-build b{asked}, and {installed.path} is b{installed.build}",
                hint="leave it out, or name that build's folder with --engine-path",
            )
        engine = replace(engine, engine_build=f"b{installed.build}")
    if argv:
        given = _command(argv, model, hardware, wanted, engine, installed)
    else:
        given = _plan(model, hardware, wanted, engine, installed if server else None)
    with interruptible():
        if runs == server:
            free = probe(with_gpus=False, with_engines=False).ram.available_bytes
            run: DryRun = ServerRun(given.subject, str(runs), rpc, timeout_s, free)
        else:
            run = DryRun(given.subject, str(runs), rpc, timeout_s)
        found = verify(run, server)
    if output.json:
        answer = plan_json.answer(
            table=given.task.table,
            machine=given.task.machine,
            chosen=given.candidate,
            verdict=given.candidate.footprint.verdict,
            command=given.launch,
            findings=given.findings,
            provenance=given.provenance,
        )
        print_json({**answer, "verify": render_verify.as_json(found, installed)})
    else:
        screen = Screen()
        spec, machine = given.task.table.spec, given.task.machine
        text = render_verify.text(screen, spec, machine, found, installed, given.launch, given.findings)
        screen.write(text)
    return EXIT_OK if found.verdict in ("verified", "partly-verified") else EXIT_NO_FIT


def _program(name: str, fit_params: Path | None, server: Path | None) -> Path:
    """The one that is asked for; by itself the dry run, which allocates nothing, before the server."""
    found = {"llama-fit-params": fit_params, "llama-server": server}
    if name not in (*found, "auto"):
        raise UsageError(f"verify: --program {name}: no such program", hint=f"auto, {', '.join(found)}")
    runs = (fit_params or server) if name == "auto" else found[name]
    if runs is None:
        other = next(path for path in found.values() if path is not None)
        raise InputError(
            f"{other.parent}: no {name} there to verify with", hint=f"leave --program {name} out"
        )
    return runs


def _plan(
    model: ModelOptions,
    hardware: HardwareOptions,
    wanted: Wishes,
    engine: EngineOptions,
    installed: InstalledEngine | None,
) -> Given:
    """The plan, with its command written for the engine that is to run it."""
    made = make_plan(model, hardware, wanted, engine, installed=installed)
    chosen = made.plan.chosen
    subject = Subject(
        table=made.task.table,
        machine=made.machine,
        beyond=made.task.beyond,
        parsed=parse(made.launch.argv, table=FlagTable.load(_number(made.launch.build))),
        settings=chosen.settings,
        engine_build=engine_build(engine),
        env=made.launch.env,
        margin_bytes=wanted.margin_bytes,
        allow_paging=wanted.allow_paging,
    )
    return Given(
        task=made.task,
        candidate=chosen,
        launch=made.launch,
        subject=subject,
        findings=made.findings,
        provenance=dict(made.plan.provenance),
    )


def _command(
    argv: Sequence[str],
    model: ModelOptions,
    hardware: HardwareOptions,
    wanted: Wishes,
    engine: EngineOptions,
    installed: InstalledEngine,
) -> Given:
    """A command as it stands; what --fit would change in it is not part of it."""
    machine = measured(resolve(hardware_choice(hardware), engine_path=engine.engine_path))
    parsed = parse(argv, table=FlagTable.load(engine_build(engine) or installed.build or None))
    if parsed.program not in ("llama-server", "llama-fit-params"):
        raise UsageError(
            f"verify: a command of {parsed.program} cannot be dry-run",
            hint="llama-server and llama-fit-params can",
        )
    spec, said = model_of(parsed, model)
    if spec is None:
        raise InputError(f"verify: {said[-1].text}", hint=said[-1].fix)
    spec, about_images = with_projector(parsed, spec, model)
    said += about_images
    spec, about_file = with_draft(parsed, spec)
    said += about_file
    reading = to_settings(parsed, model=spec, machine=machine)
    task = make_task(ModelTable(spec), machine, wanted, beyond())
    used = footprint(task.table, reading.settings, machine, task.beyond, margin_bytes=wanted.margin_bytes)
    said += reading.findings
    said += about_draft(spec, used)
    said += memory_rules.findings(parsed.build, spec, reading.settings)
    said += refusals.refusals(reading.settings, table=task.table, flash_attn=reading.flash_attn)
    if reading.fit_enabled and not {"ngl", "ts", "ot"} & reading.user_set:
        text = "--fit is on in this build: it may place layers otherwise, and the command is verified as it is written"
        said.append(
            Finding(
                id="fit-changes-placement",
                severity="warning",
                text=text,
                fix="--fit off, with every value given",
            )
        )
    subject = Subject(
        table=task.table,
        machine=machine,
        beyond=task.beyond,
        parsed=parsed,
        settings=reading.settings,
        engine_build=engine_build(engine),
        env=parsed.env,
        margin_bytes=wanted.margin_bytes,
        allow_paging=wanted.allow_paging,
    )
    return Given(
        task=task,
        candidate=judged(task, reading.settings, used),
        launch=LaunchCommand(
            engine=llama_server.ENGINE, build=parsed.build, argv=tuple(argv), env=parsed.env
        ),
        subject=subject,
        findings=in_order([*said, *machine_notes(machine)]),
        provenance={"model": spec.source, "settings": "user", "speed": "modelled"},
    )


def _number(build: int | str) -> int | None:
    """The build whose table it is; None for one without a number."""
    return build if isinstance(build, int) and build else None
