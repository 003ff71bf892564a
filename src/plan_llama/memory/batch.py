"""The batch that llama.cpp reserves its compute buffers for."""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.memory.types import OlderRule
from plan_llama.models.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The batch that the engine reserves for, and the caches it reads (src/llama-context.cpp, graph_reserve).

    `cells` is the KV cells of one stream; a unified cache has one stream.
    """

    tokens: int
    outputs: int
    sequences: int
    streams: int
    cells: int
    flash_attn: bool
    kv_type_k: TensorType
    kv_type_v: TensorType
    kv_offload: bool
    older: frozenset[OlderRule] = frozenset()
    drafts: int = 0  # tokens of a draft that the states of recurrent layers can go back by
    hidden: bool = False  # the state of every token stays, for the block that drafts (embeddings_nextn)
    grown: bool = False  # at the end of a full context, where the graph grows with the positions (minimax-m3)
    window_cells: int = 0  # cells of one stream of a layer behind a sliding window; 0: there is none
    one_sequence: bool = False  # all tokens are of one sequence, though there are caches and states for more
    given_up: bool = False  # flash attention was to be used when the caches were made, and then was not
    plain_spread: bool = (
        False  # residual streams are spread by many operations, not by the one that was to be used
    )

    @property
    def v_transposed(self) -> bool:
        """How V is cached: transposed where flash attention is off from the start."""
        return not self.flash_attn and not self.given_up


def padded(value: int, multiple: int) -> int:
    """GGML_PAD."""
    return -(-value // multiple) * multiple
