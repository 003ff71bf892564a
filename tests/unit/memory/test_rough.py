"""What the graph walk cannot build is bounded, never a crash; states of recurrent layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.memory.caches import bytes_per_token, cache_layers, kv_type
from plan_llama.memory.compute import is_described
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.patterns import n_cpu_moe
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.units import GIB
from tests.oracle_cases import spec
from tests.small_models import llama_like, qwen3moe_like

CARD = DeviceMemory(free_bytes=24 * GIB)


def total_compute(model: ModelSpec, chosen: Settings) -> int:
    """Compute bytes of one card and the host."""
    made = buffers(ModelTable(model), chosen, [CARD])
    return made.devices[0].compute_bytes + made.host.compute_bytes


@pytest.mark.parametrize("model", [llama_like(), qwen3moe_like()])
@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("layers", [0, 2, 99])
def test_the_bound_is_above_the_walk(model: ModelSpec, flash_attn: bool, layers: int) -> None:
    """The same tensors under a name that is not described."""
    stranger = replace(model, architecture="stranger")
    assert is_described(model)
    assert not is_described(stranger)
    chosen = Settings(context=16384, gpu_layers=layers, flash_attn=flash_attn, overrides=n_cpu_moe(1))
    assert total_compute(stranger, chosen) >= total_compute(model, chosen)


@pytest.mark.parametrize("lost", ["blk.1.attn_q.weight", "blk.3.ffn_down.weight", "token_embd.weight"])
def test_a_described_file_that_lacks_a_tensor_is_bounded(lost: str) -> None:
    whole = llama_like()
    partial = replace(whole, tensors=tuple(tensor for tensor in whole.tensors if tensor.name != lost))
    assert total_compute(partial, Settings(context=4096, gpu_layers=99)) > 0


def test_experts_without_a_count_of_used_ones_are_bounded() -> None:
    model = qwen3moe_like()
    unused = replace(model, hparams={**model.hparams, "expert_used_count": 0})
    assert total_compute(unused, Settings(context=4096, gpu_layers=99)) > 0


@pytest.mark.parametrize(
    ("name", "recurrent", "state"),
    [
        # conv_kernel 4, inner 8,192, state 128, 1 group; llama.cpp: 3 × (inner + 2 × 128) and 128 × inner
        ("granite-4.0-h-small-q4_k_m", 36, 3 * 8448 + 128 * 8192),
        # inner 4,096, 16 groups
        ("qwen3.5-35b-a3b-q4_k_m", 30, 3 * 8192 + 128 * 4096),
    ],
)
def test_recurrent_layers_keep_a_state_and_no_cells(name: str, recurrent: int, state: int) -> None:
    layers = cache_layers(spec(name), kv_type("f16"), kv_type("f16"))
    states = [sum(layer.states) for layer in layers if layer.states]
    assert states == [state] * recurrent
    assert not any(layer.rows for layer in layers if layer.states)
    assert len(layers) == 40


def test_a_model_without_any_attention() -> None:
    """Mamba: no heads, no cells; the state does not grow with the context."""
    f16, f32 = by_name("f16"), by_name("f32")
    keys = {
        "block_count": 2,
        "context_length": 1 << 20,
        "embedding_length": 64,
        "attention.head_count": 0,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 128,
        "ssm.state_size": 16,
    }
    tensors = [Tensor("token_embd.weight", f16, (64, 4096)), Tensor("output_norm.weight", f32, (64,))]
    for il in range(2):
        tensors += [
            Tensor(f"blk.{il}.attn_norm.weight", f32, (64,)),
            Tensor(f"blk.{il}.ssm_in.weight", f16, (64, 256)),
            Tensor(f"blk.{il}.ssm_out.weight", f16, (128, 64)),
        ]
    mamba = replace(llama_like(), architecture="mamba", hparams=keys, tensors=tuple(tensors))
    assert bytes_per_token(mamba) == 0
    sizes = [
        buffers(ModelTable(mamba), Settings(context=context, gpu_layers=99), [CARD]).devices[0].context_bytes
        for context in (4096, 1 << 20)
    ]
    assert sizes == [2 * 4 * (3 * 128 + 16 * 128)] * 2
