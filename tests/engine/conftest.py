"""Fixtures over a real llama.cpp. A test that wants one and finds none fails: nothing here skips."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine import measure, processes

MembytesRunner = Callable[[Sequence[str | Path], Mapping[str, str]], dict[str, Any]]
GpuSimulation = Callable[
    [Sequence[int], Sequence[int]], contextlib.AbstractContextManager[tuple[dict[str, str], list[str]]]
]


@pytest.fixture(scope="session")
def engine_bin() -> Path:
    """The folder of the engine's programs."""
    given = os.environ.get("PLAN_LLAMA_ENGINE_BIN")
    folder = Path(given or ".").resolve()
    if not given or not (folder / "membytes").is_file():
        found = f"has no membytes: {folder}" if given else "is not set"
        pytest.fail(
            f'PLAN_LLAMA_ENGINE_BIN {found}; run: PLAN_LLAMA_ENGINE_BIN="$(python scripts/build_engine.py)" '
            "python -m pytest -m engine",
            pytrace=False,
        )
    return folder


@pytest.fixture(scope="session")
def engine_cache(engine_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files made for this engine are kept between runs: in the folder of scripts/build_engine.py.

    An engine from elsewhere gets a temporary one: nothing is written beside somebody's own programs.
    """
    folder = engine_bin.parent
    return folder if (folder / "engine.json").is_file() else tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def membytes(engine_bin: Path) -> MembytesRunner:
    """`membytes(argv, env)`: the bytes of every buffer, as llama.cpp counts them."""

    def run(argv: Sequence[str | Path], env: Mapping[str, str]) -> dict[str, Any]:
        return measure.run_membytes(engine_bin, argv, env)

    return run


@pytest.fixture
def sim_gpus(engine_bin: Path, tmp_path: Path) -> GpuSimulation:
    """`sim_gpus(sizes_mib, used_mib)`: a context manager that gives environment and `--rpc` arguments.

    Each card is a ggml-rpc-server that the patched client takes for a CUDA card of that size.
    """

    @contextlib.contextmanager
    def simulate(
        sizes_mib: Sequence[int], used_mib: Sequence[int]
    ) -> Iterator[tuple[dict[str, str], list[str]]]:
        assert len(sizes_mib) == len(used_mib)
        env = processes.engine_env(engine_bin)
        if not sizes_mib:
            yield env, []
            return
        with contextlib.ExitStack() as cards:
            addresses = []
            for index in range(len(sizes_mib)):
                port, log = processes.free_port(), tmp_path / f"rpc-{index}.log"
                argv: list[str | Path] = [
                    engine_bin / "ggml-rpc-server",
                    "-H",
                    processes.LOOPBACK,
                    "-p",
                    str(port),
                ]
                card = cards.enter_context(processes.running(argv, env=env, log=log))
                processes.wait_until(
                    lambda port=port: processes.listens(port),  # type: ignore[misc]  # bound per turn of the loop
                    card,
                    log,
                    what="ggml-rpc-server",
                    timeout_s=20,
                )
                addresses.append(f"{processes.LOOPBACK}:{port}")
            env["SIM_GPU_MIB"] = ",".join(map(str, sizes_mib))
            env["SIM_GPU_USED_MIB"] = ",".join(map(str, used_mib))
            yield env, ["--rpc", ",".join(addresses)]

    return simulate


@pytest.fixture(scope="session")
def tiny_archs(engine_bin: Path, engine_cache: Path) -> dict[str, Path]:
    """A tiny real model of every architecture, made by the engine, by file stem (`llama-dense`, …)."""
    folder = engine_cache / "archs"
    if not folder.is_dir():
        scratch = engine_cache / f"archs.{os.getpid()}.tmp"
        scratch.mkdir()
        try:
            done = processes.finished(
                [engine_bin / "test-llama-archs", "-o", scratch],
                env=processes.engine_env(engine_bin),
                timeout_s=600,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    models = {path.stem: path for path in sorted(folder.glob("*.gguf"))}
    assert len(models) > 100, f"{folder}: only {len(models)} models"
    return models
