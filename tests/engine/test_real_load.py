"""A real load where it reserves more than the dry run: MiniMax-01 with several slots."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.memory.estimate import buffers
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.spec import load
from tests.engine import processes
from tests.engine.measure import MIB, log_buffers

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("unified", [False, True])
def test_a_load_reserves_for_one_sequence_too(
    unified: bool, tiny_archs: dict[str, Path], engine_bin: Path, tmp_path: Path
) -> None:
    model, log, port = tiny_archs["minimax-01-moe"], tmp_path / "server.log", processes.free_port()
    argv: list[str | Path] = [engine_bin / "llama-server", "-m", model, "--port", str(port), "-lv", "5"]
    argv += [
        "-c",
        "2048",
        "-np",
        "4",
        "--fit",
        "off",
        "-fa",
        "on",
        "-nr",
        "--no-warmup",
        *(["-kvu"] if unified else []),
    ]
    with processes.running(argv, env=processes.engine_env(engine_bin), log=log) as server:

        def reserved() -> bool:
            return "sched_reserve: reserve took" in log.read_text(encoding="utf-8")

        processes.wait_until(reserved, server, log, what="llama-server", timeout_s=60)
    settings = Settings(context=2048, parallel=4, kv_unified=unified, repack=False)
    predicted = buffers(ModelTable(load(model)), settings, []).host.compute_bytes
    assert abs(predicted - log_buffers(log.read_text(encoding="utf-8")).compute_bytes) <= MIB // 100
