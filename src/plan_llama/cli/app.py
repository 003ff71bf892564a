"""The commands and their options. Each command's work is in its own module, imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import CommandInfo

from plan_llama.cli.options import (
    EngineOptions,
    HardwareOptions,
    ModelOptions,
    OutputOptions,
    ServeOptions,
    WishOptions,
    given,
    takes,
)
from plan_llama.errors import EXIT_INTERNAL, EXIT_OK, EXIT_USAGE, PlanLlamaError, UsageError

app = typer.Typer(
    name="plan-llama",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Refusals are one line on standard error."""
    try:
        _refuse_bare_check(argv)
        parse = _parser(argv[0] if argv and argv[0] in _names() else "")
        code = parse(list(argv), prog_name="plan-llama", standalone_mode=False, obj=list(argv))
    except PlanLlamaError as error:
        return _refuse(error.line(), error.exit_code)
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return _refuse("interrupted", EXIT_INTERNAL)
    except KeyboardInterrupt:
        return _refuse("interrupted", EXIT_INTERNAL)
    except (BrokenPipeError, SystemExit):  # typer ends the process with 1 where the reader has gone
        _silence_stdout()
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person sees one line, never a traceback
        if hasattr(error, "format_message"):  # typer's own usage errors, whose class is vendored
            return _refuse(" ".join(error.format_message().split()), EXIT_USAGE)
        return _internal(error)
    return code if isinstance(code, int) else EXIT_OK


@cache
def _parser(name: str) -> Callable[..., Any]:
    """The parser of one command, or of all where none is named: their options are hundreds, and take time to make."""
    chosen = copy(app)
    if name:
        chosen.registered_commands = [info for info in app.registered_commands if _name(info) == name]
    return typer.main.get_command(chosen)


def _names() -> set[str]:
    return {_name(info) for info in app.registered_commands}


def _name(info: CommandInfo) -> str:
    return info.name or str(getattr(info.callback, "__name__", ""))


def _refuse_bare_check(argv: Sequence[str]) -> None:
    """Without -- the arguments of the command would be read as ours."""
    if list(argv[:1]) != ["check"]:
        return
    if not {"--", "-h", "--help", "--file"} & {word.partition("=")[0] for word in argv}:
        hint = "plan-llama check -- llama-server -m FILE ..., or check --file PATH"
        raise UsageError("check: the command stands behind --", hint=hint)


def _behind_dashes(context: typer.Context) -> list[str]:
    """The command behind --, which alone is run: a forgotten --log before a file's name must start nothing."""
    given = list(context.obj or [])
    command = given[given.index("--") + 1 :] if "--" in given else []
    if stray := context.args[: len(context.args) - len(command)]:
        hint = "--log before a file's name, -- before a command"
        raise UsageError(f"{context.info_name}: '{stray[0]}' is neither a log nor a command", hint=hint)
    return command


def _refuse(line: str, code: int) -> int:
    sys.stderr.write(f"plan-llama: {line}\n")
    return code


