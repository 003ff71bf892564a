"""What llama.cpp's own `--fit` makes of a command: common_params_fit_impl of common/fit.cpp, b11434.

It first shrinks a context that was not given until everything fits, but not below its minimum. Then, unless layers, a
split or overrides were given, it gives every card a run of layers, from the last card back, with experts on the host;
and turns these, from the first card on, into full layers and a part of one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from plan_llama.hardware.types import Machine
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import device_memory
from plan_llama.memory.patterns import cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Override, Settings

_CELLS = 256
# get_overflow_pattern: what of the first partial layer goes elsewhere
_PATTERNS = {
    "attn": r"blk\.{}\.ffn_(gate|up|gate_up|down).*",
    "up": r"blk\.{}\.ffn_(gate|gate_up|down).*",
    "gate": r"blk\.{}\.ffn_down.*",
    "moe": r"blk\.{}\.ffn_(up|down|gate_up|gate)_(ch|)exps",
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """Settings after `--fit`, and what it changed in words."""

    settings: Settings
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Share:
    """A card's layers; of the last `part` of them the experts are elsewhere, of the first of these what `over` says."""

    layers: int = 0
    part: int = 0
    over: str = "moe"
    over_to: int = HOST

    @property
    def full(self) -> int:
        return self.layers - self.part


def apply(
    table: ModelTable,
    machine: Machine,
    settings: Settings,
    *,
    user_set: frozenset[Any],
    targets_bytes: tuple[int, ...],
    minimum_context: int | None,
) -> Fitted:
    """The settings that the engine would really run with. `targets_bytes` stays free per card."""
    fitting = _Fitting(table, machine, settings, targets_bytes)
    if fitting.kept(settings):
        return Fitted(settings, ())
    changes: list[str] = []
    if "ctx" not in user_set and minimum_context is not None:
        settings, done = fitting.less_context(settings, minimum_context)
        if settings.context != fitting.given.context:
            changes.append(
                f"the context becomes {settings.context:,} instead of {fitting.given.context:,} tokens"
            )
        if done:
            return Fitted(settings, tuple(changes))
    if fitting.order and not user_set & {"ngl", "ts", "ot"} and settings.split_mode == "layer":
        made = fitting.placed(settings)
        if made.gpu_layers < settings.gpu_layers:
            changes.append(f"{made.gpu_layers} instead of {settings.gpu_layers} layers go to the GPU")
        if made.overrides != settings.overrides:
            changes.append("the experts of some layers stay on the CPU")
        settings = made
    return Fitted(settings, tuple(changes))


