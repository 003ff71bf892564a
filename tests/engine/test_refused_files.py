"""Files that llama.cpp reads and then ends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.engines.refusals import refusals
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.models.writer import write_header
from tests.engine import processes

pytestmark = pytest.mark.engine


def joined(spec: ModelSpec) -> ModelSpec:
    """With K and V of the latent attention in one projection, as older conversions have them."""
    tensors: list[Tensor] = []
    by_name = {tensor.name: tensor for tensor in spec.tensors}
    for tensor in spec.tensors:
        if ".attn_v_b." in tensor.name:
            continue
        if ".attn_k_b." in tensor.name:
            key, latent, heads = (*tensor.shape, 1)[:3]
            value = by_name[tensor.name.replace("attn_k_b", "attn_v_b")].shape[1]
            name = tensor.name.replace("attn_k_b", "attn_kv_b")
            tensors.append(replace(tensor, name=name, shape=(latent, heads * (key + value))))
        else:
            tensors.append(tensor)
    return replace(spec, tensors=tuple(tensors))


@pytest.mark.parametrize("name", ["kimi-k3-moe", "kimi-linear-moe"])
def test_one_projection_for_k_and_v(
    name: str, engine_bin: Path, tiny_archs: dict[str, Path], tmp_path: Path
) -> None:
    spec = load(str(tiny_archs[name]))
    for made, ends in ((spec, False), (joined(spec), True)):
        path = tmp_path / f"{ends}.gguf"
        write_header(made, path)
        env = processes.engine_env(engine_bin, MEMBYTES_MODE="server")
        done = processes.finished([engine_bin / "membytes", "-m", path, "-c", "4096", "-nr"], env=env)
        assert (done.returncode < 0) is ends, done.stderr[-2000:]
        found = refusals(Settings(context=4096), table=ModelTable(made))
        assert [finding.id for finding in found] == (["projection-unsupported"] if ends else [])
