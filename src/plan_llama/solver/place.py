"""Fills a machine with a model: the split of its layers, and of their movable weights, that serves a request fastest.

A split is found by arithmetic (solver.split) with the room that the exact memory model leaves beside a graph; its own
graph is then measured, and the room corrected until both agree. Every placement that is handed on keeps every margin
by the exact model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf

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
from plan_llama.solver.costs import Costs, Goal, Movable
from plan_llama.solver.orders import FEW_CARDS, firsts, kind_of_card, orders, shares
from plan_llama.solver.polish import Look, Polisher
from plan_llama.solver.share import Card, Option, holding, nearly_all, with_some_away
from plan_llama.solver.split import Split, Splitter, many
from plan_llama.speed.traffic import LayerTable, prepare

_MOST_STEPS = 16
_MOST_OPTIONS = 3  # of one order of the cards, to be estimated as a whole
_WITHIN = 4  # blocks by which a boundary moves when the room of a card turns out otherwise
_SLACK_BYTES = 32 << 20  # room found beyond what was reckoned with that is worth another look
_FEW_STATES = 12  # cards times layers, up to which graphs of every kind are measured
_FEW_LOOKS = 8  # with fewer nothing is bettered
_LOOKS = 600  # placements that are measured to better a split, over cards times layers
_ANY = Goal()


@dataclass(frozen=True, slots=True)
class Filled:
    """A placement that keeps every card's margin, and its buffers."""

    settings: Settings
    made: Buffers
    split: Split | None = None  # None: nothing was split
    order: tuple[int, ...] = ()  # the cards that the split is over


def _seconds(filled: Filled) -> float:
    return filled.split.seconds if filled.split else 0.0


