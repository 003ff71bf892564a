"""Shapes that no tiny model of the engine and no catalog model has, as headers: predicted and reserved alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.catalog_models import resolve
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.models.writer import write_header
from tests.engine.conftest import GpuSimulation, MembytesRunner
from tests.engine.measure import Sums, places

pytestmark = pytest.mark.engine

CARD_MIB, USED_MIB = 24576, 512
STAND_IN = BackendKind(alignment=32, cuda_sizes=True)  # how the simulated card sizes and aligns
LATENT = 512


def older_deepseek() -> ModelSpec:
    """DeepSeek-V2-Lite as it was converted before K and V projections were absorbed: attn_kv_b, plain caches."""
    lite = resolve("deepseek-v2-lite")
    heads = lite.int_param("attention.head_count")
    hparams = dict(lite.hparams)
    key, value = hparams.pop("attention.key_length_mla"), hparams.pop("attention.value_length_mla")
    hparams |= {
        "attention.key_length": key,
        "attention.value_length": value,
        "attention.head_count_kv": heads,
    }
    rows = heads * (key - lite.int_param("rope.dimension_count") + value)
    tensors = tuple(
        Tensor(tensor.name.replace("attn_k_b", "attn_kv_b"), by_name("q4_K"), (LATENT, rows))
        if "attn_k_b" in tensor.name
        else tensor
        for tensor in lite.tensors
        if "attn_v_b" not in tensor.name
    )
    return replace(lite, hparams=hparams, tensors=tensors)


def plm() -> ModelSpec:
    """PLM-1.8B with four layers (hparams of its config.json): attention as above, a plain feed-forward."""
    width, heads, inner = 2048, 16, 8192
    made = {
        "attn_norm": (width,),
        "attn_q": (width, heads * 192),
        "attn_kv_a_mqa": (width, LATENT + 64),
        "attn_kv_a_norm": (LATENT,),
        "attn_kv_b": (LATENT, heads * 256),
        "attn_output": (heads * 128, width),
        "ffn_norm": (width,),
        "ffn_up": (width, inner),
        "ffn_down": (inner, width),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, 151936),
        "output_norm.weight": (width,),
    }
    for il in range(4):
        shapes |= {f"blk.{il}.{name}.weight": shape for name, shape in made.items()}
    tensors = tuple(
        Tensor(name, by_name("q4_K" if len(shape) > 1 else "f32"), shape) for name, shape in shapes.items()
    )
    hparams = {
        "block_count": 4,
        "context_length": 4096,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.key_length": 192,
        "attention.value_length": 128,
        "attention.kv_lora_rank": LATENT,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": 64,
        "rope.freq_base": 10000.0,
    }
    return replace(
        older_deepseek(), name="plm", architecture="plm", hparams=hparams, tensors=tensors, vocab_size=151936
    )


CASES = {
    ("-ngl", "99", "-c", "8192", "-np", "2", "-fa", "off"): Settings(
        program="llama-fit-params",
        context=8192,
        parallel=2,
        gpu_layers=99,
        flash_attn=False,
        repack=False,
    ),
    ("-ngl", "2", "-c", "4096", "-np", "1", "-ub", "256", "-fa", "off", "-nkvo"): Settings(
        program="llama-fit-params",
        context=4096,
        ubatch=256,
        gpu_layers=2,
        flash_attn=False,
        kv_offload=False,
        repack=False,
    ),
}


@pytest.mark.parametrize("make", [older_deepseek, plm])
def test_a_made_header_is_met(
    make: Callable[[], ModelSpec], sim_gpus: GpuSimulation, membytes: MembytesRunner, tmp_path: Path
) -> None:
    spec = make()
    path = tmp_path / "made.gguf"
    write_header(spec, path)
    device = DeviceMemory(free_bytes=(CARD_MIB - USED_MIB) << 20, kind=STAND_IN)
    with sim_gpus([CARD_MIB], [USED_MIB]) as (env, rpc):
        for flags, chosen in CASES.items():
            real = places(membytes(["-m", path, *rpc, *flags, "-nr"], env))
            found = buffers(ModelTable(spec), chosen, [device])
            for place, said in (("GPU0", found.devices[0]), ("Host", found.host)):
                ours = Sums(
                    weights_bytes=said.weights_bytes,
                    context_bytes=said.context_bytes,
                    compute_bytes=said.compute_bytes,
                )
                assert ours == real[place], f"{spec.name} {flags} {place}"
