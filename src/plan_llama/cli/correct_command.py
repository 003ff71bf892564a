"""The command that works in the place of one that was checked, keeping what has nothing to do with the trouble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plan_llama.cli import ik_command, llama_command
from plan_llama.cli.plan_command import solved
from plan_llama.engines import ik_llama, llama_server, refusals
from plan_llama.engines.command_settings import CommandReading
from plan_llama.engines.commandline import ParsedCommand
from plan_llama.engines.launch import LaunchCommand
from plan_llama.findings import Finding
from plan_llama.memory.types import Settings
from plan_llama.solver.plan import make_task
from plan_llama.solver.search import Task
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
        "-fit", "-fitt", "-fitc", "-sm", "-ts", "-mg", "-dev", "--host", "--port",
        "-md", "-hfd", "-ngld", "-devd", "-otd", "-cmoed", "-ncmoed",
    )
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The given command on the machine: `candidate` is None where the model is not known."""

    reading: CommandReading
    task: Task
    candidate: Candidate
    verdict: str


def corrected_command(
    parsed: ParsedCommand,
    checked: Checked,
    wanted: Wishes,
    build: int | None,
    said_options: Sequence[str],
) -> tuple[LaunchCommand | None, list[Finding]]:
    """The command as it is where nothing is wrong with it; else one that this build takes and that fits."""
    if checked.verdict in ("fits", "tight"):
        return LaunchCommand(
            engine=parsed.engine, build=parsed.build, argv=_words(parsed), env=parsed.env
        ), _faster(checked, _aim(parsed, checked, wanted, said_options))
    reading, task = checked.reading, checked.task
    aim = _aim(parsed, checked, wanted, said_options)
    new_task = make_task(task.table, task.machine, aim, task.beyond)
    new_task, plan, said = solved(new_task, ladder=False)
    if plan is None:
        return None, said
    if parsed.engine == ik_llama.ENGINE:
        command, about_build = ik_command.make(new_task, plan, correcting=True)
    else:
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
    if _gives(parsed, "-md") or _gives(parsed, "-hfd"):
        text = "the corrected command does not load the draft model: a plan keeps no room for one"
        said.append(Finding(id="draft-model-left-out", severity="note", text=text))
    own = parsed.program == "llama-server"
    extra = _kept(parsed) if own else ()
    executable = parsed.executable if own else command.argv[0]
    source = _model_words(parsed, reading, command.argv[2])
    argv = (*parsed.wrapper, executable, *source, *_placing(command.argv[3:]), *extra)
    if (
        plan.chosen.settings.mmproj
        and reading.settings.mmproj_offload
        and not plan.chosen.settings.mmproj_offload
    ):
        argv += ("--no-mmproj-offload",)
    argv += ("--host", reading.host, "--port", str(reading.port))
    return replace(command, argv=argv, env={**_kept_variables(parsed), **command.env}), said


def _aim(parsed: ParsedCommand, checked: Checked, wanted: Wishes, said_options: Sequence[str]) -> Wishes:
    """What a plan in the command's place would be asked for: the command's own context, slots and cache types."""
    reading = checked.reading
    given_names = reading.user_set
    slots = reading.settings.parallel
    keeps_slots = _gives(parsed, "-np") and slots <= refusals.MOST_SEQUENCES
    aim = replace(
        wanted,
        older=reading.settings.older,
        engine=checked.task.wishes.engine,
        slots_apart=checked.task.wishes.slots_apart,
        context=wanted.context or (reading.settings.context_per_slot if "ctx" in given_names else None),
        parallel=wanted.parallel or (slots if keeps_slots else None),
    )
    if "--kv-type" not in said_options and reading.settings.kv_type_k == reading.settings.kv_type_v != "f16":
        aim = replace(aim, kv_type=reading.settings.kv_type_k)
    return aim.pinned(**_image_pins(reading.settings))


def _faster(checked: Checked, aim: Wishes) -> list[Finding]:
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
    for count, what in (
        (plan.chosen.cpu_ffn_layers, "the feed-forward weights"),
        (plan.chosen.cpu_weight_layers, "the weights"),
    ):
        if count:
            left.append(f"{what} of {count} layers")
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


def _placing(argv: Sequence[str]) -> tuple[str, ...]:
    """A plan's own words less its sampling, host and port: the given command's are kept."""
    host = argv.index("--host")
    kept = [*argv[:host], *argv[host + 4 :]]
    for flag in llama_server.SAMPLING.values():
        if flag in kept:
            place = kept.index(flag)
            del kept[place : place + 2]
    return tuple(kept)


def _kept_variables(parsed: ParsedCommand) -> dict[str, str]:
    """The command's environment, less what its corrected words say anew and what the build refuses."""
    gone = {
        item.spelling
        for item in parsed.arguments
        if item.from_env
        and (item.status != "ok" or (item.argument and _REPLACED.intersection(item.argument.names)))
    }
    return {name: value for name, value in parsed.env.items() if name not in gone}


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
