"""A verification as text for a person, and as the `verify` object of the JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from plan_llama.cli import plan_json, render_plan
from plan_llama.cli.screen import Screen
from plan_llama.engines import older_builds
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.verification import Line
from plan_llama.engines.verify import Verification
from plan_llama.findings import Finding
from plan_llama.hardware.types import InstalledEngine, Machine
from plan_llama.models.types import ModelSpec
from plan_llama.units import MIB

_STYLE = {
    "verified": "good",
    "partly-verified": "warn",
    "differs": "bad",
    "does-not-fit": "bad",
    "refused": "bad",
    "not-verified": "bad",
}
_SAID = {
    "same": "same",
    "within": "within tolerance",
    "upper-bound": "upper bound",
    "above": "ABOVE the real need",
    "below": "BELOW the real need",
    "not-checked": "not checked",
}


def as_json(found: Verification, engine: InstalledEngine) -> dict[str, Any]:
    """The `verify` object (schema/plan.schema.json)."""
    ended = found.dry_run
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "engine": {"path": engine.path, "build": engine.build, "version": engine.version},
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "total_bytes": device.total_bytes,
                "free_bytes": device.free_bytes,
            }
            for device in found.devices
        ],
        "dry_run": {
            "program": found.program,
            "argv": list(ended.argv),
            "exit_code": ended.code,
            "ended": ended.how,
            "timed_out": ended.timed_out,
            "seconds": ended.seconds,
            "header_only": found.header_only,
        },
        "accepted": found.accepted,
        "lines": [
            {
                "device": line.device,
                "engine_device": line.engine_device,
                "part": line.part,
                "predicted_bytes": line.predicted_bytes,
                "real_bytes": line.real_bytes,
                "difference_bytes": line.difference_bytes,
                "planned_bytes": line.planned_bytes,
                "verdict": line.verdict,
            }
            for line in found.lines
        ],
        "memory": plan_json.memory(found.footprint) if found.footprint else None,
        "memory_verdict": found.footprint.verdict if found.footprint else None,
        "unchecked": list(found.unchecked),
        "notes": list(found.notes),
    }


def text(
    screen: Screen,
    spec: ModelSpec,
    machine: Machine,
    found: Verification,
    engine: InstalledEngine,
    launch: LaunchCommand,
    said: Sequence[Finding],
) -> str:
    """Everything for a person; what is only a note about the plan itself is left to the plan."""
    build = older_builds.named(engine.build) if engine.build is not None else "an unknown build"
    lines = [*render_plan.title(screen, spec, machine), ""]
    lines += screen.wrap(f"{found.verdict.upper()}  {found.reason}", indent=0, style=_STYLE[found.verdict])
    lines += render_plan.findings(screen, said, notes=False)
    lines += ["", *screen.wrap(f"Engine: {engine.path} ({build})", indent=0)]
    parser = {
        True: "its parser accepts the command",
        False: "its parser refuses the command",
        None: "no llama-server was asked",
    }
    lines += screen.wrap(parser[found.accepted], indent=2)
    lines += ["", screen.heading("Predicted beside real, in MiB"), *_table(screen, found), ""]
    for title, items in (("Not checked", found.unchecked), ("Good to know", _remarks(found))):
        if items:
            lines.append(screen.heading(title))
            for item in items:
                lines += screen.wrap(f"{screen.glyph('·')} {item}", indent=2)
            lines.append("")
    lines += [screen.heading("What was run"), f"  {shlex.join(found.dry_run.argv)}"]
    lines += screen.wrap(f"{found.dry_run.how}, {found.dry_run.seconds:.1f} s", indent=2)
    heading = screen.heading(f"Command  ({launch.engine}, {older_builds.named(launch.build)})")
    lines += ["", heading, *render_plan.command(screen, launch)]
    return "\n".join(lines).rstrip() + "\n"


def _table(screen: Screen, found: Verification) -> Iterator[str]:
    yield f"  {'':<16}{'predicted':>12}{'real':>12}{'difference':>12}  {'':<21}{'llama-server':>12}"
    device = ""
    for line in found.lines:
        if line.device != device:
            device = line.device
            stand_in = f" ({line.engine_device})" if line.engine_device and device != "host" else ""
            yield f"  {device}{stand_in}"
        yield _row(screen, line)


def _row(screen: Screen, line: Line) -> str:
    real = "-"
    if line.real_bytes is not None:
        real = f"{line.real_bytes / MIB:,.{1 if line.real_bytes % MIB else 0}f}"
    off = "-" if line.difference_bytes is None else f"{line.difference_bytes / MIB:+,.1f}"
    if line.difference_bytes == 0:
        off = "0"
    said = _SAID[line.verdict]
    style = "bad" if line.verdict in ("above", "below") else "dim"
    numbers = f"{line.predicted_bytes / MIB:>12,.1f}{real:>12}{off:>12}"
    return f"    {line.part:<14}{numbers}  {screen.style(f'{said:<21}', style)}{line.planned_bytes / MIB:>12,.1f}"


def _remarks(found: Verification) -> list[str]:
    said = list(found.notes)
    serves = found.program == "llama-server"
    if not serves and any(
        line.part == "compute" and line.planned_bytes != line.predicted_bytes for line in found.lines
    ):
        said.append(
            "compared is what is predicted for llama-fit-params, which reserves an output row for every token of a "
            "micro-batch; llama-server, in the last column, reserves one per slot"
        )
    if found.header_only:
        said.append("the model is not here: a file with its header over a hole of its size stood in for it")
    if serves:
        said.append(
            "llama-server was started with mapped weights, without a warm-up, and ended once it had reserved its "
            "buffers; of weights on the host its log has the stretch of the file from the first to the last"
        )
        said.append("real numbers are rounded to 0.01 MiB for each buffer; differences are those beyond that")
    else:
        said.append("real numbers are printed in whole MiB, cut off; differences are those beyond that")
    return said
