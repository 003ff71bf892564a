"""Judge an Ollama command: the llama-server that it would start, its memory and speed, and a plan in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plan_llama.cli import check_command, images, model_notes, plan_json, render_plan
from plan_llama.cli.correct_command import Checked
from plan_llama.cli.ollama_command import Ollama
from plan_llama.cli.options import ModelOptions, OutputOptions
from plan_llama.cli.plan_command import solved
from plan_llama.cli.said import in_order, machine_notes
from plan_llama.cli.screen import Screen
from plan_llama.engines import modelfile, ollama_words
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.launch import FurtherCommand, LaunchCommand
from plan_llama.engines.modelfile import Modelfile
from plan_llama.engines.ollama_facts import ENGINE, facts
from plan_llama.engines.ollama_runner import Runner, runner
from plan_llama.engines.ollama_words import OllamaWords
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, InputError, ModelError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.models import ollama as store
from plan_llama.models.resolve import resolve_model
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec
from plan_llama.solver.plan import make_task
from plan_llama.solver.types import Wishes

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class _Named:
    """The model, and what its author or the Modelfile sets; None with the findings that say why it is not known."""

    spec: ModelSpec | None
    file: Modelfile
    findings: tuple[Finding, ...]


def check(
    argv: Sequence[str],
    env: dict[str, str],
    machine: Machine,
    wanted: Wishes,
    model: ModelOptions,
    output: OutputOptions,
    *,
    about_file: Sequence[Finding] = (),
    where: str = "",
) -> tuple[int, dict[str, Any] | None]:
    """Prints the verdict, or gives its JSON. Returns 0 where it runs and fits, else 3."""
    words = ollama_words.read(argv, env)
    if words.action not in ollama_words.LOADS:
        raise UsageError(
            f"check: `ollama {words.action}` loads no model", hint="`ollama run NAME` and `ollama serve` do"
        )
    named = _model(words, model)
    said = [*about_file, *ollama_words.findings(words), *named.findings]
    if named.spec is None:
        return EXIT_NO_FIT, _unknown(words, machine, in_order(said), output)
    spec = images.with_projector(named.spec, model)
    started = runner(named.file, words.env, model=spec, machine=machine)
    parsed = parse(started.argv, table=FlagTable.load(facts().llama_cpp), env=started.env)
    checked, found = check_command.judge(parsed, spec, machine, wanted)
    said += [*found, *_about_runner(started, spec)]
    refused = any(item.id in ("modelfile-refused", "ollama-split-file") for item in said)
    verdict = "invalid" if refused else checked.verdict
    launch, about_plan = _corrected(argv, words, checked, verdict, started, wanted)
    said = in_order([*said, *about_plan, *machine_notes(machine)])
    answer = None
    if output.json:
        answer = plan_json.answer(
            table=checked.task.table,
            machine=machine,
            chosen=checked.candidate,
            verdict=verdict,
            command=launch,
            findings=said,
            provenance={"model": spec.source, "settings": "user", "speed": "modelled"},
        ) | {"accepted": parsed.accepted and not refused}
    else:
        _print(checked, verdict, machine, started, launch, said, where=where)
    runs = verdict in ("fits", "tight") or (verdict == "pages-from-disk" and wanted.allow_paging)
    return EXIT_OK if runs else EXIT_NO_FIT, answer


def _model(words: OllamaWords, options: ModelOptions) -> _Named:
    """The model of --model, of the Modelfile, or of Ollama's store."""
    file = Modelfile(sources=(), parameters=(), ignored=())
    said: list[Finding] = []
    if words.action == "create":
        file, said = _read_file(words.file or "Modelfile")
    elif words.name is not None:
        try:
            given = store.installed(f"ollama:{words.name}").parameters
            file = replace(file, parameters=tuple((str(k), _text(v)) for k, v in given.items()))
        except (ModelError, UsageError):
            pass  # said below, where no --model says what it is
    if options.model is not None:
        spec = resolve_model(options.model, options.quant)
        return _Named(spec, file, (*said, *model_notes.about_file(spec)))
    base = (words.name or "").partition(":")[0]
    if words.action == "run" and (base in facts().cloud or (words.name or "").endswith("cloud")):
        text = f"{words.name}: a cloud model, which runs on ollama.com and has no weights in Ollama's library"
        fix = "a Modelfile over a GGUF runs it here: plan-llama --engine ollama --model " + base
        said.append(Finding(id="ollama-cloud-tag", severity="error", text=text, fix=fix))
        return _Named(None, file, tuple(said))
    try:
        if words.action == "run" and words.name is not None:
            spec = store.resolve(f"ollama:{words.name}")
            return _Named(spec, file, (*said, *model_notes.about_file(spec)))
        if first := next((path for path in file.sources if Path(path).is_file()), None):
            spec = load(first)
            return _Named(spec, file, (*said, *model_notes.about_file(spec)))
    except (ModelError, UsageError) as error:
        said.append(Finding(id="file-not-found", severity="error", text=error.message, fix=error.hint))
        return _Named(None, file, tuple(said))
    text = "which model is not known here, and with it neither memory nor speed"
    said.append(
        Finding(id="model-missing", severity="error", text=text, fix="--model NAME before -- says which")
    )
    return _Named(None, file, tuple(said))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_file(name: str) -> tuple[Modelfile, list[Finding]]:
    """A Modelfile with what Ollama would say of it."""
    try:
        text = Path(name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            f"{name}: cannot be read ({error.strerror})", hint="-f names the Modelfile"
        ) from error
    try:
        file = modelfile.read(text)
    except InputError as error:
        refused = Finding(id="modelfile-refused", severity="error", text=error.message, fix="")
        return Modelfile(sources=(), parameters=(), ignored=()), [refused]
    said = [
        Finding(
            id="modelfile-parameter-dropped",
            severity="warning",
            text=f"PARAMETER {item}: taken with a warning and dropped",
            fix="leave it out",
        )
        for item in file.ignored
    ]
    folder = Path(name).resolve().parent
    paths = [str(folder / Path(path).expanduser()) for path in file.sources]
    parts = [match for path in paths if (match := _PART.fullmatch(Path(path).name))]
    if parts and len(parts) < int(parts[0][3]):
        said.append(
            Finding(
                id="ollama-split-file",
                severity="error",
                text=f"{len(parts)} of {int(parts[0][3])} parts of a split file are named: Ollama wants them all",
                fix="a FROM line for each part, or for their folder",
            )
        )
    return replace(file, sources=tuple(paths)), said


