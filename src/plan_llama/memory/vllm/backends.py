"""Which attention backend a card gets for a model and a KV dtype, or why there is none.

Source: vLLM 0.33.0 run for imaginary cards of each compute capability (tests/data/vllm), and its platforms' lists of
backends (vllm/platforms/cuda.py, rocm.py).
"""

from __future__ import annotations

from plan_llama.memory.vllm.attention import Attention, Backend, architecture_of, latent_bytes
from plan_llama.memory.vllm.budget import Card
from plan_llama.models.types import ModelSpec

FP8 = ("fp8", "fp8_e4m3")
_PLAIN = ("auto", "bfloat16", "float16")
_SPARSE_ROCM = ("gfx942", "gfx950")
_LEAST_FP8 = 89


class NoBackend(Exception):  # noqa: N818 - an answer, which the caller puts into words of its own
    """vLLM does not start: no backend of the card runs this attention with this cache."""


def backend_for(spec: ModelSpec, card: Card, kv_dtype: str) -> Backend:
    """The backend and what becomes of the KV dtype. Raises NoBackend with the reason."""
    kind = architecture_of(spec).attention
    if kind == "sparse":
        return _sparse(spec, card, kv_dtype)
    if kind == "latent":
        return _latent(spec, card, kv_dtype)
    number = card.number
    if kv_dtype in _PLAIN:
        name = "FLASH_ATTN" if number is None or number >= 80 else "TRITON_ATTN"
        return Backend(name=name, kv_dtype=kv_dtype, block_size=16)
    if kv_dtype in FP8 or kv_dtype == "fp8_e5m2":
        if number is not None and number < _LEAST_FP8:
            raise NoBackend(
                f"an FP8 KV cache needs compute capability 8.9 or more, and {card.name} has {card.capability}"
            )
        return Backend(name="FLASH_ATTN", kv_dtype=kv_dtype, block_size=16, value_bytes=1.0)
    raise NoBackend(f"a KV cache of {kv_dtype} is not described here for this model")


def sixteen_bits(spec: ModelSpec) -> Backend:
    """The plainest cache, to show what a model would take on a card that has no backend for it."""
    return Backend(name="none", kv_dtype="auto", block_size=64, latent_bytes=_row(spec))


def _row(spec: ModelSpec) -> int:
    return latent_bytes(spec, "auto") if architecture_of(spec).attention != "heads" else 0


def _latent(spec: ModelSpec, card: Card, kv_dtype: str) -> Backend:
    """Dense latent attention runs on every card; with FP8 only where a backend reads it."""
    number = card.number or 90
    dtype = "auto" if kv_dtype in _PLAIN else kv_dtype
    if dtype not in ("auto", *FP8):
        raise NoBackend(f"a KV cache of {kv_dtype} is not described here for latent attention")
    if dtype in FP8 and number < _LEAST_FP8:
        raise NoBackend(
            f"an FP8 KV cache needs compute capability 8.9 or more, and {card.name} has {card.capability}"
        )
    if 100 <= number < 120:
        name, block = "CUTLASS_MLA", 128
    elif 90 <= number < 100:
        name, block = ("FLASH_ATTN_MLA" if dtype == "auto" else "TRITON_MLA"), 16
    else:
        name, block = "TRITON_MLA", 16
    return Backend(name=name, kv_dtype=dtype, block_size=block, latent_bytes=latent_bytes(spec, dtype))


def _sparse(spec: ModelSpec, card: Card, kv_dtype: str) -> Backend:
    """DeepSeek's sparse attention: three generations of NVIDIA's cards, or AMD's with AITER."""
    if kv_dtype == "fp8_e5m2":
        raise NoBackend("sparse attention has no backend with an fp8_e5m2 cache")
    number = card.number
    if card.gfx is not None:
        if not card.gfx.startswith(_SPARSE_ROCM):
            raise NoBackend(f"sparse attention (DSA) on AMD needs AITER on MI300 or MI350, not {card.gfx}")
        dtype = "auto" if kv_dtype in _PLAIN else "fp8_e4m3"
        return Backend(
            name="ROCM_AITER_MLA_SPARSE",
            kv_dtype=dtype,
            block_size=64,
            latent_bytes=latent_bytes(spec, dtype),
        )
    if number is None or not (90 <= number < 100 or 100 <= number < 110 or 120 <= number < 130):
        have = f"{card.name} has {card.capability}" if card.capability else f"{card.name}'s is not known"
        raise NoBackend(
            "sparse attention (DSA) needs compute capability 9.0 (H100, H200), 10.x (B200, B300) or 12.x, "
            f"and {have}"
        )
    if number >= 120:
        if kv_dtype not in ("auto", *FP8, "fp8_ds_mla"):
            raise NoBackend("sparse attention on 12.x has no backend with a 16-bit cache")
        return _sparse_backend(spec, "FLASHINFER_MLA_SPARSE_SM120", "fp8_ds_mla")
    if number >= 100:
        dtype = {"auto": "fp8_e4m3", "bfloat16": "bfloat16", "nvfp4_ds_mla": "nvfp4_ds_mla"}.get(
            kv_dtype, "fp8"
        )
        name = "FLASHMLA_SPARSE" if kv_dtype in ("nvfp4_ds_mla", "fp8_ds_mla") else "FLASHINFER_MLA_SPARSE"
        dtype = "fp8_ds_mla" if kv_dtype == "fp8_ds_mla" else dtype
        return _sparse_backend(spec, name, dtype)
    if kv_dtype in _PLAIN:
        return _sparse_backend(spec, "FLASH_ATTN_MLA_SPARSE", kv_dtype)
    if kv_dtype in (*FP8, "fp8_ds_mla"):
        return _sparse_backend(spec, "FLASHMLA_SPARSE", "fp8_ds_mla")
    raise NoBackend(f"sparse attention on {card.name} has no backend with a {kv_dtype} cache")


def _sparse_backend(spec: ModelSpec, name: str, dtype: str) -> Backend:
    return Backend(name=name, kv_dtype=dtype, block_size=64, latent_bytes=latent_bytes(spec, dtype))


def attention_of(spec: ModelSpec) -> Attention:
    """How the model's cache is kept."""
    return architecture_of(spec).attention
