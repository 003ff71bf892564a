"""Frozen inputs and results of the speed model. Bytes, seconds and tokens per second throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Engine = Literal["llama.cpp", "ik_llama.cpp", "ollama", "vllm"]

_NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second: what is expected, and the bounds that four of five measured runs keep."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReads:
    """What attention costs per cached token and new token, over the layers that see the same cells.

    `most_cells` is the window of sliding attention or the top-k of a sparse one; None reads every cell. `selecting`
    counts the layers that sort the scores of all these cells, to choose those that attention then reads. `heads` is the
    sum over the `layers` of their query heads: each scores a cell for every new token.
    """

    bytes_per_cell: float
    flops_per_cell: float
    most_cells: int | None = None
    selecting: int = 0
    heads: int = 0
    layers: int = 0

    def cells(self, depth: float) -> float:
        """The cells read when `depth` tokens are cached."""
        return depth if self.most_cells is None else min(depth, self.most_cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one device (index of a GPU, or HOST) reads and computes. Byte counts are by ggml type name.

    `dense_bytes` are weights that every token reads whole; `expert_bytes` are all routed experts that live
    there, of which a token reads `expert_used_ratio`. The flops are per token (2 per weight touched; of the
    experts, the used ones). `head_flops` of the dense ones are the output head's, which of a prompt only the last
    token goes through. `crossings` counts layers whose experts live there while the rest of the layer
    runs elsewhere; each carries `carried_bytes` there and back for every token. All of a share that is `late` is of
    the last layer, and of a prompt only the last token goes through it.
    """

    device: int
    dense_bytes: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    expert_bytes: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    expert_used_ratio: float = 1.0
    layers: int = 0  # layers whose attention runs there
    expert_layers: int = 0  # layers with routed experts there
    crossings: int = 0
    carried_bytes: int = 0
    draft: bool = (
        False  # the block that drafts, with the output head that it shares: no part of a plain token
    )
    late: bool = False
    refused: bool = False  # experts whose products CUDA and HIP refuse: the CPU makes them wherever they are
    dense_flops: float = 0.0
    head_flops: float = 0.0
    expert_flops: float = 0.0
    cache: tuple[CacheReads, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person sends. `depth` tokens stand in the cache before the prompt; `reuse_ratio` of the prompt
    of a follow-up turn is cached already; `streams` conversations decode at once; `users` such requests are in flight
    at all times (None: the one request has the server to itself)."""

    prompt_tokens: int = 2048
    output_tokens: int = 256
    reuse_ratio: float = 0.0
    depth: int = 0
    streams: int = 1
    users: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each of `users` gets from a server of `slots` slots in a steady state, where `speed` is that of one alone.

    `ttft_s` is of a new prompt among the others' follow-up turns, `burst_ttft_s` of the last one where all send a new
    prompt at once; both hold `slot_wait_s`, the wait for a free slot. `decode_tok_s` is what one sees while its answer
    is written, with the stops for other prompts. `kept_ratio` of the follow-ups find their conversation cached.
    """

    users: int
    slots: int
    kept_ratio: float
    ttft_s: float
    follow_up_ttft_s: float
    burst_ttft_s: float
    slot_wait_s: float
    request_s: float
    decode_tok_s: float
    aggregate_tok_s: float
    prompt_tok_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedEstimate:
    """How fast a placement is for a request. `decode_tok_s` is one stream's, `aggregate_tok_s` that of all
    streams, of all users where there are several (`load`).

    `bound_by` takes `bound_share` of a token's time, and `moved_by` would shorten it.
    `parts` are named seconds per decoded token that sum to `1 / decode_tok_s.expected`; `prefill_parts` are
    seconds for the whole prompt. `load_s` is a cold start; None where the drive's rate is unknown.
    """

    decode_tok_s: Rate
    prefill_tok_s: Rate
    aggregate_tok_s: float
    ttft_s: float
    follow_up_ttft_s: float
    request_s: float
    load_s: float | None
    bound_by: str
    bound_share: float
    moved_by: str
    prefill_bound_by: str
    parts: Mapping[str, float]
    prefill_parts: Mapping[str, float]
    load: Load | None = None
    assumptions: tuple[str, ...] = ()
