"""Which graph an architecture has. `GRAPHS` names those that were held against the real engine; for another one an
upper bound is used instead (rough.py), and said to be an assumption.
"""

from __future__ import annotations

from plan_llama.memory.decoder import Decoder
from plan_llama.memory.latent import GlmDsa, Latent


class Gemma3(Decoder):
    """Scaled embeddings and queries, norms behind both branches, windows (src/models/gemma3.cpp)."""

    post_norms = True
    scaled_embedding = True
    scaled_query = True

    def caps_logits(self) -> bool:
        """Where the header says how far."""
        return bool(self.spec.hparams.get("final_logit_softcapping"))


class GptOss(Decoder):
    """Attention sinks, windows, biased experts (src/models/openai-moe.cpp)."""

    default_gating = 3
    default_normalise = False
    late_rows = True


# Held against the real engine, tensor for tensor of their smallest models (tests/engine/test_archs.py).
_PLAIN = (
    "arcee",
    "bailingmoe",
    "bailingmoe2",
    "chatglm",
    "codeshell",
    "cohere2",
    "dbrx",
    "deci",
    "deepseek",
    "dots1",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone",
    "exaone-moe",
    "falcon",
    "gemma",
    "gemma2",
    "glm4",
    "glm4moe",
    "gptneox",
    "granite",
    "granitemoe",
    "grovemoe",
    "hunyuan-moe",
    "hy_v3",
    "internlm2",
    "jais2",
    "llama",
    "minicpm",
    "minimax-m2",
    "mistral3",
    "nanbeige",
    "nemotron",
    "olmo",
    "olmoe",
    "openelm",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "xverse",
)

GRAPHS: dict[str, type[Decoder]] = {
    **dict.fromkeys(_PLAIN, Decoder),
    "deepseek2": Latent,
    "gemma3": Gemma3,
    "glm-dsa": GlmDsa,
    "gpt-oss": GptOss,
}
