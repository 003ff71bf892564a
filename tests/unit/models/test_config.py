"""From a published config.json to the tensors of its GGUF: parameter counts as published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.errors import ModelError
from plan_llama.models.config import from_config, read_config
from plan_llama.models.config_folder import spec_of
from plan_llama.models.resolve import resolve_model
from plan_llama.models.tables import tensors

DATA = Path(__file__).parents[2] / "data" / "model_configs" / "configs.json"
CONFIGS: dict[str, dict[str, Any]] = json.loads(DATA.read_text())


@pytest.mark.parametrize("name", sorted(name for name in CONFIGS if "parameters" in CONFIGS[name]))
def test_a_config_has_the_published_parameters(name: str) -> None:
    known = CONFIGS[name]
    architecture, hparams, vocab = from_config(known["config"], name)
    shapes = tensors(architecture, hparams, vocab)
    assert shapes is not None
    ours = sum(math.prod(shape) for _, shape in shapes)
    assert ours - known["parameters"] == known.get("ours_minus_published", 0)


# Keys and values of headers that the converter of b11434 wrote.
def test_keys_are_those_of_the_converter() -> None:
    architecture, hparams, vocab = from_config(CONFIGS["zai-org/GLM-4.5"]["config"], "glm-4.5")
    assert (architecture, vocab) == ("glm4moe", 151552)
    wanted = {
        "block_count": 93,
        "nextn_predict_layers": 1,
        "embedding_length": 5120,
        "attention.head_count": 96,
        "attention.head_count_kv": 8,
        "attention.key_length": 128,
        "rope.dimension_count": 64,
        "expert_count": 160,
        "expert_used_count": 8,
        "expert_feed_forward_length": 1536,
        "leading_dense_block_count": 3,
        "expert_gating_func": 2,
    }
    assert {key: hparams.get(key) for key in wanted} == wanted


def test_a_text_part_is_taken_from_a_multimodal_config() -> None:
    config = CONFIGS["meta-llama/Llama-4-Maverick-17B-128E-Instruct"]["config"]
    architecture, hparams, _ = from_config(config, "maverick")
    assert architecture == "llama4"
    assert hparams["interleave_moe_layer_step"] == 2
    assert (hparams["feed_forward_length"], hparams["expert_feed_forward_length"]) == (16384, 8192)


def test_rope_scaling_is_kept() -> None:
    _, phi, _ = from_config(CONFIGS["microsoft/Phi-4-mini-instruct"]["config"], "phi-4-mini")
    assert phi["rope.dimension_count"] == 96  # three quarters of a head of 128
    assert phi["rope.scaling.original_context_length"] == 4096
    _, oss, _ = from_config(CONFIGS["openai/gpt-oss-20b"]["config"], "gpt-oss-20b")
    assert oss["rope.scaling.type"] == "yarn"
    assert oss["rope.scaling.factor"] == 32.0
    assert oss["rope.scaling.original_context_length"] == 4096


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"architectures": None}, "none named"),
        ({"architectures": "LlamaForCausalLM"}, "none named"),
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        ({"num_hidden_layers": 10_000}, "layers"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"vocab_size": None}, "vocab_size"),
        ({"rope_theta": []}, "rope_theta"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_config({**LLAMA, **change}, "its/config.json")
    line = caught.value.line()
    assert "its/config.json" in line
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff", "[" * 100_000])
def test_a_file_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ModelError):
        read_config(path)


def test_a_folder_is_planned_as_the_file_that_would_be_made(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3 Coder"
    folder.mkdir()
    config = CONFIGS["Qwen/Qwen3-Coder-480B-A35B-Instruct"]["config"]
    (folder / "config.json").write_text(json.dumps(config))
    plain = resolve_model(str(folder))
    assert (plain.quant, plain.architecture, plain.source) == ("BF16", "qwen3moe", "modelled")
    assert plain.parameters == 480154875392
    assert not plain.present
    assert plain.made_with == (
        "convert_hf_to_gguf.py",
        "--outtype",
        "bf16",
        "--outfile",
        str(folder / "Qwen3 Coder-BF16.gguf"),
        str(folder),
    )
    small = resolve_model(str(folder), "q4_k_m")
    assert small.quant == "Q4_K_M"
    assert small.path == str(folder / "Qwen3 Coder-Q4_K_M.gguf")
    assert small.made_with[0] == "llama-quantize"
    # 4.5 to 5 bits per weight is what llama-quantize prints for this mix of a model of experts.
    assert 4.5 < small.file_bytes * 8 / small.parameters < 5.0
    with pytest.raises(ModelError, match="Q9_X"):
        resolve_model(str(folder), "Q9_X")


def test_a_half_precision_config_is_converted_to_f16(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "torch_dtype": "float16"}))
    assert resolve_model(str(tmp_path)).quant == "F16"


# What stands in a damaged or foreign config where a number, a list or an object belongs.
ODD: tuple[Any, ...] = (
    *(None, 0, -1, 3, 1 << 33, 1 << 70, 1.5, math.nan, math.inf, 1e308, True, "x", "sigmoid"),
    *([], [1], ["a"] * 600, [None] * 600, [0] * 600, [[1]], {}, {"a": 1}),
    *({"full_attention": 3, "sliding_attention": []}, {"rope_type": "yarn", "factor": "x"}),
)


@pytest.mark.parametrize("widths", [["a"] * 35, [[1]] * 35, [None] * 35, [1.5] * 35])
def test_widths_by_layer_that_are_no_numbers(widths: list[Any]) -> None:
    config = {**CONFIGS["google/gemma-3n-E4B-it"]["config"]}
    config["text_config"] = {**config["text_config"], "intermediate_size": widths}
    with pytest.raises(ModelError, match="w: 'intermediate_size' must be a whole number"):
        spec_of(config, "m", None, where="w", folder=Path("m"))


@pytest.mark.slow
@settings(max_examples=150, deadline=1000)
@given(data=st.data(), name=st.sampled_from(sorted(CONFIGS)))
def test_a_mutated_config_is_planned_or_refused_in_one_line(data: st.DataObject, name: str) -> None:
    config = json.loads(json.dumps(CONFIGS[name]["config"]))
    part = config.get("text_config", config)
    key = data.draw(st.sampled_from(sorted(part)))
    value = data.draw(st.sampled_from(ODD))
    if isinstance(part[key], dict) and data.draw(st.booleans()):
        part[key][data.draw(st.sampled_from(sorted(part[key])))] = value
    else:
        part[key] = value
    said = "w: "
    try:
        spec = spec_of(config, "m", data.draw(st.sampled_from((None, "Q4_K_M"))), where="w", folder=Path("m"))
    except ModelError as error:
        said = error.line()
    else:
        assert 0 < spec.layers <= 512
        assert all(size > 0 for tensor in spec.tensors for size in tensor.shape)
    assert said.startswith("w: ")
    assert "\n" not in said
