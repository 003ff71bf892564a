"""Context against speed against quant: what the quants of a model make of some contexts, and which of that is worth
a look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plan_llama.cli.other_quants import room
from plan_llama.cli.plan_command import Made
from plan_llama.cli.screen import Screen
from plan_llama.errors import ModelError
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models import quality
from plan_llama.models.resolve import Choice, choices
from plan_llama.solver.choice import best_at
from plan_llama.solver.plan import make_task
from plan_llama.solver.search import Task
from plan_llama.solver.types import Candidate
from plan_llama.units import GB, rate, tokens

_CONTEXTS = (8192, 32768, 131072)
_MOST_QUANTS = 8
_USABLE = ("fits", "tight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quant:
    """A quant: what it costs and how good it is. `kl_divergence` where somebody published it."""

    name: str
    size_bytes: int
    bits_per_weight: float
    kl_divergence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A quant at a context of one conversation; `candidate` is None where it was too large to look at."""

    quant: Quant
    context: int
    candidate: Candidate | None
    best: bool = False  # no other point that fits has as much of everything and more of something

    @property
    def verdict(self) -> str:
        """The placement's; a file larger than all memory is read from disk at best."""
        return self.candidate.footprint.verdict if self.candidate else "does-not-fit"


def points(made: Made) -> list[Point]:
    """By quant, largest first, and context. All with the plan's micro-batch, cache type and slots, which another search
    for each would change little; only what needs no network is read."""
    own = made.plan.chosen
    context = own.settings.slot_limit or own.settings.context_per_slot
    trained = made.task.table.spec.context_train
    asked = made.task.request.prompt_tokens + made.task.request.output_tokens
    most = trained or max(_CONTEXTS)
    steps = sorted({context, *(step for step in _CONTEXTS if asked <= step <= most)})
    found = [
        Point(quant=quant, context=step, candidate=_at(made, task, step))
        for quant, task in _quants(made)
        for step in steps
    ]
    return [replace(point, best=_best(point, found)) for point in found]


def _quants(made: Made) -> Iterator[tuple[Quant, Task | None]]:
    """The plan's quant and others of the catalog's, largest first; no task for those larger than all memory."""
    own = made.task.table.spec
    offered = choices(own.catalog_id) if own.catalog_id and not own.made_with else ()
    if own.quant not in {choice.quant for choice in offered}:
        offered = ()
    for choice in _some(offered, own.quant, made.machine):
        table: ModelTable | None = None
        if choice.quant == own.quant:
            table = made.task.table
        elif choice.size_bytes <= room(made.machine):
            try:
                table = made.tables.of(choice)
            except ModelError:  # a file for another engine, or one that is damaged
                continue
        quant = _quant(choice.quant, choice.size_bytes, own.parameters, choice.kl_divergence)
        yield quant, None if table is None else _task(made, table)
    if not offered:
        yield _quant(own.quant, own.file_bytes, own.parameters, None), _task(made, made.task.table)


def _quant(name: str, size_bytes: int, parameters: int, kl_divergence: float | None) -> Quant:
    figure = quality.of(name, kl_divergence)
    return Quant(
        name=name,
        size_bytes=size_bytes,
        bits_per_weight=8 * size_bytes / max(1, parameters),
        kl_divergence=figure.kl_divergence if figure else None,
    )


def _some(offered: Sequence[Choice], own: str, machine: Machine) -> list[Choice]:
    """The plan's, the smallest that is too large, and of the others some over their whole range."""
    too_large = [choice for choice in offered if choice.size_bytes > room(machine)]
    within = [choice for choice in offered if choice.size_bytes <= room(machine)]
    if len(within) > _MOST_QUANTS:
        step = (len(within) - 1) / (_MOST_QUANTS - 1)
        within = [within[round(i * step)] for i in range(_MOST_QUANTS)]
    kept = {choice.quant for choice in (*too_large[-1:], *within)} | {own}
    return [choice for choice in offered if choice.quant in kept]


