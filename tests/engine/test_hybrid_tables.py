"""Tables of latent, hybrid, recurrent and sparse models: against the engine's own models, and loaded by it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from plan_llama.memory.estimate import buffers
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.config_folder import spec_of
from plan_llama.models.spec import load
from plan_llama.models.tables import TRAIT, tensors
from plan_llama.models.writer import write_header
from tests.engine import processes

pytestmark = pytest.mark.engine
MIB = 1 << 20

# test-llama-archs gives a model every optional tensor that its loader knows, by its own hyperparameters: which of
# them are traits here, by file stem.
_BIAS = ("attention_bias",)
_BIASES = ("attention_bias", "attention_output_bias")
TINY: dict[str, tuple[str, ...]] = {
    "deepseek2-moe": ("fused_experts",),
    "deepseek32-moe": (),
    "deepseek4-moe": (),
    "falcon-h1-dense": (*_BIASES, "rope_freqs"),
    "glm-dsa-moe": (),
    "glm5-next-moe": (),
    "granite-dense": (*_BIASES, "rope_freqs"),
    "granite-moe": (*_BIASES, "rope_freqs"),
    "granitehybrid-dense": (*_BIASES, "rope_freqs"),
    "granitemoe-moe": (*_BIASES, "rope_freqs"),
    "jamba-dense": _BIAS,
    "kimi-k3-moe": (),
    "kimi-linear-moe": (),
    "lfm2-dense": _BIAS,
    "lfm2moe-moe": _BIAS,
    "mamba-dense": (),
    "mamba2-dense": (),
    "mimo2-moe": (*_BIAS, "sinks", "window_sinks"),
    "minimax-m3-moe": _BIAS,
    "mistral4-moe": ("fused_experts", "selection_bias"),
    "nemotron_h-dense": _BIASES,
    "nemotron_h_moe-dense": _BIASES,
    "qwen35-dense": (),
    "qwen35moe-moe": (),
    "qwen3next-moe": (),
    "qwen4exp-moe": (),
}
# Optional tensors of the loaders that no published model has: factors beside weights quantised elsewhere, biases
# of gated and linear attention and of dense networks, a classifier's head, other spellings of the same weights.
_NEVER = re.compile(
    r"\.(input_)?scale$|^cls\.output\.|\.ffn_(gate|up|down)\.bias$|\.exp_probs_b_vl\.bias$|\.ssm_in\.weight$"
)
_FLAT = re.compile(
    r"\.attn_output_a\.weight$|hc_(attn_|ffn_|head_)?norm\.weight$|\.ple_norm_|\.nextn\.hnorm\.weight$"
)
_NEVER_IN = {
    "glm5-next": re.compile(r"\.attn_[qkv]\.bias$"),
    "kimi-k3": re.compile(r"\.attn_[qkv]\.bias$"),
    "kimi-linear": re.compile(r"\.attn_[qkv]\.bias$"),
    "mimo2": re.compile(r"\.ffn_(gate|up|down)\.weight$"),  # beside experts in the same block
    "qwen35": re.compile(r"\.attn_[qkv]\.bias$"),
    "qwen35moe": re.compile(r"\.attn_[qkv]\.bias$"),
    "qwen3next": re.compile(r"\.attn_[qkv]\.bias$"),
    "qwen4exp": re.compile(r"\.attn_[qkv]\.bias$"),
}


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as a file has it: trailing dimensions of one are not written."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_table_is_that_of_the_engines_own_model(name: str, tiny_archs: dict[str, Path]) -> None:
    real = load(tiny_archs[name])
    hparams = {**real.hparams, **{TRAIT + trait: True for trait in TINY[name]}}
    for of_file in real.tensors:
        if of_file.name == "per_layer_token_embd.weight":
            hparams[TRAIT + "ngram_rows"] = of_file.shape[1]
    table = tensors(real.architecture, hparams, real.vocab_size)
    assert table is not None
    found = {named: trimmed(shape) for named, shape in table}
    wanted = {tensor.name: tensor.shape for tensor in real.tensors}
    # The loader of these takes the experts' gate and up as one tensor or as two; DeepSeek-V4's output projection
    # is written flat and read in groups, norms over parallel streams are written flat and read by stream.
    for name_ in [tensor for tensor in wanted if tensor not in found]:
        if name_.endswith("ffn_gate_up_exps.weight"):
            gate = found.pop(name_.replace("gate_up", "gate"))
            assert found.pop(name_.replace("gate_up", "up")) == gate
            found[name_] = (gate[0], 2 * gate[1], *gate[2:])
    never = _NEVER_IN.get(real.architecture)
    for tensor in list(wanted):
        if tensor in found and _FLAT.search(tensor):
            assert math.prod(wanted[tensor]) == math.prod(found[tensor])
            wanted[tensor] = found[tensor]
        elif tensor not in found and (_NEVER.search(tensor) or (never and never.search(tensor))):
            del wanted[tensor]
    assert found == wanted


MODELS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "model_configs" / "hybrid.json").read_text()
)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_engine_loads_the_header_of_a_config(name: str, engine_bin: Path, tmp_path: Path) -> None:
    """Names and shapes are those that the loader asks for, and it counts the same bytes of weights."""
    spec = spec_of(MODELS[name]["config"], name.partition("/")[2], where=name, folder=tmp_path)
    path = tmp_path / "model.gguf"
    write_header(spec, path)
    argv: list[str | Path] = [engine_bin / "llama-fit-params", "-m", path]
    done = processes.finished(
        [*argv, *["-fitp", "on", "-ngl", "0", "-nr", "-c", "512"]],
        env=processes.engine_env(engine_bin),
        timeout_s=60,
        address_space_bytes=processes.ADDRESS_SPACE_BYTES + path.stat().st_size,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    host, model_mib = done.stdout.split()[-4:-2]
    assert host == "Host"
    loaded = buffers(
        ModelTable(spec), Settings(context=512, gpu_layers=0, repack=False), []
    ).host.weights_bytes
    assert int(model_mib) == pytest.approx(loaded / MIB, abs=2)
