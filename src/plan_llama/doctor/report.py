"""What doctor answers: diagnoses in words for this build, what to ask where nothing explains the failure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from plan_llama.doctor.evidence import Evidence, Fact, Line, Start
from plan_llama.doctor.judge import Diagnosis
from plan_llama.doctor.patterns import Pattern, compiled
from plan_llama.doctor.redact import redacted
from plan_llama.doctor.rules import Severity, load
from plan_llama.doctor.spelling import spelled
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError
from plan_llama.units import gib

_LONGEST_LINE = 300
_LOADING = re.compile(
    r"loading model tensors|^\s*\.{4,}\s*$|Loading safetensors checkpoint shards|loading model '"
)
_HARMLESS = "harmless-line"
_KERNEL = "sudo dmesg -T | tail -50"
_ASK: Mapping[str, tuple[str, ...]] = {
    "llama.cpp": (
        "llama-server ... -lv 4 2>&1 | tee server.log",
        "llama-server --list-devices",
        "sudo dmesg -T | tail -50",
    ),
    "ollama": ("OLLAMA_DEBUG=1 ollama serve 2>&1 | tee ollama.log", "journalctl -u ollama --no-pager -n 500"),
    "vllm": ("VLLM_LOGGING_LEVEL=DEBUG vllm serve ... 2>&1 | tee vllm.log", _KERNEL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One finding as it is shown."""

    id: str
    severity: Severity
    confidence: float
    title: str
    cause: str
    fix: str
    commands: tuple[str, ...]
    evidence: tuple[Line, ...]
    sources: tuple[str, ...] = ()
    count: int = 1


def findings(evidence: Evidence, diagnoses: Sequence[Diagnosis]) -> list[Found]:
    """Everything to say, most likely first; the start of one that ended without a known cause is said too."""
    table = flag_table(evidence)
    shown = [_found(item, table) for item in diagnoses]
    output = evidence.observed.get("output_fault")
    if output is not None and output.value not in ("refused", "failed") and not _explained(shown):
        shown.insert(0, _no_text(output, table))
    for name in ("slow", "failed", "silent"):
        fact = evidence.observed.get(f"output_{name}")
        if fact is not None and fact.line is not None and not (name == "failed" and _explained(shown)):
            shown.insert(0, _no_answer(name, fact.line))
    if not any(item.severity != "note" for item in shown) and evidence.starts:
        unknown = _unknown(evidence)
        shown = [unknown, *shown] if unknown is not None else shown
    return shown


def engine(evidence: Evidence) -> str | None:
    """The engine that wrote the log."""
    for start in reversed(evidence.starts):
        if isinstance(name := start.get("engine"), str):
            return name
    return None


def build(evidence: Evidence) -> str | None:
    """Its build or version, as it names it."""
    for start in reversed(evidence.starts):
        if start.get("engine") in ("llama.cpp", "ik_llama.cpp", None) and (number := start.get("build")):
            return f"b{number}"
        if isinstance(version := start.get("version"), str):
            return version
    return None


def flag_table(evidence: Evidence) -> FlagTable | None:
    """The arguments of the llama.cpp that wrote the log, where its build is known."""
    for start in reversed(evidence.starts):
        number = start.get("build")
        if isinstance(number, int) and start.get("engine") in ("llama.cpp", "ollama", None) and number > 1:
            try:
                return FlagTable.load(number)
            except InputError:
                return None
    return None


def clean(line: Line) -> Line:
    """A line as it may be shown: without secrets and names, and not too long."""
    return Line(line.number, _short(redacted(line.text).strip()), redacted(line.source))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} ..."


def _found(item: Diagnosis, table: FlagTable | None) -> Found:
    rule = item.rule
    values = {name: _short(redacted(value)) for name, value in item.values.items()}
    if item.evidence:
        values.setdefault("x", clean(item.evidence[0]).text)  # of a sign whose pattern keeps no words
    cause = _filled(item.cause or rule.cause, values)
    if item.remark:
        cause = f"{cause} ({item.remark})"
    return Found(
        id=rule.id,
        severity=item.severity,
        confidence=round(item.confidence, 2),
        title=rule.title,
        cause=spelled(cause, table),
        fix=spelled(_filled(item.fix or rule.fix, values), table),
        commands=rule.commands,
        evidence=tuple(clean(line) for line in item.evidence),
        sources=rule.sources,
        count=item.count,
    )


def _filled(text: str, values: Mapping[str, str]) -> str:
    """`{name}` is what the log, or a probe, says of it."""

    def value(found: re.Match[str]) -> str:
        known = values.get(found[1], found[0])
        return gib(int(known)) if found[1].endswith("_bytes") and known.isdigit() else known

    return re.sub(r"\{([a-z_]+)\}", value, text)


