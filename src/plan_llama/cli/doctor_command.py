"""Why a server ran out of memory, fell back to the CPU, is slow, or did not load: from its log, by watching it, or
from the machine alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from plan_llama.cli.doctor_plan import Planned, plan_of
from plan_llama.cli.render_doctor import render
from plan_llama.cli.screen import Screen, print_json
from plan_llama.doctor import report, rules
from plan_llama.doctor.evidence import Evidence, Fact
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.doctor.redact import redacted
from plan_llama.errors import EXIT_OK, EXIT_PROBLEM_FOUND, InputError, PlanLlamaError, UsageError
from plan_llama.files import replace_text

if TYPE_CHECKING:
    from plan_llama.cli.doctor_running import Running
    from plan_llama.hardware.types import Machine

SCHEMA = 1
_LONGEST = 600  # of a fact in a bundle


def run(
    logs: Sequence[str],
    *,
    command: Sequence[str],
    timeout_s: float,
    live: bool,
    url: str | None,
    pid: int | None,
    probe_output: bool,
    model: str | None,
    quant: str | None,
    ram: str | None,
    json: bool,
    bundle: Path | None,
    force: bool,
) -> int:
    """Returns 0 where nothing is wrong, 4 where something is. With logs alone nothing but them is read."""
    if command and (logs or url is not None or pid is not None):
        other = "a log" if logs else "a server that runs"
        raise UsageError(f"doctor: {other} and a command are given", hint="one of the two at a time")
    if probe_output and url is None:
        raise UsageError("--probe-output: no server is named", hint="--url http://127.0.0.1:8080")
    if bundle is not None and bundle.exists() and not force:
        raise InputError(f"{bundle}: is there already", hint="--force overwrites it")
    server: tuple[Running, Machine] | None = None
    if command:
        evidence, server = _watch(command, timeout_s)
    elif url is not None or pid is not None:
        evidence, server = _running(logs, url=url, pid=pid, probe_s=timeout_s if probe_output else None)
    else:
        evidence = read(logs, live=live)
    found = report.findings(evidence, diagnose(evidence, rules.load()))
    planned = _planned(evidence, found, server, model=model, quant=quant, ram=ram)
    found += planned.findings
    if bundle is not None:
        _write(bundle, evidence, found, planned)
    if json:
        print_json(_answer(evidence, found, planned))
    else:
        screen = Screen()
        text = render(screen, evidence, found, planned)
        screen.write(text + (f"\nwritten: {bundle}\n" if bundle is not None else ""))
    return EXIT_PROBLEM_FOUND if any(item.severity != "note" for item in found) else EXIT_OK


def _planned(
    evidence: Evidence,
    found: Sequence[report.Found],
    server: tuple[Running, Machine] | None,
    *,
    model: str | None,
    quant: str | None,
    ram: str | None,
) -> Planned:
    """From what runs where it is seen, else from the log alone."""
    if server is None:
        return plan_of(evidence, found, model=model, quant=quant, ram=ram)
    from plan_llama.cli.doctor_running import plan_of_running

    number = evidence.starts[-1].number_of("build")
    build = int(number) if number and number > 1 else None
    planned = plan_of_running(*server, found, build=build, model=model, quant=quant)
    file = server[0].file
    try:
        by_log = plan_of(evidence, found, model=model or (str(file) if file else None), quant=quant, ram=ram)
    except PlanLlamaError:  # the log alone does not say enough
        return planned
    if planned.command is None and by_log.command is not None and not planned.compared:
        return by_log
    return replace(
        planned, compared=planned.compared + by_log.compared, findings=[*planned.findings, *by_log.findings]
    )


def _watch(command: Sequence[str], timeout_s: float) -> tuple[Evidence, tuple[Running, Machine]]:
    from plan_llama.cli import doctor_live, doctor_machine, doctor_running
    from plan_llama.hardware.probe import probe

    reader = LogReader(Book(rules.templates()))
    machine = probe(with_engines=False)
    doctor_machine.observe(reader, machine)
    watch = doctor_live.watched(command, reader, timeout_s)
    return reader.finish(), (doctor_running.watched(command, watch), machine)


def _running(
    logs: Sequence[str], *, url: str | None, pid: int | None, probe_s: float | None
) -> tuple[Evidence, tuple[Running, Machine] | None]:
    """A server that runs now, with what its log said before; and what it runs, where it is a process that is seen."""
    from plan_llama.cli import doctor_machine, doctor_output, doctor_process, doctor_server
    from plan_llama.hardware.probe import probe

    reader = LogReader(Book(rules.templates()))
    _read(reader, logs)
    server = doctor_server.Server(url) if url is not None else None
    if pid is None and server is not None and server.port_here is not None:
        pid = doctor_process.listener(server.port_here)
    seen: tuple[Running, Machine] | None = None
    if pid is not None:
        machine = probe(with_engines=False)
        doctor_machine.observe(reader, machine, memory=False)
        seen = doctor_process.looked_at(reader, pid), machine
    if server is not None:
        doctor_server.asked(reader, server)
        if probe_s is not None:
            doctor_output.probed(reader, server, probe_s)
    return reader.finish(), seen


def read(logs: Sequence[str], *, live: bool = False) -> Evidence:
    """All logs, in order, and this machine where it is asked for or nothing else is given.

    Raises InputError for a log that cannot be read, or that holds nothing.
    """
    reader = LogReader(Book(rules.templates()))
    if live or not logs:
        from plan_llama.cli import doctor_machine

        doctor_machine.gathered(reader, alone=not logs)
    _read(reader, logs)
    evidence = reader.finish()
    if logs and evidence.lines == 0:
        raise InputError(
            f"--log {logs[0]}: is empty", hint="a server writes to standard error: 2>&1 | tee server.log"
        )
    return evidence


def _read(reader: LogReader, logs: Sequence[str]) -> None:
    for name in logs:
        try:
            if name == "-":
                reader.read(sys.stdin.buffer, "standard input")
            else:
                with Path(name).open("rb") as stream:
                    reader.read(stream, name)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            hint = "give a text file, or - for standard input"
            raise InputError(f"--log {name}: cannot be read ({why})", hint=hint) from error


def _facts(facts: dict[str, Fact]) -> dict[str, object]:
    shown = {name: fact.value for name, fact in sorted(facts.items())}
    return {name: redacted(value) if isinstance(value, str) else value for name, value in shown.items()}


def _answer(evidence: Evidence, found: Sequence[report.Found], planned: Planned) -> dict[str, object]:
    last = evidence.starts[-1]
    return {
        "schema": SCHEMA,
        "engine": report.engine(evidence),
        "build": report.build(evidence),
        "findings": [
            {
                "id": item.id,
                "severity": item.severity,
                "confidence": item.confidence,
                "title": item.title,
                "evidence": [
                    {"line": line.number, "text": line.text, "source": line.source} for line in item.evidence
                ],
                "cause": item.cause,
                "fix": item.fix,
                "commands": list(item.commands),
                "sources": list(item.sources),
                "count": item.count,
            }
            for item in found
        ],
        "log": {
            "lines": evidence.lines,
            "starts": len(evidence.starts) + evidence.dropped_starts,
            "state": report.state(last),
            "facts": _facts(last.facts),
            "devices": [
                {key: value for key, value in asdict(item).items() if key != "line"}
                for item in last.devices.values()
            ],
            "buffers": [
                {"device": item.device, "kind": item.kind, "size_bytes": item.size_bytes}
                for item in last.buffers
            ],
        },
        "observed": [
            {
                "name": name,
                "value": redacted(fact.value) if isinstance(fact.value, str) else fact.value,
                "text": None if fact.line is None else report.clean(fact.line).text,
            }
            for name, fact in sorted(evidence.observed.items())
        ],
        "plan": planned.as_json(),
    }


def _write(bundle: Path, evidence: Evidence, found: Sequence[report.Found], planned: Planned) -> None:
    """A report for a bug tracker: what was found, the facts, the log's errors and its end, without secrets."""
    screen = Screen(colour=False, unicode=False, width=100)
    last = evidence.starts[-1]
    title = "plan-llama doctor: a report without keys, tokens and names of people"
    parts = [title, "", render(screen, evidence, found, planned)]
    parts += [
        "",
        "Facts:",
        *(f"  {name} = {str(value)[:_LONGEST]}" for name, value in _facts(last.facts).items()),
    ]
    for heading, lines in (("Lines that say error:", last.errors), ("End of the log:", evidence.tail)):
        parts += ["", heading, *(f"  {item.number}: {item.text}" for item in map(report.clean, lines))]
    try:
        replace_text(bundle, "\n".join(parts) + "\n")
    except OSError as error:
        hint = "name a file in a folder that is there"
        raise InputError(f"--bundle {bundle}: cannot be written ({error.strerror})", hint=hint) from error
