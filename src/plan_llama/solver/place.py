"""Fills a machine with a model: the split of its layers, and of their movable weights, that serves a request fastest.

A split is found by arithmetic (solver.split) with the room that the exact memory model leaves beside a graph; its own
graph is then measured, and the room corrected until both agree. Every placement that is handed on keeps every margin
by the exact model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plan_llama.hardware.types import Machine
from plan_llama.memory.context import layer_bytes, reserved_batch
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import (
    Beyond,
    device_memory,
    gpu_margin_bytes,
    projector_use,
)
from plan_llama.memory.patterns import MovableKind, movable_layers, movable_parts, whole_blocks
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers, Override, Settings
from plan_llama.solver.apart import Lender, Overrides, lenders, lent
from plan_llama.solver.costs import Costs, Goal, Movable
from plan_llama.solver.lineup import Lineup, Seen
from plan_llama.solver.orders import firsts, kind_of_card, orders
from plan_llama.solver.share import Card, Option
from plan_llama.solver.split import Split
from plan_llama.speed.traffic import LayerTable, prepare

_ANY = Goal()


@dataclass(frozen=True, slots=True)
class Filled:
    """A placement that keeps every card's margin, and its buffers."""

    settings: Settings
    made: Buffers
    split: Split | None = None  # None: nothing was split
    order: tuple[int, ...] = ()  # the cards that the split is over


