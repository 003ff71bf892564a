"""llama.cpp loads the headers that plan-llama writes, and places them as it places the captured ones."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from plan_llama.models.catalog_models import resolve
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec
from plan_llama.models.writer import write_header
from tests import gguf_builder as build
from tests.engine import processes

pytestmark = pytest.mark.engine
MIB = 1 << 20


def host_mib(engine_bin: Path, path: Path) -> tuple[int, int, int]:
    """Model, context and compute MiB of the host, as llama-fit-params prints them for a run without a GPU."""
    argv: list[str | Path] = [engine_bin / "llama-fit-params", "-m", path]
    done = processes.finished(
        [*argv, *["-fitp", "on", "-ngl", "0", "-nr", "-c", "4096"]],
        env=processes.engine_env(engine_bin),
        timeout_s=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, model, context, compute = done.stdout.split()[-4:]
    assert name == "Host"
    return int(model), int(context), int(compute)


@pytest.mark.parametrize("name", sorted(build.oracle_index()))
def test_a_model_written_again_is_the_same_to_the_engine(name: str, engine_bin: Path, tmp_path: Path) -> None:
    captured = build.oracle_file(name, tmp_path)
    again = tmp_path / "again.gguf"
    write_header(load(captured), again)
    assert host_mib(engine_bin, again) == host_mib(engine_bin, captured)


def loaded_bytes(spec: ModelSpec) -> int:
    """What is loaded without a GPU: every tensor outside the blocks for drafting."""
    last = spec.layers
    return sum(
        tensor.nbytes
        for tensor in spec.tensors
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < last
    )


@pytest.mark.parametrize(
    ("model", "quant"),
    [("glm-5.1", "BF16"), ("glm-5.1", "Q4_K_M"), ("glm-5.1", "UD-IQ2_M"), ("glm-5", "UD-TQ1_0")],
)
def test_the_engine_loads_a_catalog_model(model: str, quant: str, engine_bin: Path, tmp_path: Path) -> None:
    spec = resolve(model, quant)
    path = tmp_path / f"{model}-{quant}.gguf"
    write_header(spec, path)
    assert host_mib(engine_bin, path)[0] == pytest.approx(loaded_bytes(spec) / MIB, abs=2)


def test_every_architecture_is_read(tiny_archs: dict[str, Path]) -> None:
    """The real files that the engine makes for each architecture are whole, and read as the gguf package reads them."""
    for name, path in tiny_archs.items():
        spec = load(path)
        assert spec.present, name
        assert name.startswith(spec.architecture), name
        wanted = [
            (tensor.name, tuple(map(int, tensor.shape)), tensor.tensor_type.name, int(tensor.n_bytes))
            for tensor in gguf.GGUFReader(path).tensors
        ]
        found = [(t.name, t.shape, t.type.name, t.nbytes) for t in spec.tensors]
        assert [(n, s, kind.upper(), size) for n, s, kind, size in found] == wanted, name
    assert len(tiny_archs) >= 128
