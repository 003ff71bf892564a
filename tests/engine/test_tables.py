"""Tensor tables against the engine: the models that it makes itself, and headers that it loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plan_llama.models.config_folder import spec_of
from plan_llama.models.spec import load
from plan_llama.models.tables import TRAIT, tensors
from plan_llama.models.writer import write_header
from tests.engine import processes

pytestmark = pytest.mark.engine
MIB = 1 << 20

# test-llama-archs gives a model every optional tensor that its loader knows, by its own hyperparameters. Which of
# them are traits here, by file stem; those of _NEVER are in no published model.
_BIAS = ("attention_bias",)
TINY: dict[str, tuple[str, ...]] = {
    "bailingmoe2-moe": (),
    "cohere2-dense": _BIAS,
    "command-r-dense": _BIAS,
    "deci-dense": (*_BIAS, "attention_output_bias", "ffn_bias", "rope_freqs"),
    "dots1-moe": (*_BIAS, "selection_bias"),
    "ernie4_5-moe": (*_BIAS, "attention_output_bias"),
    "ernie4_5-moe-moe": (*_BIAS, "attention_output_bias", "selection_bias"),
    "exaone4-dense": (*_BIAS, "rope_freqs"),
    "exaone-moe-moe": (*_BIAS, "rope_freqs"),
    "gemma-dense": _BIAS,
    "gemma2-dense": _BIAS,
    "gemma3-dense": _BIAS,
    "glm4-dense": _BIAS,
    "glm4moe-moe": (*_BIAS, "qk_norm"),
    "gpt-oss-moe": (),
    "hunyuan-dense-dense": _BIAS,
    "hunyuan-moe-moe": _BIAS,
    "hunyuan_vl-dense": _BIAS,
    "llama-dense": (*_BIAS, "attention_output_bias", "ffn_bias", "rope_freqs"),
    "llama-moe": (*_BIAS, "attention_output_bias", "rope_freqs"),
    "llama4-moe": (*_BIAS, "rope_freqs"),
    "minimax-m2-moe": _BIAS,
    "mistral3-dense": (*_BIAS, "attention_output_bias", "ffn_bias", "rope_freqs"),
    "mistral3-moe": (*_BIAS, "attention_output_bias", "rope_freqs"),
    "olmo2-dense": _BIAS,
    "olmoe-moe": _BIAS,
    "phi3-dense": (*_BIAS, "qkv_split", "rope_factors"),
    "phimoe-moe": ("rope_factors",),
    "qwen2-dense": (),
    "qwen2moe-moe": (),
    "qwen2vl-dense": (),
    "qwen3-dense": _BIAS,
    "qwen3moe-moe": _BIAS,
    "qwen3vl-dense": _BIAS,
    "qwen3vlmoe-moe": _BIAS,
    "seed_oss-dense": _BIAS,
    "smollm3-dense": _BIAS,
}
_NEVER = {
    "gemma3-dense": {"output.weight"},
    "qwen2-dense": {"output.bias"},
    "qwen2vl-dense": {"output.bias"},
    "qwen3-dense": {"cls.output.weight"},
    "qwen3vl-dense": {"cls.output.weight"},
}
# Factors beside quantised weights (NVFP4, FP8): no part of an architecture.
_SCALES = re.compile(r"\.(input_)?scale$")


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_table_is_that_of_the_engines_own_model(name: str, tiny_archs: dict[str, Path]) -> None:
    real = load(tiny_archs[name])
    hparams = {**real.hparams, **{TRAIT + trait: True for trait in TINY[name]}}
    found = tensors(real.architecture, hparams, real.vocab_size)
    assert found is not None
    wanted = {t.name: t.shape for t in real.tensors if not _SCALES.search(t.name)}
    for never in _NEVER.get(name, ()):
        del wanted[never]
    assert dict(found) == wanted


CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "model_configs" / "configs.json").read_text()
)


FLAGS = ("-ngl", "0", "-nr", "-c", "65536", "-np", "1", "-fa", "on")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_engine_loads_the_header_of_a_config(name: str, engine_bin: Path, tmp_path: Path) -> None:
    """Names and shapes are those that the loader asks for, and the memory is what `check` says of the file."""
    spec = spec_of(CONFIGS[name]["config"], name.partition("/")[2], where=name, folder=tmp_path)
    path = tmp_path / "model.gguf"
    write_header(spec, path)
    done = processes.finished(
        [engine_bin / "llama-fit-params", "-m", path, "-fitp", "on", *FLAGS],
        env=processes.engine_env(engine_bin),
        timeout_s=60,
        address_space_bytes=processes.ADDRESS_SPACE_BYTES + path.stat().st_size,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    host, model, context, compute = done.stdout.split()[-4:]
    assert host == "Host"
    loaded = sum(t.nbytes for t in spec.tensors if not t.name.startswith(drafts(spec.layers)))
    if spec.architecture in ("gemma3n", "gemma4"):  # the loader makes the tied output a second tensor
        loaded += sum(t.nbytes for t in spec.tensors if t.name == "token_embd.weight")
    assert int(model) == pytest.approx(loaded / MIB, abs=2)
    said = predicted(path)
    assert said["weights_bytes"] / MIB == pytest.approx(int(model), abs=2)
    assert said["context_bytes"] / MIB == pytest.approx(int(context), abs=2)
    assert said["compute_bytes"] / MIB > int(compute) - 2  # never too little; an upper bound for some graphs


def predicted(path: Path) -> dict[str, int]:
    """The host's memory that the installed program expects of llama-fit-params with FLAGS."""
    argv = [sys.executable, "-m", "plan_llama", "check", "--json", "--no-gpu", "--ram", "4096GiB"]
    argv += ["--engine-build", "b11434", "--", "llama-fit-params", "-m", str(path), *FLAGS]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    memory: dict[str, int] = json.loads(done.stdout)["memory"]["host"]
    return memory


def drafts(layers: int) -> tuple[str, ...]:
    """How the names of tensors begin that are not loaded: of blocks for next-token prediction."""
    return tuple(f"blk.{index}." for index in range(layers, layers + 4))
