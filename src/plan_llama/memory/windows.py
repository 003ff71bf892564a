"""Which layers attend through a sliding window, and how long it is.

Source: load_arch_hparams of src/models/*.cpp and load_swa_pattern of src/llama-model.cpp, b11434. An architecture that
is not listed is counted without windows, which is never too little.
"""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.models.types import ModelSpec


@dataclass(frozen=True, slots=True)
class _Rule:
    """Every n-th layer is full (the last of n, or the first), unless the header says which."""

    every: int
    full_first: bool = False
    default_cells: int = 0  # where the header may leave the length out


_RULES = {
    "gemma2": _Rule(2, default_cells=4096),
    "gemma3": _Rule(6),
    "gemma3n": _Rule(5),
    "gemma4": _Rule(6),
    "exaone4": _Rule(4, default_cells=4096),
    "llama4": _Rule(4, default_cells=8192),
    "gpt-oss": _Rule(2),
    "cohere2": _Rule(4),
    "cohere2moe": _Rule(4, full_first=True),
    "olmo2": _Rule(4),
    "afmoe": _Rule(4),
    "mellum": _Rule(4),
    "plamo3": _Rule(8),
    "exaone-moe": _Rule(4, default_cells=128),
    "smallthinker": _Rule(4, full_first=True),
}


@dataclass(frozen=True, slots=True)
class Windows:
    """The layers behind a window of `cells` tokens; none where `cells` is 0."""

    cells: int
    layers: frozenset[int]


def windows(spec: ModelSpec) -> Windows:
    """The sliding windows of a model."""
    rule = _RULES.get(spec.architecture)
    if rule is None or (spec.architecture == "exaone4" and spec.layers != 64):  # only the 32B has windows
        return Windows(0, frozenset())
    cells = spec.int_param("attention.sliding_window", rule.default_cells)
    if cells:  # the engine sets these, whatever the header says
        cells = {"smallthinker": 4096, "llama4": 8192}.get(spec.architecture, cells)
    given = spec.hparams.get("attention.sliding_window_pattern")
    if isinstance(given, tuple):
        layers = frozenset(il for il in range(spec.layers) if il < len(given) and given[il])
    else:
        every = int(given) if isinstance(given, int) and not isinstance(given, bool) else rule.every
        layers = frozenset(il for il in range(spec.layers) if _windowed(il, every, rule.full_first))
    return Windows(cells, layers) if cells else Windows(0, frozenset())


def cached_layers(spec: ModelSpec) -> int:
    """How many layers, from the first, have a cache of their own: the others read theirs (has_kv)."""
    if spec.architecture == "gemma3n":
        return 20
    if spec.architecture == "gemma4":
        return spec.layers - spec.int_param("attention.shared_kv_layers", 0)
    return spec.layers


def _windowed(layer: int, every: int, full_first: bool) -> bool:
    """set_swa_pattern."""
    if every == 0:
        return True
    return layer % every != 0 if full_first else layer % every < every - 1
