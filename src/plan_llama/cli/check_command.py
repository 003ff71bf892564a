"""Judge a command that somebody already has: every argument, the memory, the speed, and the command that works.

Nothing of it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plan_llama.cli import checked_model, images, llama_command, plan_json, render_plan
from plan_llama.cli.hardware import as_json
from plan_llama.cli.options import (
    EngineOptions,
    HardwareOptions,
    ModelOptions,
    OutputOptions,
    WishOptions,
    given,
)
from plan_llama.cli.plan_command import in_order, machine_notes, print_json, solved
from plan_llama.cli.screen import Screen
from plan_llama.cli.target import engine_of
from plan_llama.cli.wishes import engine_build, hardware_choice, wishes
from plan_llama.engines import architectures, llama_server, memory_rules, older_builds, refusals
from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.probe import measured
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import Beyond, footprint, projector_use
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.types import ModelSpec
from plan_llama.solver import fit
from plan_llama.solver.place import Filler
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond
from plan_llama.solver.said import memory_findings, remarks
from plan_llama.solver.search import Task, judged
from plan_llama.solver.types import Candidate, Wishes
from plan_llama.units import gib, rate, tokens

_MUCH_FASTER = 1.25  # less is within what the estimate can tell apart

# what the corrected command says anew; everything else of the given one is kept
# fmt: off
_REPLACED = frozenset(
    (
        "-m", "-hf", "-hff", "-c", "-np", "-kvu", "--kv-unified-per-slot", "-ngl", "-cmoe", "-ncmoe",
        "-ncffn", "-ot", "-ub", "-b", "-fa", "-ctk", "-ctv", "-nkvo", "-kvo", "--op-offload", "-nopo",
        "-nr", "--repack", "--swa-full", "-lm", "-t", "--cache-ram", "-cram", "-ctxcp", "--spec-type",
        "-fit", "-fitt", "-fitc", "-sm", "-ts", "-mg", "-dev", "--host", "--port", "--temp", "--top-p",
        "--top-k", "--min-p",
    )
)
# fmt: on


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
    machine = measured(resolve(hardware_choice(hardware), engine_path=engine.engine_path))
    flags = FlagTable.load(build) if build is not None else _installed(machine)
    own = (
        {}
        if machine.simulated
        else {k: v for k, v in os.environ.items() if k.startswith(("LLAMA_", "GGML_", "MTMD_"))}
    )
    parsed = parse(argv, table=flags, env=own)
    said = [*older_builds.unknown(flags)]
    spec, about_model = checked_model.model_of(parsed, model)
    said += about_model
    if spec is None:
        return _unknown_model(parsed, machine, said, output)
    spec, about_images = checked_model.with_projector(parsed, spec, model)
    said += about_images
    checked, found = _judge(parsed, spec, machine, wanted)
    said += found
    corrected, about_correction = _correct(parsed, checked, wanted, build, given(wish_options))
    said += about_correction
    said = in_order([*said, *machine_notes(machine)])
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
    return (
        EXIT_OK
        if checked.verdict in ("fits", "tight")
        or (checked.verdict == "pages-from-disk" and wanted.allow_paging)
        else EXIT_NO_FIT
    )


def _installed(machine: Machine) -> FlagTable:
    """The arguments of the llama-server that is on the machine; of a described one, those of the newest known build."""
    installed = engine_of(machine)
    if installed is None:
        return FlagTable.load()
    own = installed.arguments if Path(installed.path).name.startswith("llama-server") else ()
    return FlagTable.of_program(installed.build, own)


def _judge(
    parsed: ParsedCommand, spec: ModelSpec, machine: Machine, wanted: Wishes
) -> tuple[_Checked, list[Finding]]:
    """What the command would use, with what --fit makes of it."""
    reading = to_settings(parsed, model=spec, machine=machine)
    table = ModelTable(spec)
    task = make_task(table, machine, replace(wanted, older=reading.settings.older), beyond())
    said = [*reading.findings, *memory_rules.findings(parsed.build, spec, reading.settings)]
    wrong = refusals.refusals(reading.settings, table=table, flash_attn=reading.flash_attn)
    said += wrong
    if too_old := architectures.finding(parsed.build, spec):
        said.append(too_old)
    # what the engine's parser or loader stops at: a device, a pattern or a context that cannot be
    stops = bool(parsed.refused or wrong or any(item.severity == "error" for item in reading.findings))
    stops |= too_old is not None and too_old.severity == "error"
    settings = replace(reading.settings, mmproj=reading.settings.mmproj and table.projector is not None)
    if reading.fit_enabled and not wrong:
        targets = _fit_targets(reading, table, settings, machine)
        fitted = fit.apply(
            table,
            # what is kept free for the projector is in the targets
            Filler(ModelTable(replace(spec, projector=None)), machine, _bare(task), max(targets)),
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
    candidate = judged(task, settings, used)
    verdict = "invalid" if stops else used.verdict
    said += memory_findings(task, candidate)
    said += images.findings(spec, settings, used, wanted=False)
    # what the planner says of its own choice of load mode is not about a given one
    said += [item for item in remarks(task, candidate) if item.id != "mmap-with-cpu-override-slow"]
    return _Checked(
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


def _bare(task: Task) -> Beyond:
    """The engine's own fit knows nothing of driver overhead: it reads free memory and keeps a target."""
    return replace(task.beyond, context_bytes=dict.fromkeys(task.beyond.context_bytes, 0))