def _unknown(evidence: Evidence) -> Found | None:
    """A start that did not come up, and no rule that says why."""
    start = evidence.starts[-1]
    name = engine(evidence) or "llama.cpp"
    ask = _ASK.get("llama.cpp" if "llama" in name and name != "ollama" else name, _ASK["llama.cpp"])
    if (ended := _ended(evidence)) is not None and (start.served is None or ended[0]):
        return _cannot_tell("cause-not-found", "fatal", 0.3, [*start.errors[:4], ended[1]], ask)
    if (waited := evidence.observed.get("ended_for_time")) is not None and waited.line is not None:
        return Found(
            id="not-ready-in-time",
            severity="slow",
            confidence=0.9,
            title="It was not ready when the time was over",
            cause="It had neither ended nor come up; a large file on a slow drive takes minutes.",
            fix="Give it longer: --timeout SECONDS.",
            commands=(),
            evidence=(clean(waited.line), *(clean(line) for line in evidence.tail[-1:])),
        )
    errors = [] if start.get("last_status") == 200 else _errors(start)
    if start.served is None and (start.ended is not None or (start.begun is None and errors)):
        lines = [*errors[:4], *([start.ended] if start.ended else [])]
        return _cannot_tell("cause-not-found", "fatal", 0.3, lines, ask)
    if start.served is None and start.begun is not None and _stops_loading(evidence):
        return Found(
            id="log-ends-early",
            severity="fatal",
            confidence=0.4,
            title="The log stops while the model is loading",
            cause="No line says why. Most often the kernel has killed the process for want of memory, which leaves no "
            "word in the engine's log: weights that are read instead of mapped, and caches, count in full.",
            fix="I cannot tell from this alone. Run the commands below and give me what they print (--log takes "
            "several files). Where it was killed: map the file, put more on the card, or take a smaller quant.",
            commands=(
                "sudo dmesg -T | grep -iE 'killed process|out of memory'",
                "echo $?  (137 means killed)",
                "free -h",
            ),
            evidence=tuple(clean(line) for line in evidence.tail[-2:]),
        )
    return None


def _errors(start: Start) -> list[Line]:
    """Lines that say error or failed and are not known to be harmless."""
    harmless = {line.number for line in start.errors if _harmless(line)}
    return [
        line
        for line in start.errors
        if line.number not in harmless
        and not (line.number - 1 in harmless and line.text.lstrip().startswith("Traceback (most recent"))
    ]


def _harmless(line: Line) -> bool:
    """Whether a line that says error is known to mean none."""
    return any(pattern.search(line.text) for pattern in _harmless_patterns())


@cache
def _harmless_patterns() -> tuple[Pattern, ...]:
    return tuple(
        compiled(text) for rule in load() if rule.id == _HARMLESS for sign in rule.signs for text in sign.any
    )


def _ended(evidence: Evidence) -> tuple[bool, Line] | None:
    """How a command that was watched ended where that is no good end: whether by a signal, and what says so."""
    for name in ("exit_signal", "exit_code"):
        fact = evidence.observed.get(name)
        if fact is not None and fact.value != 0 and fact.line is not None:
            return name == "exit_signal", fact.line
    return None


def _explained(shown: Sequence[Found]) -> bool:
    return any(item.severity != "note" and item.id.startswith("output-") for item in shown)


def _no_answer(kind: str, line: Line) -> Found:
    """A probe of the output that got no answer, or not all of it; what else was found stands beside it."""
    severity: Severity = "slow" if kind == "slow" else "degraded"
    titles = {"slow": "It writes slowly", "failed": "It fails to answer", "silent": "It does not answer"}
    causes = {
        "slow": "A short text at temperature 0 was not finished in its time; what came is text.",
        "failed": "A plain question at temperature 0 was answered with an error of the server's own.",
        "silent": "A plain question at temperature 0 got no answer in its time, or the connection ended. The slots may "
        "be busy with other requests, the model may be far slower than users wait, or the server hangs or has ended.",
    }
    return Found(
        id="output-slow" if kind == "slow" else "output-no-answer",
        severity=severity,
        confidence=0.85,
        title=titles[kind],
        cause=causes[kind],
        fix="Look at the other findings, and at whether slots are busy; --timeout SECONDS gives it longer.",
        commands=("plan-llama doctor --url URL --pid N --log server.log", "curl -s URL/slots"),
        evidence=(clean(line),),
    )


def _no_text(output: Fact, table: FlagTable | None) -> Found:
    """A probe of the output that found none, and no rule that says why."""
    return Found(
        id="output-garbage",
        severity="degraded",
        confidence=0.85,
        title="What it writes is no text",
        cause=f"Fixed questions at temperature 0 were answered with no text ({output.value}). Sampling is not the "
        "reason. A damaged file, a cache type, a kernel that is wrong for the card, or another chat template may be.",
        fix=spelled(
            "Change one thing at a time and ask again: `-ctk f16 -ctv f16`; `-fa off`; `-ngl 0` (the CPU alone); the "
            "file's checksum; a newer build. What makes it text again is the reason.",
            table,
        ),
        commands=("plan-llama doctor --url URL --probe-output",),
        evidence=() if output.line is None else (clean(output.line),),
    )


def _stops_loading(evidence: Evidence) -> bool:
    last = next((line.text for line in reversed(evidence.tail) if line.text.strip()), "")
    if "model buffer size" in last:  # an excerpt may end here as well
        return evidence.starts[-1].get("load_mode") == "none"
    return bool(_LOADING.search(last))


def _cannot_tell(
    ident: str, severity: Severity, confidence: float, lines: Sequence[Line], ask: tuple[str, ...]
) -> Found:
    once = {(line.number, line.text): line for line in lines}
    return Found(
        id=ident,
        severity=severity,
        confidence=confidence,
        title="It did not come up, and no line says why in words that are known here",
        cause="I cannot tell from this log.",
        fix="Run the commands below and give me what they print (--log takes several files), or the log from its first "
        "line on.",
        commands=ask,
        evidence=tuple(clean(line) for line in once.values()),
    )


def state(start: Start) -> str:
    """How a start ended, in a word or two."""
    if start.ended is not None and (start.served is None or start.ended.number > start.served.number):
        return "failed"
    if start.served is not None:
        return "served"
    return "did not finish" if start.begun is not None else "no load in it"
