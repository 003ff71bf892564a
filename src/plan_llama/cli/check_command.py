"""Judge a command that somebody already has: every argument, the memory, the speed, and the command that works.

Nothing of it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli import plan_json, render_plan
from plan_llama.cli.options import EngineOptions, HardwareOptions, ModelOptions, OutputOptions, WishOptions, given
from plan_llama.cli.plan_command import machine_notes, make_command, print_json
from plan_llama.cli.screen import Screen
from plan_llama.cli.wishes import engine_build, hardware_choice, wishes
from plan_llama.engines import llama_server, refusals
from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import LaunchCommand
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import Beyond, footprint
from plan_llama.memory.table import ModelTable
from plan_llama.models import catalog_models
from plan_llama.models.resolve import from_catalog, resolve_model
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec
from plan_llama.solver import fit
from plan_llama.solver.place import Filler
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Candidate, Wishes
from plan_llama.units import gib, tokens

# what the corrected command says anew; everything else of the given one is kept
_REPLACED = frozenset(
    "-m -hf -hff -c -np -kvu --kv-unified-per-slot -ngl -cmoe -ncmoe -ncffn -ot -ub -b -fa -ctk -ctv -nkvo -kvo "
    "--op-offload -nopo -nr --repack --swa-full -lm -t --cache-ram -cram -ctxcp --spec-type -fit -fitt -fitc -sm -ts "
    "-mg -dev --host --port --temp --top-p --top-k --min-p".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """The given command on the machine: `candidate` is None where the model is not known."""

    reading: CommandReading
    task: Task
    candidate: Candidate
    verdict: str


def run(
    argv: Sequence[str],
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> int:
    """Returns 0 where the command runs and fits, 3 where it does not."""
    if not argv:
        raise UsageError("there is no command to check", hint="plan-llama check -- llama-server -m FILE …")
    wanted = wishes(wish_options)
    build = engine_build(engine)
    machine = resolve(hardware_choice(hardware), engine_path=engine.engine_path)
    flags = FlagTable.load(build or _installed_build(machine))
    own = {} if machine.simulated else {k: v for k, v in os.environ.items() if k.startswith(("LLAMA_", "GGML_"))}
    parsed = parse(argv, table=flags, env=own)
    said = [Finding(id="engine-build-unknown", severity="warning", text=flags.note)] if flags.note else []
    spec, about_model = _model(parsed, model)
    said += about_model
    if spec is None:
        return _unknown_model(parsed, machine, said, output)
    checked, found = _judge(parsed, spec, machine, wanted)
    said += found
    corrected, about_correction = _correct(parsed, checked, wanted, given(wish_options))
    said += about_correction
    said += machine_notes(machine)
    if output.json:
        print_json(
            plan_json.answer(
                table=checked.task.table,
                machine=machine,
                chosen=checked.candidate,
                verdict=checked.verdict,
                command=corrected,
                findings=said,
                provenance={"model": spec.source, "settings": "user", "speed": "modelled"},
            )
        )
    else:
        _print(parsed, checked, machine, corrected, said, explain=output.explain)
    return EXIT_OK if checked.verdict in ("fits", "tight") or (
        checked.verdict == "pages-from-disk" and wanted.allow_paging
    ) else EXIT_NO_FIT


def _installed_build(machine: Machine) -> int | None:
    if machine.simulated:
        return None
    return next((item.build for item in machine.engines if item.engine == "llama.cpp" and item.build), None)


def _model(parsed: ParsedCommand, options: ModelOptions) -> tuple[ModelSpec | None, list[Finding]]:
    """The model that the command means: its file, what its file's name says, or --model."""
    if options.model is not None:
        return resolve_model(options.model, options.quant), []
    words = {name: item for item in parsed.arguments if item.argument for name in item.argument.names}
    item = words.get("-m")
    path = item.values[0] if item and item.values else None
    if path is not None and Path(path).is_file():
        spec = load(path)
        note = []
        if spec.data_note:
            note.append(Finding(id="model-data", severity="warning", text=f"{path}: {spec.data_note}"))
        return spec, note
    repo = words.get("-hf")
    name = path or (repo.values[0].replace(":", "-").replace("/", "-") if repo and repo.values else None)
    if name is None:
        text = "the command names no model (-m FILE)"
        return None, [Finding(id="model-missing", severity="error", text=text, fix="name it, or add --model")]
    guess = catalog_models.guess(Path(name).name)
    if guess is None:
        text = f"{name}: no such file, and its name is not that of a model in the catalog: memory and speed are unknown"
        return None, [
            Finding(id="file-not-found", severity="error", text=text, fix="--model NAME says which model it is")
        ]
    known = catalog_models.model(guess[0])
    item_quant = catalog_models.get_quant(known, guess[1])
    spec = from_catalog(known, item_quant)
    severity = "note" if path is None else "warning"
    text = f"{name} is not here; by its name it is taken for {known.name} {item_quant.quant} of {item_quant.repo}"
    return spec, [Finding(id="file-not-found", severity=severity, text=text, fix="--model NAME if that is wrong")]


