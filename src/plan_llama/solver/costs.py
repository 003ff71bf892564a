"""What each piece of a model costs a request on each device: the terms of the search's arithmetic.

A request's time is a sum over what every device reads and computes (speed.passes), so a layer's share can be priced
alone. Sums of these prices choose placements; what is chosen is then estimated as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import TypeVar

from plan_llama.hardware.types import Machine
from plan_llama.memory.patterns import DENSE_FFN, EXPERTS
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Settings
from plan_llama.solver.share import Option, worthwhile
from plan_llama.speed import passes
from plan_llama.speed.constants import shipped
from plan_llama.speed.rates import Assumptions
from plan_llama.speed.traffic import LayerTable
from plan_llama.speed.types import Request, Traffic

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Goal:
    """The request that is to be done soon; `decode_only`: its prompt does not count."""

    request: Request = field(default_factory=Request)
    decode_only: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a layer's feed-forward part over all experts, with what belongs to it: how its tensors' names
    begin (`ffn_down_exps`), and their indices."""

    names: tuple[str, ...]
    tensors: tuple[int, ...]


@dataclass(frozen=True)
class Movable:
    """What of each layer can stay in system memory by itself: its routed experts, or a dense model's feed-forward
    weights. A layer without any has no parts."""

    experts: bool
    parts: tuple[tuple[Part, ...], ...]

    @cached_property
    def tensors(self) -> tuple[tuple[int, ...], ...]:
        """The tensors of all parts, by layer."""
        return tuple(tuple(i for part in parts for i in part.tensors) for parts in self.parts)

    @classmethod
    def of(cls, table: ModelTable) -> Movable:
        """The routed experts where the model has some, else what `--n-cpu-ffn` names."""
        experts = any(table.expert_bytes)
        named = set(table.matches(EXPERTS if experts else DENSE_FFN))
        return cls(
            experts,
            tuple(
                _parts(table, [i for i in table.block_tensors[il] if i in named]) if il < table.layers else ()
                for il in range(table.blocks)
            ),
        )


def _parts(table: ModelTable, tensors: Sequence[int]) -> tuple[Part, ...]:
    """By matrix; the experts of a group (`chexps`, grovemoe) go with the others."""
    found: dict[str, list[int]] = {}
    for index in tensors:
        name = table.suffixes[index].rpartition(".")[0]
        found.setdefault(name.replace("_chexps", "_exps"), []).append(index)
    return tuple(
        Part(tuple(sorted({table.suffixes[i].rpartition(".")[0] for i in found[name]})), tuple(found[name]))
        for name in sorted(found)
    )


@dataclass(frozen=True)
class Prices:
    """Seconds of a request by block: what attention over its cache costs, each part of its movable weights, and its
    other weights; and what a block with some movable weights here costs beside them (`once`). Of a prompt only the last
    token goes through what is late of the last layer, so that this one has prices of its own."""

    cache: tuple[float, ...]
    rest: tuple[float, ...]
    parts: tuple[tuple[float, ...], ...]
    once: tuple[float, ...]

    @cached_property
    def movable(self) -> tuple[float, ...]:
        """All movable weights of a block."""
        return tuple(
            sum(parts) + once if parts else 0.0 for parts, once in zip(self.parts, self.once, strict=True)
        )

    @property
    def whole(self) -> list[float]:
        """All of a block."""
        return [sum(parts) for parts in zip(self.cache, self.rest, self.movable, strict=True)]