def _about_runner(started: Runner, spec: ModelSpec) -> list[Finding]:
    said = []
    if started.automatic:
        said.append(
            Finding(
                id="ollama-automatic",
                severity="note",
                text=f"nobody says {', '.join(item.split(' ')[0] for item in started.automatic)}: Ollama takes "
                f"{', '.join(started.automatic)} by the memory of the cards",
                fix="PARAMETER lines in a Modelfile fix them",
            )
        )
    if started.capped is not None:
        said.append(
            Finding(
                id="ctx-beyond-training",
                severity="warning",
                text=f"num_ctx {started.capped:,}: Ollama gives no more than the {started.context:,} tokens that the "
                "model was trained for",
            )
        )
    if started.one_slot:
        text = f"Ollama serves {spec.architecture} with one slot, whatever OLLAMA_NUM_PARALLEL says"
        said.append(Finding(id="ollama-one-slot", severity="warning", text=text))
    return said


def _corrected(
    argv: Sequence[str],
    words: OllamaWords,
    checked: Checked,
    verdict: str,
    started: Runner,
    wanted: Wishes,
) -> tuple[LaunchCommand | None, list[Finding]]:
    """The command as it is where nothing is wrong with it; else a plan for the same context and slots."""
    if verdict in ("fits", "tight"):
        own = {name: value for name, value in words.env.items() if name.startswith(("OLLAMA_", "LLAMA_ARG_"))}
        return LaunchCommand(engine=ENGINE, build=facts().version, argv=tuple(argv), env=own), []
    task, writer = checked.task, Ollama()
    aim = replace(
        wanted,
        context=wanted.context or started.context,
        parallel=wanted.parallel or started.parallel,
        kv_type=wanted.kv_type,
    )
    try:
        aim = writer.wishes(aim, task.table.spec, task.machine)
    except (ModelError, UsageError):
        return None, []
    task, plan, said = solved(make_task(task.table, task.machine, aim, task.beyond), ladder=False)
    if plan is None or plan.chosen.footprint.verdict not in ("fits", "tight"):
        said.append(
            Finding(
                id="nothing-fits",
                severity="error",
                text=f"no placement of {task.table.spec.quant} fits this machine with {started.context:,} tokens",
                fix="a smaller num_ctx or quant",
            )
        )
        return None, said
    launch, _ = writer.command(task, plan)
    return launch, said


def _unknown(
    words: OllamaWords, machine: Machine, said: list[Finding], output: OutputOptions
) -> dict[str, Any] | None:
    """What can be said without the model."""
    if output.json:
        return plan_json.unknown_model(machine, said)
    screen = Screen()
    lines = [screen.style("UNKNOWN", "warn") + f"  ollama {words.action}: the model is not known here"]
    lines += [
        *render_plan.findings(screen, said, notes=False),
        *render_plan.findings(screen, said, notes=True),
    ]
    screen.write("\n".join(lines) + "\n")
    return None


def _print(
    checked: Checked,
    verdict: str,
    machine: Machine,
    started: Runner,
    launch: LaunchCommand | None,
    said: list[Finding],
    *,
    where: str,
) -> None:
    screen = Screen()
    task, candidate = checked.task, checked.candidate
    source = f"{where}: checked" if where else "Checked"
    lines = [f"{source} as Ollama {facts().version} runs it"]
    lines += [*render_plan.title(screen, task.table.spec, machine), ""]
    lines += [render_plan.headline(screen, task.table, candidate, verdict)]
    lines += [*render_plan.findings(screen, said, notes=False), ""]
    lines += [screen.heading("Memory as given"), *render_plan.memory(screen, candidate.footprint), ""]
    if candidate.footprint.verdict != "does-not-fit":
        felt = render_plan.speed(screen, candidate.speed, task.request)
        lines += [screen.heading("Speed as given"), *felt, ""]
    shown = FurtherCommand(what="It starts", argv=started.argv, env=started.env)
    lines += [screen.heading(shown.what), *render_plan.command(screen, shown), ""]
    if verdict in ("fits", "tight"):
        lines += ["Nothing in the command needs changing.", ""]
    elif launch is not None:
        lines += ["A plan in its place:", "", *render_plan.launch(screen, launch)]
    remarks = list(render_plan.findings(screen, said, notes=True))
    if remarks:
        lines += [screen.heading("Good to know"), *remarks, ""]
    screen.write("\n".join(lines).rstrip() + "\n")
