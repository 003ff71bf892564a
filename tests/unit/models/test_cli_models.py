"""The text and the JSON of `plan-llama models` and `plan-llama inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_llama.cli import models as cli
from plan_llama.errors import ModelError
from plan_llama.models.catalog_models import resolve
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
        "109,824 bytes per token at f16",
        "routed experts",
        "NOT ALL THERE",
    ):
        assert part in text
    found = json.loads(json.dumps(cli.as_json(spec)))
    assert found["parameters"] == sum(entry["parameters"] for entry in found["classes"]) == 753_864_139_008
    assert found["kv_bytes_per_token"] == (576 + 128) * 78 * 2  # 3,432 MiB at 32,768 tokens, as measured
    assert 0 < found["active_bytes"] < found["file_bytes"] / 10
    assert found["file_bytes"] - sum(entry["bytes"] for entry in found["classes"]) < 4 << 20


def test_inspect_escapes_the_path(tmp_path: Path) -> None:
    text = cli.render_inspect(load(build.write(tmp_path / "a\x1b[31m\nb.gguf")))
    assert "\x1b" not in text
    assert "a\\x1b[31m\\nb.gguf" in text


def test_a_long_list_has_a_line_for_each_model() -> None:
    known = cli.search()
    lines = cli.render_models(known).splitlines()
    assert len(lines) == len(known) + 3
    assert max(map(len, lines)) <= 110
    line = next(line for line in lines if line.startswith("qwen3-30b-a3b "))
    assert " ".join(line.split()) == "qwen3-30b-a3b 30.53B 3.3B 40,960 Q8_0 32.5 GB to Q2_K 11.3 GB"


def test_lists_and_facts_fit_80_columns() -> None:
    for words in ("qwen3-30b-a3b", "gemma-3-27b", "glm-5.1", "qwen2.5-vl-7b"):
        text = cli.render_models(cli.search(words))
        assert [line for line in text.splitlines() if len(line) > 80] == []
        assert ("* The types of its tensors are estimated" in text) == ("B* " in text)
    assert max(map(len, cli.render_inspect(resolve("qwen2.5-vl-7b", "Q4_K_M")).splitlines())) <= 80


def test_a_vision_model_has_its_projector() -> None:
    text = " ".join(cli.render_models(cli.search("gemma-3-27b")).split())
    assert "256 tokens each, with a projector (mmproj) of 0.423 B, 0.8 GB at F16" in text
    listed = json.loads(json.dumps(cli.models_json(cli.search("glm-4.5v"))))["models"][0]
    assert listed["projector"]["pixels_per_token"] == 28 * 28
    assert listed["parameters"]["in_gguf"] == {"vision tower and projector": -858_681_856}
    assert "a token per 784 pixels" in cli.render_inspect(resolve("glm-4.5v", "Q4_K_M"))


def test_names_that_are_near() -> None:
    assert "Did you mean ministral-3-" in cli.render_models(cli.search("minstral-3"), "minstral-3")
    with pytest.raises(ModelError) as caught:
        resolve("glm-5.3-flash", "q4")
    assert "did you mean UD-Q4_K_XL" in caught.value.line()


def test_tables_of_which_a_token_reads_some_rows() -> None:
    """The parts of the file as somebody measured them (tests/data/published_sizes); E2B means 2.3 B effective."""
    flash = cli.as_json(resolve("qwen3.8-flash-next", "UD-IQ4_XS"))
    whole, experts, ngrams, embedding = 176_943_899_520, 120_795_955_200, 51_200_245_760, 248_320 * 2560
    assert flash["parameters"] == whole
    assert flash["active_parameters"] == whole - ngrams - embedding - experts * 502 // 512
    small = cli.as_json(resolve("gemma-4-e2b", "Q8_0"))
    assert small["active_parameters"] == pytest.approx(2.3e9, rel=0.02)


def test_kv_and_weights_per_token() -> None:
    found = cli.as_json(resolve("llama-3.1-8b", "Q8_0"))
    assert found["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    # All but the embedding, of which a token reads one row.
    assert found["active_bytes"] == sum(
        c["bytes"] for c in found["classes"] if c["name"] != "token embedding"
    )
