"""What a user wishes, and what the solver answers. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from plan_llama.findings import Finding
from plan_llama.hardware.types import Source
from plan_llama.memory.footprint import Footprint
from plan_llama.memory.types import OlderRule, Settings
from plan_llama.speed.types import Engine, SpeedEstimate

Objective = Literal["balanced", "speed", "context", "quality"]

_NO_PINS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a kind of use needs where the user says nothing (profiles/workloads.toml)."""

    name: str
    context_tokens: int
    context_floor: int
    prompt_tokens: int
    output_tokens: int
    reuse: float
    slots: int
    users: int
    interactive: bool
    cache_states: int
    cache_ram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakage:
    """A crash of the engine that a setting avoids: repacked weights of an architecture on CPUs with an ISA."""

    architecture: str
    isa: str
    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The request: None is "choose for me". `context` is of one conversation; "max" is the model's own."""

    workload: Workload
    context: int | Literal["max"] | None = None
    parallel: int | None = None
    users: int | None = None
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reuse: float | None = None
    kv_type: str | None = None
    objective: Objective = "balanced"
    margin_bytes: int | None = None
    allow_paging: bool = False
    older: frozenset[OlderRule] = frozenset()  # what the engine's build does otherwise with memory
    engine: Engine = "llama.cpp"
    can_set_threshold: bool = False  # it reads GGML_OP_OFFLOAD_MIN_BATCH
    can_draft: bool = False  # the engine's build drafts with this model's own block
    slots_apart: bool = False  # the engine gives each slot a cache of its own
    one_batch: bool = False  # the engine has one number for batch and micro-batch
    pins: Mapping[str, str] = field(default_factory=lambda: _NO_PINS)

    def pinned(self, **pins: str) -> Wishes:
        """The same with these pins as well."""
        return replace(self, pins={**self.pins, **pins})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One placement, what it uses and how fast it is. `expert_layers_on_gpu` and `layers_on_gpu` say what is where."""

    settings: Settings
    footprint: Footprint
    speed: SpeedEstimate
    cpu_moe_layers: int
    gpu_block_layers: int
    cpu_moe_parts: int = 0  # of the layers with experts on the host: those that have a part of them on a GPU
    cpu_ffn_layers: int = 0  # of the layers on GPUs: those whose dense feed-forward weights are on the host
    cpu_weight_layers: int = 0  # of the layers on GPUs: those that have only their cache there


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of the context ladder: the best plan for that context."""

    context: int
    candidate: Candidate | None
    reason: str = ""  # why there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What another choice would have cost or brought."""

    what: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer: the chosen placement, or the one that comes nearest, with everything a reader needs to judge it."""

    chosen: Candidate
    ladder: tuple[Rung, ...]
    relaxations: tuple[Alternative, ...]  # what would keep a wish that is not kept
    alternatives: tuple[Alternative, ...]
    findings: tuple[Finding, ...]
    trace: tuple[str, ...]
    provenance: Mapping[str, Source]
