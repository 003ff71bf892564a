"""Judge a command that somebody already has: every argument, the memory, the speed, and the command that works.

Nothing of it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plan_llama.cli import check_file, checked_model, ik_command, images, plan_json, render_plan
from plan_llama.cli.check_file import Given
from plan_llama.cli.correct_command import Checked, corrected_command
from plan_llama.cli.options import (
    EngineOptions,
    HardwareOptions,
    ModelOptions,
    OutputOptions,
    WishOptions,
    given,
)
from plan_llama.cli.said import in_order, machine_notes
from plan_llama.cli.screen import Screen, print_json
from plan_llama.cli.target import engine_of
from plan_llama.cli.wishes import engine_build, hardware_choice, wishes
from plan_llama.engines import (
    architectures,
    ik_llama,
    llama_server,
    memory_rules,
    older_builds,
    ollama_words,
    refusals,
)
from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.contradictions import contradictions
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.ik_reading import ik_settings
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.refusals import unreadable
from plan_llama.engines.vllm.parsing import is_vllm
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.probe import measured
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import footprint, projector_use
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.types import ModelSpec
from plan_llama.solver import fit
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond
from plan_llama.solver.said import memory_findings, remarks
from plan_llama.solver.search import judged
from plan_llama.solver.types import Wishes
from plan_llama.speed.types import Engine


def run(
    argv: Sequence[str],
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
    *,
    file: str | None = None,
) -> int:
    """Returns 0 where the command, or every one in the file, runs and fits, 3 where one does not."""
    if engine.nodes > 1 or engine.node_address:
        raise UsageError("check: --nodes and --node-address are for plans", hint="leave them out")
    if not argv and file is None:
        hint = "plan-llama check -- llama-server -m FILE …, or check --file PATH"
        raise UsageError("there is no command to check", hint=hint)
    if argv and file is not None:
        raise UsageError("check: --file and a command behind -- exclude each other", hint="give one of them")
    if argv and is_vllm(argv):
        from plan_llama.cli import vllm_check

        code, answer = vllm_check.check(argv, model, hardware, wish_options, engine, output)
        if answer is not None:
            print_json(answer)
        return code
    wanted = wishes(wish_options)
    of_ik = engine.engine == ik_llama.ENGINE
    build = None if of_ik else engine_build(engine)
    machine = measured(resolve(hardware_choice(hardware), engine_path=engine.engine_path))
    flags = FlagTable.load(build) if build is not None else _installed(machine)
    own = (
        {}
        if machine.simulated
        else {k: v for k, v in os.environ.items() if k.startswith(("LLAMA_", "GGML_", "MTMD_", "OLLAMA_"))}
    )
    commands = [Given(argv=tuple(argv), env={})] if file is None else check_file.in_file(file, flags)
    about_build = tuple(older_builds.unknown(flags))
    codes, answers = [], []
    for index, given_command in enumerate(commands):
        if index and not output.json:
            Screen().write("\n")
        if is_vllm(given_command.argv):
            from plan_llama.cli import vllm_check

            if not output.json:
                Screen().write("\n".join(_given_lines(Screen(), given_command)))
            code, answer = vllm_check.check(
                given_command.argv,
                model,
                hardware,
                wish_options,
                engine,
                output,
                env=given_command.env,
                about_file=given_command.findings,
            )
            codes.append(code)
            answers.append(answer | _where(given_command) if answer is not None else None)
            continue
        if ollama_words.meant(given_command.argv):
            from plan_llama.cli import ollama_check

            code, answer = ollama_check.check(
                given_command.argv,
                {**own, **given_command.env},
                machine,
                wanted,
                model,
                output,
                about_file=given_command.findings,
                where=given_command.where,
            )
            codes.append(code)
            answers.append(answer | _where(given_command) if answer is not None else None)
            continue
        said = [*given_command.findings, *about_build]
        table = flags
        if of_ik or (build is None and ik_llama.meant(given_command.argv)):
            table, said = ik_llama.flags(), [*given_command.findings]
        inherited = {name: value for name, value in own.items() if not name.startswith("OLLAMA_")}
        parsed = parse(given_command.argv, table=table, env={**inherited, **given_command.env})
        code, answer = _check(
            given_command, parsed, said, machine, wanted, build, model, given(wish_options), output
        )
        codes.append(code)
        answers.append(answer)
    if output.json and answers:
        first, *others = [answer for answer in answers if answer is not None]
        print_json(first | {"also": others} if file is not None else first)
    return max(codes)


def _check(
    command: Given,
    parsed: ParsedCommand,
    said: list[Finding],
    machine: Machine,
    wanted: Wishes,
    build: int | None,
    model: ModelOptions,
    said_options: Sequence[str],
    output: OutputOptions,
) -> tuple[int, dict[str, object] | None]:
    """Judges one command: prints it, or gives its JSON."""
    spec, about_model = checked_model.model_of(parsed, model)
    said += about_model
    if spec is None:
        return EXIT_NO_FIT, _unknown_model(command, parsed, machine, said, output)
    spec, about_images = checked_model.with_projector(parsed, spec, model)
    said += about_images
    spec, about_file = checked_model.with_draft(parsed, spec)
    said += about_file
    checked, found = judge(parsed, spec, machine, wanted)
    said += found
    corrected, about_correction = corrected_command(parsed, checked, wanted, build, said_options)
    said += about_correction
    said = in_order([*said, *machine_notes(machine)])
    answer = None
    if output.json:
        answer = plan_json.answer(
            table=checked.task.table,
            machine=machine,
            chosen=checked.candidate,
            verdict=checked.verdict,
            command=corrected,
            findings=said,
            provenance={"model": spec.source, "settings": "user", "speed": "modelled"},
        ) | _given_json(command, parsed)
    else:
        _print(command, parsed, checked, machine, corrected, said, explain=output.explain)
    runs = checked.verdict in ("fits", "tight")
    runs |= checked.verdict == "pages-from-disk" and wanted.allow_paging
    return EXIT_OK if runs else EXIT_NO_FIT, answer


def _given_json(command: Given, parsed: ParsedCommand) -> dict[str, object]:
    """Whether the parser takes it, and where it stands."""
    return {"accepted": parsed.accepted} | _where(command)


def _where(command: Given) -> dict[str, object]:
    """Where in its file a command stands, and its words."""
    if not command.where:
        return {}
    return {"given": {"where": command.where, "argv": list(command.argv), "env": dict(command.env)}}


def _installed(machine: Machine) -> FlagTable:
    """The arguments of the llama-server that is on the machine; of a described one, those of the newest known build."""
    installed = engine_of(machine)
    if installed is None:
        return FlagTable.load()
    own = installed.arguments if Path(installed.path).name.startswith("llama-server") else ()
    return FlagTable.of_program(installed.build, own)


def judge(
    parsed: ParsedCommand, spec: ModelSpec, machine: Machine, wanted: Wishes
) -> tuple[Checked, list[Finding]]:
    """What the command would use, with what --fit makes of it."""
    fork = parsed.engine == ik_llama.ENGINE
    reading = (ik_settings if fork else to_settings)(parsed, model=spec, machine=machine)
    table = ModelTable(spec)
    engine: Engine = "ik_llama.cpp" if fork else "llama.cpp"
    aim = replace(wanted, older=reading.settings.older, engine=engine, slots_apart=fork)
    task = make_task(table, machine, aim, beyond())
    said = [*reading.findings]
    if fork:
        said += ik_command.findings(spec)
    else:
        said += memory_rules.findings(parsed.build, spec, reading.settings)
    wrong = refusals.refusals(reading.settings, table=table, flash_attn=reading.flash_attn)
    said += wrong
    clashes = tuple(contradictions(parsed, reading, machine))
    said += clashes
    too_old = None if fork else architectures.finding(parsed.build, spec)
    if foreign := unreadable(spec, parsed.engine):
        too_old = foreign
    if too_old is not None:
        said.append(too_old)
    # what the engine's parser or loader stops at: a device, a pattern or a context that cannot be
    stops = bool(
        parsed.refused or wrong or any(item.severity == "error" for item in (*reading.findings, *clashes))
    )
    stops |= too_old is not None and too_old.severity == "error"
    settings = replace(reading.settings, mmproj=reading.settings.mmproj and table.projector is not None)
    if reading.fit_enabled and not wrong:
        targets = _fit_targets(reading, table, settings, machine)
        fitted = fit.apply(
            table,
            machine,
            settings,
            user_set=reading.user_set,
            targets_bytes=targets,
            minimum_context=reading.fit_min_context,
        )
        settings = fitted.settings
        for change in fitted.changes:
            said.append(
                Finding(
                    id="ctx-shrunk-by-fit" if "context" in change else "fit-changes-placement",
                    severity="warning" if "context" in change else "note",
                    text=f"--fit is on in this build: {change} (approximately; llama-fit-params prints "
                    "the exact choice)",
                    fix="--fit off, with every value given, runs what is written",
                )
            )
    used = footprint(table, settings, machine, task.beyond, margin_bytes=wanted.margin_bytes)
    given_slots = replace(task, wishes=replace(task.wishes, parallel=settings.parallel))
    candidate = judged(given_slots, settings, used)
    verdict = "invalid" if stops else used.verdict
    said += memory_findings(task, candidate)
    said += images.findings(spec, settings, used, wanted=False)
    said += checked_model.about_draft(spec, used)
    # what the planner says of its own choice of load mode is not about a given one
    said += [item for item in remarks(given_slots, candidate) if item.id != "mmap-with-cpu-override-slow"]
    return Checked(
        reading=replace(reading, settings=settings), task=task, candidate=candidate, verdict=verdict
    ), said


def _fit_targets(
    reading: CommandReading, table: ModelTable, settings: Settings, machine: Machine
) -> tuple[int, ...]:
    """What --fit keeps free per device: llama-server adds the projector with its warm-up image to its device's.

    Under --no-warmup only the weights (mtmd_get_memory_usage, tools/mtmd/mtmd.cpp, b11434).
    """
    given = reading.fit_targets_bytes
    use = projector_use(table, settings, machine)
    if use is None or use.device < 0:
        return given
    targets = [given[min(i, len(given) - 1)] for i in range(len(machine.gpus))]
    targets[use.device] += use.weights_bytes + (use.warmup.device_bytes if reading.warmup else 0)
    return tuple(targets)


def _unknown_model(
    command: Given, parsed: ParsedCommand, machine: Machine, said: list[Finding], output: OutputOptions
) -> dict[str, object] | None:
    """Only the arguments can be judged."""
    from plan_llama.engines.reading_notes import argument_findings

    findings = [*argument_findings(parsed), *said]
    if output.json:
        return plan_json.unknown_model(machine, findings) | _given_json(command, parsed)
    screen = Screen()
    lines = [
        *_given_lines(screen, command),
        _of_the_arguments(screen, parsed),
    ]
    lines += [
        *render_plan.findings(screen, findings, notes=False),
        *render_plan.findings(screen, findings, notes=True),
    ]
    screen.write("\n".join(lines) + "\n")
    return None


def _of_the_arguments(screen: Screen, parsed: ParsedCommand) -> str:
    """The headline where nothing but the arguments is known."""
    which = _program(parsed)
    if parsed.accepted:
        return (
            screen.style("UNKNOWN", "warn") + f"  {which} takes every argument; the model is not known here"
        )
    return screen.style("INVALID", "bad") + f"  {which}"


def _program(parsed: ParsedCommand) -> str:
    """The program whose rules were applied."""
    fork = "" if parsed.engine == llama_server.ENGINE else f"{parsed.engine}'s "
    return f"{fork}{parsed.program} {older_builds.named(parsed.build)}"


def _given_lines(screen: Screen, command: Given) -> list[str]:
    """The command of a file, as it was read."""
    if not command.where:
        return []
    read = LaunchCommand(engine=llama_server.ENGINE, build=0, argv=command.argv, env=command.env)
    return [screen.heading(f"Read from {command.where}"), *render_plan.command(screen, read), ""]


def _print(
    command: Given,
    parsed: ParsedCommand,
    checked: Checked,
    machine: Machine,
    corrected: LaunchCommand | None,
    said: Sequence[Finding],
    *,
    explain: bool,
) -> None:
    screen = Screen()
    task, candidate = checked.task, checked.candidate
    lines = [*_given_lines(screen, command), f"Checked against {_program(parsed)}"]
    lines += [*render_plan.title(screen, task.table.spec, machine), ""]
    lines += [render_plan.headline(screen, task.table, candidate, checked.verdict)]
    lines += [*render_plan.findings(screen, said, notes=False), ""]
    lines += [screen.heading("Memory as given"), *render_plan.memory(screen, candidate.footprint), ""]
    if candidate.footprint.verdict != "does-not-fit":
        felt = render_plan.speed(screen, candidate.speed, task.request)
        lines += [screen.heading("Speed as given"), *felt, ""]
    if checked.verdict in ("fits", "tight"):
        better = any(item.id == "gpu-underused" for item in said)
        lines += ["It runs as it is." if better else "Nothing in the command needs changing.", ""]
    elif corrected is not None:
        pages = any(item.id == "nothing-fits" for item in said)
        heading = "Corrected command" + (" (it starts, and reads from disk)" if pages else "")
        lines += [screen.heading(heading), *render_plan.command(screen, corrected), ""]
    remarks = list(render_plan.findings(screen, said, notes=True))
    if remarks:
        lines += [screen.heading("Good to know"), *remarks, ""]
    if explain:
        from plan_llama.solver.trace import trace

        lines += [screen.heading("The working"), *render_plan.working(screen, trace(task, candidate, ())), ""]
    screen.write("\n".join(lines).rstrip() + "\n")
