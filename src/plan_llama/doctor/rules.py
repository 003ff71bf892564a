"""Rules about failures, as profiles/failures/*.toml hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, get_args

from plan_llama import catalog
from plan_llama.doctor.conditions import Condition, condition
from plan_llama.errors import ProfileError

Severity = Literal["fatal", "degraded", "slow", "note"]
Phase = Literal["load", "run"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One way to see a failure: a line of `any` (behind one of `after`), all of `also` and `when`, none of `unless`.

    `cause` and `fix` say more than the rule's where it is seen so, and stand in their place.
    """

    any: tuple[str, ...] = ()
    also: tuple[tuple[str, ...], ...] = ()
    unless: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    when: tuple[Condition, ...] = ()
    severity: Severity | None = None
    confidence: float = 0.9
    cause: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A failure: how it is seen, why it happens, what to do. `yields_to`: causes that explain it where they are found.

    `phase` "load": a start that serves afterwards has survived it. `last_resort`: it names a message in general, and is
    left out where another fatal cause was found. `apart`: what tells it from the failures that look like it, for the
    page of rules and for who labels a log. In texts, what stands between backquotes and begins with `-` is an argument
    of llama.cpp, `{a}` is what stood in the hole of that name, `{name}` a fact; bytes are shown in GiB or MiB.
    """

    id: str
    title: str
    engines: tuple[str, ...]
    severity: Severity
    phase: Phase = "load"
    signs: tuple[Sign, ...]
    yields_to: tuple[str, ...] = ()
    last_resort: bool = False
    cause: str
    apart: str = ""
    fix: str
    commands: tuple[str, ...] = ()
    sources: tuple[str, ...]
    section: str


@cache
def load() -> tuple[Rule, ...]:
    """All rules, in the order of the files. Raises ProfileError for one that does not say what it must."""
    rules: list[Rule] = []
    for name, path in sorted(catalog.files("failures").items()):
        table = catalog.Table(catalog.load(path), str(path))
        section = table.take("section", str)
        rules += [_rule(item, section) for item in table.tables("rule")]
        table.done()
        if not rules:
            raise ProfileError(f"{path}: {name} has no [[rule]]")
    ids = [rule.id for rule in rules]
    for rule in rules:
        if ids.count(rule.id) > 1:
            raise ProfileError(f"rule '{rule.id}' is there twice")
        for other in rule.yields_to:
            if other not in ids:
                raise ProfileError(f"rule '{rule.id}' yields to '{other}', which is no rule")
    return tuple(rules)


def templates() -> list[str]:
    """Every pattern of every rule."""
    return [text for rule in load() for sign in rule.signs for text in _patterns(sign)]


def _patterns(sign: Sign) -> Iterator[str]:
    yield from sign.any
    for alternatives in sign.also:
        yield from alternatives
    yield from sign.unless
    yield from sign.after


def _rule(table: catalog.Table, section: str) -> Rule:
    ident = table.take("id", str)
    severity = _severity(table.take("severity", str), table.where)
    phase = table.get("phase", str) or "load"
    if phase not in get_args(Phase):
        raise ProfileError(f"{table.where}: 'phase' must be load or run, found '{phase}'")
    rule = Rule(
        id=ident,
        section=section,
        title=table.take("title", str),
        engines=table.strings("engines"),
        severity=severity,
        phase=cast(Phase, phase),
        yields_to=table.strings("yields_to"),
        last_resort=table.get("last_resort", bool) or False,
        cause=table.take("cause", str).strip(),
        apart=(table.get("apart", str) or "").strip(),
        fix=table.take("fix", str).strip(),
        commands=table.strings("commands"),
        sources=table.strings("sources"),
        signs=tuple(_sign(item) for item in table.tables("sign")),
    )
    table.done()
    if not rule.signs or not rule.engines or not rule.sources:
        raise ProfileError(f"{table.where}: a rule needs engines, sources and a [[rule.sign]]")
    return rule


def _sign(table: catalog.Table) -> Sign:
    severity = table.get("severity", str)
    sign = Sign(
        any=table.strings("any"),
        also=tuple(tuple(text.split(" || ")) for text in table.strings("also")),
        unless=table.strings("unless"),
        after=table.strings("after"),
        when=tuple(condition(text, table.where) for text in table.strings("when")),
        severity=None if severity is None else _severity(severity, table.where),
        confidence=table.get("confidence", float) or 0.9,
        cause=(table.get("cause", str) or "").strip(),
        fix=(table.get("fix", str) or "").strip(),
    )
    table.done()
    if not sign.any and not sign.when:
        raise ProfileError(f"{table.where}: a sign needs 'any' or 'when'")
    if not 0 < sign.confidence <= 1:
        raise ProfileError(f"{table.where}: 'confidence' must be above 0 and at most 1")
    return sign


def _severity(text: str, where: str) -> Severity:
    for known in SEVERITIES:
        if text == known:
            return known
    raise ProfileError(f"{where}: severity must be one of {', '.join(SEVERITIES)}, found '{text}'")