class Filler:
    """Places one model on one machine for given context, micro-batch and cache type, for one kind of request."""

    def __init__(
        self,
        table: ModelTable,
        machine: Machine,
        beyond: Beyond,
        margin_bytes: int | None,
        *,
        layers: LayerTable | None = None,
    ) -> None:
        self.table = table
        self.machine = machine
        self.beyond = beyond
        self.layers = layers or prepare(table.spec)
        self.devices = device_memory(machine)
        self.isa = machine.cpu.isa
        self.margins = [
            0 if machine.unified else gpu_margin_bytes(machine, gpu, beyond, margin_bytes)
            for gpu in machine.gpus
        ]
        self.movable = Movable.of(table)
        self.everything = table.blocks + 1
        self._moved: dict[BackendKind, list[int]] = {}
        self.around: dict[tuple[int, ...], Split] = {}  # by order: what was best for other settings
        self._placed: dict[Settings, Filled] = {}  # orders of the cards come to the same placements
        self._costs: dict[object, Costs] = {}

    def budgets(self, settings: Settings) -> list[int]:
        """Bytes of buffers and pool that each card may hold: free, less margin, driver and projector."""
        images = projector_use(self.table, settings, self.machine)
        return [
            gpu.free_bytes
            - margin
            - self.beyond.context_bytes[gpu.backend]
            - (images.on(index) + images.pool_on(index) if images else 0)
            for index, (gpu, margin) in enumerate(zip(self.machine.gpus, self.margins, strict=True))
        ]

    def best(self, base: Settings, goal: Goal = _ANY) -> Filled | None:
        """The first of the options."""
        return next(self.options(base, goal), None)

    def options(self, base: Settings, goal: Goal = _ANY) -> Iterator[Filled]:
        """Placements worth comparing, none where not even one layer's worth fits. `base` has all but the placement."""
        if not self.machine.gpus:
            yield self.made(replace(base, gpu_layers=0))
            return
        found = False
        if self.table.loaded_bytes <= sum(max(0, budget) for budget in self.budgets(base)):
            full = self.made(replace(base, gpu_layers=self.everything))
            if not self.over(full):
                yield full
                found = True
                if self.machine.unified or (len(firsts(self.machine)) == 1 and not self.layers.refused):
                    return

        def host_s(order: tuple[int, ...]) -> float:
            return sum(self.costs(base, order, goal).on(HOST).whole)

        offloads = host_s if base.op_offload else None
        seen = Seen()
        lineups = []
        for order in orders(self.machine, self.budgets(base), offloads, self.table.blocks):
            lineup = Lineup(self, base, order, goal)
            if lineup.may_beat(seen):
                lineup.seek(seen)
                lineups.append(lineup)
        for lineup in sorted(lineups, key=lambda lineup: lineup.seconds):
            lineup.better(seen)
        for lineup in lineups:
            for split in lineup.kept():
                yield split
                found = True
        yield from self._lent(base, goal) if found else ()
        if not found:
            bare = self.made(replace(base, gpu_layers=0))
            if not self.over(bare) or self.machine.unified:
                yield bare

    def _lent(self, base: Settings, goal: Goal) -> Iterator[Filled]:
        """The best split over the faster cards, with experts that it leaves on the host on the slower ones."""
        if self.movable.experts and not self.layers.refused:
            for slow in lenders(self.machine):
                yield from self._lent_by(slow, base, goal)

    def _lent_by(self, slow: tuple[int, ...], base: Settings, goal: Goal) -> Iterator[Filled]:
        order = tuple(i for i in range(len(self.machine.gpus)) if i not in slow)
        lineup = Lineup(self, base, order, goal)
        lineup.seek(Seen(), briefly=True)
        for filled in lineup.kept()[:1]:
            split = filled.split
            if split is None or split.host_blocks or split.bare or not split.away:
                continue

            def left(layers: Sequence[int], parts: Sequence[tuple[int, Option]] = split.parts) -> Overrides:
                return self.overrides(sorted(layers), (), 0, parts)

            budgets = self.budgets(filled.settings)
            cards = [Lender(card, budgets[card], self.movable_bytes(card)) for card in slow]
            # the last layer costs least on the host
            away = sorted(split.away, key=lambda il: (il != self.table.layers - 1, il))
            settings = lent(filled.settings, cards, away, left, self._lacks)
            if settings is not None:
                yield self.made(settings)

    def _lacks(self, settings: Settings, card: int) -> int | None:
        """What a placement lacks on a card, less than 0 where it leaves room; None where another card lacks some."""
        made = self.made(settings)
        others = set(self.over(made)) - {card}
        return None if others else made.made.devices[card].peak_bytes - self.budgets(settings)[card]

    def made(self, settings: Settings) -> Filled:
        """A placement, measured."""
        if settings not in self._placed:
            made = buffers(self.table, settings, self.devices, self.isa)
            self._placed[settings] = Filled(settings, made)
        return self._placed[settings]

    def over(self, filled: Filled) -> list[int]:
        """The cards whose budget a placement exceeds."""
        budgets = self.budgets(filled.settings)
        return [
            i
            for i, part in enumerate(filled.made.devices)
            if part.total_bytes and part.peak_bytes > budgets[i]
        ]

    def costs(self, base: Settings, order: tuple[int, ...], goal: Goal, *, at_once: int = 1) -> Costs:
        """What each piece costs on each device, with the cards in this order."""
        mode = base.load_mode if self.machine.unified else "none"
        # the same for every context: the request says how deep it is
        open_ = {"context": 0, "slot_limit": None, "cache_ram_bytes": 0, "ctx_checkpoints": 0}
        key = self.ordered(base, order, load_mode=mode, **open_), goal, at_once
        if key not in self._costs:
            made = self._costs[key] = Costs(
                self.table, self.layers, self.movable, self.machine, key[0], goal, at_once=at_once
            )
            any_order = replace(key[0], devices=(), main_gpu=0), goal, at_once
            made.with_cards_of(self._costs.setdefault((any_order, "any order"), made))
        return self._costs[key]

    def ordered(self, settings: Settings, used: tuple[int, ...], **more: Any) -> Settings:
        """The settings with these cards in this order, and with what else is to be different."""
        every = used == tuple(range(len(self.machine.gpus)))
        return replace(settings, devices=() if every else used, main_gpu=0 if every else used[0], **more)

    def cards(self, base: Settings, order: Sequence[int], costs: Costs) -> list[Card]:
        batch = reserved_batch(base, self.table.windows)
        budgets = self.budgets(base)
        cards = []
        made: dict[object, Card] = {}
        for device in order:
            kind = self.devices[device].kind
            if (known := made.get(kind_of_card(self.machine, device))) is not None:
                cards.append(replace(known, room=budgets[device]))
                continue
            stored = self.table.stored_bytes(kind)
            sums = self.table.block_sums(kind, draft_layers=base.draft_layers)
            movable = self.movable_bytes(device)
            cache = layer_bytes(self.table, batch, kind) if base.kv_offload else [0] * self.table.blocks
            prices = costs.on(device)
            cards.append(
                Card(
                    room=budgets[device],
                    cache_bytes=cache,
                    rest_bytes=[sums[il + 1] - sums[il] - movable[il] for il in range(self.table.blocks)],
                    cache_s=prices.cache,
                    rest_s=prices.rest,
                    options=costs.options(device, stored),
                    output_bytes=self._output_bytes(stored),
                    output_s=costs.output(device),
                )
            )
            made[kind_of_card(self.machine, device)] = cards[-1]
        return cards

    def movable_bytes(self, device: int) -> list[int]:
        """All movable weights of each block, as a card stores them."""
        kind = self.devices[device].kind
        if kind not in self._moved:
            stored = self.table.stored_bytes(kind)
            self._moved[kind] = [sum(stored[i] for i in tensors) for tensors in self.movable.tensors]
        return self._moved[kind]

    def _output_bytes(self, stored: Sequence[int]) -> int:
        """What lies outside the blocks and not on the host; a tied head is a second copy of the token table."""
        table = self.table
        names = [table.spec.tensors[index].name for index in table.loose]
        size = sum(stored[i] for i, name in zip(table.loose, names, strict=True) if name.startswith("output"))
        if not table.has_output and (embedding := table.by_name.get("token_embd.weight")) is not None:
            size += stored[embedding]
        return size

    def settings(self, base: Settings, order: tuple[int, ...], split: Split) -> Settings:
        """The split as llama.cpp is told it: -ngl, -ts in layers, and what of them stays on the host."""
        used = tuple(device for device, count in zip(order, split.per_card, strict=True) if count)
        used = used or order[:1]
        shares = [0.0] * len(self.machine.gpus)
        for device, count in zip(order, split.per_card, strict=True):
            shares[device] = float(count)
        shares[used[-1]] += 1  # the output layer
        return self.ordered(
            base,
            used,
            gpu_layers=self.everything - split.host_blocks,
            tensor_split=tuple(shares) if len(used) > 1 else (),
            overrides=self.overrides(split.away, split.bare, split.host_blocks, split.parts),
        )

    # -- what stays on the host --------------------------------------------------------------------------------------

    @property
    def _kind(self) -> MovableKind:
        return "experts" if self.movable.experts else "dense"

    def all_movable(self) -> list[int]:
        return [il for il, tensors in enumerate(self.movable.tensors) if tensors]

    def overrides(
        self,
        away: Sequence[int],
        bare: Sequence[int],
        host_blocks: int,
        parts: Sequence[tuple[int, Option]] = (),
    ) -> tuple[Override, ...]:
        """The shortest patterns for these blocks; those that are wholly on the host may be named with them."""
        every = self.all_movable()
        named: dict[tuple[str, ...], list[int]] = {}
        for il, option in parts:
            named.setdefault(option.left, []).append(il)
        found = [
            movable_parts(None if {*layers, *away, *range(host_blocks)} >= {*every} else layers, stems)
            for stems, layers in named.items()
        ]
        if bare:
            found.append(whole_blocks(bare))
        left = [il for il in away if il not in bare]
        if left:
            below = [il for il in every if il < host_blocks]
            found += movable_layers(self._kind, sorted({*away, *below}), left, every)
        return tuple(found)