def _judge(
    parsed: ParsedCommand, spec: ModelSpec, machine: Machine, wanted: Wishes
) -> tuple[_Checked, list[Finding]]:
    """What the command would use, with what --fit makes of it."""
    reading = to_settings(parsed, model=spec, machine=machine)
    table = ModelTable(spec)
    task = make_task(table, machine, wanted, beyond())
    said = list(reading.findings)
    wrong = refusals.refusals(reading.settings, model=spec, flash_attn=reading.flash_attn)
    said += wrong
    settings = reading.settings
    if reading.fit_enabled and not wrong:
        fitted = fit.apply(
            table,
            Filler(table, machine, _bare(task), max(reading.fit_targets_bytes)),
            settings,
            user_set=reading.user_set,
            targets_bytes=reading.fit_targets_bytes,
            minimum_context=reading.fit_min_context,
        )
        settings = fitted.settings
        for change in fitted.changes:
            said.append(
                Finding(
                    id="ctx-shrunk-by-fit" if "context" in change else "fit-changes-placement",
                    severity="warning" if "context" in change else "note",
                    text=f"--fit is on in this build: {change} (approximately; llama-fit-params prints the exact choice)",
                    fix="--fit off, with every value given, runs what is written",
                )
            )
    used = footprint(table, settings, machine, task.beyond, margin_bytes=wanted.margin_bytes)
    candidate = judged(task, settings, used)
    verdict = "invalid" if parsed.refused or wrong else used.verdict
    said += _about_memory(candidate)
    return _Checked(reading=replace(reading, settings=settings), task=task, candidate=candidate, verdict=verdict), said


def _bare(task: Task) -> Beyond:
    """The engine's own fit knows nothing of driver overhead: it reads free memory and keeps a target."""
    return replace(task.beyond, context_bytes=dict.fromkeys(task.beyond.context_bytes, 0))


def _about_memory(candidate: Candidate) -> list[Finding]:
    used = candidate.footprint
    found = []
    for device, pool in zip(used.devices, used.pools[1:], strict=False):
        if device.peak_bytes > pool.available_bytes:
            found.append(
                Finding(
                    id="gpu-oom-weights",
                    severity="error",
                    text=f"{pool.name} ({device.name}) would need {gib(device.peak_bytes)}: weights "
                    f"{gib(device.weights_bytes)}, context {gib(device.context_bytes)}, compute "
                    f"{gib(device.compute_bytes)}, driver {gib(device.overhead_bytes)}; it has "
                    f"{gib(pool.available_bytes)} free",
                    fix="the corrected command keeps what does not fit on the CPU",
                )
            )
    ram = used.pools[0]
    if used.verdict == "pages-from-disk":
        found.append(
            Finding(
                id="mmap-paging-thrash",
                severity="error",
                text=f"{gib(used.host.weights_bytes)} of weights stay on the host and {gib(ram.available_bytes)} are "
                f"available: the rest is read from disk for every token, at about "
                f"{candidate.speed.decode_tok_s.expected:.2f} tok/s",
                fix="a smaller quant or more memory",
            )
        )
    elif ram.used_bytes > ram.available_bytes:
        found.append(
            Finding(
                id="host-alloc-failed",
                severity="error",
                text=f"{ram.name} would need {gib(ram.used_bytes)} and has {gib(ram.available_bytes)} available",
                fix="--load-mode mmap, a smaller quant, or more memory",
            )
        )
    elif used.verdict == "tight":
        for pool in used.pools:
            if pool.spare_bytes < 0:
                left = pool.available_bytes - pool.used_bytes
                found.append(
                    Finding(
                        id="tight-margin",
                        severity="warning",
                        text=f"{pool.name}: only {gib(left)} would stay free",
                        fix=f"{gib(pool.margin_bytes)} is the margin to keep",
                    )
                )
    return found


