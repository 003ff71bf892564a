"""Frozen facts about a model: every tensor with its type and bytes, and the header's hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a machine's facts are no part of what a file holds
    from plan_llama.hardware.types import Source


@dataclass(frozen=True, slots=True)
class TensorType:
    """A ggml type: `block_bytes` bytes hold `block_elements` elements (type_traits in ggml.c, b11434)."""

    id: int
    name: str  # ggml's lower-case name: "q4_K", "iq2_xs", "f16"
    block_elements: int
    block_bytes: int
    row_bytes: int = 0  # what a row has beside its blocks; only types of ik_llama.cpp have that
    engine: str = "llama.cpp"  # the only engine that reads it, where llama.cpp does not

    @property
    def quantised(self) -> bool:
        """Whether the type packs blocks (f32, f16, bf16 and the integers do not)."""
        return self.block_elements > 1

    def nbytes(self, elements: int) -> int:
        """Bytes of a row of so many elements (whole blocks), without what the row has beside them."""
        return elements // self.block_elements * self.block_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model file. `shape` is in ggml's order: shape[0] is the row length (ne0)."""

    name: str
    type: TensorType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        rows = self.elements // self.shape[0] if self.type.row_bytes else 0
        return self.type.nbytes(self.elements) + rows * self.type.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """How to get a file that is not on the machine."""

    repo: str
    quant: str
    files: tuple[str, ...]  # paths inside the repo, first shard first
    size_bytes: int
    argv: tuple[str, ...]  # the command that downloads
    path: str  # the file that `-m` names afterwards
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model that can be planned.

    `hparams` holds the header's keys without the architecture prefix (`block_count`,
    `attention.head_count_kv`, …); values are numbers, strings, bools or tuples of them (per layer). Tokenizer
    arrays are absent; `vocab_size` has their length. `tensors` are in file order, over all shards.
    """

    name: str
    architecture: str
    quant: str
    tensors: tuple[Tensor, ...]
    hparams: Mapping[str, Any]
    vocab_size: int
    file_bytes: int
    path: str | None = None  # first shard, when a file is there (or the path the download makes)
    present: bool = False
    files: tuple[tuple[str, int], ...] = ()  # every part on this machine: path, bytes when complete
    source: Source = "file"
    data_note: str | None = None  # what is short or sparse about the file, in one sentence
    download: Download | None = None
    made_with: tuple[str, ...] = ()  # the command that makes the file, where nobody publishes it
    origin_note: str | None = None  # where and when the facts of a file that is not here were read
    catalog_id: str | None = None
    licence: str | None = None
    # As the publisher states it.
    sampling: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    kv_quantisation_breaks: str | None = None  # why a quantised KV cache is not to be chosen, with its source
    sources: Mapping[str, Source] = field(default_factory=lambda: MappingProxyType({}))
    projector: ModelSpec | None = None  # of a vision model: the file for --mmproj, where it is to be loaded
    draft: ModelSpec | None = None  # a model that drafts for it: the file of --spec-draft-model

    @property
    def parameters(self) -> int:
        """All weights in the file, draft layers included (as llama.cpp counts n_params)."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def layers(self) -> int:
        """Blocks that run for a token: block_count less the next-token-prediction blocks."""
        return self.int_param("block_count") - self.int_param("nextn_predict_layers", 0)

    @property
    def blocks(self) -> int:
        """Blocks that -ngl counts, those for drafting included; Granite Switch chooses adapters in one more, which has
        a cache and no tensors (router_layer of llama_hparams)."""
        return self.int_param("block_count") + (self.architecture == "graniteswitch")

    @property
    def context_train(self) -> int:
        """The context that the model was trained for, in tokens."""
        return self.int_param("context_length", 0)

    def head_sizes(self, layer: int | None = None) -> tuple[int, int]:
        """Elements of one attention head in K and in V, of a layer or the largest; by default the width's share."""
        heads = self.int_param("attention.head_count", 0, layer=layer)
        own = self.int_param("embedding_length", 0) // heads if heads else 0
        k = self.int_param("attention.key_length", own, layer=layer)
        return k, self.int_param("attention.value_length", own, layer=layer)

    def int_param(self, key: str, default: int | None = None, *, layer: int | None = None) -> int:
        """An integer hyperparameter; a per-layer array needs `layer`. Raises ModelError where missing."""
        value = self.hparams.get(key, default)
        if isinstance(value, tuple):
            found = value if layer is None else value[layer : layer + 1]
            value = max(found, default=default)
        if not isinstance(value, int):
            from plan_llama.errors import ModelError

            where = f"'{self.architecture}.{key}'"
            raise ModelError(f"{self.name}: the header's {where} is missing or not a number")
        return int(value)