def _correct(
    parsed: ParsedCommand,
    checked: _Checked,
    wanted: Wishes,
    build: int | None,
    said_options: Sequence[str],
) -> tuple[LaunchCommand | None, list[Finding]]:
    """The command as it is where nothing is wrong with it; else one that this build takes and that fits."""
    if checked.verdict in ("fits", "tight"):
        return LaunchCommand(
            engine=llama_server.ENGINE, build=parsed.build, argv=_words(parsed), env=parsed.env
        ), _faster(checked, _aim(parsed, checked, wanted, said_options))
    reading, task = checked.reading, checked.task
    aim = _aim(parsed, checked, wanted, said_options)
    new_task = make_task(task.table, task.machine, aim, task.beyond)
    new_task, plan, said = solved(new_task, ladder=False)
    if plan is None:
        return None, said
    command, about_build = llama_command.make(new_task, plan, build, name_projector=False)
    said += about_build
    if plan.chosen.footprint.verdict == "does-not-fit":
        said.append(
            Finding(
                id="nothing-fits",
                severity="error",
                text=f"no placement of {task.table.spec.quant} fits this machine with "
                f"{tokens(plan.chosen.settings.context_per_slot)} tokens",
                fix="; ".join(f"{item.what}: {item.effect}" for item in plan.relaxations[-2:]),
            )
        )
        return None, said
    if plan.chosen.footprint.verdict == "pages-from-disk":
        ram = plan.chosen.footprint.pools[0]
        said.append(
            Finding(
                id="nothing-fits",
                severity="error",
                text=f"the corrected command starts, but it pages from disk too: {gib(ram.used_bytes)} are needed and "
                f"{gib(ram.available_bytes)} available",
                fix="; ".join(f"{item.what}: {item.effect}" for item in plan.relaxations[:2]),
            )
        )
    if plan.chosen.settings.parallel < reading.settings.parallel:
        said.append(
            Finding(
                id="slots-changed",
                severity="note",
                text=f"the corrected command serves {plan.chosen.settings.parallel} conversation at a time, the given "
                f"one {reading.settings.parallel} (llama-server's default where -np is left out)",
                fix="--parallel N before --",
            )
        )
    own = parsed.program == "llama-server"
    extra = _kept(parsed) if own else ()
    executable = parsed.executable if own else command.argv[0]
    source = _model_words(parsed, reading, command.argv[2])
    argv = (*parsed.wrapper, executable, *source, *_without_address(command.argv[3:]), *extra)
    if (
        plan.chosen.settings.mmproj
        and reading.settings.mmproj_offload
        and not plan.chosen.settings.mmproj_offload
    ):
        argv += ("--no-mmproj-offload",)
    argv += ("--host", reading.host, "--port", str(reading.port))
    return replace(command, argv=argv), said