def _silence_stdout() -> None:
    """The reader has gone (`| head`): what is still buffered must not raise once more at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _internal(error: Exception) -> int:
    import os
    import traceback

    if os.environ.get("PLAN_LLAMA_TRACEBACK"):
        traceback.print_exc()
    return _refuse(
        f"internal error: {type(error).__name__}: {error}; please report it with the command that caused it "
        "(PLAN_LLAMA_TRACEBACK=1 shows where)",
        EXIT_INTERNAL,
    )


@app.callback(invoke_without_command=True)
@takes
def plan(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version.")] = False,
    model: ModelOptions,
    hardware: HardwareOptions,
    wishes: WishOptions,
    engine: EngineOptions,
    serve: ServeOptions,
    output: OutputOptions,
) -> int:
    """Plan a model for a machine: the command that runs it, what it uses, how fast it is, what to watch."""
    if context.invoked_subcommand is not None:
        groups = (model, hardware, wishes, engine, serve, output)
        early = [name for group in groups for name in given(group)]
        early += ["--version"] if version else []
        if early:
            raise UsageError(
                f"{early[0]} stands before the command '{context.invoked_subcommand}'",
                hint="put options behind it",
            )
        return EXIT_OK
    if version:
        from plan_llama import __version__

        sys.stdout.write(f"plan-llama {__version__}\n")
        return EXIT_OK
    _refuse_incomplete(model, serve, "plan-llama --model glm-5.1, or plan-llama --help")
    from plan_llama.cli import plan_command

    return plan_command.run(model, hardware, wishes, engine, output, serve)


def _refuse_incomplete(model: ModelOptions, serve: ServeOptions, example: str) -> None:
    """Options that say nothing without another one."""
    if serve.write == "":
        raise UsageError("--write is empty", hint="name a folder; . is the one you are in")
    if serve.write is None and (serve.launcher is not None or serve.force):
        name = "--launcher" if serve.launcher is not None else "--force"
        raise UsageError(f"{name} without --write", hint="--write DIR names the folder that launchers go to")
    if model.model is None:
        raise UsageError("--model is missing", hint=example)


@app.command()
@takes
def launch(
    *,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=1, max=86400, help="Most time to the first answer."),
    ] = None,
    model: ModelOptions,
    hardware: HardwareOptions,
    wishes: WishOptions,
    engine: EngineOptions,
    serve: ServeOptions,
    output: OutputOptions,
) -> int:
    """Start what is planned and say where it answers; with --write, write launchers instead."""
    _refuse_incomplete(model, serve, "plan-llama launch --model FILE.gguf")
    if serve.write is not None:
        from plan_llama.cli import plan_command

        return plan_command.run(model, hardware, wishes, engine, output, serve)
    from plan_llama.cli import launch_command

    return launch_command.run(model, hardware, wishes, engine, output, serve, timeout_s=timeout)


@app.command(context_settings={"allow_extra_args": True})
@takes
def check(
    context: typer.Context,
    *,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="PATH|-", help="Read the command from a script, unit or compose file."
        ),
    ] = None,
    model: ModelOptions,
    hardware: HardwareOptions,
    wishes: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> int:
    """Judge a command somebody already has: plan-llama check -- llama-server ARGS..."""
    from plan_llama.cli import check_command

    return check_command.run(context.args, model, hardware, wishes, engine, output, file=file)


@app.command(context_settings={"allow_extra_args": True})
@takes
def verify(
    context: typer.Context,
    *,
    rpc: Annotated[
        str | None,
        typer.Option(
            "--rpc", metavar="HOST:PORT,...", help="RPC servers whose devices the engine is to use."
        ),
    ] = None,
    program: Annotated[
        str,
        typer.Option(
            "--program",
            metavar="NAME",
            help="llama-fit-params or llama-server is run. [auto: the first that is there]",
        ),
    ] = "auto",
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=1, max=3600, help="Most time for each program."),
    ] = 120,
    model: ModelOptions,
    hardware: HardwareOptions,
    wishes: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> int:
    """Dry-run the plan, or the command behind --, with the installed engine: predicted beside real."""
    from plan_llama.cli import verify_command

    return verify_command.run(
        context.args, model, hardware, wishes, engine, output, rpc=rpc, program=program, timeout_s=timeout
    )


@app.command(context_settings={"allow_extra_args": True})
def doctor(
    context: typer.Context,
    *,
    log: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="FILE|-", help="A log to read; - is standard input. Repeatable."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Beside --log: look at this machine too.")] = False,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Ask a server that runs.")] = None,
    pid: Annotated[int | None, typer.Option("--pid", metavar="N", min=1, help="Look at a process.")] = None,
    probe_output: Annotated[
        bool, typer.Option("--probe-output", help="With --url: judge what it writes to a fixed prompt.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1,
            max=86400,
            help="Most time for a command behind --, or a probe.",
        ),
    ] = 600,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Which model it is, if the log does not say."),
    ] = None,
    quant: Annotated[str | None, typer.Option("--quant", "-q", metavar="Q", help="Its quant.")] = None,
    ram: Annotated[
        str | None,
        typer.Option("--ram", metavar="SIZE", help="The machine's memory, if the log does not say."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="Write a report without secrets for a bug tracker."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> int:
    """Why it ran out of memory, fell back to the CPU, is slow or did not load: a log, a command behind --, or here."""
    from plan_llama.cli import doctor_command

    return doctor_command.run(
        log or (),
        command=_behind_dashes(context),
        timeout_s=timeout,
        live=live,
        url=url,
        pid=pid,
        probe_output=probe_output,
        model=model,
        quant=quant,
        ram=ram,
        json=json,
        bundle=bundle,
        force=force,
    )


@app.command()
@takes
def fits(
    *,
    model: ModelOptions,
    hardware: HardwareOptions,
    wishes: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> int:
    """Rank machines and single cards for a model: which run it, at which quant and context, how fast."""
    from plan_llama.cli import fits_command

    return fits_command.run(model, hardware, wishes, engine, output)


@app.command()
@takes
def hardware(
    *,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="DIR", help="Where models lie: free disk and kind of drive."),
    ] = None,
    engine_path: Annotated[
        str | None, typer.Option("--engine-path", metavar="FILE", help="llama-server, if not on PATH.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the memory's bandwidth (a few seconds) and keep it.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.toml", help="Write the machine as a description.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
    hardware: HardwareOptions,
) -> int:
    """Show what was detected, how each value is known, and what is unknown."""
    from plan_llama.cli import facts_commands

    return facts_commands.hardware(
        hardware, path=path, engine_path=engine_path, measure=measure, save=save, force=force, json=json
    )


@app.command()
def calibrate(
    *,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="DIR|FILE", help="Where models lie: the drive that is read."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show what was measured; measure nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> int:
    """Measure this machine in under a minute: memory by threads, PCIe to each GPU, the models' drive."""
    from plan_llama.cli import calibrate_command

    return calibrate_command.run(path, show=show, json=json)


@app.command()
def models(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]", help="Search words, or hf:OWNER/REPO.")
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> int:
    """List the catalog, or search it."""
    from plan_llama.cli import facts_commands

    return facts_commands.models(" ".join(words or []), json=json)


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Catalog name, GGUF file, hf: or ollama: name.")
    ],
    *,
    quant: Annotated[
        str | None, typer.Option("--quant", "-q", metavar="Q", help="Quant of a catalog model.")
    ] = None,
    write_header: Annotated[
        Path | None,
        typer.Option(
            "--write-header", metavar="FILE.gguf", help="Write a header-only sparse GGUF of the model."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False,
) -> int:
    """Show what a model's file holds: shapes, tensor classes with bytes, context cost."""
    from plan_llama.cli import facts_commands

    return facts_commands.inspect(model, quant, write_header=write_header, force=force, json=json)
