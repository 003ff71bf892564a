"""Start what was planned, say where it answers, and end it with all that it started when this ends."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from plan_llama.cli import plan_json
from plan_llama.cli.address import address_of
from plan_llama.cli.interrupts import interruptible
from plan_llama.cli.launcher import launcher_files
from plan_llama.cli.options import (
    EngineOptions,
    HardwareOptions,
    ModelOptions,
    OutputOptions,
    ServeOptions,
    WishOptions,
)
from plan_llama.cli.plan_command import Made, make_plan
from plan_llama.cli.screen import print_json
from plan_llama.cli.wishes import wishes
from plan_llama.engines import serve
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, InputError, UsageError
from plan_llama.hardware.engines import describe
from plan_llama.hardware.types import InstalledEngine
from plan_llama.launchers.types import argument
from plan_llama.models.types import ModelSpec
from plan_llama.units import gib

_LEAST_TIMEOUT_S = 600.0
_LOADS = 5.0  # the load time is a guess where the kind of drive is not known


def run(
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
    serving: ServeOptions,
    *,
    timeout_s: float | None,
) -> int:
    """Returns 0 where the server answered and was then ended by a request, 3 where it never answered, or failed."""
    if engine.engine != "llama.cpp":
        raise UsageError(
            f"launch: {engine.engine} is not started from here", hint="--write DIR, or its own command"
        )
    wanted = wishes(wish_options)
    installed = _installed(engine)
    made = make_plan(model, hardware, wanted, engine, installed=installed, address=address_of(serving))
    verdict = made.plan.chosen.footprint.verdict
    if verdict not in ("fits", "tight") and not (verdict == "pages-from-disk" and wanted.allow_paging):
        sys.stderr.write(f"plan-llama: launch: not started, the verdict is {verdict}; the plan tells more\n")
        if output.json:
            print_json(_answer(made, {"url": None, "reason": f"the verdict is {verdict}"}))
        return EXIT_NO_FIT
    _refuse(made, installed)
    argv, env = made.launch.argv, _environment(made)
    host, port = argument(argv, "--host", "127.0.0.1"), int(argument(argv, "--port", "8080"))
    if serve.port_taken(host, port):
        raise InputError(f"port {port}: another program listens on it", hint="stop that one, or --port N")
    load_s = made.plan.chosen.speed.load_s or 0.0
    limit_s = timeout_s or max(_LEAST_TIMEOUT_S, _LOADS * load_s)
    try:
        with interruptible(), serve.running(argv, env, host=host, port=port) as server:
            return _follow(server, made, output, limit_s)
    except KeyboardInterrupt:
        return EXIT_OK
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{argv[0]}: cannot be started ({reason})", hint="--engine-path names another"
        ) from error


def _follow(server: serve.Server, made: Made, output: OutputOptions, limit_s: float) -> int:
    """Waits for the first answer, tells of it, and waits for the end."""
    import time

    trouble = server.wait_ready(limit_s)
    ready_s = time.monotonic() - server.started
    if trouble:
        sys.stderr.write(f"plan-llama: launch: {trouble}\n")
        if output.json:
            print_json(_answer(made, {"url": None, "reason": trouble}))
        return EXIT_NO_FIT
    if output.json:
        facts = {"url": server.url, "pid": server.process_id, "ready_s": round(ready_s, 3), "reason": None}
        print_json(_answer(made, facts))
    else:
        spec = made.task.table.spec
        sys.stdout.write(f"{spec.name} {spec.quant} answers at {server.url} after {ready_s:.1f} s\n")
        sys.stdout.write(f"process {server.process_id}; an interrupt (Ctrl-C) ends it\n")
        sys.stdout.flush()
    try:
        code = server.wait()
    except KeyboardInterrupt:
        return EXIT_OK
    sys.stderr.write(f"plan-llama: launch: the server ended: {server.how(code)}\n")
    return EXIT_OK if code == 0 else EXIT_NO_FIT


def _answer(made: Made, launch: dict[str, object]) -> dict[str, object]:
    """The plan's object, with what became of it."""
    answer = plan_json.answer(
        table=made.task.table,
        machine=made.machine,
        chosen=made.plan.chosen,
        verdict=made.plan.chosen.footprint.verdict,
        command=made.launch,
        findings=made.findings,
        provenance=made.plan.provenance,
    )
    return answer | {"launch": launch}


def _installed(engine: EngineOptions) -> InstalledEngine | None:
    """The llama-server that is to be started; None where there is none."""
    found = engine.engine_path or shutil.which("llama-server")
    if found is None:
        return None
    try:
        return describe(Path(found), "llama.cpp")
    except OSError as error:
        raise InputError(f"{found}: {error.strerror}", hint="--engine-path names llama-server") from error


def _refuse(made: Made, installed: InstalledEngine | None) -> None:
    """Raises UsageError for a plan that is not for this machine or engine, InputError for a file that is not whole."""
    if made.machine.simulated and made.machine.gpus:
        raise UsageError(
            "launch: the plan is for a described machine, not this one",
            hint="leave --hardware, --gpu and --ram out, or --write DIR for the machine it is for",
        )
    if installed is None:
        raise InputError(
            "launch: llama-server is not on PATH", hint="install llama.cpp, or --engine-path FILE names it"
        )
    for item in launcher_files(made.task.table.spec):
        _whole(item.path, item.size_bytes, made.task.table.spec)


def _whole(path: str, size_bytes: int, spec: ModelSpec) -> None:
    """Raises InputError for a file that is absent, short, or mostly a hole."""
    hint = f"download it first: {shlex.join(spec.download.argv)}" if spec.download else "download it again"
    try:
        found = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: no such file", hint=hint) from error
    if found.st_size == 0 or found.st_size < size_bytes:
        raise InputError(f"{path}: has {gib(found.st_size)} of {gib(size_bytes)}", hint=hint)
    blocks = getattr(found, "st_blocks", None)
    if blocks is not None and blocks * 512 < found.st_size // 2:
        raise InputError(f"{path}: most of it is a hole, its data was never downloaded", hint=hint)
    if spec.data_note and path == spec.path:
        raise InputError(f"{path}: {spec.data_note}", hint=hint)


def _environment(made: Made) -> dict[str, str]:
    """This process's environment without arguments of the engine (LLAMA_ARG_...), and with the plan's own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    return own | dict(made.launch.env)
