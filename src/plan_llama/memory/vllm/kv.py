"""The KV cache as vLLM lays it out: pages by layer, groups of layers, blocks, and how many requests they hold.

Source: vllm/v1/kv_cache_interface.py (page sizes, what a request needs), vllm/v1/core/kv_cache_planning.py (groups,
bytes of a block, the check at start) and vllm/v1/core/kv_cache_utils.py (capacity, concurrency), vLLM 0.33.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """What one attention layer (or its indexer) keeps on a rank. `window` 0 is full attention."""

    index: int  # the model's layer, which decides the pipeline stage
    token_bytes: int
    window: int = 0
    sharded: bool = True  # under decode context parallelism every rank keeps a share of the tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What decides the blocks that the longest request needs."""

    max_model_len: int
    in_flight_tokens: int = 0  # max_num_batched_tokens x batches at once: only windows need it
    context_parallel: int = 1  # --decode-context-parallel-size


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that share a block table: all of one kind, `block_size` tokens in each of their pages."""

    layers: tuple[CacheLayer, ...]
    block_size: int
    page_bytes: int = 0  # where a smaller page is padded to the largest one; 0: as large as its tokens

    def page(self, layer: CacheLayer) -> int:
        """Bytes of one layer's page."""
        return self.page_bytes or layer.token_bytes * self.block_size

    @property
    def block_bytes(self) -> int:
        """Bytes that one block takes over all layers of the group."""
        return sum(self.page(layer) for layer in self.layers)

    def blocks(self, request: Request) -> int:
        """The blocks that one request of full length holds (max_memory_usage_bytes of the specs)."""
        length = request.max_model_len
        first = self.layers[0]
        if first.window:
            held = min(first.window - 1 + request.in_flight_tokens, length)
            return _ceil(held, self.block_size) + 1
        if first.sharded and request.context_parallel > 1:
            length = _ceil(length, request.context_parallel)
        return _ceil(length, self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What vLLM logs: `GPU KV cache size: TOKENS tokens, Maximum concurrency for L tokens per request: N x`."""

    blocks: int
    stage_block_bytes: tuple[int, ...]  # of one block, by pipeline stage
    blocks_per_request: int
    tokens: int
    concurrency: float

    @property
    def holds_one(self) -> bool:
        """Whether a request of full length fits: one block is held back (get_kv_cache_configs)."""
        return self.blocks - 1 >= self.blocks_per_request


def groups_of(layers: Sequence[CacheLayer], block_size: int, *, hybrid: bool = True) -> tuple[Group, ...]:
    """The layers in groups that share block tables (get_kv_cache_groups).

    `hybrid` False is --disable-hybrid-kv-cache-manager, which keeps windowed layers like full ones.
    """
    if not hybrid and any(layer.window == 0 for layer in layers):
        layers = [replace(layer, window=0) for layer in layers]
    kinds = {layer.window for layer in layers}
    if len(kinds) == 1:
        return (Group(layers=tuple(layers), block_size=block_size),)
    most = max(layer.token_bytes for layer in layers) * block_size
    kept: dict[tuple[int, int], list[CacheLayer]] = {}
    for layer in layers:
        kept.setdefault((layer.window, layer.token_bytes), []).append(layer)
    buckets: dict[tuple[int, int, int], list[CacheLayer]] = {}
    for (window, token_bytes), items in kept.items():
        size, page = block_size, token_bytes * block_size
        if page != most:  # unify_kv_cache_spec_page_size: more tokens in a page, or a page that is padded
            size = block_size * (most // page) if most % page == 0 else block_size
        buckets.setdefault((window, size, most), []).extend(items)
    return tuple(_sized(buckets))


def _sized(buckets: dict[tuple[int, int, int], list[CacheLayer]]) -> list[Group]:
    """Groups of equally many layers (_get_kv_cache_groups_uniform_page_size)."""
    counts = [len(items) for items in buckets.values()]
    least, most = min(counts), max(counts)
    size = most if most < least * 1.5 else least
    groups = []
    for (_, block_size, page), items in buckets.items():
        parts = _ceil(len(items), size)
        groups += [
            Group(layers=tuple(items[part::parts]), block_size=block_size, page_bytes=page)
            for part in range(parts)
        ]
    return groups


def capacity(groups: Sequence[Group], available_bytes: Sequence[int], request: Request) -> Capacity:
    """What fits; `available_bytes` has one entry for each pipeline stage, and the smallest decides.

    Source: get_kv_cache_configs, get_kv_cache_config_from_groups and get_kv_cache_capacity.
    """
    sizes = stage_block_bytes(groups, len(available_bytes))
    fitting = [max(0, room) // size for room, size in zip(available_bytes, sizes, strict=True) if size]
    blocks = min(fitting)
    needed = sum(group.blocks(request) for group in groups)
    concurrency = blocks / needed
    return Capacity(
        blocks=blocks,
        stage_block_bytes=sizes,
        blocks_per_request=needed,
        tokens=int(concurrency * request.max_model_len),
        concurrency=concurrency,
    )


def stage_block_bytes(groups: Sequence[Group], stages: int) -> tuple[int, ...]:
    """Bytes of one block on each pipeline stage: those of the group that has most there."""
    bounds = stage_bounds(1 + max(layer.index for group in groups for layer in group.layers), stages)
    return tuple(
        max(sum(group.page(layer) for layer in group.layers if low <= layer.index < high) for group in groups)
        for low, high in bounds
    )


def longest(groups: Sequence[Group], available_bytes: Sequence[int], request: Request) -> int:
    """The longest max_model_len, up to the request's, that still starts; 0 where none does (`auto`)."""
    low, high = 0, request.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        if capacity(groups, available_bytes, replace(request, max_model_len=middle)).holds_one:
            low = middle
        else:
            high = middle - 1
    return low


def stage_bounds(layers: int, stages: int) -> tuple[tuple[int, int], ...]:
    """First and last-but-one layer of each pipeline stage (get_pp_indices in vllm/distributed/utils.py)."""
    sizes = [layers // stages] * stages
    for place in range(2, layers % stages + 2):
        sizes[-place] += 1
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
