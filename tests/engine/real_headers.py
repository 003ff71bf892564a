"""Headers of real size: the nine that were captured, models of the catalog, published configurations, made ones.

The quants are those that llama-quantize makes (quant_mix); a mixture of types, so that paddings differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from plan_llama.models import catalog_models
from plan_llama.models.config_folder import spec_of
from plan_llama.models.types import ModelSpec
from plan_llama.models.unpublished import of_known
from tests.engine.made_models import made
from tests.gguf_builder import oracle_index
from tests.oracle_cases import spec as captured

_CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"

CATALOG = {
    "command-a": "Q4_K_M",
    "command-r-35b": "Q4_K_M",
    "deepseek-v2-lite": "Q8_0",
    "kimi-k2": "Q2_K",
    "glm-4.7-flash": "Q6_K",
    "ernie-4.5-21b-a3b": "Q4_K_M",
    "gemma-2-27b": "Q4_K_M",
    "gemma-4-26b-a4b": "Q4_K_M",
    "gemma-4-31b": "Q5_K_M",
    "glm-4-32b": "Q4_K_M",
    "gpt-oss-120b": "F16",
    "granite-4.0-h-tiny": "Q8_0",
    "hunyuan-a13b": "Q4_K_M",
    "llama-4-scout": "Q4_K_M",
    "llama-3.2-1b": "Q4_0",
    "mimo-v2-flash": "Q4_K_M",
    "minimax-m2": "Q4_K_M",
    "minimax-m3": "Q3_K_M",
    "mixtral-8x7b": "Q4_K_M",
    "nemotron-3-nano-30b-a3b": "Q4_K_M",
    "nemotron-3-super-120b-a12b": "Q4_K_M",
    "olmo-3-32b": "Q4_K_M",
    "olmoe-1b-7b": "BF16",
    "phi-4": "Q4_K_M",
    "qwen2.5-72b": "Q4_K_M",
    "qwen3-next-80b-a3b": "Q4_K_M",
    "qwen3.5-27b": "Q4_K_M",
    "qwen3-vl-30b-a3b": "IQ4_XS",
    "seed-oss-36b": "Q4_K_M",
    "smollm3-3b": "Q6_K",
}
CONFIGS = {
    "LGAI-EXAONE/EXAONE-4.0-32B": "Q4_K_M",
    "LGAI-EXAONE/K-EXAONE-236B-A23B": "Q4_K_M",
    "Qwen/Qwen1.5-MoE-A2.7B": "Q5_K_M",
    "google/gemma-3n-E4B-it": "Q8_0",
    "google/gemma-4-E2B-it": "Q4_0",
    "inclusionAI/Ling-flash-2.0": "Q4_K_M",
    "microsoft/Phi-3-mini-4k-instruct": "Q4_K_M",
    "microsoft/Phi-3.5-MoE-instruct": "Q4_K_M",
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": "Q4_K_M",
    "rednote-hilab/dots.llm1.inst": "Q4_K_M",
    "tencent/Hunyuan-7B-Instruct": "Q8_0",
    "LiquidAI/LFM2-1.2B": "Q4_0",
    "LiquidAI/LFM2-8B-A1B": "Q4_K_M",
    "ai21labs/AI21-Jamba-Mini-1.6": "Q4_K_M",
    "deepseek-ai/DeepSeek-V3.2": "Q4_K_M",
    "deepseek-ai/DeepSeek-V4-Flash": "BF16",
    "ibm-granite/granite-4.0-micro": "Q8_0",
    "mistralai/Mistral-Small-4-119B-2603": "Q4_K_M",
    "moonshotai/Kimi-K3": "BF16",
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": "Q4_K_M",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": "Q4_K_M",
    "state-spaces/mamba-130m-hf": "F16",
    "stepfun-ai/Step-3.5-Flash": "Q4_K_M",
    "tiiuae/Falcon-H1-0.5B-Instruct": "Q8_0",
    "zai-org/GLM-5.3-Flash": "Q4_K_M",
    "baidu/ERNIE-4.5-0.3B-PT": "Q8_0",
}


def headers() -> Iterator[tuple[str, ModelSpec]]:
    """Every header by the name that its measurements are stored under."""
    for name in sorted(oracle_index()):
        yield name, captured(name)
    for model, quant in CATALOG.items():
        yield f"{model}-{quant.lower()}", of_known(catalog_models.model(model), quant)
    for file in ("configs.json", "hybrid.json"):
        published = json.loads((_CONFIGS / file).read_text(encoding="utf-8"))
        for repository, quant in CONFIGS.items():
            if repository in published:
                model = repository.partition("/")[2].lower().removesuffix("-instruct")
                found = spec_of(
                    published[repository]["config"], model, quant, where=repository, folder=Path()
                )
                yield f"{model}-{quant.lower()}", found
    yield from made()
