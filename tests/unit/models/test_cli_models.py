"""The text and the JSON of `plan-llama models` and `plan-llama inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from plan_llama.cli import models as cli
from plan_llama.models.spec import load
from tests import gguf_builder as build


def test_search() -> None:
    assert [known.id for known in cli.search()] == sorted(known.id for known in cli.search())
    assert "glm-5.1" in {known.id for known in cli.search("ud-iq2_m unsloth")}
    assert cli.search("no such model anywhere") == ()
    assert "No model" in cli.render_models(())


def test_list_says_size_publisher_and_engine() -> None:
    text = cli.render_models(cli.search("glm-5.1"))
    line = next(line for line in text.splitlines() if "UD-IQ2_M" in line)
    assert "236 GB" in line
    assert "unsloth/GLM-5.1-GGUF" in line
    assert "ik_llama.cpp only" in next(line for line in text.splitlines() if "smol-IQ4_K" in line)
    listed = json.loads(json.dumps(cli.models_json(cli.search("glm-5.1"))))["models"][0]
    assert {quant["quant"] for quant in listed["quants"]} >= {"UD-IQ2_M", "Q4_K_M", "BF16"}


def test_inspect(tmp_path: Path) -> None:
    spec = load(build.oracle_file("glm-5.1-ud-iq2", tmp_path))
    text = cli.render_inspect(spec)
    for part in (
        "glm-dsa",
        "753.864 B",
        "78 and 1 for drafting",
        "202,752",
        "routed experts",
        "NOT ALL THERE",
    ):
        assert part in text
    found = json.loads(json.dumps(cli.as_json(spec)))
    assert found["parameters"] == sum(entry["parameters"] for entry in found["classes"]) == 753_864_139_008
    assert found["file_bytes"] - sum(entry["bytes"] for entry in found["classes"]) < 4 << 20


def test_inspect_escapes_the_path(tmp_path: Path) -> None:
    text = cli.render_inspect(load(build.write(tmp_path / "a\x1b[31m\nb.gguf")))
    assert "\x1b" not in text
    assert "a\\x1b[31m\\nb.gguf" in text
