"""llama.cpp loads the header of a model that is only known from the catalog, with all its tensors and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plan_llama.models import catalog_models
from plan_llama.models.catalog_models import KnownModel
from plan_llama.models.writer import write_header
from tests.engine import processes

pytestmark = pytest.mark.engine

UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}
ASKED = """
    glm-5 glm-5.1 glm-5.2 glm-5.3 glm-5.3-flash glm-4.5v glm-4.6v glm-4.1v-9b-thinking glm-4.7 glm-4.5-air
    gemma-3-27b gemma-4-e4b gemma-4-31b gemma-3n-e4b qwen2.5-vl-72b kimi-vl-a3b kimi-k2 kimi-k2.5 kimi-k3
    kimi-linear-48b-a3b deepseek-v3 deepseek-v3.2 deepseek-v4-flash deepseek-v4-pro llama-3.1-405b llama-3.1-70b
    llama-4-scout mistral-small-4 devstral-2-123b ministral-3-14b qwen3.6-27b qwen3.8-27b qwen3.8-2.4t-a95b
    qwen3.8-flash-next qwen3-next-80b-a3b minimax-m2.1 minimax-m3 step-3.5-flash nemotron-3-ultra-550b-a55b
    gpt-oss-120b granite-4.0-h-small command-a ernie-4.5-300b-a47b seed-oss-36b olmo-3-32b phi-4
"""


def chosen() -> list[str]:
    """The smallest model of every architecture, and those that are asked for most."""
    smallest: dict[str, KnownModel] = {}
    for known in catalog_models.list_models():
        other = smallest.setdefault(known.architecture, known)
        if known.parameters and other.parameters and known.parameters.expected < other.parameters.expected:
            smallest[known.architecture] = known
    return sorted({known.id for known in smallest.values()} | set(ASKED.split()))


def test_models_of_many_architectures() -> None:
    models = chosen()
    assert len(models) >= 75
    known = {model.architecture for model in catalog_models.list_models()}
    assert {catalog_models.model(model).architecture for model in models} == known
    assert len(known) >= 50


@pytest.mark.parametrize("model", chosen())
def test_a_catalog_model_loads(model: str, engine_bin: Path, tmp_path: Path) -> None:
    known = catalog_models.model(model)
    item = min((quant for quant in known.quants if quant.plannable), key=lambda quant: quant.size_bytes)
    spec = catalog_models.build(known, item)
    path = tmp_path / "model.gguf"
    write_header(spec, path)
    argv: list[str | Path] = [engine_bin / "llama-fit-params", "-m", path]
    done = processes.finished(
        [*argv, *["-fitp", "on", "-ngl", "0", "-nr", "-c", "4096", "-lv", "5"]],
        env=processes.engine_env(engine_bin),
        timeout_s=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stdout + done.stderr
    loaded = re.search(r"key-value pairs and ([0-9]+) tensors", log)
    counted = re.search(r"model params += ([0-9.]+) ([MBT])", log)
    assert loaded is not None
    assert counted is not None
    assert int(loaded[1]) == len(spec.tensors)
    unit = UNITS[counted[2]]
    assert abs(spec.parameters - float(counted[1]) * unit) <= 0.0051 * unit  # two decimals are printed
    unused = re.findall(r"unused tensor blk\.([0-9]+)\.|unused tensor (\S+)", log)
    assert all(block and int(block) >= spec.layers for block, _ in unused), unused  # blocks for drafting only
