"""`--quant best`: the quant that is worth its time, by published figures of quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from plan_llama.cli import other_quants
from plan_llama.cli.engine_choice import Writer
from plan_llama.cli.options import ModelOptions
from plan_llama.cli.tables import Tables
from plan_llama.errors import ModelError, UsageError
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models import quality
from plan_llama.models.quality import Quality
from plan_llama.models.resolve import Choice
from plan_llama.solver.plan import make_task, solve
from plan_llama.solver.profiles import beyond
from plan_llama.solver.types import Candidate, Wishes
from plan_llama.units import publisher_gb, rate, seconds

_TIME_PER_DIVERGENCE = 10.0  # a hundredth of KL divergence is worth a tenth of the request's time
_ENOUGH = 3
_MOST_LOOKED_AT = 10  # quants; each is a plan of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rated:
    choice: Choice
    table: ModelTable
    chosen: Candidate
    quality: Quality

    @property
    def cost(self) -> float:
        """The request's time, longer by what the quant loses."""
        return self.chosen.speed.request_s * exp(_TIME_PER_DIVERGENCE * self.quality.kl_divergence)


def choose(
    options: ModelOptions,
    tables: Tables,
    open_to: Sequence[Choice],
    machine: Machine,
    wanted: Wishes,
    own: Writer,
) -> tuple[ModelTable, Finding]:
    """The best of the quants that fit with every margin kept, and what the steps around it cost and bring.

    Raises UsageError where none of them has a published figure, or none fits.
    """
    known = [
        (choice, figure) for choice in open_to if (figure := quality.of(choice.quant, choice.kl_divergence))
    ]
    own_figures = [pair for pair in known if pair[1].measured_on is None]
    if len(own_figures) >= _ENOUGH:  # those of another model do not compare with them
        known = own_figures
    rated: list[_Rated] = []
    for choice, figure in known:
        if choice.size_bytes > other_quants.room(machine) or len(rated) == _MOST_LOOKED_AT:
            continue
        try:
            table = tables.of(choice)
            asking = own.wishes(wanted, table.spec, machine)
        except ModelError:
            continue
        task = make_task(table, machine, asking, beyond())
        plan = solve(task, ladder=False)
        if plan is not None and plan.chosen.footprint.verdict == "fits":
            rated.append(_Rated(choice=choice, table=table, chosen=plan.chosen, quality=figure))
    if not rated:
        what = (
            "no quant with a published figure of quality fits" if known else "no quant has a published figure"
        )
        raise UsageError(
            f"--quant best: {what} of {options.model}", hint="leave --quant out for the largest that fits"
        )
    best = min(rated, key=lambda item: item.cost)
    return best.table, Finding(
        id="quant-chosen", severity="note", text=_told(best, rated), fix="--quant names another"
    )


def _told(best: _Rated, rated: Sequence[_Rated]) -> str:
    """The choice and its neighbours in quality."""
    order = sorted(rated, key=lambda item: item.quality.kl_divergence)
    where = order.index(best)
    text = f"{_step(best)} is the best of {len(rated)} quants: a hundredth of KL divergence counts as a tenth of the "
    text += "time"
    if where:
        text += f"; one step up {_step(order[where - 1])}"
    if where + 1 < len(order):
        text += f"; one step down {_step(order[where + 1])}"
    models = {item.quality.measured_on for item in (best, *order[max(0, where - 1) : where + 2])} - {None}
    if models:
        text += (
            f" (divergence as published for {', '.join(sorted(filter(None, models)))}, not for this model)"
        )
    return text


def _step(item: _Rated) -> str:
    speed = item.chosen.speed
    return (
        f"{item.choice.quant} ({publisher_gb(item.choice.size_bytes)}, KL divergence "
        f"{item.quality.kl_divergence:.2g}, the request {seconds(speed.request_s)}, decode "
        f"{rate(speed.decode_tok_s.expected)} tok/s)"
    )
