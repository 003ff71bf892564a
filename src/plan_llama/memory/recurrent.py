"""The state that recurrent layers keep per conversation, whatever its length.

Source: llama_hparams::n_embd_r and n_embd_s (src/llama-hparams.cpp) and llama_memory_recurrent
(src/llama-memory-recurrent.cpp), b11434: two f32 rows per layer and sequence.
"""

from __future__ import annotations

from plan_llama.models.types import ModelSpec

# What only a recurrent layer has: Mamba and delta nets, RWKV, LFM2's short convolution.
_RECURRENT = (".ssm_", ".time_mix_", ".shortconv.")


def recurrent_layers(spec: ModelSpec) -> frozenset[int]:
    """The layers that keep a state instead of, or beside, a cache."""
    return frozenset(
        int(tensor.name.split(".", 2)[1])
        for tensor in spec.tensors
        if tensor.name.startswith("blk.") and any(part in tensor.name for part in _RECURRENT)
    )


def state_elements(spec: ModelSpec, layer: int) -> tuple[int, int]:
    """Elements of one sequence's convolution state and recurrent state, in a recurrent layer."""
    width = spec.int_param("embedding_length")
    heads = spec.int_param("attention.head_count", 0, layer=layer)
    kernel = spec.int_param("ssm.conv_kernel", 0)
    if head := spec.int_param("wkv.head_size", 0):
        return spec.int_param("token_shift_count", 2) * width, width * head
    if cells := spec.int_param("shortconv.l_cache", 0):
        return width * (cells - 1), 0
    if head := spec.int_param("kda.head_dim", 0):
        return 3 * (kernel - 1 if kernel else 3) * heads * head, head * head * heads
    inner, state = spec.int_param("ssm.inner_size", 0), spec.int_param("ssm.state_size", 0)
    if not inner:  # a linear attention that the header does not describe: a matrix per head
        head = spec.int_param("attention.key_length", width // max(1, heads))
        return 0, head * head * max(1, heads)
    groups = spec.int_param("ssm.group_count", 0)
    return max(0, kernel - 1) * (inner + 2 * groups * state), state * inner