class _Fitting:
    """One model on one machine; cards are numbered in the engine's order."""

    def __init__(
        self, table: ModelTable, machine: Machine, given: Settings, targets_bytes: Sequence[int]
    ) -> None:
        self.table, self.machine, self.given = table, machine, given
        self.devices = device_memory(machine)
        self.order = given.used_devices(len(self.devices)) if self.devices else ()
        self.layers = table.blocks if given.draft_layers else table.layers
        self.experts = bool(table.spec.int_param("expert_count", 0))
        self.margins = [targets_bytes[min(i, len(targets_bytes) - 1)] for i in range(max(1, len(self.order)))]
        self.free = [self.devices[i].free_bytes for i in self.order] or [machine.ram.total_bytes]
        self.targets = [free - margin for free, margin in zip(self.free, self.margins, strict=True)]

    def used(self, settings: Settings) -> list[int]:
        """Bytes on every card, or of the host where there is none."""
        made = buffers(self.table, settings, self.devices, self.machine.cpu.isa)
        return [made.devices[i].total_bytes for i in self.order] or [made.host.total_bytes]

    def kept(self, settings: Settings) -> bool:
        """Whether the targets are met as it is."""
        return all(used <= target for used, target in zip(self.used(settings), self.targets, strict=True))

    def less_context(self, settings: Settings, minimum: int) -> tuple[Settings, bool]:
        """Step 2: a context between the smallest and the model's, in proportion. True: nothing else is done."""
        streams = 1 if settings.kv_unified else settings.parallel
        least, most = minimum * streams, settings.context
        used = sum(self.used(settings))
        if used <= sum(self.targets) or most <= least:
            return settings, False
        target = sum(self.targets)
        cards = len(self.order)
        if cards > 1:
            made = buffers(self.table, settings, self.devices, self.machine.cpu.isa)
            each = sum(made.devices[i].weights_bytes for i in self.order) // self.layers
            target -= (cards + 1) * each // (6 if self.experts else 2)
        smallest = replace(settings, context=least)
        used_least = sum(self.used(smallest))
        if target <= used_least:
            return smallest, False
        context = least + (most - least) * (target - used_least) // (used - used_least)
        context = max(context - context % (_CELLS * streams), least)
        return replace(settings, context=context), cards <= 1

    def placed(self, settings: Settings) -> Settings:
        """Steps 3 and 4: layers and experts."""
        shares = self._dense(settings)
        if self.experts:
            all_host = self.used(replace(settings, overrides=(cpu_moe(),)))
            if sum(self.free) - sum(all_host) - sum(self.margins) > 0:
                shares = self._full(settings, shares)
        return self._settings(settings, shares)

    def _settings(self, settings: Settings, shares: Sequence[_Share]) -> Settings:
        """set_ngl_tensor_split_tbo."""
        layers = sum(share.layers for share in shares)
        il = self.layers + 1 - layers
        overrides = []
        split = [0.0] * len(self.devices)
        for device, share in zip(self.order, shares, strict=True):
            split[device] = float(share.layers)
            il += share.full
            for number in range(share.part):
                pattern = _PATTERNS[share.over if number == 0 else "moe"].format(il)
                target = share.over_to if number == 0 else HOST
                overrides.append(Override(pattern, target if target == HOST else self.order[target]))
                il += 1
        return replace(
            settings,
            gpu_layers=layers,
            tensor_split=tuple(split) if len(shares) > 1 else (),
            overrides=tuple(overrides),
        )

    def _memory(self, settings: Settings, shares: Sequence[_Share]) -> list[int]:
        return self.used(self._settings(settings, shares))

    def _step(self, delta: int, card: int, low: Sequence[int], high: Sequence[int]) -> int:
        """Layers to try between two bounds, by the false position; at least one, and not up to the higher bound."""
        guess = delta * (self.targets[card] - low[card]) / (high[card] - low[card])
        return delta - 1 if guess < 0 else min(max(int(guess), 1), delta - 1)

    def _dense(self, settings: Settings) -> list[_Share]:
        """Step 3: from the last card back, as many layers as fit, their experts on the host."""
        shares = [_Share() for _ in self.order]
        memory = self._memory(settings, shares)
        last = len(shares) - 1
        for card in range(last, -1, -1):
            left = self.layers + 1 - sum(share.layers for share in shares[card + 1 :])
            if not left:
                continue
            part = (left if card < last else left - 1) if self.experts else shares[card].part
            high = [*shares]
            high[card] = replace(shares[card], layers=left, part=part)
            memory_high = self._memory(settings, high)
            if memory_high[card] <= self.targets[card]:
                shares, memory = high, memory_high
                continue
            while (delta := high[card].layers - shares[card].layers) > 1:
                step = self._step(delta, card, memory, memory_high)
                mine, more = shares[card], 0
                if self.experts:  # the first layer of the last card is the output, which is always whole
                    more = step - 1 if card == last and mine.part == 0 else step
                test = [*shares]
                test[card] = replace(mine, layers=mine.layers + step, part=mine.part + more)
                memory_test = self._memory(settings, test)
                if memory_test[card] <= self.targets[card]:
                    shares, memory = test, memory_test
                else:
                    high, memory_high = test, memory_test
        return shares

    def _full(self, settings: Settings, shares: list[_Share]) -> list[_Share]:
        """Step 4: from the first card on, dense layers of the back ones become full layers."""
        count = len(shares)
        start = count
        for card in range(count - 1, -1, -1):
            if not shares[card].layers:
                break
            start = card
        memory = self._memory(settings, shares)
        for card in range(count):
            if card > start:
                break
            high = [*shares]
            for other in range(start, count):
                moved = high[other].layers - (0 if other < count - 1 else 1)
                high[card] = replace(high[card], layers=high[card].layers + moved)
                high[other] = replace(high[other], layers=high[other].layers - moved, part=0)
            start_high = count - 1
            memory_high = self._memory(settings, high)
            if memory_high[card] > self.targets[card]:
                while (delta := high[card].full - shares[card].full) > 1:
                    step = self._step(delta, card, memory, memory_high)
                    test, start_test = self._converted(shares, card, start, step)
                    memory_test = self._memory(settings, test)
                    if memory_test[card] <= self.targets[card]:
                        shares, memory, start = test, memory_test, start_test
                    else:
                        high, memory_high = test, memory_test
            else:
                shares, memory, start = high, memory_high, start_high
            shares, memory, start = self._one_more(settings, shares, memory, card, start)
        return shares

    def _converted(
        self, shares: Sequence[_Share], card: int, start: int, step: int
    ) -> tuple[list[_Share], int]:
        made, left = [*shares], step
        while start < len(made):
            taken = min(left, made[start].part)
            made[start] = replace(
                made[start], layers=made[start].layers - taken, part=made[start].part - taken
            )
            made[card] = replace(made[card], layers=made[card].layers + taken)
            left -= taken
            if made[start].part > 0:
                break
            start += 1
        return made, start

    def _one_more(
        self, settings: Settings, shares: list[_Share], memory: list[int], card: int, start: int
    ) -> tuple[list[_Share], list[int], int]:
        """A part of one more layer, whose rest goes to the next card or to the host."""
        last = len(shares) - 1
        if start > last or shares[start].layers <= (0 if card < last else 1):
            return shares, memory, start
        test = [*shares]
        test[start] = replace(test[start], layers=test[start].layers - 1, part=test[start].part - 1)
        test[card] = replace(test[card], layers=test[card].layers + 1, part=test[card].part + 1)
        start_test = start + 1 if test[start].part == 0 else start
        target = card + 1 if card < last else HOST

        def tried(over: str) -> tuple[list[_Share], list[int]] | None:
            test[card] = replace(test[card], over=over, over_to=target)
            found = self._memory(settings, test)
            fits = found[card] < self.targets[card]
            return (
                ([*test], found)
                if fits and (card == last or found[card + 1] < self.targets[card + 1])
                else None
            )

        best = tried("up")
        best = (tried("gate") or best) if best else tried("attn")
        return (*best, start_test) if best else (shares, memory, start)
