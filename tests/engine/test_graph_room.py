"""Graphs with more tensors than llama.cpp makes room for, and how many tensors a graph has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from plan_llama.engines.refusals import refusals
from plan_llama.memory.context import reserved_batch
from plan_llama.memory.graph_room import count
from plan_llama.memory.types import Settings
from tests.conformance_cases import reading, spec, table
from tests.engine import processes
from tests.engine.record_memory import header
from tests.flag_sets import Asked

pytestmark = pytest.mark.engine

COMMON = "-c 4096 -ub 128 -fa on -nr"
QUANTISED = "-ctk q8_0 -ctv q8_0"


def run(engine_bin: Path, model: Path, flags: str) -> subprocess.CompletedProcess[str]:
    env = {**processes.engine_env(engine_bin), "MEMBYTES_MODE": "server"}
    return processes.finished(
        [engine_bin / "membytes", "-m", model, *flags.split(), "-lv", "4"],
        env=env,
        address_space_bytes=64 << 30,
    )


@pytest.mark.parametrize(
    ("slots", "ends"),
    [
        (f"-np 4 {QUANTISED}", True),
        (f"-np 4 -kvu {QUANTISED}", False),
        (f"-np 1 {QUANTISED}", False),
        ("-np 4", False),
    ],
)
def test_phi_4_ends_where_it_is_refused(slots: str, ends: bool, engine_bin: Path, tmp_path: Path) -> None:
    """40 layers of six weights: room for 2,053 nodes and leafs, and a node for every cache that is written by slot."""
    model = "phi-4-q4_k_m"
    flags = f"{COMMON} {slots}"
    done = run(engine_bin, header(spec("real", model), tmp_path), flags)
    assert (done.returncode != 0) == ends, done.stderr[-2000:]
    asked = Asked(program="llama-server", cards=(), flags=tuple(flags.split()))
    found = refusals(reading(asked, spec("real", model)).settings, table=table("real", model))
    assert [finding.id for finding in found] == (["graph-too-large"] if ends else [])
    if ends:
        assert "-kvu" in found[0].fix
        assert re.search(r"ggml-impl\.h:\d+: fatal error", done.stderr)  # ggml_hash_find_or_insert


@pytest.mark.parametrize("model", ["phi-4-q4_k_m", "llama-3.1-8b-q4_k_m", "gpt-oss-20b-mxfp4"])
def test_nodes_of_a_graph(model: str, engine_bin: Path, tmp_path: Path) -> None:
    """The number that the engine names in its log."""
    done = run(engine_bin, header(spec("real", model), tmp_path), f"{COMMON} -np 4 -kvu {QUANTISED}")
    named = re.search(r"nodes = (\d+)", done.stdout)
    assert named, done.stdout[-2000:]
    settings = Settings(
        context=4096, parallel=4, kv_unified=True, ubatch=128, kv_type_k="q8_0", kv_type_v="q8_0"
    )
    made = table("real", model)
    assert count(made, reserved_batch(settings, made.windows)).nodes == int(named[1])
