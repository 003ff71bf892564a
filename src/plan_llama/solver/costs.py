"""What each piece of a model costs a request on each device: the terms of the search's arithmetic.

A request's time is a sum over what every device reads and computes (speed.passes), so a layer's share can be priced
alone. Sums of these prices choose placements; what is chosen is then estimated as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from plan_llama.hardware.types import Machine
from plan_llama.memory.patterns import DENSE_FFN, EXPERTS
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Settings
from plan_llama.speed import passes
from plan_llama.speed.constants import shipped
from plan_llama.speed.rates import Assumptions
from plan_llama.speed.traffic import LayerTable
from plan_llama.speed.types import Request, Traffic


@dataclass(frozen=True, slots=True)
class Goal:
    """The request that is to be done soon; `decode_only`: its prompt does not count."""

    request: Request = field(default_factory=Request)
    decode_only: bool = False


@dataclass(frozen=True, slots=True)
class Movable:
    """What of each layer can stay in system memory by itself: its routed experts, or a dense model's feed-forward
    weights. Tensor indices by layer; a layer without any has an empty tuple."""

    experts: bool
    tensors: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, table: ModelTable) -> Movable:
        """The routed experts where the model has some, else what `--n-cpu-ffn` names."""
        experts = any(table.expert_bytes)
        named = set(table.matches(EXPERTS if experts else DENSE_FFN))
        return cls(
            experts,
            tuple(
                tuple(i for i in table.block_tensors[il] if i in named) if il < table.layers else ()
                for il in range(table.blocks)
            ),
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of a request by block: what attention over its cache costs, its movable weights, and its others."""

    cache: tuple[float, ...]
    rest: tuple[float, ...]
    movable: tuple[float, ...]

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
    ) -> None:
        self.table, self.layers, self.movable = table, layers, movable
        self.settings, self.goal = settings, goal
        everywhere = tuple(Traffic(device=i, layers=1) for i in range(len(machine.gpus)))
        host = Traffic(device=HOST, dense_bytes={"f16": 1})
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

    def seconds(self, traffic: Traffic) -> float:
        """What one device's share costs the request."""
        work, request = replace(self.work, traffic=(traffic,)), self.goal.request
        depth = request.depth + request.prompt_tokens + request.output_tokens / 2
        token_s = sum(passes.decode(work, depth, request.streams).values())
        if self.goal.decode_only:
            return token_s
        prompt_s = sum(passes.prompt(work, request.prompt_tokens, request.depth).values())
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

    def tensors(self, indices: Sequence[int], device: int) -> float:
        """Some tensors of a layer by themselves."""
        return self.seconds(self.layers.of_part(indices, device))

    def _priced(self, device: int, *, apart: bool) -> Prices:
        key = device, apart
        if key not in self._made:
            self._made[key] = Prices(
                cache=self._by_make(lambda il: self._cache(il, device)),
                rest=self._by_make(lambda il: self._rest(il, device, apart)),
                movable=self._by_make(lambda il: self._movable(il, device, apart)),
            )
        return self._made[key]

    def _by_make(self, price: Callable[[int], float]) -> tuple[float, ...]:
        known: dict[object, float] = {}
        found = []
        for il in range(self.table.blocks):
            if il >= self.table.layers:
                found.append(0.0)  # a block for drafting: nothing of it runs
                continue
            key = self.table.makes[il], self.layers.attention[il]
            if key not in known:
                known[key] = price(il)
            found.append(known[key])
        return tuple(found)

    def _cache(self, il: int, device: int) -> float:
        return self.seconds(self.layers.of_part((), device, layer=il, settings=self.settings))

    def _rest(self, il: int, device: int, apart: bool) -> float:
        own = set(self.movable.tensors[il])
        rest = [i for i in self.table.block_tensors[il] if i not in own]
        return self.seconds(self.layers.of_part(rest, device, crossings=int(apart)))

    def _movable(self, il: int, device: int, apart: bool) -> float:
        tensors = self.movable.tensors[il]
        return self.seconds(self.layers.of_part(tensors, device, crossings=int(apart))) if tensors else 0.0