def _task(made: Made, table: ModelTable) -> Task:
    settings, wishes = made.plan.chosen.settings, made.task.wishes
    pins = {"ubatch": str(settings.ubatch), **wishes.pins}
    wishes = replace(wishes, parallel=settings.parallel, users=made.task.users, pins=pins)
    return make_task(table, made.machine, wishes, made.task.beyond)


def _at(made: Made, task: Task | None, context: int) -> Candidate | None:
    if task is None:
        return None
    settings = made.plan.chosen.settings
    if task.table is made.task.table and context == (settings.slot_limit or settings.context_per_slot):
        return made.plan.chosen
    task.filler.around.clear()  # each context is sought by itself
    return best_at(task, context, settings.kv_type_k)


def _best(point: Point, others: Sequence[Point]) -> bool:
    """Whether none has as much context and quality, is as fast, and has or is more in one of them."""
    mine = _figures(point)
    if mine is None:
        return False
    return not any(
        theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True))
        for theirs in map(_figures, others)
        if theirs is not None
    )


def _figures(point: Point) -> tuple[float, float, float, float] | None:
    """What is wanted of a point that fits, more being better."""
    if point.candidate is None or point.verdict not in _USABLE:
        return None
    speed = point.candidate.speed
    whole = speed.load.request_s if speed.load else speed.request_s
    return point.context, point.quant.bits_per_weight, speed.decode_tok_s.expected, -whole


def as_json(found: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as plain values."""
    rows = []
    for point in found:
        item = point.candidate
        rows.append(
            {
                "quant": point.quant.name,
                "file_bytes": point.quant.size_bytes,
                "bits_per_weight": point.quant.bits_per_weight,
                "kl_divergence": point.quant.kl_divergence,
                "context": point.context,
                "verdict": point.verdict,
                "decode_tok_s": item.speed.decode_tok_s.expected if item else None,
                "prefill_tok_s": item.speed.prefill_tok_s.expected if item else None,
                "request_s": item.speed.request_s if item else None,
                "cpu_moe_layers": item.cpu_moe_layers if item else None,
                "layers_on_gpu": item.gpu_block_layers if item else None,
                "undominated": point.best,
            }
        )
    return rows


def table(screen: Screen, found: Sequence[Point]) -> Iterator[str]:
    """A row for each quant, a column for each context: decode in tok/s and the request's seconds."""
    steps = sorted({point.context for point in found})
    by_quant: dict[Quant, dict[int, Point]] = {}
    for point in found:
        by_quant.setdefault(point.quant, {})[point.context] = point
    width = max(12, *(len(quant.name) for quant in by_quant))
    heading = f"{'quant':<{width}}     GB  bits" + "".join(f"{tokens(step):>13}" for step in steps)
    yield screen.style(f"  {heading}", "dim")
    for quant, row in by_quant.items():
        line = f"{quant.name:<{width}} {quant.size_bytes / GB:>6.1f} {quant.bits_per_weight:>5.1f}"
        yield f"  {line}" + "".join(_cell(screen, row[step]) for step in steps)
    text = "tok/s of decode and seconds of the request; * nothing else here has as much context and as many bits and "
    text += f"is as fast; {screen.glyph('–')} does not fit, or only from disk; ( ) cuts into a margin"
    yield from screen.wrap(text, indent=2, style="dim")


def _cell(screen: Screen, point: Point) -> str:
    if point.candidate is None or point.verdict not in _USABLE:
        return f"{screen.glyph('–'):>12} "
    speed = point.candidate.speed
    whole = speed.load.request_s if speed.load else speed.request_s
    text = f"{rate(speed.decode_tok_s.expected)}/{whole:.0f}s"
    text = f"({text})" if point.verdict == "tight" else text
    return f"{text:>12}{'*' if point.best else ' '}"