class Costs:
    """Prices for one request under settings whose placement is open. Layers of one make are priced once."""

    def __init__(
        self,
        table: ModelTable,
        layers: LayerTable,
        movable: Movable,
        machine: Machine,
        settings: Settings,
        goal: Goal,
        *,
        at_once: int = 1,
    ) -> None:
        """`at_once`: cards that work on successive micro-batches of a prompt."""
        self.table, self.layers, self.movable = table, layers, movable
        self.settings, self.goal, self.at_once = settings, goal, at_once
        # the block that drafts wants the hidden state of every token
        self.late = frozenset[int]() if settings.draft_layers else layers.late
        cpu_only = bool(layers.refused)
        everywhere = tuple(Traffic(device=i, layers=1, refused=cpu_only) for i in range(len(machine.gpus)))
        host = Traffic(device=HOST, dense_bytes={"f16": 1}, refused=cpu_only)
        self.work = passes.resolve(
            machine,
            (*everywhere, host),
            settings,
            shipped(),
            Assumptions(),
            engine="llama.cpp",
            resident_ratio=1.0,
            repacked=settings.repack and not machine.gpus,
        )
        self._made: dict[tuple[int, bool], Prices] = {}
        self._on_cards = self._made
        self._options: dict[tuple[int, tuple[int, ...]], list[tuple[Option, ...]]] = {}

    def with_cards_of(self, other: Costs) -> None:
        """Takes over what layers cost on cards from costs that differ in the order of the cards: what is on a card by
        itself goes through no other device, unless the card refuses a part of it."""
        if not self.layers.refused:
            self._on_cards = other._on_cards

    def seconds(self, *traffic: Traffic) -> float:
        """What shares of devices cost the request."""
        work, request = replace(self.work, traffic=traffic), self.goal.request
        depth = request.depth + request.prompt_tokens + request.output_tokens / 2
        token_s = sum(passes.decode(work, depth, request.streams).values())
        if self.goal.decode_only:
            return token_s
        prompt_s = sum(passes.prompt(work, request.prompt_tokens, request.depth).values())
        if self.at_once > 1 and request.prompt_tokens:
            batches = -(-request.prompt_tokens // min(self.settings.ubatch, self.settings.batch))
            prompt_s *= passes.pipelined(work, self.at_once, batches)
        return prompt_s + request.output_tokens * token_s

    def on(self, device: int) -> Prices:
        """A layer all of which is on this device."""
        return self._priced(device, apart=False)

    def away(self) -> Prices:
        """Weights in system memory while the layer's cache is on a GPU: its movable ones, and its others as well."""
        return self._priced(HOST, apart=True)

    def output(self, device: int) -> float:
        """The output layer, and what else is outside the blocks."""
        return self.seconds(self.layers.of_output(device))

    def options(self, device: int, bytes_of: tuple[int, ...]) -> list[tuple[Option, ...]]:
        """What of each block's movable weights may be on a card, where the rest of them stays on the host; `bytes_of`
        each tensor of the model."""
        if (device, bytes_of) not in self._options:
            self._options[device, bytes_of] = self._chosen(device, bytes_of)
        return self._options[device, bytes_of]

    def _chosen(self, device: int, bytes_of: tuple[int, ...]) -> list[tuple[Option, ...]]:
        here, away = self.on(device), self.away()
        known: dict[object, tuple[Option, ...]] = {}
        found = []
        rows = zip(self.movable.parts, away.parts, here.parts, away.once, here.once, strict=True)
        for parts, theirs, mine, away_once, here_once in rows:
            sizes = tuple(sum(bytes_of[i] for i in part.tensors) for part in parts)
            key = sizes, theirs, mine, away_once, here_once, tuple(part.names for part in parts)
            if key not in known:
                known[key] = worthwhile(_options(parts, sizes, theirs, mine, away_once, here_once))
            found.append(known[key])
        return found

    def _priced(self, device: int, *, apart: bool) -> Prices:
        key, made = (device, apart), self._made if device == HOST else self._on_cards
        if key not in made:
            made[key] = Prices(
                cache=self._by_make(lambda il: self._cache(il, device), 0.0),
                rest=self._by_make(lambda il: self._rest(il, device, apart), 0.0),
                parts=self._by_make(lambda il: self._parts(il, device), ()),
                once=self._by_make(lambda il: self._once(il, device, apart), 0.0),
            )
        return made[key]

    def _by_make(self, price: Callable[[int], _T], nothing: _T) -> tuple[_T, ...]:
        known: dict[object, _T] = {}
        found: list[_T] = []
        for il in range(self.table.blocks):
            if il >= self.table.layers:
                found.append(nothing)  # a block for drafting: nothing of it runs
                continue
            has_late = bool(self.late) and il == self.table.layers - 1
            key = self.table.makes[il], self.layers.attention_kinds[il], has_late
            if key not in known:
                known[key] = price(il)
            found.append(known[key])
        return tuple(found)

    def _cache(self, il: int, device: int) -> float:
        return self.seconds(self.layers.of_part((), device, layer=il, settings=self.settings))

    def _rest(self, il: int, device: int, apart: bool) -> float:
        own = set(self.movable.tensors[il])
        rest = [i for i in self.table.block_tensors[il] if i not in own]
        return self.seconds(*self._shares(rest, device, crossings=int(apart)))

    def _parts(self, il: int, device: int) -> tuple[float, ...]:
        return tuple(
            self.seconds(*(replace(share, expert_layers=0) for share in self._shares(part.tensors, device)))
            for part in self.movable.parts[il]
        )

    def _once(self, il: int, device: int, apart: bool) -> float:
        late = not self.late.isdisjoint(self.movable.tensors[il])
        experts = int(self.movable.experts)
        return self.seconds(Traffic(device=device, expert_layers=experts, crossings=int(apart), late=late))

    def _shares(self, tensors: Sequence[int], device: int, *, crossings: int = 0) -> Iterator[Traffic]:
        """What of these tensors of a layer every token of a prompt goes through, and what is late."""
        late = [i for i in tensors if i in self.late]
        every = [i for i in tensors if i not in self.late] if late else tensors
        if every or crossings:
            yield self.layers.of_part(every, device, crossings=crossings)
        if late:
            yield self.layers.of_part(late, device, late=True)


def _options(
    parts: Sequence[Part],
    sizes: Sequence[int],
    away: Sequence[float],
    here: Sequence[float],
    away_once: float,
    here_once: float,
) -> Iterator[Option]:
    """Every choice of a block's parts."""
    for count in range(1, len(parts) + 1):
        for chosen in combinations(range(len(parts)), count):
            left = tuple(name for i, part in enumerate(parts) if i not in chosen for name in part.names)
            saved = sum(away[i] - here[i] for i in chosen) - here_once + (0.0 if left else away_once)
            yield Option(sum(sizes[i] for i in chosen), saved, left)
