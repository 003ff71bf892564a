"""Which layers attend through a sliding window, how long it is, and which layers have no cache of their own.

Source: load_arch_hparams of src/models/*.cpp, load_swa_pattern of src/llama-model.cpp and has_kv of
src/llama-hparams.cpp, b11434. An architecture that is not listed has no windows there.
"""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.models.types import ModelSpec


@dataclass(frozen=True, slots=True)
class _Rule:
    """Every n-th layer is full (the last of n, or the first), unless the header says which are windowed. 0: none is
    full; None: only the header's list counts.
    """

    every: int | None
    full_first: bool = False
    default_cells: int = 0  # where the header may leave the length out


_LISTED = _Rule(None)
_RULES = {
    "afmoe": _Rule(4),
    "cohere2": _Rule(4),
    "cohere2moe": _Rule(4, full_first=True),
    "deepseek4": _Rule(0),
    "dots3note": _LISTED,
    "exaone-moe": _Rule(4, default_cells=128),
    "exaone4": _Rule(4, default_cells=4096),
    "gemma-embedding": _Rule(6),
    "gemma2": _Rule(2, default_cells=4096),
    "gemma3": _Rule(6),
    "gemma3n": _Rule(5),
    "gemma4": _LISTED,
    "gemma4-assistant": _LISTED,
    "gpt-oss": _Rule(2),
    "granite_swa": _LISTED,
    "laguna": _Rule(4, full_first=True),
    "lfm2": _Rule(0),
    "llama4": _Rule(4, default_cells=8192),
    "maple": _LISTED,
    "mellum": _Rule(4),
    "mimo2": _LISTED,
    "modern-bert": _Rule(3, full_first=True),
    "muse-glimmer": _Rule(4),
    "olmo2": _Rule(4),
    "plamo3": _Rule(8),
    "smallthinker": _Rule(4, full_first=True),
    "spark2_5": _LISTED,
    "step35": _LISTED,
}


@dataclass(frozen=True, slots=True)
class Windows:
    """The layers behind a window of `cells` tokens; none where `cells` is 0."""

    cells: int
    layers: frozenset[int]
    own_streams: bool = False  # every sequence has a window of its own, also in a unified cache


NO_WINDOWS = Windows(0, frozenset())


def windows(spec: ModelSpec) -> Windows:
    """The sliding windows of a model; blocks for drafting have none but in DeepSeek-V4."""
    rule = _RULES.get(spec.architecture)
    if rule is None or (spec.architecture == "exaone4" and spec.layers != 64):  # only the 32B has windows
        return NO_WINDOWS
    cells = spec.int_param("attention.sliding_window", rule.default_cells)
    if not cells:
        return NO_WINDOWS
    # the engine sets these, whatever the header says
    cells = {"smallthinker": 4096, "llama4": 8192}.get(spec.architecture, cells)
    given = spec.hparams.get("attention.sliding_window_pattern")
    if spec.architecture == "deepseek4":
        return Windows(cells, frozenset(range(spec.int_param("block_count"))), own_streams=True)
    if isinstance(given, tuple):
        return Windows(cells, frozenset(il for il in range(spec.layers) if il < len(given) and given[il]))
    every = rule.every
    if isinstance(given, int) and not isinstance(given, bool):
        every = int(given)
    if every is None:
        return NO_WINDOWS
    layers = frozenset(il for il in range(spec.layers) if _windowed(il, every, rule.full_first))
    return Windows(cells, layers)


def cached_layers(spec: ModelSpec) -> int:
    """How many layers, from the first, have a cache of their own: the others read theirs (has_kv)."""
    if spec.architecture == "gemma3n":
        return 20
    if spec.architecture == "gemma4":
        return spec.int_param("block_count") - spec.int_param("attention.shared_kv_layers", 0)
    return spec.int_param("block_count")


def _windowed(layer: int, every: int, full_first: bool) -> bool:
    """set_swa_pattern."""
    if every == 0:
        return True
    return layer % every != 0 if full_first else layer % every < every - 1
