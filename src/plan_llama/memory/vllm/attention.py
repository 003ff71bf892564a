"""What each layer of a model keeps in vLLM's cache, by the attention backend that the card gets.

Source: the specs of vllm/v1/kv_cache_interface.py, and vLLM 0.33.0 run for imaginary cards (tests/data/vllm).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from plan_llama import catalog
from plan_llama.errors import ModelError
from plan_llama.memory.vllm.kv import CacheLayer
from plan_llama.memory.vllm.weights import Ranks
from plan_llama.memory.windows import windows
from plan_llama.models.types import ModelSpec

Attention = Literal["heads", "latent", "sparse"]

_INDEX_SCALE_OF = 128  # index keys are FP8 with one float32 scale for so many of them
_FP8_LATENT_SCALES = 16  # fp8_ds_mla: four float32 scales beside 512 FP8 values, the rotary part in 16 bits
_WORD = 2
_NVFP4_ROW = 352  # nvfp4_ds_mla, of 512 and 64 values


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What vLLM does with an architecture."""

    name: str
    attention: Attention
    windows: bool = False
    router32: bool = False
    tool_parser: str = ""
    reasoning_parser: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """How the cache is kept on a card: the dtype that a request for `auto` or `fp8` becomes, and tokens per block.

    `latent_bytes` is one token of a latent cache; `value_bytes` one element of K or V.
    """

    name: str
    kv_dtype: str
    block_size: int
    value_bytes: float = 2.0
    latent_bytes: int = 0


@cache
def _architectures() -> dict[str, Architecture]:
    path = catalog.root() / "engines" / "vllm" / "architectures.toml"
    table = catalog.Table(catalog.load(path), str(path))
    for key in ("engine", "version", "source"):
        table.take(key, str)
    found = {}
    for row in table.tables("architecture"):
        kind = row.take("attention", str)
        attention: Attention = "sparse" if kind == "sparse" else "latent" if kind == "latent" else "heads"
        name = row.take("name", str)
        found[name] = Architecture(
            name=name,
            attention=attention,
            windows=row.get("windows", bool) or False,
            router32=row.get("router32", bool) or False,
            tool_parser=row.get("tool_parser", str) or "",
            reasoning_parser=row.get("reasoning_parser", str) or "",
        )
        row.get("source", str)
        row.done()
    table.done()
    return found


def architecture_of(spec: ModelSpec) -> Architecture:
    """What is known of the model's architecture. Raises ModelError for one that is not described for vLLM."""
    known = _architectures()
    if spec.architecture not in known:
        raise ModelError(
            f"{spec.name}: what vLLM takes for {spec.architecture} is not described here",
            hint=f"described are {', '.join(sorted(known))}; --engine llama.cpp plans it",
        )
    return known[spec.architecture]


def cache_layers(
    spec: ModelSpec, ranks: Ranks, backend: Backend, *, drafts: bool = False
) -> tuple[CacheLayer, ...]:
    """The caches of all layers on one rank, whatever pipeline stage they are in.

    With `drafts` the model's blocks for next-token prediction keep as much as its last layer, on the last stage.
    """
    found = _all_layers(spec, ranks, backend)
    if not drafts:
        return found
    extra = spec.int_param("nextn_predict_layers", 0)
    return (*found, *[layer for layer in found if layer.index == spec.layers - 1] * extra)


def _all_layers(spec: ModelSpec, ranks: Ranks, backend: Backend) -> tuple[CacheLayer, ...]:
    known = architecture_of(spec)
    if known.attention != "heads":
        return tuple(_latent(spec, known, backend))
    sliding = windows(spec)
    if sliding.cells and not known.windows:
        raise ModelError(f"{spec.name}: its sliding windows are not described for vLLM")
    found = []
    for index in range(spec.layers):
        heads = spec.int_param("attention.head_count", layer=index)
        heads_kv = spec.int_param("attention.head_count_kv", heads, layer=index)
        size = spec.int_param("embedding_length") // heads
        k = spec.int_param("attention.key_length", size, layer=index)
        v = spec.int_param("attention.value_length", size, layer=index)
        kept = max(1, heads_kv // ranks.tensor)
        found.append(
            CacheLayer(
                index=index,
                token_bytes=int(kept * (k + v) * backend.value_bytes),
                window=sliding.cells if index in sliding.layers else 0,
            )
        )
    return tuple(found)


def _latent(spec: ModelSpec, known: Architecture, backend: Backend) -> list[CacheLayer]:
    """One row for all heads, the same on every rank; beside it the keys of an indexer, where a layer has one."""
    names = {tensor.name for tensor in spec.tensors}
    found = []
    for index in range(spec.layers):
        if known.attention == "sparse" and f"blk.{index}.indexer.attn_k.weight" in names:
            size = spec.int_param("attention.indexer.key_length")
            found.append(CacheLayer(index=index, token_bytes=size + 4 * (size // _INDEX_SCALE_OF)))
        found.append(CacheLayer(index=index, token_bytes=backend.latent_bytes))
    return found


def latent_bytes(spec: ModelSpec, kv_dtype: str) -> int:
    """A token of a latent cache in that dtype."""
    rank, rope = spec.int_param("attention.kv_lora_rank"), spec.int_param("rope.dimension_count")
    if kv_dtype == "fp8_ds_mla":
        return rank + _FP8_LATENT_SCALES + _WORD * rope
    if kv_dtype == "nvfp4_ds_mla":
        return _NVFP4_ROW
    return (rank + rope) * (1 if kv_dtype.startswith("fp8") else _WORD)
