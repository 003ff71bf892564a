"""What of a card's memory is left for vLLM's KV cache.

Source: vllm/v1/worker/gpu_worker.py (determine_available_memory), vllm/engine/arg_utils.py (get_batch_defaults) and
vllm/v1/attention/backends/mla/flashmla_sparse.py (its workspace), vLLM 0.33.0. What no source tells is assumed, by
`profiles/engines/vllm/memory.toml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from plan_llama import catalog
from plan_llama.memory.vllm.attention import Backend, architecture_of
from plan_llama.memory.vllm.kv import stage_bounds
from plan_llama.memory.vllm.weights import HOPPER, MARLIN, ROCM, Padding, Ranks, weights_bytes
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.models.types import ModelSpec
from plan_llama.units import GIB, MIB

_SMALL_TIER = "a100"
_GB10 = "12.1"
_PADDED_HEADS = {"9": 64, "10": 128}  # rows that FlashMLA's sparse prefill is compiled for
_LONG_CONTEXT = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """The assumptions and defaults of the profile."""

    context_bytes: int
    collective_bytes: int
    graph_bytes_per_layer: int
    hidden_copies: int
    logit_bytes: int
    host_bytes_per_rank: int
    uncertain: float
    batched_tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    utilisation: float
    reported_share: float
    reported_bytes: Mapping[str, int]


@cache
def assumed() -> Assumed:
    """The shipped assumptions."""
    path = catalog.root() / "engines" / "vllm" / "memory.toml"
    table = catalog.Table(catalog.load(path), str(path))
    for key in ("engine", "version", "source"):
        table.take(key, str)
    reported = table.table("reported_gib")
    found = Assumed(
        context_bytes=table.take("context_mib", int) * MIB,
        collective_bytes=table.take("collective_mib", int) * MIB,
        graph_bytes_per_layer=table.take("graph_mib_per_layer", int) * MIB,
        hidden_copies=table.take("hidden_copies", int),
        logit_bytes=table.take("logit_bytes", int),
        host_bytes_per_rank=table.take("host_mib_per_rank", int) * MIB,
        uncertain=table.take("uncertain", float),
        batched_tokens=tuple(table.take("batched_tokens", list)),
        sequences=tuple(table.take("sequences", list)),
        utilisation=table.take("utilisation", float),
        reported_share=table.take("reported_share", float),
        reported_bytes={
            name: int(reported.take(name, float) * GIB)
            for name in reported.keys()  # noqa: SIM118 - a method of ours
        },
    )
    reported.done()
    table.done()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What vLLM asks of a card: its memory as the driver tells it, its name, and what it can compute."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: str | None = None  # "9.0"
    gfx: str | None = None  # "gfx942"

    @property
    def number(self) -> int | None:
        """The compute capability as vLLM compares it: 90 for 9.0."""
        if self.capability is None:
            return None
        major, _, minor = self.capability.partition(".")
        return 10 * int(major) + int(minor or 0)


def reported_bytes(name: str, total_bytes: int) -> int:
    """What CUDA reports of a card whose memory is known as it is sold, or as the driver lists it."""
    known = [part for part in assumed().reported_bytes if part in name]
    if known:
        found = assumed().reported_bytes[max(known, key=len)]
        if found <= total_bytes < 1.05 * found:  # another size of the same name is scaled
            return found
    return int(total_bytes * assumed().reported_share)


def batch_defaults(card: Card) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) of a server whose command does not say."""
    large = card.total_bytes >= 160 * GIB
    middle = (
        card.total_bytes >= 70 * GIB and _SMALL_TIER not in card.name.lower() and card.capability != _GB10
    )
    tier = 0 if large else 1 if middle else 2
    return assumed().sequences[tier], assumed().batched_tokens[tier]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a server is started, as far as memory goes. All values are final."""

    ranks: Ranks
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    utilisation: float = 0.92
    kv_bytes: int | None = None  # --kv-cache-memory-bytes, which replaces all of the arithmetic
    eager: bool = False
    hybrid: bool = True
    drafts: bool = False
    offload_bytes: int = 0  # of weights in the host's memory, per GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """One rank of a pipeline stage. `overhead_bytes` is the sum of the parts beside weights and cache."""

    weights_bytes: int
    workspace_bytes: int
    activation_bytes: int
    graph_bytes: int
    context_bytes: int
    budget_bytes: int  # what vLLM may use: total memory x utilisation

    @property
    def overhead_bytes(self) -> int:
        """All but weights and cache."""
        return self.workspace_bytes + self.activation_bytes + self.graph_bytes + self.context_bytes

    def kv_bytes(self, share: float = 1.0) -> int:
        """What is left for the cache; `share` scales what is assumed."""
        return self.budget_bytes - self.weights_bytes - int(share * self.overhead_bytes)


def stages(checkpoint: Checkpoint, start: Start, card: Card, backend: Backend) -> tuple[StageBytes, ...]:
    """The first rank of each pipeline stage."""
    spec, ranks, k = checkpoint.spec, start.ranks, assumed()
    known = architecture_of(spec)
    found = []
    for stage, (low, high) in enumerate(stage_bounds(spec.layers, ranks.pipeline)):
        last = stage == ranks.pipeline - 1
        weights = weights_bytes(
            checkpoint,
            ranks,
            stage=stage,
            wide_router=known.router32,
            padding=_padding(card),
            drafts=start.drafts,
        )
        activation = max(_forward(spec, start), _sampling(spec, start) if last else 0)
        found.append(
            StageBytes(
                weights_bytes=max(0, weights - start.offload_bytes),
                workspace_bytes=workspace_bytes(spec, start, card, backend)
                + _absorbed(spec, ranks) * (high - low),
                activation_bytes=activation,
                graph_bytes=0 if start.eager else k.graph_bytes_per_layer * (high - low),
                context_bytes=k.context_bytes + (k.collective_bytes if ranks.world > 1 else 0),
                budget_bytes=math.ceil(card.total_bytes * start.utilisation),
            )
        )
    return tuple(found)


def _padding(card: Card) -> Padding:
    """The MXFP4 kernel of the card."""
    if card.gfx is not None:
        return ROCM
    return HOPPER if 90 <= (card.number or 0) < 100 else MARLIN


def room(found: Sequence[StageBytes], start: Start, share: float = 1.0) -> tuple[int, ...]:
    """Bytes for the cache of each stage."""
    if start.kv_bytes is not None:
        return (start.kv_bytes,) * len(found)
    return tuple(stage.kv_bytes(share) for stage in found)


def workspace_bytes(spec: ModelSpec, start: Start, card: Card, backend: Backend) -> int:
    """FlashMLA's sparse prefill: cache rows in 16 bits, queries and outputs, held from the start on."""
    if backend.name != "FLASHMLA_SPARSE":
        return 0
    major = (card.capability or "9.0").partition(".")[0]
    rank = spec.int_param("attention.kv_lora_rank")
    row = rank + spec.int_param("rope.dimension_count")
    heads = spec.int_param("attention.head_count") // start.ranks.tensor * start.ranks.context
    queries = spec.int_param("attention.head_count") // start.ranks.tensor
    step = _PADDED_HEADS.get(major, 64)
    padded = -(-queries // step) * step
    factor = 5 if start.max_model_len <= _LONG_CONTEXT else 2
    tokens = start.max_num_batched_tokens
    words = factor * start.max_model_len * row
    words += tokens * (heads * row + padded * (row + rank) + queries * rank)
    return 2 * words


def _absorbed(spec: ModelSpec, ranks: Ranks) -> int:
    """Latent attention keeps 16-bit copies of the matrices that it multiplies into queries and outputs, per layer."""
    if not spec.int_param("attention.kv_lora_rank", 0) or not spec.int_param("attention.key_length_mla", 0):
        return 0
    heads = spec.int_param("attention.head_count") // ranks.tensor
    nope = spec.int_param("attention.key_length_mla") - spec.int_param("rope.dimension_count")
    value = spec.int_param("attention.value_length_mla", nope)
    return 2 * spec.int_param("attention.kv_lora_rank") * heads * (nope + value)


def _forward(spec: ModelSpec, start: Start) -> int:
    """The largest layer's intermediate values for one full batch (assumed)."""
    tokens, width = start.max_num_batched_tokens, spec.int_param("embedding_length")
    dense = spec.int_param("feed_forward_length", 0)
    inner = 3 * 2 * max(1, dense // start.ranks.tensor)
    used = spec.int_param("expert_used_count", 0)
    if used:
        over = 1 if start.ranks.expert else start.ranks.tensor * start.ranks.data
        experts = spec.int_param("expert_feed_forward_length", 0) // over
        inner = max(inner, 2 * used * (max(width, 2 * experts) + experts))
    return tokens * (2 * assumed().hidden_copies * width + inner)


def _sampling(spec: ModelSpec, start: Start) -> int:
    """Logits of as many sequences as may run at once, and what sampling makes of them (assumed)."""
    return start.max_num_seqs * spec.vocab_size * assumed().logit_bytes
