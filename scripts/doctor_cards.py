"""Hold what doctor says of this machine's NVIDIA cards against nvidia-smi.

    PYTHONPATH=src python scripts/doctor_cards.py

Needs the driver and nvidia-ml-py, no engine. Prints both, and ends with 1 where they differ by more than a moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from plan_llama.hardware import card_state, nvml
from plan_llama.hardware.card_state import CardState
from plan_llama.hardware.types import ProbeNote

# nvidia-smi's name of a value, ours, and how far they may be apart (nvidia-smi --help-query-gpu)
_SAME = {
    "pstate": ("performance_state", 0),
    "temperature.gpu": ("temperature_c", 3),
    "power.draw": ("power_w", 40),
    "enforced.power.limit": ("limit_w", 0.1),
    "power.default_limit": ("default_limit_w", 0.1),
    "pcie.link.gen.current": ("link.0", 0),
    "pcie.link.width.current": ("link.1", 0),
    "pcie.link.gen.max": ("link_most.0", 0),
    "pcie.link.width.max": ("link_most.1", 0),
    "ecc.errors.uncorrected.volatile.total": ("uncorrected", 0),
    "ecc.errors.uncorrected.aggregate.total": ("uncorrected_ever", 0),
}


def _ours(card: CardState, name: str) -> float | None:
    field, _, place = name.partition(".")
    value = getattr(card, field)
    return value[int(place)] if place else value


def _theirs(word: str) -> float | None:
    try:
        return float(word.strip().lstrip("P"))
    except ValueError:  # [N/A]
        return None


def main() -> int:
    """Returns the exit code."""
    library = nvml.load()
    if isinstance(library, ProbeNote):
        sys.stdout.write(f"no NVML: {library.reason}\n")
        return 2
    began = time.monotonic()
    cards = card_state.nvidia(library)
    took = (time.monotonic() - began) / max(1, len(cards))
    argv = ["nvidia-smi", f"--query-gpu={','.join(_SAME)}", "--format=csv,noheader,nounits"]
    rows = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    wrong = len(rows) != len(cards)
    for card, row in zip(cards, rows, strict=False):
        sys.stdout.write(f"{card}\n")
        for (name, (ours, apart)), word in zip(_SAME.items(), row.split(","), strict=True):
            mine, theirs = _ours(card, ours), _theirs(word)
            same = mine is theirs or (mine is not None and theirs is not None and abs(mine - theirs) <= apart)
            sys.stdout.write(f"  {'same   ' if same else 'DIFFERS'} {name}: {mine} and {word.strip()}\n")
            wrong |= not same
    sys.stdout.write(f"{1000 * took:.1f} ms for a card\n")
    answer = subprocess.run(
        [sys.executable, "-m", "plan_llama", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    found = json.loads(answer.stdout)
    for item in found["observed"]:
        if item["name"].startswith(("card", "gpu_", "link", "clocks")):
            sys.stdout.write(f"doctor: {item['name']}: {item['text']}\n")
    for item in found["findings"]:
        sys.stdout.write(f"doctor: {item['severity']} {item['id']}: {item['cause']}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
