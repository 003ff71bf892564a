"""Context checkpoints of llama-server: their size, and that a plan makes room for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.memory.caches import cache_layers, kv_type
from plan_llama.memory.context import checkpoint_bytes, reserved_batch
from plan_llama.memory.footprint import checkpoints_bytes
from plan_llama.memory.types import Settings
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.units import MIB
from tests.oracle_cases import table
from tests.small_models import llama_like


def delta_net(layers: int, every: int) -> ModelSpec:
    """Qwen3.6-27B's recurrent layers: 48 value heads and 16 key heads of 128, a kernel of 4; one layer in `every` has
    attention instead."""
    plain = llama_like(layers=layers)
    recurrent = [il for il in range(layers) if (il + 1) % every]
    tensors = [
        tensor
        for tensor in plain.tensors
        if not (tensor.name.startswith("blk.") and int(tensor.name.split(".")[1]) in recurrent)
    ]
    tensors += [Tensor(f"blk.{il}.ssm_conv1d.weight", by_name("f32"), (4, 10240)) for il in recurrent]
    keys = {"conv_kernel": 4, "inner_size": 6144, "state_size": 128, "group_count": 16, "time_step_rank": 48}
    return replace(
        plain,
        architecture="qwen35",
        tensors=tuple(tensors),
        hparams={**plain.hparams, **{f"ssm.{name}": value for name, value in keys.items()}},
    )


def one_checkpoint(model: ModelSpec) -> int:
    half = kv_type("f16")
    return checkpoint_bytes(cache_layers(model, half, half), reserved_batch(Settings(context=8192)))


def test_a_recurrent_state_has_the_size_that_the_server_logs() -> None:
    """A user's log of Qwen3.6-27B: "created context checkpoint 4 of 8 (..., size = 149.626 MiB)"; the last 0.001 is the
    checkpoint's own header (https://github.com/ggml-org/llama.cpp/pull/22929)."""
    assert one_checkpoint(delta_net(64, 4)) / MIB == pytest.approx(149.626, abs=0.0011)


def test_only_what_cannot_be_rolled_back_is_kept() -> None:
    assert one_checkpoint(llama_like()) == 0


def test_every_checkpoint_of_every_slot_counts() -> None:
    model = table("gemma-3-27b-q4_0")
    one = checkpoints_bytes(model, Settings(context=32768, ctx_checkpoints=1))
    assert one > 0
    assert checkpoints_bytes(model, Settings(context=32768, ctx_checkpoints=5)) == 5 * one
    several = Settings(context=131072, ctx_checkpoints=5, parallel=4)
    assert checkpoints_bytes(model, several) >= 4 * 5 * one
    assert checkpoints_bytes(model, replace(several, program="llama-cli")) == 0
