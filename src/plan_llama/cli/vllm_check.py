"""`check -- vllm serve …`: every argument, whether it starts, memory, cache and speed, and the command that works."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plan_llama.cli import plan_json, vllm_json, vllm_plan, vllm_render
from plan_llama.cli.options import EngineOptions, HardwareOptions, ModelOptions, OutputOptions, WishOptions
from plan_llama.cli.said import in_order, machine_notes
from plan_llama.cli.screen import Screen
from plan_llama.cli.wishes import hardware_choice, wishes
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.nodes import Nodes
from plan_llama.engines.vllm import command as writer
from plan_llama.engines.vllm import flags
from plan_llama.engines.vllm.parsing import Command, Given, parse
from plan_llama.engines.vllm.reading import Reading, read, words_findings
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, InputError, ModelError
from plan_llama.findings import Finding
from plan_llama.hardware.overrides import resolve
from plan_llama.hardware.probe import measured
from plan_llama.hardware.types import Machine
from plan_llama.models.checkpoint_source import checkpoints, of_folder, published
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.solver.types import Wishes
from plan_llama.solver.vllm.judge import Judged, judge
from plan_llama.solver.vllm.search import VllmTask, solve

_GGUF = re.compile(r"\.gguf$|-gguf(:|$)|:(UD-)?I?Q\d", re.IGNORECASE)
# What the corrected command says anew; everything else of the given one is kept.
# fmt: off
_REPLACED = frozenset((
    "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--enable-expert-parallel",
    "--decode-context-parallel-size", "--max-model-len", "--gpu-memory-utilization", "--kv-cache-memory-bytes",
    "--max-num-seqs", "--max-num-batched-tokens", "--kv-cache-dtype", "--dtype", "--quantization", "--model",
    "--cpu-offload-gb", "--host", "--port", "--nnodes", "--node-rank", "--master-addr", "--master-port",
    "--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser", "--language-model-only", "--revision",
    "--distributed-executor-backend", "--enable-eplb", "--data-parallel-external-lb", "--enable-chunked-prefill",
))
# fmt: on


def check(
    argv: Sequence[str],
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
    *,
    env: Mapping[str, str] | None = None,
    about_file: Sequence[Finding] = (),
) -> tuple[int, dict[str, Any] | None]:
    """Prints the verdict, or gives its JSON.

    Returns 0 where the command starts and its cache holds a request of full length, else 3.
    """
    vllm_plan.check_version(engine)
    wanted = wishes(wish_options, kv_types=vllm_plan.KV_TYPES, takes=vllm_plan.PINS)
    machine = measured(resolve(hardware_choice(hardware), engine_path=None))
    command = parse(argv, flags.load(), env=env)
    said = [*about_file, *words_findings(command)]
    checkpoint, about_model = _checkpoint(command, model)
    said += about_model
    accepted = {"accepted": not command.refused}
    if checkpoint is None:
        answer = _unknown(machine, in_order(said), output)
        return EXIT_NO_FIT, answer | accepted if answer else None
    checkpoint = vllm_plan.with_size(checkpoint)
    found = read(command, checkpoint, machine)
    said += found.findings
    task = VllmTask(checkpoint=checkpoint, machine=machine, wishes=wanted, nodes=found.setup.nodes)
    judged = _judge(found, machine, task)
    said += judged.findings
    wrong = bool(command.refused) or any(item.severity == "error" for item in said)
    refused = bool(command.refused) or any(
        item.severity == "error" for item in (*words_findings(command), *found.findings, *about_model)
    )
    verdict = "invalid" if refused else judged.verdict
    corrected = _as_given(command) if not wrong else None
    if wrong:
        corrected, about_correction = _correct(command, found, task)
        said += about_correction
    said = in_order([*said, *machine_notes(machine)])
    judged = replace(judged, verdict=verdict)
    answer = None
    if output.json:
        answer = (
            vllm_json.answer(
                checkpoint=checkpoint,
                machine=machine,
                judged=judged,
                verdict=verdict,
                command=corrected,
                findings=said,
                conversations=task.conversations,
            )
            | accepted
        )
    else:
        screen = Screen()
        shown = replace(machine, gpus=found.gpus or machine.gpus)
        closing = "" if wrong and corrected else "Nothing in the command needs changing." if not wrong else ""
        text = vllm_render.page(
            screen,
            checkpoint,
            shown,
            judged,
            task.request,
            made=corrected if wrong else None,
            said=said,
            closing=closing,
        )
        screen.write(f"Checked against vllm serve {flags.VERSION}\n{text}")
    return EXIT_OK if verdict in ("fits", "tight") else EXIT_NO_FIT, answer


def _judge(found: Reading, machine: Machine, task: VllmTask) -> Judged:
    """The start as given; `--max-model-len auto` becomes what fits."""
    shown = replace(machine, gpus=found.gpus)
    judged = judge(found.setup, shown, task.request, strict=False)
    if found.auto_length and judged.longest and judged.longest < found.setup.start.max_model_len:
        shorter = replace(found.setup, start=replace(found.setup.start, max_model_len=judged.longest))
        judged = judge(shorter, shown, task.request, strict=False)
        note = Finding(
            id="ctx-shrunk-by-fit",
            severity="note",
            text=f"--max-model-len auto comes to about {judged.setup.start.max_model_len:,} tokens here",
        )
        judged = replace(judged, findings=(*judged.findings, note))
    return judged


def _checkpoint(command: Command, options: ModelOptions) -> tuple[Checkpoint | None, list[Finding]]:
    """The checkpoint that the command names, or --model; None with the finding that says why it is not known."""
    if options.model is not None:
        return checkpoints(options.model, options.quant)[0], []
    name = command.model
    if name is None:
        return None, []
    if _GGUF.search(name) and not (Path(name) / "config.json").is_file():
        text = (
            f"{name}: vLLM reads GGUF only with vllm-gguf-plugin, which was tested with few architectures and maps "
            "none with sparse attention (GLM-5, DeepSeek-V3.2)"
        )
        fix = "the original checkpoint, or llama-server for the GGUF"
        return None, [Finding(id="vllm-gguf", severity="error", text=text, fix=fix)]
    try:
        if (Path(name) / "config.json").is_file():
            return of_folder(Path(name)), []
        known = published(name)
    except ModelError as error:
        return None, [
            Finding(id="model-not-described", severity="error", text=error.message, fix=error.hint),
        ]
    if known is not None:
        note = Finding(
            id="model-from-catalog", severity="note", text=f"the shapes of {name} are those of the catalog"
        )
        return known, [note]
    return None, [
        Finding(
            id="file-not-found",
            severity="error",
            text=f"{name}: no such folder, and not a repository that the catalog knows: memory is unknown",
            fix=f"--model hf:{name} before -- asks the hub",
        )
    ]


def _as_given(command: Command) -> LaunchCommand:
    return LaunchCommand(engine=flags.ENGINE, build=flags.VERSION, argv=command.argv, env=command.env)


def _correct(command: Command, found: Reading, task: VllmTask) -> tuple[LaunchCommand | None, list[Finding]]:
    """A command that starts, with the given context where that fits and everything that has no part in it."""
    start = found.setup.start
    given_length = command.value("--max-model-len") is not None and not found.auto_length
    trained = task.checkpoint.spec.context_train or start.max_model_len
    aim: Wishes = task.wishes
    if aim.context is None and given_length:
        aim = replace(aim, context=min(start.max_model_len, trained))
    try:
        plan = solve(replace(task, wishes=aim))
    except InputError as error:
        return None, [Finding(id="nothing-fits", severity="error", text=error.message, fix=error.hint)]
    if plan.chosen.verdict not in ("fits", "tight"):
        reason = next(
            (item.text for item in plan.chosen.findings if item.severity == "error"), "nothing fits"
        )
        return None, [
            Finding(id="nothing-fits", severity="error", text=f"no start of it fits here: {reason}")
        ]
    made = writer.command(
        plan.chosen.setup,
        task.machine,
        plan.machine.gpus,
        nodes=Nodes(count=task.nodes),
        executable=command.executable[0] if command.executable[-1:] == ("serve",) else "vllm",
    )
    kept = [word for item in command.given if _kept(item) for word in (item.spelling, *item.values)]
    made = writer.with_arguments(made, kept)
    return _addressed(command, made), []


def _kept(item: Given) -> bool:
    return item.status == "ok" and item.argument is not None and item.argument.name not in _REPLACED


def _addressed(command: Command, made: LaunchCommand) -> LaunchCommand:
    """With the host and port of the given command, where it has them, and its own environment."""
    words = list(made.argv)
    for name in ("--host", "--port"):
        value = command.value(name)
        if value is not None and name in words:
            words[words.index(name) + 1] = value
    return replace(made, argv=(*command.wrapper, *words), env={**command.env, **made.env})


def _unknown(machine: Machine, findings: list[Finding], output: OutputOptions) -> dict[str, Any] | None:
    """Only the arguments can be judged."""
    if output.json:
        return plan_json.unknown_model(machine, findings)
    screen = Screen()
    from plan_llama.cli import render_plan

    lines = [screen.style("INVALID", "bad") + f"  vllm serve {flags.VERSION}"]
    lines += render_plan.findings(screen, findings, notes=False)
    lines += render_plan.findings(screen, findings, notes=True)
    screen.write("\n".join(lines) + "\n")
    return None
