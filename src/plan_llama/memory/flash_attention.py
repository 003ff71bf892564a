"""Where flash attention is not to be had: architectures that llama.cpp runs without it, heads that CUDA refuses."""

from __future__ import annotations

from plan_llama.models.types import ModelSpec

# llama_init_from_model switches it off for these (src/llama-context.cpp, b11434)
SWITCHED_OFF = frozenset({"grok"})
# With it, it ends at an assertion for these: their V goes into the cache in a shape that only the transposed one takes
# (src/models/plm.cpp, llama_kv_cache::cpy_v).
ENDS_WITH_IT = frozenset({"plm"})
NEVER = SWITCHED_OFF | ENDS_WITH_IT

# ggml_cuda_get_best_fattn_kernel (ggml/src/ggml-cuda/fattn.cu, b11434): heads of as many elements in K and V, other
# heads with what their V has to have and how many query heads one of K serves, and types of the cache.
CUDA_HEADS = frozenset((40, 64, 72, 80, 96, 112, 128, 256))
_WIDE = {
    192: (128, 8),
    320: (256, 32),
    512: (512, 1),
    576: (512, 1),
}  # K: V, and a divisor of the number of query heads
_CUDA_TYPES = frozenset(("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"))


def cuda_refuses(spec: ModelSpec, kv_type_k: str, kv_type_v: str) -> bool:
    """Whether CUDA and HIP have no kernel for some layer's attention: with `-fa on` the CPU then runs it, `-fa auto`
    switches it off."""
    shapes = {shape for il in range(spec.layers) if (shape := _shape(spec, il)) is not None}
    if not shapes:
        return False
    return not _CUDA_TYPES.issuperset((kv_type_k, kv_type_v)) or not all(_known(*shape) for shape in shapes)


def _shape(spec: ModelSpec, layer: int) -> tuple[int, int, int] | None:
    """Elements of a head in K and V, and query heads per head of K; None for a layer without attention."""
    heads = spec.int_param("attention.head_count", 0, layer=layer)
    heads_kv = spec.int_param("attention.head_count_kv", heads, layer=layer)
    if not heads or not heads_kv:
        return None
    k, v = spec.head_sizes(layer)
    if spec.int_param("attention.key_length_mla", 0):  # one row, of which V is a part
        return k, spec.int_param("attention.kv_lora_rank", 0), heads
    return k, v, heads // heads_kv


def _known(k: int, v: int, shared: int) -> bool:
    if k in CUDA_HEADS:
        return k == v
    if k not in _WIDE:
        return False
    wanted, divisor = _WIDE[k]
    return v == wanted and shared >= 2 and shared % divisor == 0
