"""Which machines run a model, and how fast: the described ones, single cards in one assumed host, and this one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from plan_llama import catalog
from plan_llama.cli import images
from plan_llama.cli.engine_choice import Writer, writer
from plan_llama.cli.options import (
    EngineOptions,
    HardwareOptions,
    ModelOptions,
    OutputOptions,
    WishOptions,
    words,
)
from plan_llama.cli.other_quants import room
from plan_llama.cli.plan_command import solved
from plan_llama.cli.screen import Screen, print_json
from plan_llama.cli.tables import Tables
from plan_llama.cli.wishes import check_against_model, hardware_choice, wishes
from plan_llama.errors import EXIT_NO_FIT, EXIT_OK, ModelError, RemoteError, UsageError
from plan_llama.hardware import described
from plan_llama.hardware.overrides import HardwareChoice, resolve
from plan_llama.hardware.probe import measured
from plan_llama.hardware.types import Machine
from plan_llama.memory.table import ModelTable
from plan_llama.models.resolve import Choice, choices, resolve_model
from plan_llama.solver.plan import make_task
from plan_llama.solver.profiles import beyond
from plan_llama.solver.search import Task
from plan_llama.solver.serving import satisfied
from plan_llama.solver.types import Plan, Wishes

Kind = Literal["here", "asked", "machine", "card"]

_RANK = {"fits": 0, "tight": 1, "pages-from-disk": 2, "does-not-fit": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine to look at, and the options of a plan that name it."""

    name: str
    kind: Kind
    machine: Machine
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A place with the best that it makes of the model; `plan` is None where nothing can be placed at all."""

    place: Place
    task: Task
    plan: Plan | None

    @property
    def verdict(self) -> str:
        """The plan's."""
        return self.plan.chosen.footprint.verdict if self.plan else "does-not-fit"

    @property
    def order(self) -> tuple[int, float]:
        """What fits first, then by the time of the request; with users, under load."""
        if self.plan is None:
            return 3, 0.0
        speed = self.plan.chosen.speed
        return _RANK[self.verdict], speed.load.request_s if speed.load else speed.request_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """All rows, the best first; `host` is what single cards are put into."""

    rows: tuple[Row, ...]
    host: Machine
    took_s: float


def run(
    model: ModelOptions,
    hardware: HardwareOptions,
    wish_options: WishOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> int:
    """Ranks the machines. Returns 0 where one runs the model, else 3."""
    from plan_llama.cli import render_fits

    if model.model is None:
        raise UsageError("--model is missing", hint="plan-llama fits --model glm-5.1")
    if (model.quant or "").lower() == "best":  # ten plans for each of the machines
        raise UsageError(
            "--quant best: fits gives every machine the largest quant that fits it",
            hint="leave --quant out, or name one for all",
        )
    wanted = wishes(wish_options)
    ranking = rank(model, hardware, wanted, writer(engine))
    if output.json:
        print_json(render_fits.as_json(ranking, model, wish_options))
    else:
        screen = Screen()
        screen.write(render_fits.text(screen, ranking, model, wish_options, explain=output.explain))
    usable = ("fits", "tight", "pages-from-disk") if wanted.allow_paging else ("fits", "tight")
    return EXIT_OK if any(row.verdict in usable for row in ranking.rows) else EXIT_NO_FIT


def rank(model: ModelOptions, hardware: HardwareOptions, wanted: Wishes, own: Writer) -> Ranking:
    """Plans for every place. Raises what a plan raises for a model or a wish that cannot be planned for."""
    began = time.perf_counter()
    quants = Quants(model)
    places, host = _places(hardware)
    rows = sorted((_row(place, quants, wanted, own) for place in places), key=lambda row: row.order)
    return Ranking(rows=tuple(rows), host=host, took_s=time.perf_counter() - began)


def _places(hardware: HardwareOptions) -> tuple[list[Place], Machine]:
    """This machine or the one of the options, the described ones, single cards; and the host of the cards."""
    asked = hardware_choice(hardware)
    mine = measured(resolve(asked))
    kind: Kind = "asked" if asked.simulates else "here"
    places = [Place(name=mine.name, kind=kind, machine=mine, options=tuple(words(hardware)))]
    for name in catalog.files("hardware"):
        machine = described.load(name)
        places.append(Place(name=name, kind="machine", machine=machine, options=("--hardware", name)))
    name, singles = cards()
    host = described.load(name)
    for card in singles:
        machine = resolve(HardwareChoice(gpu=(card,)), base=host)
        options = ("--hardware", name, "--gpu", card)
        places.append(Place(name=machine.gpus[0].name, kind="card", machine=machine, options=options))
    return places, host


def cards() -> tuple[str, tuple[str, ...]]:
    """The described machine that single cards are put into, and the cards."""
    path = catalog.root() / "fits.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("schema", int)
    found = table.take("host", str), table.strings("cards")
    table.done()
    return found


class Quants:
    """The quants to choose from, largest first, each read once for all machines."""

    def __init__(self, model: ModelOptions) -> None:
        assert model.model is not None  # noqa: S101 - the command checked it
        self._options = model
        self._open = choices(model.model) if model.quant is None else ()
        self._tables = Tables(model)
        self._named: ModelTable | None = None
        if not self._open:
            spec = resolve_model(model.model, model.quant)
            self._named = ModelTable(images.with_projector(spec, model))

    def within(self, size_bytes: int) -> Iterator[ModelTable]:
        """Those that are no larger, at least the smallest. Raises ModelError where none can be read."""
        if self._named is not None:
            yield self._named
            return
        readable = False
        for choice in self._open:
            if choice.size_bytes > size_bytes and choice is not self._open[-1]:
                continue
            table = self._table(choice)
            if table is not None:
                readable = True
                yield table
        if not readable:
            raise ModelError(f"{self._options.model}: has no quant for llama.cpp", hint="give a GGUF file")

    def _table(self, choice: Choice) -> ModelTable | None:
        try:
            return self._tables.of(choice)
        except RemoteError:
            raise
        except ModelError:  # a file for another engine, or one that is damaged
            return None


def _row(place: Place, quants: Quants, wanted: Wishes, own: Writer) -> Row:
    """The largest quant that fits a place and gives what was wished; else the largest that fits; else the smallest."""
    enough = ("fits", "tight") if wanted.objective == "quality" else ("fits",)
    largest: Row | None = None
    row: Row | None = None
    for table in quants.within(room(place.machine)):
        check_against_model(wanted, table.spec)
        asking = own.wishes(wanted, table.spec, place.machine)
        task, plan, _ = solved(make_task(table, place.machine, asking, beyond()), ladder=False)
        row = Row(place=place, task=task, plan=plan)
        if plan is not None and row.verdict in enough:
            if satisfied(task, plan.chosen):
                return row
            largest = largest or row
    assert row is not None  # noqa: S101 - at least the smallest quant was tried
    return largest or row
