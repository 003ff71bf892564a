"""Rules against evidence: what is wrong, most likely first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from plan_llama.doctor.evidence import Evidence, Fact, Hit, Line, Start
from plan_llama.doctor.rules import Rule, Severity, Sign

_MOST_EVIDENCE = 4
_SURE = 0.8  # signs from here on name their cause; below, another line may name it better
_LATER_START_IS_FINE = (
    0.6  # what is left of the confidence where a later start of the same log serves without it
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A rule that holds, with the lines that show it. `remark` says what weakens or explains it."""

    rule: Rule
    severity: Severity
    confidence: float
    evidence: tuple[Line, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""
    count: int = 1
    start: int = 1
    cause: str = ""  # of the sign, in the rule's place
    fix: str = ""


def diagnose(evidence: Evidence, rules: Sequence[Rule]) -> list[Diagnosis]:
    """What holds, over all starts: each cause once, notes last."""
    per_start = [
        _yielded([found for rule in rules if (found := _judged(rule, start, evidence.observed)) is not None])
        for start in evidence.starts
    ]
    merged: dict[str, Diagnosis] = {}
    for items in per_start:
        for item in items:
            before = merged.get(item.rule.id)
            merged[item.rule.id] = item if before is None else _better(before, item)
    if evidence.starts:
        merged = {ident: _seen_later(item, evidence, per_start) for ident, item in merged.items()}
    return sorted(merged.values(), key=_order)


def _order(item: Diagnosis) -> tuple[int, int, int, float, int]:
    """What ended it comes before what made it slow or worse, unless a later start serves without it; notes are last.

    Of what ended it the first that is sure comes first, then the rest by confidence.
    """
    weight = {"fatal": 0, "degraded": 1, "slow": 2, "note": 3}[item.severity]
    group = 2 if item.severity == "note" else int(item.severity != "fatal" or bool(item.remark))
    place = item.evidence[0].number if item.evidence else 0
    # the first error: the rest follows from it
    if group == 0 and item.confidence >= _SURE and not item.rule.last_resort:
        return group, 0, place, -item.confidence, weight
    return group, 1, 0, -item.confidence, weight


def _better(before: Diagnosis, after: Diagnosis) -> Diagnosis:
    """The later one of two starts, unless it is only a note."""
    if before.severity != "note" and after.severity == "note":
        return replace(before, count=before.count + after.count)
    return replace(after, count=before.count + after.count)


def _seen_later(item: Diagnosis, evidence: Evidence, per_start: Sequence[Sequence[Diagnosis]]) -> Diagnosis:
    """Less sure where a later start of the same source serves and does not show it."""
    place = next(i for i, start in enumerate(evidence.starts) if start.number == item.start)
    for later, found in zip(evidence.starts[place + 1 :], per_start[place + 1 :], strict=True):
        same = later.source == evidence.starts[place].source
        if same and later.served is not None and all(other.rule.id != item.rule.id for other in found):
            where = later.served.number
            remark = f"a later start in this log serves without it (line {where})"
            return replace(item, confidence=item.confidence * _LATER_START_IS_FINE, remark=remark)
    return item


def _yielded(found: list[Diagnosis]) -> list[Diagnosis]:
    """Without those whose cause was found."""
    ids = {item.rule.id for item in found if item.severity != "note"}
    explained = any(item.severity == "fatal" and not item.rule.last_resort for item in found)
    return [
        item
        for item in found
        if not ids.intersection(item.rule.yields_to) and not (explained and item.rule.last_resort)
    ]


def _judged(rule: Rule, start: Start, observed: Mapping[str, Fact]) -> Diagnosis | None:
    best: Diagnosis | None = None
    for sign in rule.signs:
        found = _seen(rule, sign, start, observed)
        if found is not None and (best is None or found.confidence > best.confidence):
            best = found
    return best


def _seen(rule: Rule, sign: Sign, start: Start, observed: Mapping[str, Fact]) -> Diagnosis | None:
    """A sign, where it holds in this start."""
    if sign.any and start.hits.keys().isdisjoint(sign.any):  # nearly all
        return None
    if any(text in start.hits for text in sign.unless):
        return None
    if not all(any(text in start.hits for text in alternatives) for alternatives in sign.also):
        return None
    fitting: list[Hit] = []
    for text in sign.any:
        hits = start.hits.get(text)
        fitting += [
            hit
            for hit in (hits.all if hits else ())
            if all(item.met(start, hit.values, observed) for item in sign.when)
        ]
    if sign.any and not fitting:
        return None
    if not sign.any and not all(item.met(start, {}, observed) for item in sign.when):
        return None
    if sign.after:
        earliest = _first_line(start, sign.after)
        if earliest is not None and start.served is not None and earliest == start.served.number:
            # between the two it loaded again
            earliest = start.up.number if start.up is not None else earliest
        fitting = [hit for hit in fitting if earliest is not None and hit.line.number > earliest]
        if not fitting:
            return None
    fitting.sort(key=lambda hit: hit.line.number)
    lines = [hit.line for hit in fitting[:_MOST_EVIDENCE]]
    for alternatives in sign.also:
        lines += [start.hits[text].first[0].line for text in alternatives if text in start.hits]
    lines += _lines_of_facts(sign, start, observed)
    severity = sign.severity or rule.severity
    confidence, remark = sign.confidence, ""
    last = max((hit.line.number for hit in fitting), default=0)
    served = start.served if start.up is None else start.up
    if severity == "fatal" and rule.phase == "load" and last and served is not None and served.number > last:
        severity, confidence = "note", 0.5
        remark = f"the server came up afterwards (line {served.number}): this was survived"
    return Diagnosis(
        rule=rule,
        severity=severity,
        confidence=confidence,
        evidence=tuple(_once(lines)[: _MOST_EVIDENCE + 2]),
        values=_values(fitting, sign, start, observed),
        remark=remark,
        count=sum(start.hits[text].count for text in sign.any if text in start.hits) or 1,
        start=start.number,
        cause=sign.cause,
        fix=sign.fix,
    )


def _values(fitting: Sequence[Hit], sign: Sign, start: Start, observed: Mapping[str, Fact]) -> dict[str, str]:
    """What texts may name: facts, and what stood in the holes of the first line."""
    values = {name: str(fact.value) for name, fact in (start.facts | dict(observed)).items()}
    for text in (text for alternatives in sign.also for text in alternatives if text in start.hits):
        values |= start.hits[text].first[0].values
    return values | (dict(fitting[0].values) if fitting else {})


def _lines_of_facts(sign: Sign, start: Start, observed: Mapping[str, Fact]) -> list[Line]:
    lines = []
    for item in sign.when:
        for name in (item.left, item.right):
            fact = observed.get(name) or start.facts.get(name)
            if fact is not None and fact.line is not None:
                lines.append(fact.line)
    return lines


def _once(lines: Iterable[Line]) -> list[Line]:
    return list(
        {(line.source, line.number, line.text if not line.number else ""): line for line in lines}.values()
    )


def _first_line(start: Start, templates: Iterable[str]) -> int | None:
    places = [start.hits[text].first[0].line.number for text in templates if text in start.hits]
    return min(places, default=None)
