"""What buffers grow by while the engine runs: MiniMax-M3's graph follows the positions in its cache."""

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
