"""Fills a machine with a model: as many layers, and of their experts as many, on the GPUs as the budgets allow.

A placement is judged by the exact memory model. Between two exact answers the bytes of the experts decide, since one
layer's experts on or off a card changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plan_llama.hardware.types import Machine
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import (
    Beyond,
    device_memory,
    gpu_margin_bytes,
    host_budget_bytes,
    projector_use,
    server_cache_bytes,
)
from plan_llama.memory.patterns import cpu_moe, expert_layers, n_cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers, Override, Settings
from plan_llama.memory.weights import place

_MOST_STEPS = 64


@dataclass(frozen=True, slots=True)
class Filled:
    """A placement that keeps every card's margin, and its buffers."""

    settings: Settings
    made: Buffers


class Filler:
    """Places one model on one machine for given context, micro-batch and cache type."""

    def __init__(self, table: ModelTable, machine: Machine, beyond: Beyond, margin_bytes: int | None) -> None:
        self.table = table
        self.machine = machine
        self.beyond = beyond
        self.devices = device_memory(machine)
        self.isa = machine.cpu.isa
        self.margins = [
            0 if machine.unified else gpu_margin_bytes(machine, gpu, beyond, margin_bytes)
            for gpu in machine.gpus
        ]
        self.has_experts = any(table.expert_bytes)
        self.everything = table.blocks + 1

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

    def best(self, base: Settings, *, whole_only: bool = False) -> Filled | None:
        """The placement with the most on the GPUs, or None where not even one layer's worth fits.

        `base` has everything but the placement. `whole_only` gives up where not all layers fit (experts aside). On one
        pool of memory nothing is gained by leaving experts to the CPU.
        """
        if not self.machine.gpus:
            return self._made(replace(base, gpu_layers=0))
        everything = replace(base, gpu_layers=self.everything)
        if self.machine.unified:
            return self._unified(base, self._made(everything))
        if self.table.loaded_bytes <= sum(max(0, budget) for budget in self.budgets(base)):
            full = self._made(everything)
            if not self._over(full):
                return full
        if self.has_experts:
            found = self._experts(base)
            if found is not None:
                return found
        return None if whole_only else self._layers(base)

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

    def _excess_bytes(self, filled: Filled) -> int:
        """By how much the cards' budgets are exceeded in all; 0 or less where they are kept."""
        parts = zip(filled.made.devices, self.budgets(filled.settings), strict=True)
        return sum(max(0, part.peak_bytes - budget) for part, budget in parts)

    def _unified(self, base: Settings, full: Filled) -> Filled:
        """One pool: all on the GPU where its share of the pool allows it, else as much as it may hold."""
        images = projector_use(self.table, base, self.machine)
        limit = self.machine.gpus[0].free_bytes - self.beyond.context_bytes[self.machine.gpus[0].backend]
        limit -= images.on(0) + images.pool_on(0) if images else 0
        if full.made.devices[0].peak_bytes <= limit:
            return full
        return self._layers(base) or self._made(replace(base, gpu_layers=0))

    # -- experts ------------------------------------------------------------------------------------------------------

    def _experts(self, base: Settings) -> Filled | None:
        """All layers on the cards, the experts of as few as possible on the host."""
        table = self.table
        layers = [il for il in range(table.layers) if table.expert_bytes[il]]
        all_on_host = self._with_host_experts(base, layers)
        if self._over(all_on_host):
            return None
        home = place(table, all_on_host.settings, [d.free_bytes for d in self.devices]).layer_device
        # one layer's experts on every card that has any: the graph is then the one of the final mix
        first_guess = self._choose(all_on_host, layers, home)
        return self._settle(base, layers, home, first_guess)

    def _with_host_experts(self, base: Settings, host_layers: Sequence[int]) -> Filled:
        overrides = self._overrides(host_layers)
        return self._made(replace(base, gpu_layers=self.everything, overrides=overrides))

    def _overrides(self, host_layers: Sequence[int]) -> tuple[Override, ...]:
        if not host_layers:
            return ()
        layers = [il for il in range(self.table.layers) if self.table.expert_bytes[il]]
        if list(host_layers) == layers:
            return (cpu_moe(),)
        if list(host_layers) == layers[: len(host_layers)]:
            return n_cpu_moe(host_layers[-1] + 1)
        return (expert_layers(host_layers, HOST),)

    def _choose(self, start: Filled, layers: Sequence[int], home: Sequence[int]) -> list[int]:
        """The layers whose experts stay on the host, by what is left on each card: the first ones of each card."""
        room = [
            b - d.peak_bytes for b, d in zip(self.budgets(start.settings), start.made.devices, strict=True)
        ]
        host = []
        for il in reversed(layers):
            card, size = home[il], self.table.expert_bytes[il]
            if room[card] >= size:
                room[card] -= size
            else:
                host.append(il)
        return sorted(host)

    def _settle(
        self, base: Settings, layers: Sequence[int], home: Sequence[int], host: list[int]
    ) -> Filled | None:
        """Checks a choice with the exact model and moves one layer's experts at a time until every card agrees."""
        best: Filled | None = None
        tried: set[tuple[int, ...]] = set()
        for _ in range(_MOST_STEPS):
            if tuple(host) in tried:
                break
            tried.add(tuple(host))
            filled = self._with_host_experts(base, host)
            over = self._over(filled)
            if not over:
                best = filled
                budgets = self.budgets(filled.settings)
                room = [b - d.peak_bytes for b, d in zip(budgets, filled.made.devices, strict=True)]
                back = [il for il in host if self.table.expert_bytes[il] <= room[home[il]]]
                if not back:
                    break
                host = [il for il in host if il != back[-1]]
                continue
            for card in over:
                move = next((il for il in layers if home[il] == card and il not in host), None)
                if move is None:
                    return best
                host = sorted([*host, move])
        return best

    # -- whole layers ----------------------------------------------------------------------------------------------

    def _layers(self, base: Settings) -> Filled | None:
        """The most whole layers on the cards (experts, if any, on the host), by a search between bounds."""
        overrides = (cpu_moe(),) if self.has_experts else ()
        low, high = 0, self.everything
        best: Filled | None = None
        guess = high
        while low < high:
            filled = self._made(replace(base, gpu_layers=guess, overrides=overrides))
            excess = self._excess_bytes(filled)
            if excess > 0:
                high = guess - 1
            else:
                low, best = guess, filled
            # a layer's share of what the cards hold says about how many layers the excess is
            held = sum(part.weights_bytes + part.context_bytes for part in filled.made.devices)
            step = max(1, excess * guess // held) if excess > 0 and held and guess else 0
            guess = guess - step if step else (low + high + 1) // 2
            guess = min(high, max(low + 1, guess))
        if best is not None:
            return best
        bare = self._made(replace(base, gpu_layers=0))
        return None if self._over(bare) else bare

    def host_spare_bytes(self, filled: Filled) -> int:
        """What is left of the host's budget; negative where it does not fit."""
        made = filled.made.host.total_bytes + server_cache_bytes(self.table, filled.settings)
        if self.machine.unified:
            made += sum(part.total_bytes for part in filled.made.devices)
            made += sum(self.beyond.context_bytes[gpu.backend] for gpu in self.machine.gpus)
        return host_budget_bytes(self.machine, self.beyond) - made
