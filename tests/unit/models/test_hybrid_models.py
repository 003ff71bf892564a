"""Latent attention, hybrid, recurrent and sparse models: from their configs to the parameters that are published."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from plan_llama.errors import ModelError, ProfileError
from plan_llama.models.config import from_config
from plan_llama.models.spec import load
from plan_llama.models.tables import TRAIT, tensors
from tests import gguf_builder as build
from tests.slow import slow_but

DATA = Path(__file__).parents[2] / "data" / "model_configs" / "hybrid.json"
MODELS: dict[str, dict[str, Any]] = json.loads(DATA.read_text())


def counts(name: str) -> tuple[int, int, float]:
    """Parameters in all, without the blocks for drafting, and of those the ones that a token runs through."""
    architecture, h, vocab = from_config(MODELS[name]["config"], name)
    shapes = tensors(architecture, h, vocab)
    assert shapes is not None
    first_draft = h["block_count"] - h.get("nextn_predict_layers", 0)
    share = h.get("expert_used_count", 0) / max(1, h.get("expert_count", 0))
    everything, trunk, active = 0, 0, 0.0
    for tensor, shape in shapes:
        size = math.prod(shape)
        everything += size
        if tensor.startswith("blk.") and int(tensor.split(".")[1]) >= first_draft:
            continue
        trunk += size
        if tensor != "token_embd.weight":
            active += size * share if "_exps" in tensor else size
    return everything, trunk, active


def agrees(ours: float, stated: str) -> bool:
    """Within half a per cent of a rounded number such as "1.6T", or within its rounding."""
    number, unit = Decimal(stated[:-1]), {"B": 10**9, "T": 10**12}[stated[-1]]
    half_of_last_digit = Decimal(5).scaleb(int(number.as_tuple().exponent) - 1)
    slack = max(half_of_last_digit, number / 200)
    return abs(Decimal(ours) / unit - number) <= slack


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_config_has_the_published_parameters(name: str) -> None:
    known = MODELS[name]
    everything, trunk, active = counts(name)
    checked = 0
    if "parameters" in known:
        assert everything - known["parameters"] == known.get("ours_minus_published", 0)
        checked += 1
    if "trunk" in known:
        assert trunk == known["trunk"]
        checked += 1
    for ours, key in ((trunk, "about"), (everything, "about_with_drafts"), (active, "active")):
        if key in known:
            assert agrees(ours, known[key]), f"{key}: {ours:,} against {known[key]}"
            checked += 1
    assert checked, "nothing published to hold it against"


# What the captured header's hyperparameters do not say.
CAPTURED: dict[str, tuple[str, ...]] = {
    "deepseek-v3.1-iq2_xxs": (),
    "qwen3.5-35b-a3b-q4_k_m": (),
    "granite-4.0-h-small-q4_k_m": ("tied",),
    "glm-5.1-ud-iq2": (),
}


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_the_table_is_that_of_the_captured_header(name: str, tmp_path: Path) -> None:
    real = load(build.oracle_file(name, tmp_path))
    traits = {TRAIT + trait: True for trait in CAPTURED[name]}
    found = tensors(real.architecture, {**real.hparams, **traits}, real.vocab_size)
    assert found == tuple((tensor.name, tensor.shape) for tensor in real.tensors)


CONFIG_OF = {
    "deepseek-v3.1-iq2_xxs": "deepseek-ai/DeepSeek-R1",  # the same shapes
    "granite-4.0-h-small-q4_k_m": "ibm-granite/granite-4.0-h-small",
    "glm-5.1-ud-iq2": "zai-org/GLM-5.1",
}
# The converter states 2^20 for models without positions; the captured file has what the model was trained for.
OTHERWISE = {"granite-4.0-h-small-q4_k_m": {"context_length"}}


@pytest.mark.parametrize("name", sorted(CONFIG_OF))
def test_a_config_gives_the_hyperparameters_of_a_captured_header(name: str, tmp_path: Path) -> None:
    real = load(build.oracle_file(name, tmp_path))
    model = CONFIG_OF[name]
    architecture, h, vocab = from_config(MODELS[model]["config"], model)
    assert (architecture, vocab) == (real.architecture, real.vocab_size)
    for key in real.hparams.keys() - OTHERWISE.get(name, set()):
        if isinstance(real.hparams[key], float):
            assert h[key] == pytest.approx(real.hparams[key]), key
        else:
            assert h[key] == real.hparams[key], key


def test_shared_indexers_have_no_weights() -> None:
    """GLM-5.2: three layers select for themselves, then every fourth; so does the block for drafting."""
    architecture, h, vocab = from_config(MODELS["zai-org/GLM-5.2"]["config"], "glm-5.2")
    shapes = tensors(architecture, h, vocab) or ()
    own = [int(name.split(".")[1]) for name, _ in shapes if name.endswith(".indexer.proj.weight")]
    assert own == [0, 1, *range(2, 78, 4), 78]


def test_one_class_may_become_several_architectures() -> None:
    granite = MODELS["ibm-granite/granite-4.0-micro"]["config"]
    assert from_config(granite, "micro")[0] == "granite"
    hybrid = MODELS["ibm-granite/granite-4.0-h-micro"]["config"]
    assert from_config(hybrid, "h-micro")[0] == "granitehybrid"
    dense = MODELS["nvidia/Nemotron-H-56B-Base-8K"]["config"]
    assert from_config(dense, "nemotron")[0] == "nemotron_h"
    deepseek = MODELS["deepseek-ai/DeepSeek-V2-Lite"]["config"]
    small4 = {**deepseek, "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral4"}
    architecture, h, vocab = from_config(small4, "mistral")
    assert architecture == "mistral4"
    names = dict(tensors(architecture, h, vocab) or ())
    assert names["blk.1.ffn_gate_up_exps.weight"] == (2048, 2 * 1408, 64)
    assert "blk.1.ffn_up_exps.weight" not in names


KIMI = "moonshotai/Kimi-Linear-48B-A3B-Instruct"
NANO = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        (KIMI, {"linear_attn_config": None}, "linear_attn_config"),
        (KIMI, {"linear_attn_config": {"head_dim": 128}}, "full_attn_layers"),
        (NANO, {"hybrid_override_pattern": "MX*E"}, "hybrid_override_pattern"),
        (NANO, {"hybrid_override_pattern": "M" * 10_000}, "layers"),
        ("deepseek-ai/DeepSeek-V4-Flash", {"compress_ratios": [0]}, "compress_ratios"),
        ("XiaomiMiMo/MiMo-V2-Flash", {"moe_layer_freq": [0, 1]}, "moe_layer_freq"),
        ("stepfun-ai/Step-3.5-Flash", {"moe_layers_enum": "3,four"}, "moe_layers_enum"),
        ("LiquidAI/LFM2-1.2B", {"layer_types": None}, "layer_types"),
        ("zai-org/GLM-5.2", {"indexer_types": ["full"]}, "indexer_types"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(model: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_config({**MODELS[model]["config"], **change}, "its/config.json")
    line = caught.value.line()
    assert "its/config.json" in line
    assert said in line
    assert "\n" not in line


def test_a_compression_that_the_engine_does_not_know_has_no_table() -> None:
    config = MODELS["deepseek-ai/DeepSeek-V4-Flash"]["config"]
    architecture, h, vocab = from_config({**config, "compress_ratios": [7] * 44}, "v4")
    with pytest.raises(ProfileError, match="compression"):
        tensors(architecture, h, vocab)


def changed(config: Any, path: tuple[str, ...], value: object) -> Any:
    """The config with another value at a path."""
    head, *rest = path
    return {**config, head: changed(config[head], tuple(rest), value) if rest else value}


def paths(config: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The ways to every value of a config."""
    for key, value in config.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


@pytest.mark.parametrize("name", slow_but(sorted(MODELS)[::2], *sorted(MODELS)[::8]))
def test_any_wrong_value_ends_in_an_error_of_one_line_or_a_table(name: str) -> None:
    config = MODELS[name]["config"]
    lines = []
    for path in paths(config):
        for value in (0, None, "x", 1 << 31, [1, 2]):
            try:
                architecture, h, vocab = from_config(changed(config, path, value), "its/config.json")
                tensors(architecture, h, vocab)
            except (ModelError, ProfileError) as error:
                lines.append(error.line())
    assert lines
    assert not [line for line in lines if "\n" in line]