def _kept(found: Iterable[Filled]) -> list[Filled]:
    """The cheapest of those that work one card after the other, and of those in which so many cards work at once: the
    prices do not know of that."""
    kinds: Counter[int] = Counter()
    kept = []
    for filled in sorted(found, key=_seconds):
        split = filled.split
        plain = split is not None and not split.host_blocks and not filled.settings.overrides
        kind = sum(map(bool, split.per_card)) if split is not None and plain else 0
        kinds[kind] += 1
        if kinds[kind] <= _MOST_OPTIONS:
            kept.append(filled)
    return kept


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
        self._around: dict[tuple[int, ...], Split] = {}  # by order: what was best for other settings

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
            yield self._made(replace(base, gpu_layers=0))
            return
        found = False
        if self.table.loaded_bytes <= sum(max(0, budget) for budget in self.budgets(base)):
            full = self._made(replace(base, gpu_layers=self.everything))
            if not self._over(full):
                yield full
                found = True
                if self.machine.unified or (len(firsts(self.machine)) == 1 and not self.layers.refused):
                    return

        def host_s(order: tuple[int, ...]) -> float:
            return sum(self._costs(base, order, goal).on(HOST).whole)

        small = len(self.machine.gpus) * self.table.blocks <= _FEW_STATES
        offloads = host_s if base.op_offload else None
        for order in orders(self.machine, self.budgets(base), offloads, all_of_them=small):
            for split in self._split(base, order, goal):
                yield split
                found = True
        if not found:
            bare = self._made(replace(base, gpu_layers=0))
            if not self._over(bare) or self.machine.unified:
                yield bare

    def _made(self, settings: Settings) -> Filled:
        return Filled(settings, buffers(self.table, settings, self.devices, self.isa))

    def _over(self, filled: Filled) -> list[int]:
        """The cards whose budget a placement exceeds."""
        budgets = self.budgets(filled.settings)
        return [
            i
            for i, part in enumerate(filled.made.devices)
            if part.total_bytes and part.peak_bytes > budgets[i]
        ]

    def _costs(self, base: Settings, order: tuple[int, ...], goal: Goal, *, at_once: int = 1) -> Costs:
        mode = base.load_mode if self.machine.unified else "none"
        return Costs(
            self.table,
            self.layers,
            self.movable,
            self.machine,
            self._ordered(replace(base, load_mode=mode), order),
            goal,
            at_once=at_once,
        )

    def _ordered(self, settings: Settings, used: tuple[int, ...]) -> Settings:
        if used == tuple(range(len(self.machine.gpus))):
            return replace(settings, devices=(), main_gpu=0)
        return replace(settings, devices=used, main_gpu=used[0])

    # -- splitting ----------------------------------------------------------------------------------------------------

    def _split(self, base: Settings, order: tuple[int, ...], goal: Goal) -> list[Filled]:
        """The cheapest splits over these cards that the exact model agrees with, the best first.

        What lies beside the weights depends on what is split how: it is sought from two sides, with all that can be
        moved on the host and with none of it; and with that of the last layer alone, whose products a prompt needs for
        one row only, so that nothing is copied for them (inp_out_ids, b11434).
        """
        costs = self._costs(base, order, goal)
        cards = self._cards(base, order, costs)
        every = self._all_movable()
        found: dict[Settings, Filled] = {}

        def look(split: Split) -> Look:
            settings = self._settings(base, order, split)
            filled = replace(self._made(settings), split=split, order=order)
            fits = not self._over(filled)
            if fits:
                found.setdefault(settings, filled)
            return Look(fits, tuple(self._beside(filled, order, cards)))

        polisher = Polisher(cards, costs.on(HOST).whole, costs.away().movable, costs.away().rest, look)
        plain = False
        starts: list[tuple[Settings, Collection[int]]] = [
            (replace(base, gpu_layers=self.everything, overrides=self._overrides(every, (), 0)), every),
            (replace(base, gpu_layers=self.everything // 2), every),
        ]
        if every and nearly_all(cards, every[-1]):
            last = self._overrides(every[-1:], (), 0)
            starts.append((replace(base, gpu_layers=self.everything, overrides=last), every[-1:]))
        for start, free in starts:
            made = self._made(self._ordered(start, order)).made
            beside = [made.devices[i].working_bytes for i in order]
            plain |= self._settle(base, order, costs, cards, beside, found, free=free, polisher=polisher)
            self._note(order, found)
        if len(order) > FEW_CARDS:
            plain = any(made.split and not made.settings.overrides for made in found.values())
        if plain and len(order) > 1:
            self._spread(base, order, goal, cards, beside, found)
        self._note(order, found)
        self._better(order, polisher, found)
        return _kept(found.values())

    def _better(self, order: tuple[int, ...], polisher: Polisher, found: Mapping[Settings, Filled]) -> None:
        """Betters the cheapest splits by single changes; on small spaces also what would be cheaper with every number
        of blocks on the host, were its graph the smallest one seen."""
        size = len(order) * self.table.blocks
        looks = _LOOKS // size
        small = size <= _FEW_STATES
        if looks < _FEW_LOOKS:
            return
        if small:
            polisher.sound()
        for filled in sorted(found.values(), key=_seconds)[: _MOST_OPTIONS if small else 1]:
            if filled.split is not None and filled.order == order:
                polisher.best(polisher.state(filled.split), looks, known_only=not small)
        for host in range(self.table.blocks + 1) if small else ():
            best = min(map(_seconds, found.values()), default=inf)
            split = polisher.boldest(host)
            if split is not None and split.seconds < best:
                polisher.best(polisher.state(split), looks, below_s=best)

    def _note(self, order: tuple[int, ...], found: Mapping[Settings, Filled]) -> None:
        best = min(found.values(), key=_seconds, default=None)
        if best is not None and best.split is not None:
            self._around[order] = best.split

    def _spread(
        self,
        base: Settings,
        order: tuple[int, ...],
        goal: Goal,
        cards: Sequence[Card],
        beside: Sequence[int],
        found: dict[Settings, Filled],
    ) -> None:
        """With nothing left to the host the cards work on successive micro-batches: splits over as many cards as have
        room for a share. Of a few cards any may be the best to leave out, of many the one with the least room."""
        for used in shares(self.machine, order, [card.room for card in cards]):
            before = len(found)
            some = tuple(order[i] for i in used)
            costs = self._costs(base, some, goal, at_once=len(some))
            self._settle(
                base,
                some,
                costs,
                self._cards(base, some, costs),
                [beside[i] for i in used],
                found,
                every_card=True,
            )
            if len(found) > before and len(order) > FEW_CARDS:
                return

    def _settle(
        self,
        base: Settings,
        order: tuple[int, ...],
        costs: Costs,
        cards: Sequence[Card],
        beside: list[int],
        found: dict[Settings, Filled],
        *,
        free: Collection[int] | None = None,
        every_card: bool = False,
        polisher: Polisher | None = None,
    ) -> bool:
        """Splits with what a graph leaves room for, measures the split's own graph, and again until both agree. Adds
        to `found` each that keeps every margin. Says whether one of them, fitting or not, left nothing to the host.
        Only the movable weights of the layers `free` (None: all) are moved."""
        host_s, away_s, bare_s = costs.on(HOST).whole, costs.away().movable, costs.away().rest
        own = cards
        if free is not None:
            fixed = [il for il in self._all_movable() if il not in free]
            own = [holding(card, fixed, away_s) for card in cards]
            bare_s = tuple(bare_s[il] + (away_s[il] if il in fixed else 0.0) for il in range(len(bare_s)))
            away_s = tuple(0.0 if il in fixed else away_s[il] for il in range(len(away_s)))
        least = [0] * len(order)
        tried: set[Settings] = set()
        plain = False
        around = self._around.get(order) if many(len(order), self.table.blocks) else None
        for _ in range(_MOST_STEPS):
            roomy = [replace(card, room=card.room - beside[i]) for i, card in enumerate(own)]
            splitter = Splitter(roomy, host_s, away_s, bare_s)
            split = splitter.best(around, _WITHIN, every_card=every_card) if around is not None else None
            split = split or splitter.best(every_card=every_card)
            if split is None:
                break
            if many(len(order), self.table.blocks):
                around = split
            settings = self._settings(base, order, split)
            if settings in tried:
                break
            tried.add(settings)
            plain |= not split.host_blocks and not settings.overrides
            filled = replace(self._made(settings), split=split, order=order)
            over = set(self._over(filled))
            seen = self._beside(filled, order, cards)
            if polisher is not None:
                polisher.learn(polisher.state(split), Look(not over, tuple(seen)))
            if not over:
                # a price of cards at once is that of a split without overrides alone
                if (not settings.overrides) if every_card else (settings not in found):
                    found[settings] = filled
                if all(seen[i] + _SLACK_BYTES >= beside[i] for i, n in enumerate(split.per_card) if n):
                    break
            elif not every_card and not settings.overrides and len(order) > 1:
                # the copies of a pipeline are for such a split alone
                own = [with_some_away(card) for card in own]
                continue
            for i, device in enumerate(order):
                if split.per_card[i]:
                    if device in over:
                        least[i] = max(least[i], seen[i], beside[i] + 1)
                    beside[i] = max(least[i], seen[i])
        return plain

    def _cards(self, base: Settings, order: Sequence[int], costs: Costs) -> list[Card]:
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
            movable = self._movable_bytes(device)
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

    def _movable_bytes(self, device: int) -> list[int]:
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

    def _beside(self, filled: Filled, order: Sequence[int], cards: Sequence[Card]) -> list[int]:
        """What each card holds besides what the split put there: the graph, the pool, and what lies outside blocks."""
        split = filled.split
        assert split is not None  # noqa: S101 - made by _split
        bounds = list(accumulate(split.per_card, initial=split.host_blocks))
        away, bare, parts = set(split.away), set(split.bare), dict(split.parts)
        last = max(i for i, count in enumerate(split.per_card) if count or i == len(cards) - 1)
        found = []
        for i, device in enumerate(order):
            run = range(bounds[i], bounds[i + 1])
            placed = sum(cards[i].cache_bytes[il] for il in run)
            placed += sum(cards[i].rest_bytes[il] for il in run if il not in bare)
            movable = self._movable_bytes(device)
            whole = (il for il in run if il not in away and il not in bare)
            placed += sum(parts[il].size if il in parts else movable[il] for il in whole)
            placed += cards[i].output_bytes if i == last else 0
            found.append(filled.made.devices[device].peak_bytes - placed)
        return found

    def _settings(self, base: Settings, order: tuple[int, ...], split: Split) -> Settings:
        """The split as llama.cpp is told it: -ngl, -ts in layers, and what of them stays on the host."""
        used = tuple(device for device, count in zip(order, split.per_card, strict=True) if count)
        used = used or order[:1]
        shares = [0.0] * len(self.machine.gpus)
        for device, count in zip(order, split.per_card, strict=True):
            shares[device] = float(count)
        shares[used[-1]] += 1  # the output layer
        return self._ordered(
            replace(
                base,
                gpu_layers=self.everything - split.host_blocks,
                tensor_split=tuple(shares) if len(used) > 1 else (),
                overrides=self._overrides(split.away, split.bare, split.host_blocks, split.parts),
            ),
            used,
        )

    # -- what stays on the host --------------------------------------------------------------------------------------

    @property
    def _kind(self) -> MovableKind:
        return "experts" if self.movable.experts else "dense"

    def _all_movable(self) -> list[int]:
        return [il for il, tensors in enumerate(self.movable.tensors) if tensors]

    def _overrides(
        self,
        away: Sequence[int],
        bare: Sequence[int],
        host_blocks: int,
        parts: Sequence[tuple[int, Option]] = (),
    ) -> tuple[Override, ...]:
        """The shortest patterns for these blocks; those that are wholly on the host may be named with them."""
        every = self._all_movable()
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
