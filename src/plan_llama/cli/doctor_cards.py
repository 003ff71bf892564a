"""How the cards are doing, as facts: what slows them down while they work, and errors of their memory."""

from __future__ import annotations

from plan_llama.doctor.evidence import MACHINE, Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.hardware import card_state, nvml
from plan_llama.hardware.card_state import CardState, CardWatch
from plan_llama.hardware.types import ProbeNote

_LOWERED = 0.95  # of the maker's limit: below it somebody has set another
_FULLY = 50  # per cent busy from which a low power state, or a slow link, is none of the card's own sparing
_SLOW_STATE = 3
_FAST_STATE = 2


def watch() -> CardWatch:
    """Of this machine's cards; one without any sees nothing."""
    library = nvml.load()

    if isinstance(library, ProbeNote):
        return CardWatch(card_state.amd)
    return CardWatch(
        lambda: [*card_state.nvidia(library), *card_state.amd()], card_state.cuda_version(library)
    )


def observe(reader: LogReader, cards: CardWatch) -> None:
    """Every card in a line, and the facts that rules are about."""

    def fact(name: str, value: Value, text: str) -> None:
        reader.observe(name, Fact(value, Line(0, text, MACHINE)))

    if cards.cuda is not None:
        major, minor = cards.cuda
        fact("cuda_driver_major", major, f"the NVIDIA driver is for CUDA up to {major}.{minor}")
    held: list[str] = []
    broken: list[str] = []
    past: list[str] = []
    for number, card in enumerate(cards.all()):
        if text := _doing(card):
            fact(f"card_{number}", card.name, f"{card.name}: {text}")
        held += _held(card)
        broken += _broken(card)
        if card.uncorrected_ever and not card.uncorrected:
            past.append(f"{card.name}: {card.uncorrected_ever} uncorrected errors of its memory in its life")
        if card.bad_rows and not broken:
            past.append(f"{card.name}: {card.bad_rows} rows or pages of its memory were replaced")
        if _slow_link(card):
            fact("link_gen_now", card.link[0] or 0, f"{card.name}: PCIe {card.link[0]}.0 under load")
            fact(
                "link_gen_best",
                card.link_most[0] or 0,
                f"{card.name}: PCIe {card.link_most[0]}.0 is possible",
            )
        if card.works and card.held == {"power-cap"} and not _lowered(card):
            fact("card_at_limit", card.name, f"{card.name}: it works at its power limit, as the maker set it")
    if narrow := min((card for card in cards.all() if _lanes(card) < 1), key=_lanes, default=None):
        now, best = narrow.link[1] or 0, narrow.link_most[1] or 0
        text = f"{narrow.name}: PCIe x{now} now, x{best} possible"
        fact("pcie_width_now", now, text)
        fact("pcie_width_best", best, text)
    for name, found in (("clocks_held", held), ("card_memory_broken", broken), ("card_memory_past", past)):
        if found:
            fact(name, "; ".join(found), "; ".join(found))


def _doing(card: CardState) -> str:
    parts = []
    if card.busy_percent is not None:
        parts.append(f"{card.busy_percent} % busy")
    if card.performance_state is not None:
        parts.append(f"power state P{card.performance_state}")
    if card.temperature_c is not None:
        parts.append(f"{card.temperature_c} °C")
    if card.power_w is not None:
        parts.append(f"{card.power_w:.0f} W" + (f" of {card.limit_w:.0f} W" if card.limit_w else ""))
    if card.link[0] and card.link[1]:
        best = f" of {card.link_most[0]}.0 x{card.link_most[1]}" if all(card.link_most) else ""
        parts.append(f"PCIe {card.link[0]}.0 x{card.link[1]}{best}")
    if card.uncorrected is not None:
        parts.append(f"{card.uncorrected} uncorrected memory errors")
    return ", ".join(parts)


def _lowered(card: CardState) -> bool:
    return bool(card.limit_w and card.default_limit_w and card.limit_w < _LOWERED * card.default_limit_w)


def _held(card: CardState) -> list[str]:
    """Why its clocks are lower than its makers meant, while it works."""
    if not card.works:
        return []
    found = []
    if "heat" in card.held:
        at = f" at {card.temperature_c} °C" if card.temperature_c is not None else ""
        found.append(f"{card.name} is slowed down by heat{at}")
    if "hardware" in card.held:
        found.append(f"{card.name} is slowed down by its hardware (power brake, supply or temperature)")
    if "power-cap" in card.held and _lowered(card):
        found.append(
            f"{card.name} is at a power limit of {card.limit_w:.0f} W, {card.default_limit_w:.0f} W being the maker's"
        )
    state = card.performance_state
    if state is not None and state >= _SLOW_STATE and (card.busy_percent or 0) >= _FULLY and not found:
        found.append(f"{card.name} stays in power state P{state} while it is {card.busy_percent} % busy")
    return found


def _broken(card: CardState) -> list[str]:
    found = []
    if card.uncorrected:
        found.append(
            f"{card.name}: {card.uncorrected} uncorrected errors of its memory since the driver was loaded"
        )
    if card.repair_failed:
        found.append(f"{card.name}: a row of its memory could not be replaced")
    if card.repair_pending:
        found.append(f"{card.name}: bad memory waits for a reset of the card to be taken out of use")
    return found


def _lanes(card: CardState) -> float:
    """The share of the lanes of card and slot that it runs with; a card at rest keeps them all."""
    now, best = card.link[1], card.link_most[1]
    return now / best if now and best else 1.0


def _slow_link(card: CardState) -> bool:
    """A generation below what card and slot can have, while the card has no reason to spare."""
    now, best = card.link[0], card.link_most[0]
    awake = (card.busy_percent or 0) >= _FULLY and (card.performance_state or 0) <= _FAST_STATE
    return bool(now and best and now < best and awake)
