"""What a build of llama.cpp reserves otherwise than the one that is modelled, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, get_args

from plan_llama import catalog
from plan_llama.engines import ik_llama
from plan_llama.errors import ProfileError
from plan_llama.findings import Finding
from plan_llama.memory.types import OlderRule, Settings
from plan_llama.memory.windows import windows
from plan_llama.models.types import ModelSpec

MODELLED = 11434  # the build whose source the memory model follows

Touches = Literal["all", "latent", "windows", "slots", "indexer", "quantised-cache", "flash-attn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One difference of builds before `since`. `side` is where numbers are that do not count it.

    `until` is the last build that surely has it, and is what counts for a difference by which older builds need less.
    """

    id: str
    since: int
    until: int | None
    before: str  # where the older behaviour was seen
    buffer: Literal["context", "compute"]
    counted: bool
    side: Literal["below", "above"] | None
    models: Touches
    text: str
    sources: tuple[str, ...]

    def holds(self, build: int) -> bool:
        """Whether a build has the older behaviour; between two known builds that which needs more."""
        return build < self.since if self.until is None else build <= self.until

    def touches(self, spec: ModelSpec, settings: Settings) -> bool:
        """Whether it makes a difference for this model with these settings."""
        latent = bool(spec.int_param("attention.key_length_mla", 0))
        return {
            "all": True,
            "latent": latent,
            "windows": bool(windows(spec).cells) and not settings.swa_full,
            "slots": settings.parallel > 1 and not settings.kv_unified,
            "indexer": latent and bool(spec.int_param("attention.indexer.key_length", 0)),
            "quantised-cache": settings.flash_attn and {settings.kv_type_k, settings.kv_type_v} != {"f16"},
            "flash-attn": settings.flash_attn,
        }[self.models]


@cache
def rules() -> tuple[Rule, ...]:
    """All known differences. Raises ProfileError for one that the memory model does not know."""
    path = catalog.root() / "engines" / "llama.cpp" / "memory.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("schema", int)
    found = []
    for row in table.tables("rule"):
        rule = Rule(
            id=row.take("id", str),
            since=row.take("since", int),
            until=row.get("until", int),
            before=row.take("before", str),
            buffer=cast(Literal["context", "compute"], row.take("buffer", str)),
            counted=row.take("counted", bool),
            side=cast("Literal['below', 'above'] | None", row.get("side", str)),
            models=cast(Touches, row.take("models", str)),
            text=row.take("text", str),
            sources=row.strings("sources"),
        )
        if rule.counted != (rule.id in get_args(OlderRule)) or rule.counted == (rule.side is not None):
            raise ProfileError(f"{path}: '{rule.id}' is counted exactly if the memory model knows it")
        if rule.models not in get_args(Touches):
            raise ProfileError(f"{path}: '{rule.id}' touches '{rule.models}', which is not known")
        found.append(rule)
        row.done()
    table.done()
    return tuple(found)


def older(build: int | None) -> frozenset[OlderRule]:
    """The counted differences of a build; none for one without a number (0 or 1) and for newer ones."""
    if build is None or build <= 1:
        return frozenset()
    return frozenset(cast(OlderRule, rule.id) for rule in rules() if rule.counted and rule.holds(build))


def of_engine(engine: str, build: int | None) -> frozenset[OlderRule]:
    """The same of a fork: it has differences of its own, whatever its builds are called."""
    if engine == ik_llama.ENGINE:
        return frozenset(cast(OlderRule, name) for name in ik_llama.notes().older)
    return older(build)


def findings(build: int, spec: ModelSpec, settings: Settings) -> Iterator[Finding]:
    """What is to be said of the memory of another build than the modelled one."""
    if build == MODELLED:
        return
    name = f"b{build}" if build > 1 else "a build without a number"
    if build <= 1 or build > MODELLED:
        is_newer = "is newer, and what changed in it is not known here"
        yield Finding(
            id="memory-of-other-build",
            severity="warning",
            text=f"memory is modelled after b{MODELLED}; {name} {is_newer if build > 1 else 'may be of any age'}",
            fix="plan-llama verify compares with what it reserves",
        )
        return
    touching = [rule for rule in rules() if rule.holds(build) and rule.touches(spec, settings)]
    counted = [rule for rule in touching if rule.counted]
    if counted:
        said = "; ".join(f"{rule.text} ({rule.buffer})" for rule in counted)
        yield Finding(
            id="memory-of-other-build",
            severity="note",
            text=f"the numbers are for {name}, which differs from b{MODELLED}: {said}",
        )
    for rule in touching:
        if not rule.counted:
            need = "more" if rule.side == "below" else "less"
            yield Finding(
                id="memory-of-other-build",
                severity="warning" if rule.side == "below" else "note",
                text=f"{name}: {rule.text}; that is not counted, and its {rule.buffer} buffer is {need} "
                "than shown",
                fix="plan-llama verify, or the first start with -lv 4, shows what it reserves"
                if rule.side == "below"
                else "",
            )
    if not touching:
        yield Finding(
            id="memory-of-other-build",
            severity="note",
            text=f"memory is modelled after b{MODELLED}; no change of more than 2 % since {name} is known for "
            "this model and these settings",
        )
