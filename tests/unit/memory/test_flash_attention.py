"""Which models' attention CUDA has a kernel for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.memory.flash_attention import cuda_refuses
from tests.conformance_cases import spec
from tests.small_models import llama_like

# Heads that ggml-cuda/fattn.cu (b11434) has: of 128 or 64; 256 and 512 (gemma 4); latent rows of 576 (GLM-5.1, Kimi K3)
# and 320 with 32 query heads (Mistral Small 4); 192 in K and 128 in V, 16 and 8 query heads each (MiMo V2).
KNOWN = (
    "qwen3-30b-a3b-q4_k_m",
    "gpt-oss-20b-mxfp4",
    "gemma-3-27b-q4_0",
    "glm-5.1-ud-iq2",
    "mistral-small-4-119b-2603-q4_k_m",
    "mimo-v2-flash-q4_k_m",
)


@pytest.mark.parametrize("name", KNOWN)
def test_it_has_the_heads_of_common_models(name: str) -> None:
    model = spec("real", name)
    assert not cuda_refuses(model, "f16", "f16")
    assert not cuda_refuses(model, "q8_0", "q8_0")
    assert cuda_refuses(model, "iq4_nl", "iq4_nl")  # ggml_cuda_fattn_kv_type_supported


@pytest.mark.parametrize(
    ("k", "v", "heads", "heads_kv", "refused"),
    [
        (128, 128, 32, 8, False),
        (96, 64, 40, 40, True),  # MiniCPM3 without its latent rows
        (100, 100, 32, 8, True),
        (192, 128, 16, 16, True),  # DeepSeek V2 in files of before the latent rows
        (192, 128, 64, 8, False),
        (512, 512, 8, 8, True),
        (512, 512, 8, 1, False),
        (320, 256, 16, 1, True),
        (320, 256, 32, 1, False),
    ],
)
def test_other_heads_have_conditions(k: int, v: int, heads: int, heads_kv: int, refused: bool) -> None:
    model = llama_like(layers=2, width=1024)
    keys = {"head_count": heads, "head_count_kv": heads_kv, "key_length": k, "value_length": v}
    shaped = replace(model, hparams={**model.hparams, **{f"attention.{key}": n for key, n in keys.items()}})
    assert cuda_refuses(shaped, "f16", "f16") == refused