def _aim(parsed: ParsedCommand, checked: _Checked, wanted: Wishes, said_options: Sequence[str]) -> Wishes:
    """What a plan in the command's place would be asked for: the command's own context, slots and cache types."""
    reading = checked.reading
    given_names = reading.user_set
    slots = reading.settings.parallel
    keeps_slots = _gives(parsed, "-np") and slots <= refusals.MOST_SEQUENCES
    aim = replace(
        wanted,
        older=reading.settings.older,
        context=wanted.context or (reading.settings.context_per_slot if "ctx" in given_names else None),
        parallel=wanted.parallel or (slots if keeps_slots else None),
    )
    if "--kv-type" not in said_options and reading.settings.kv_type_k == reading.settings.kv_type_v != "f16":
        aim = replace(aim, kv_type=reading.settings.kv_type_k)
    return replace(aim, pins={**aim.pins, **_image_pins(reading.settings)})


def _faster(checked: _Checked, aim: Wishes) -> list[Finding]:
    """A note where the command fits, keeps work on the CPU, and a better placement writes much faster."""
    task, given = checked.task, checked.candidate
    blocks = task.table.layers
    if not given.footprint.devices or task.machine.unified:
        return []
    if not (given.cpu_moe_layers or given.gpu_block_layers < blocks):
        return []
    asked = replace(aim, context=given.settings.slot_limit or given.settings.context_per_slot)
    _, plan, _ = solved(make_task(task.table, task.machine, asked, task.beyond), ladder=False)
    if plan is None or plan.chosen.footprint.verdict != "fits":
        return []
    fast, slow = (item.speed.decode_tok_s.expected for item in (plan.chosen, given))
    if fast < _MUCH_FASTER * slow:
        return []
    left = [f"the experts of {plan.chosen.cpu_moe_layers} layers"] if plan.chosen.cpu_moe_layers else []
    if plan.chosen.gpu_block_layers < blocks:
        left.append(f"{blocks - plan.chosen.gpu_block_layers} whole layers")
    free = ", ".join(
        f"{gib(pool.available_bytes - pool.used_bytes)} of {pool.name}" for pool in given.footprint.pools[1:]
    )
    return [
        Finding(
            id="gpu-underused",
            severity="note",
            text=f"it leaves {free} free: a placement with {' and '.join(left) or 'nothing'} on the CPU fits too, and "
            f"decodes about {rate(fast)} instead of {rate(slow)} tok/s",
            fix="plan-llama --model with the same machine and context prints that command",
        )
    ]


def _image_pins(settings: Settings) -> dict[str, str]:
    """What the given command says of the projector; its words are kept."""
    pins = {} if settings.mmproj_offload else {"mmproj_offload": "off"}
    if settings.image_max_tokens is not None:
        pins["image_max_tokens"] = str(settings.image_max_tokens)
    return pins


def _model_words(parsed: ParsedCommand, reading: CommandReading, planned_path: str) -> tuple[str, ...]:
    """How the corrected command names the model: as the given one did."""
    if reading.model_path:
        return ("-m", reading.model_path)
    words: list[str] = []
    for item in parsed.arguments:
        if not item.from_env and item.argument and {"-hf", "-hff"}.intersection(item.argument.names):
            words += [item.spelling, *item.values]
    return tuple(words) or ("-m", planned_path)


def _without_address(argv: Sequence[str]) -> tuple[str, ...]:
    """A plan's own words less its host and port: the given command's are kept."""
    host = argv.index("--host")
    return (*argv[:host], *argv[host + 4 :])


def _gives(parsed: ParsedCommand, name: str) -> bool:
    return any(item.argument is not None and name in item.argument.names for item in parsed.arguments)


def _kept(parsed: ParsedCommand) -> tuple[str, ...]:
    """Arguments that have nothing to do with placement, as they were given."""
    kept: list[str] = []
    for item in parsed.arguments:
        if item.from_env or item.status != "ok" or item.argument is None:
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


def _unknown_model(
    parsed: ParsedCommand, machine: Machine, said: list[Finding], output: OutputOptions
) -> int:
    """Only the arguments can be judged."""
    from plan_llama.engines.reading_notes import argument_findings

    findings = [*argument_findings(parsed), *said]
    if output.json:
        print_json(
            {
                "schema": plan_json.SCHEMA,
                "model": None,
                "machine": as_json(machine),
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
        lines += [
            *render_plan.findings(screen, findings, notes=False),
            *render_plan.findings(screen, findings, notes=True),
        ]
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
