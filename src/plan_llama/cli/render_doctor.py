"""The answer of doctor for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plan_llama.cli import render_plan
from plan_llama.cli.doctor_plan import Planned
from plan_llama.cli.screen import Screen
from plan_llama.doctor import report
from plan_llama.doctor.evidence import MACHINE, RUNNING, Evidence
from plan_llama.doctor.redact import redacted

_STYLE = {"fatal": "bad", "degraded": "bad", "slow": "warn", "note": "dim"}
_LINES = 3


def render(screen: Screen, evidence: Evidence, found: Sequence[report.Found], planned: Planned) -> str:
    """All of it."""
    lines = [*_head(evidence), ""]
    problems = [item for item in found if item.severity != "note"]
    if not problems:
        lines += [screen.style("NOTHING WRONG FOUND", "good"), ""]
    for item in problems:
        lines += [*_problem(screen, item), ""]
    if seen := _observed(evidence):
        lines.append(screen.heading("What was seen beside the log"))
        for text in seen:
            lines += screen.wrap(f"{screen.glyph('·')} {text}", indent=2)
        lines.append("")
    if planned.table:
        lines += [screen.heading("Memory: what was measured, and what is predicted"), *planned.table, ""]
    if planned.command is not None:
        lines += [
            screen.heading("A command that fits, by the solver"),
            *render_plan.command(screen, planned.command),
        ]
        lines += [*screen.wrap(planned.about, indent=2), ""]
    elif problems and planned.why_not:
        lines += [*screen.wrap(planned.why_not, indent=0), ""]
    notes = [item for item in found if item.severity == "note"]
    if notes:
        lines.append(screen.heading("Good to know"))
        for item in notes:
            place = f" (line {item.evidence[0].number})" if item.evidence and item.evidence[0].number else ""
            text = f"{screen.glyph('·')} {item.title}{place}: {item.cause}"
            if item.fix != "Nothing needs doing.":
                text += f" {item.fix}"
            lines += screen.wrap(text, indent=2)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _head(evidence: Evidence) -> Iterator[str]:
    last = evidence.starts[-1]
    if last.source == MACHINE:
        yield "this machine, as it is now"
        return
    if last.source == RUNNING and "engine" not in last.facts:
        yield "a process that runs"
        return
    words = [report.engine(evidence) or "unknown engine"]
    if build := report.build(evidence):
        words.append(build)
    what = " ".join(words)
    path = last.get("model_path")
    name = last.get("model_name") or (str(path).replace("\\", "/").rpartition("/")[2] if path else None)
    if name:
        what += f", {redacted(str(name))}"
    if quant := last.get("file_type"):
        what += f" ({quant})"
    starts = len(evidence.starts) + evidence.dropped_starts
    counted = "1 start" if starts == 1 else f"{starts} starts, the last one"
    yield f"{what}; {evidence.lines:,} lines, {counted}: {report.state(last)}"


def _observed(evidence: Evidence) -> list[str]:
    """What probes said, each once."""
    said = (fact.line.text for fact in evidence.observed.values() if fact.line is not None)
    return [redacted(text) for text in dict.fromkeys(said)]


def _problem(screen: Screen, item: report.Found) -> Iterator[str]:
    label = screen.style(item.severity.upper(), _STYLE[item.severity])
    yield from screen.wrap(f"{label}  {item.title}  [{item.id}, {item.confidence:.0%} sure]", indent=0)
    for line in item.evidence[:_LINES]:
        where = f"line {line.number}: " if line.number else ""
        yield from screen.wrap(f"{where}{line.text}", indent=4, style="dim")
    if item.count > _LINES:
        yield f"    seen {item.count:,} times"
    yield from screen.wrap(f"Why: {item.cause}", indent=2)
    yield from screen.wrap(f"Do:  {item.fix}", indent=2)
    if item.commands:
        yield "  To confirm:"
        for command in item.commands:
            yield f"    {screen.style(command, 'command')}"
