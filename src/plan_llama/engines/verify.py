"""Dry-run a command with the engine that is on this machine, and put predicted beside real.

Only the two programs that were found are executed. The model is its own file, or a sparse stand-in with its header in a
temporary folder that is gone on every way out.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plan_llama.engines.bounded import Ended
from plan_llama.engines.dry_run import EngineDevice
from plan_llama.engines.verification import Line
from plan_llama.engines.verify_run import DryRun
from plan_llama.memory.footprint import Footprint
from plan_llama.models.types import ModelSpec
from plan_llama.models.writer import write_header

Verdict = Literal["verified", "partly-verified", "differs", "does-not-fit", "refused", "not-verified"]

# What is said by an engine that has understood and does not want to: common_fit_print throws it, the server logs it.
_REFUSALS = (
    "failed to load model",
    "failed to create llama_context",
    "error: ",
    "invalid argument",
    "model loading error",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome. `footprint` is the subject's with the real numbers in it; None where there are none.

    `accepted` is what llama-server's own parser says of the command; None where it was not asked.
    """

    program: str
    verdict: Verdict
    reason: str
    devices: tuple[EngineDevice, ...]
    dry_run: Ended
    lines: tuple[Line, ...]
    accepted: bool | None
    footprint: Footprint | None
    header_only: bool
    unchecked: tuple[str, ...]
    notes: tuple[str, ...]


def verify(run: DryRun, server: Path | None) -> Verification:
    """Runs it and compares.

    Raises InputError where the stand-in for the model cannot be written.
    """
    with _model_file(run.subject.table.spec) as (path, run.header_only):
        ended = run.run(path)
        asked = None if server is None else run.ask_parser(server, path)
    real = run.real(ended)
    lines = run.lines(real)
    used = run.real_footprint(real) if real else None
    verdict, reason = _judge(run, ended, asked, lines, used)
    return Verification(
        program=run.name,
        verdict=verdict,
        reason=reason,
        devices=run.devices,
        dry_run=ended,
        lines=lines,
        accepted=None if asked is None else asked.code == 0,
        footprint=used,
        header_only=run.header_only,
        unchecked=tuple(run.unchecked),
        notes=tuple(run.notes),
    )


@contextlib.contextmanager
def _model_file(spec: ModelSpec) -> Iterator[tuple[str, bool]]:
    """The model's own file where all of it is here (or a stand-in of its full size), else one with its header only."""
    if spec.path and spec.files and all(_has(path, size) for path, size in spec.files):
        yield str(Path(spec.path).absolute()), False
        return
    with tempfile.TemporaryDirectory(prefix="plan-llama-verify-") as folder:
        path = Path(folder) / "model.gguf"
        write_header(spec, path)
        yield str(path), True


def _has(path: str, size_bytes: int) -> bool:
    try:
        return Path(path).stat().st_size >= size_bytes
    except OSError:
        return False


def _judge(
    run: DryRun, ended: Ended, asked: Ended | None, lines: Sequence[Line], used: Footprint | None
) -> tuple[Verdict, str]:
    """The verdict and its reason, the worst first."""
    if asked is not None and asked.code != 0:
        if asked.code is None or asked.code < 0:
            return "not-verified", f"llama-server ARGS --help: {asked.how}; {asked.last_words}"
        return "refused", f"llama-server refuses the command: {asked.last_words}"
    checked = [line for line in lines if line.real_bytes is not None]
    if not ended.answered or not checked:
        said = f"{run.name}: {ended.how}"
        said += f"; {ended.last_words}" if ended.last_words else ""
        text = f"{ended.out}\n{ended.err}"
        refused = bool(ended.code) and any(word in text for word in _REFUSALS)
        if ended.answered:
            said = f"{run.name} printed no memory lines"
        return ("refused" if refused else "not-verified"), said
    wrong = [line for line in checked if line.verdict in ("above", "below")]
    if wrong:
        below = sum(line.verdict == "below" for line in wrong)
        side = f"{below} below the real need" if below else "all above the real need"
        return "differs", f"{len(wrong)} of {len(checked)} lines are beyond the tolerance, {side}"
    verdict = used.verdict if used else "fits"
    if verdict not in ("fits", "tight") and not (verdict == "pages-from-disk" and run.subject.allow_paging):
        return "does-not-fit", f"the numbers agree, and by them the verdict is {verdict}"
    missing = [line for line in lines if line.real_bytes is None]
    if run.unchecked or missing:
        return "partly-verified", "all that could be compared agrees"
    return "verified", "every line agrees with what the engine reserves"
