"""Plans and checks for vLLM, as a user gets them."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import Cli
from tests.unit.vllm.recorded import CONFIGS

SCHEMA: dict[str, Any] = json.loads(
    files("plan_llama").joinpath("schema/plan.schema.json").read_text(encoding="utf-8")
)
H200 = ("--gpu", "H200*8", "--ram", "2TiB")
PLAN = ("--engine", "vllm", "--model", "glm-5.1", "--quant", "FP8")
SERVE = ("--", "vllm", "serve", "zai-org/GLM-5.1-FP8")


def answer(cli: Cli, *words: str) -> dict[str, Any]:
    ended = cli(*words)
    assert ended.err == ""
    found: dict[str, Any] = json.loads(ended.out)
    Draft202012Validator(SCHEMA).validate(found)
    assert ended.code == (0 if found["verdict"] in ("fits", "tight") else 3)
    return found


def ids(found: dict[str, Any], severity: str = "error") -> set[str]:
    return {item["id"] for item in found["findings"] if item["severity"] == severity}


def test_glm_on_eight_h200(cli: Cli) -> None:
    found = answer(cli, *PLAN, *H200, "--json")
    assert found["verdict"] == "fits"
    assert found["command"]["argv"][:5] == [
        "vllm",
        "serve",
        "zai-org/GLM-5.1-FP8",
        "--tensor-parallel-size",
        "8",
    ]
    assert found["command"]["argv"][-4:] == ["--host", "127.0.0.1", "--port", "8000"]
    # 88.746 GiB per rank: vLLM's own model class
    weights = {device["weights_bytes"] for device in found["memory"]["devices"]}
    assert [round(size / 2**30, 2) for size in weights] == [88.75]
    assert found["settings"]["kv_cache"]["block_size"] == 64
    assert found["settings"]["kv_cache"]["max_concurrency"] > 1
    assert "vllm-overhead-assumed" in ids(found, "note")


@pytest.mark.parametrize("gpu", ["A100-SXM4-80GB*8", "RTX 4090*8"])
def test_sparse_attention_needs_a_newer_card(cli: Cli, gpu: str) -> None:
    found = answer(cli, *PLAN, "--gpu", gpu, "--ram", "2TiB", "--json")
    assert found["verdict"] == "invalid"
    assert "vllm-no-attention-backend" in ids(found)
    assert found["memory"] is not None
    assert found["command"] is None


def test_a_checkpoint_without_kernels_has_an_alternative(cli: Cli, tmp_path: Path) -> None:
    config = CONFIGS["Qwen/Qwen3-235B-A22B fp8-block"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ("--engine", "vllm", "--model", str(tmp_path), "--ram", "2TiB", "--json")
    found = answer(cli, *words, "--gpu", "V100*8")
    wrong = [item for item in found["findings"] if item["id"] == "vllm-quantisation-capability"]
    assert wrong
    assert "--engine llama.cpp" in wrong[0]["fix"]
    assert answer(cli, *words, "--gpu", "H200*8")["verdict"] == "fits"


def test_more_nodes_have_a_command_each(cli: Cli, tmp_path: Path) -> None:
    words = (*PLAN, "--gpu", "H100 80GB*8", "--ram", "1TiB", "--nodes", "2", "--node-address", "10.0.0.1")
    found = answer(cli, *words, "--node-address", "10.0.0.2", "--json")
    head, others = found["command"]["argv"], found["command"]["further"]
    place = head.index("--nnodes")
    wanted = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1"]
    assert head[place : place + 6] == wanted
    assert others[0]["argv"][-1] == "--headless"
    assert "0.0.0.0" not in " ".join([*head, *others[0]["argv"]])  # noqa: S104
    assert [item["name"] for item in found["command"]["files"]] == ["leader-worker-set.yaml"]
    written = answer(cli, *words, "--node-address", "10.0.0.2", "--json", "--write", str(tmp_path / "out"))
    names = ["start-vllm.sh", "node-1.sh", "leader-worker-set.yaml"]
    assert [Path(path).name for path in written["written"]] == names
    assert "--node-rank 1" in (tmp_path / "out" / "node-1.sh").read_text()


def test_the_recipe_is_accepted(cli: Cli) -> None:
    recipe = (
        "--tensor-parallel-size 8 --speculative-config.method mtp --speculative-config.num_speculative_tokens 3 "
        "--tool-call-parser glm47 --reasoning-parser glm45 --enable-auto-tool-choice "
        "--chat-template-content-format=string --served-model-name glm-5.1-fp8"
    )
    found = answer(cli, "check", *H200, "--json", *SERVE, *recipe.split())
    assert found["verdict"] == "fits"
    assert ids(found) == set()
    assert ids(found, "warning") == {"no-api-key"}
    plain = answer(cli, "check", *H200, "--json", *SERVE, "--tensor-parallel-size", "8")
    # its own block for next-token prediction: one layer of 78 more of weights and of cache, and a matrix of its own
    drafting, without = (item["memory"]["devices"][0]["weights_bytes"] for item in (found, plain))
    assert 1.0 * 2**30 < drafting - without < 1.4 * 2**30
    assert found["settings"]["kv_cache"]["tokens"] < plain["settings"]["kv_cache"]["tokens"]
    assert found["command"]["argv"][3:] == recipe.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("-tp 6", "vllm-tp-heads"),
        pytest.param("-tp 8 --swap-space 4", "flag-unknown-old-build", marks=pytest.mark.slow),
        ("-tp 8 --kv-cache-dtype q8_0", "flag-bad-value"),
        pytest.param("-tp 8 --gpu-memory-utilization 92%", "flag-bad-value", marks=pytest.mark.slow),
        pytest.param("-tp 8 -dp 2", "vllm-world-size", marks=pytest.mark.slow),
        pytest.param("-tp 8 --max-model-len 1M", "vllm-max-model-len", marks=pytest.mark.slow),
        pytest.param("-tp 8 -dcp 8", "vllm-dcp", marks=pytest.mark.slow),
        pytest.param("-tp 8 -q awq", "vllm-quantization-mismatch", marks=pytest.mark.slow),
        pytest.param(
            "-tp 8 --max-num-batched-tokens 512 --max-num-seqs 1024", "vllm-batch", marks=pytest.mark.slow
        ),
        ("-tp 8 --kv-cache-dtype fp8_e5m2", "vllm-no-attention-backend"),
        ("-tp 4", "vllm-no-cache-memory"),
    ],
)
def test_a_wrong_command_is_corrected(cli: Cli, words: str, wanted: str) -> None:
    found = answer(cli, "check", *H200, "--json", *SERVE, *words.split())
    assert found["verdict"] in ("invalid", "does-not-fit")
    assert wanted in ids(found)
    assert found["memory"] is not None
    fixed = answer(cli, "check", *H200, "--json", "--", *found["command"]["argv"])
    assert fixed["verdict"] == "fits"


def test_drafting_with_another_model_is_not_counted(cli: Cli) -> None:
    words = (
        "-tp",
        "8",
        "--speculative-config",
        '{"method": "eagle3", "model": "a/b", "num_speculative_tokens": 3}',
    )
    found = answer(cli, "check", *H200, "--json", *SERVE, *words)
    assert "not-counted" in ids(found, "warning")


def test_gguf_is_refused(cli: Cli) -> None:
    found = answer(cli, "check", *H200, "--json", "--", "vllm", "serve", "./GLM-5.1-UD-IQ2_M.gguf")
    assert ids(found) == {"vllm-gguf"}
    ended = cli("--engine", "vllm", "--model", "GLM-5.1-UD-IQ2_M.gguf", *H200)
    assert ended.code == 2
    assert "vllm-gguf-plugin" in ended.err


def test_what_is_not_described_is_refused(cli: Cli) -> None:
    ended = cli("--engine", "vllm", "--model", "qwen3.5-122b-a10b", *H200)
    assert ended.code == 2
    assert "not described" in ended.err
    ended = cli("--model", "glm-5.1", "--nodes", "2", "--no-gpu")
    assert ended.code == 2
    ended = cli(*PLAN, *H200, "--node-address", "0.0.0.0")  # noqa: S104
    assert ended.code == 2


def test_the_screen_names_what_vllm_will_log(cli: Cli) -> None:
    ended = cli("--engine", "vllm", "--model", "llama-3.1-8b", "--gpu", "RTX 3090*2", "--ram", "64GiB")
    assert ended.code == 0
    assert "GPU KV cache size:" in ended.out
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct" in ended.out


@pytest.mark.slow
def test_weights_go_to_the_host_only_where_nothing_else_fits(cli: Cli) -> None:
    words = ("--engine", "vllm", "--model", "llama-3.3-70b", "--gpu", "RTX 4090*4", "--json")
    found = answer(cli, *words, "--ram", "256GiB")
    argv = found["command"]["argv"]
    size = int(argv[argv.index("--cpu-offload-gb") + 1])
    assert 14 <= size <= 20  # 32.9 GiB of weights per rank, about 20 GiB of which have room
    assert "vllm-cpu-offload" in ids(found, "warning")
    assert found["speed"]["bound_by"] == "PCIe link"
    assert found["speed"]["decode_tok_s"]["expected"] < 3
    assert answer(cli, *words, "--ram", "32GiB")["verdict"] == "does-not-fit"
    assert "--cpu-offload-gb" not in answer(cli, *PLAN, *H200, "--json")["command"]["argv"]


def test_what_cannot_be_pinned_is_said(cli: Cli) -> None:
    ended = cli(*PLAN, *H200, "--pin", "tensor-parallel=7")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
