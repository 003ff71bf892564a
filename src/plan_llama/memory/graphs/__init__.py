"""Which graph an architecture has: a module of this package and its class, by the name in the header.

Every entry is held against the real engine (tests/engine/test_archs.py). For an architecture that is not listed an
upper bound is used instead (memory/rough.py), and said. A module is imported when its graph is built.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plan_llama.memory.graphs.decoder import Decoder

GRAPHS: dict[str, str] = {
    "arcee": "decoder.Decoder",
    "arctic": "classic.Arctic",
    "baichuan": "classic.Baichuan",
    "bailingmoe": "decoder.Decoder",
    "bailingmoe2": "decoder.Decoder",
    "bitnet": "classic.Bitnet",
    "bloom": "classic.Bloom",
    "chameleon": "classic.Chameleon",
    "chatglm": "decoder.Decoder",
    "codeshell": "classic.LayerNorm",
    "cogvlm": "classic.Cogvlm",
    "cohere2": "classic.Cohere2",
    "dbrx": "classic.LayerNorm",
    "deci": "decoder.Decoder",
    "deepseek": "decoder.Decoder",
    "deepseek2": "latent.Latent",
    "deepseek2-ocr": "latent.DeepseekOcr",
    "deepseek32": "latent.GlmDsa",
    "dots1": "decoder.Decoder",
    "ernie4_5": "decoder.Decoder",
    "ernie4_5-moe": "decoder.Decoder",
    "exaone": "decoder.Decoder",
    "exaone-moe": "decoder.Decoder",
    "falcon": "decoder.Decoder",
    "falcon-h1": "mamba.FalconH1",
    "exaone-moe": "decoder.WindowRotation",
    "falcon": "classic.Falcon",
    "gemma": "decoder.Decoder",
    "gemma2": "decoder.Decoder",
    "gemma3": "gemma.Gemma3",
    "glm-dsa": "latent.GlmDsa",
    "glm4": "decoder.Decoder",
    "glm4moe": "decoder.Decoder",
    "gpt-oss": "decoder.GptOss",
    "gpt2": "classic.Learned",
    "gptneox": "classic.GptNeox",
    "granite": "decoder.Decoder",
    "granitehybrid": "mamba.GraniteHybrid",
    "granitemoe": "decoder.Decoder",
    "grovemoe": "decoder.Decoder",
    "hunyuan-moe": "decoder.Decoder",
    "hy_v3": "decoder.HyV3",
    "internlm2": "decoder.Decoder",
    "jais": "classic.Biased",
    "jais2": "decoder.Decoder",
    "jamba": "mamba.Jamba",
    "jais2": "classic.LayerNorm",
    "llama": "decoder.Decoder",
    "maincoder": "classic.Maincoder",
    "mamba": "mamba.Mamba",
    "mamba2": "mamba.Mamba2",
    "minicpm": "decoder.Decoder",
    "minicpm3": "latent.MiniCpm3",
    "minimax-m2": "decoder.RowNorms",
    "mistral3": "decoder.Decoder",
    "mistral4": "latent.Latent",
    "mpt": "classic.Mpt",
    "nanbeige": "decoder.Decoder",
    "nemotron": "decoder.Decoder",
    "nemotron_h": "mamba.NemotronH",
    "nemotron_h_moe": "mamba.NemotronH",
    "olmo": "decoder.Decoder",
    "olmoe": "decoder.Decoder",
    "openelm": "decoder.Decoder",
    "orion": "decoder.Decoder",
    "nemotron": "classic.LayerNorm",
    "olmo": "classic.LayerNorm",
    "olmoe": "decoder.RowNorms",
    "openelm": "classic.OpenElm",
    "orion": "classic.LayerNorm",
    "paddleocr": "decoder.Decoder",
    "pangu-embedded": "decoder.Decoder",
    "plm": "latent.Expanded",
    "phi2": "classic.Phi2",
    "plamo": "classic.Plamo",
    "qwen": "decoder.Decoder",
    "qwen2": "decoder.Decoder",
    "qwen2moe": "decoder.Decoder",
    "qwen2vl": "decoder.Decoder",
    "qwen3": "decoder.Decoder",
    "qwen35": "delta_net.DeltaNet",
    "qwen35moe": "delta_net.DeltaNet",
    "qwen3moe": "decoder.Decoder",
    "qwen3next": "delta_net.Qwen3Next",
    "qwen3vl": "decoder.Decoder",
    "qwen3vlmoe": "decoder.Decoder",
    "refact": "classic.Refact",
    "seed_oss": "decoder.Decoder",
    "smollm3": "decoder.Decoder",
    "stablelm": "classic.StableLm",
    "starcoder": "classic.Learned",
    "starcoder2": "classic.LayerNorm",
    "talkie": "classic.Talkie",
    "xverse": "decoder.Decoder",
}


def graph_of(architecture: str) -> type[Decoder]:
    """The graph class of a described architecture. Raises KeyError for another one."""
    module, name = GRAPHS[architecture].split(".")
    found: type[Decoder] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
