"""What a device takes beside its buffers while the engine runs."""

from __future__ import annotations

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import GIB, MIB
from tests.conformance_cases import table

EXPERTS = (Override(r"ffn_.*_exps", HOST),)
BLOCK, RESERVED = (
    128,
    256,
)  # of the header; positions of an empty cache (llama_kv_cache_msa_context::get_n_pos)


@pytest.mark.parametrize(("context", "ubatch"), [(32768, 512), (131072, 512), (131072, 2048)])
def test_the_host_grows_by_the_inputs_of_all_positions(context: int, ubatch: int) -> None:
    """build_attn_inp_kv_msa (src/llama-graph.cpp, b11434): f32 of every position and of every block for each token, and
    an index for each position."""
    settings = Settings(context=context, ubatch=ubatch, gpu_layers=99, overrides=EXPERTS)
    made = buffers(table("real", "minimax-m3-q3_k_m"), settings, [DeviceMemory(free_bytes=200 * GIB)])
    added = context - RESERVED
    expected = 4 * ubatch * (added + added // BLOCK) + 4 * added
    assert made.host.pool_bytes == pytest.approx(expected, abs=MIB // 16)


def test_the_pool_of_a_card_that_is_only_offloaded_to() -> None:
    """`-ngl 0`: long prompts are multiplied on the first card, which takes the widest activations in blocks of 32
    (block_q8_1, 36 bytes; ggml/src/ggml-cuda/mmq.cu, b11434). A second card does nothing."""
    made = buffers(
        table("real", "llama-3.1-8b-q4_k_m"),
        Settings(context=8192, gpu_layers=0),
        [DeviceMemory(free_bytes=20 * GIB)] * 2,
    )
    feed_forward, tokens = 14336, 512
    assert made.devices[0].pool_bytes >= feed_forward * tokens * 36 // 32
    assert made.devices[1].pool_bytes == 0
