"""Models of real shapes whose weights are random bits: as fast or slow as the published files, at no download.

The tensors and their types are those that convert_hf_to_gguf and llama-quantize give the model (quant_mix).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from plan_llama.models import catalog_models
from plan_llama.models.config_folder import spec_of
from plan_llama.models.types import ModelSpec
from plan_llama.models.unpublished import of_known
from plan_llama.models.writer import write_header
from tests.engine import random_weights
from tests.small_models import cut

# Published shapes that the catalog does not hold: config.json of google/gemma-3-1b-it and
# ibm-granite/granite-3.1-1b-a400m-instruct.
_CONFIGS: dict[str, dict[str, Any]] = {
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 256,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "vocab_size": 262144,
    },
    "granite-3.1-1b-a400m": {
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "hidden_size": 1024,
        "intermediate_size": 512,
        "logits_scaling": 6.0,
        "max_position_embeddings": 131072,
        "num_attention_heads": 16,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1500000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49155,
    },
}


def spec(name: str, mix: str) -> ModelSpec:
    """The model as a header: with the number of tokens, without a list of them, which no measurement reads.

    `NAME-4L` has the first four layers: enough to compare attention over a deep cache with the weights.
    """
    full, _, layers = name.rpartition("-")
    if layers.endswith("L") and layers[:-1].isdigit():
        return cut(spec(full, mix), int(layers[:-1]))
    if name in _CONFIGS:
        found = spec_of(_CONFIGS[name], name, mix, where=name, folder=Path())
    else:
        found = of_known(catalog_models.model(name), mix)
    return replace(found, vocab_size=0, hparams={**found.hparams, "vocab_size": found.vocab_size})


def model_file(name: str, mix: str, cache: Path) -> Path:
    """The GGUF of a model in a mix, made when `cache` does not hold it; a file of other tensors or weights goes."""
    made = spec(name, mix)
    text = repr([(t.name, t.type.name, t.shape) for t in made.tensors]) + repr(sorted(made.hparams.items()))
    maker = Path(random_weights.__file__).read_bytes()
    key = hashlib.sha256(maker + text.encode()).hexdigest()[:12]
    target = cache / f"{name}-{mix}-{key}.gguf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f"{name}-{mix}-*.gguf"):
            old.unlink(missing_ok=True)
        scratch = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            write_header(made, scratch, force=True)
            random_weights.fill(scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    return target