def _correct(
    parsed: ParsedCommand, checked: _Checked, wanted: Wishes, said_options: Sequence[str]
) -> tuple[LaunchCommand | None, list[Finding]]:
    """The command as it is where nothing is wrong with it; else one that this build takes and that fits."""
    if checked.verdict in ("fits", "tight"):
        return LaunchCommand(engine=llama_server.ENGINE, build=parsed.build, argv=_words(parsed), env=parsed.env), []
    reading, task = checked.reading, checked.task
    given_names = reading.user_set
    aim = replace(
        wanted,
        context=wanted.context or (reading.settings.context_per_slot if "ctx" in given_names else None),
        parallel=wanted.parallel or (reading.settings.parallel if _gives(parsed, "-np") else None),
    )
    if "--kv-type" not in said_options and reading.settings.kv_type_k == reading.settings.kv_type_v != "f16":
        aim = replace(aim, kv_type=reading.settings.kv_type_k)
    new_task = make_task(task.table, task.machine, aim, task.beyond)
    plan = solve(new_task, ladder=False)
    if plan is None:
        return None, []
    command, said = make_command(new_task, plan, task.machine, None)
    if plan.chosen.footprint.verdict == "does-not-fit":
        said.append(
            Finding(
                id="nothing-fits",
                severity="error",
                text=f"no placement of {task.table.spec.quant} fits this machine with "
                f"{tokens(plan.chosen.settings.context_per_slot)} tokens",
                fix="; ".join(f"{item.what}: {item.effect}" for item in plan.alternatives[-2:]),
            )
        )
        return None, said
    extra = _kept(parsed) if parsed.program == "llama-server" else ()
    path = reading.model_path or command.argv[2]
    argv = (*parsed.wrapper, command.argv[0], "-m", path, *command.argv[3:-4], *extra)
    argv += ("--host", reading.host, "--port", str(reading.port))
    return replace(command, argv=argv), said


def _gives(parsed: ParsedCommand, name: str) -> bool:
    return any(item.argument is not None and name in item.argument.names for item in parsed.arguments)


def _kept(parsed: ParsedCommand) -> tuple[str, ...]:
    """Arguments that have nothing to do with placement, as they were given."""
    kept: list[str] = []
    for item in parsed.arguments:
        if item.from_env or item.status not in ("ok",) or item.argument is None:
            continue
        if not _REPLACED.intersection(item.argument.names):
            kept += [item.spelling, *item.values]
    return tuple(kept)


def _words(parsed: ParsedCommand) -> tuple[str, ...]:
    words = [*parsed.wrapper, parsed.executable]
    for item in parsed.arguments:
        if not item.from_env:
            words += [item.spelling, *item.values]
    return tuple(words)


def _unknown_model(parsed: ParsedCommand, machine: Machine, said: list[Finding], output: OutputOptions) -> int:
    """Only the arguments can be judged."""
    from plan_llama.engines.reading_notes import argument_findings

    findings = [*argument_findings(parsed), *said]
    if output.json:
        print_json(
            {
                "schema": plan_json.SCHEMA,
                "model": None,
                "machine": plan_json.machine_json(machine),
                "settings": None,
                "memory": None,
                "speed": None,
                "verdict": "invalid",
                "command": None,
                "findings": [plan_json.finding(item) for item in findings],
                "provenance": {},
            }
        )
    else:
        screen = Screen()
        lines = [screen.style("INVALID", "bad") + f"  {parsed.program} b{parsed.build}"]
        lines += [*render_plan.findings(screen, findings, notes=False), *render_plan.findings(screen, findings, notes=True)]
        screen.write("\n".join(lines) + "\n")
    return EXIT_NO_FIT


def _print(
    parsed: ParsedCommand,
    checked: _Checked,
    machine: Machine,
    corrected: LaunchCommand | None,
    said: Sequence[Finding],
    *,
    explain: bool,
) -> None:
    screen = Screen()
    task, candidate = checked.task, checked.candidate
    lines = [f"Checked against {parsed.program} b{parsed.build}"]
    lines += [*render_plan.title(screen, task.table.spec, machine), ""]
    lines += [render_plan.headline(screen, task.table, candidate, checked.verdict)]
    lines += [*render_plan.findings(screen, said, notes=False), ""]
    lines += [screen.heading("Memory as given"), *render_plan.memory(screen, candidate.footprint), ""]
    if candidate.footprint.verdict != "does-not-fit":
        request = (task.request.prompt_tokens, task.request.output_tokens)
        lines += [screen.heading("Speed as given"), *render_plan.speed(screen, candidate.speed, *request), ""]
    if corrected is not None and checked.verdict not in ("fits", "tight"):
        lines += [screen.heading("Command that works"), *render_plan.command(screen, corrected), ""]
    remarks = list(render_plan.findings(screen, said, notes=True))
    if remarks:
        lines += [screen.heading("Good to know"), *remarks, ""]
    if explain:
        from plan_llama.solver.said import trace

        lines += [screen.heading("The working"), *(f"  {line}" for line in trace(task, candidate, ())), ""]
    screen.write("\n".join(lines).rstrip() + "\n")
