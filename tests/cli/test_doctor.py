"""plan-llama doctor as a user calls it: answers, JSON, exit codes, bundles, refusals."""

from __future__ import annotations

import io
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import Cli

SCHEMA: dict[str, Any] = json.loads(
    files("plan_llama").joinpath("schema/doctor.schema.json").read_text(encoding="utf-8")
)
KV = """\
common_params_print_info: build 11434 (abc) with GNU 12.2.0 for Linux x86_64
  - CUDA0   : NVIDIA GeForce RTX 3090 (24126 MiB, 23871 MiB free)
  - CPU     : AMD Ryzen (64126 MiB, 60871 MiB free)
srv    load_model: loading model '/home/alice/models/Qwen3-32B-Q4_K_M.gguf'
print_info: arch                  = qwen3
load_tensors: offloaded 65/65 layers to GPU
load_tensors:        CUDA0 model buffer size = 18429.00 MiB
llama_context: n_seq_max             = 1
llama_context: n_ctx                 = 40960
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 10240.00 MiB on device 0: cudaMalloc failed: out of memory
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
srv    load_model: failed to load model, '/home/alice/models/Qwen3-32B-Q4_K_M.gguf'
"""
HEALTHY = "srv  llama_server: model loaded\nsrv  llama_server: listening on http://127.0.0.1:8080\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "server.log"
    path.write_text(KV, encoding="utf-8")
    return path


def test_the_answer_names_line_cause_fix_and_a_command(cli: Cli, log: Path) -> None:
    ended = cli("doctor", "--log", str(log))
    assert ended.code == 4
    assert ended.err == ""
    assert "The KV cache does not fit on the card" in ended.flat
    assert "line 11:" in ended.out
    assert "A command that fits" in ended.out
    assert "-c 40960" in ended.flat
    assert "alice" not in ended.out


def test_json_is_as_the_schema_says(cli: Cli, log: Path) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    ended = cli("doctor", "--log", str(log), "--json")
    answer = ended.json
    Draft202012Validator(SCHEMA).validate(answer)
    assert ended.code == 4
    assert (answer["schema"], answer["engine"], answer["build"]) == (1, "llama.cpp", "b11434")
    first = answer["findings"][0]
    assert (first["id"], first["severity"]) == ("gpu-oom-kv", "fatal")
    assert first["evidence"][0]["line"] == 11
    assert "-ctk q8_0" in first["fix"]
    argv = answer["plan"]["command"]["argv"]
    assert argv[argv.index("-c") + 1] == "40960"
    assert "alice" not in ended.out


def test_nothing_wrong_ends_with_0(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(HEALTHY, encoding="utf-8")
    ended = cli("doctor", "--log", str(path))
    assert ended.code == 0
    assert "NOTHING WRONG FOUND" in ended.out
    assert cli("doctor", "--log", str(path), "--json").json["findings"] == []


def test_standard_input_and_several_logs(cli: Cli, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(HEALTHY.encode())))
    assert cli("doctor", "--log", "-").code == 0
    kernel = log.with_name("dmesg.txt")
    kernel.write_text("Out of memory: Killed process 41222 (llama-server) total-vm:1kB\n", encoding="utf-8")
    ids = [
        item["id"]
        for item in cli("doctor", "--log", str(log), "--log", str(kernel), "--json").json["findings"]
    ]
    assert {"gpu-oom-kv", "host-oom-killed"} <= set(ids)


def test_what_is_not_known_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "srv load_model: loading model 'a.gguf'\nsomething failed oddly\nmain: exiting due to model loading error\n",
        encoding="utf-8",
    )
    answer = cli("doctor", "--log", str(path), "--json").json
    assert answer["findings"][0]["id"] == "cause-not-found"
    assert answer["findings"][0]["commands"]
    path.write_text(
        "srv load_model: loading model 'a.gguf'\nload_tensors: loading model tensors, this can take a while...\n....\n",
        encoding="utf-8",
    )
    answer = cli("doctor", "--log", str(path), "--json").json
    assert answer["findings"][0]["id"] == "log-ends-early"
    assert any("dmesg" in item for item in answer["findings"][0]["commands"])


def test_a_bundle_holds_no_secrets_and_is_not_overwritten(cli: Cli, log: Path, tmp_path: Path) -> None:
    log.write_text(KV + "error: --api-key hunter2 failed\n", encoding="utf-8")
    target = tmp_path / "report.txt"
    assert cli("doctor", "--log", str(log), "--bundle", str(target)).code == 4
    text = target.read_text(encoding="utf-8")
    assert "gpu-oom-kv" in text
    assert "hunter2" not in text
    assert "alice" not in text
    again = cli("doctor", "--log", str(log), "--bundle", str(target))
    assert (again.code, "--force" in again.err) == (2, True)
    assert cli("doctor", "--log", str(log), "--bundle", str(target), "--force").code == 4


@pytest.mark.parametrize("content", [None, b"", b"GGUF\0\0\0\0"])
def test_what_cannot_be_read_is_refused(cli: Cli, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.log"
    if content is not None:
        path.write_bytes(content)
    ended = cli("doctor", "--log", str(path))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert ended.out == ""


def test_a_difference_of_measured_and_predicted_is_said(cli: Cli, log: Path) -> None:
    log.write_text(
        KV.replace("18429.00", "9411.00").partition("ggml_backend")[0] + "srv  llama_server: model loaded\n",
        encoding="utf-8",
    )
    answer = cli("doctor", "--log", str(log), "--json").json
    row = next(item for item in answer["plan"]["compared"] if item["kind"] == "weights")
    assert row["measured_bytes"] == 9411 * 1024**2
    assert row["predicted_bytes"] > 17 * 1024**3
    assert "prediction-differs" in [item["id"] for item in answer["findings"]]


def test_measured_and_predicted_agree(cli: Cli, log: Path) -> None:
    """The published file (19,762,293,600 bytes) less the embedding (151,936 x 5,120 at 4.5 bits): 18,429 MiB."""
    answer = cli("doctor", "--log", str(log), "--json").json
    row = next(item for item in answer["plan"]["compared"] if item["kind"] == "weights")
    assert abs(row["predicted_bytes"] - row["measured_bytes"]) < 0.05 * row["measured_bytes"]
    assert "prediction-differs" not in [item["id"] for item in answer["findings"]]


def test_experts_on_the_host_are_not_compared_with_a_guess(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "srv load_model: loading model '/m/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf'\n"
        "  - CUDA0   : NVIDIA GeForce RTX 4090 (24126 MiB, 23571 MiB free)\n"
        "load_tensors: offloaded 80/80 layers to GPU\n"
        "load_tensors:    CUDA_Host model buffer size = 207510.22 MiB\n"
        "load_tensors:        CUDA0 model buffer size = 12622.10 MiB\n"
        "llama_context: n_ctx                 = 4096\n",
        encoding="utf-8",
    )
    ended = cli("doctor", "--log", str(path), "--json")
    assert "prediction-differs" not in [item["id"] for item in ended.json["findings"]]


def test_the_engine_of_a_refused_command(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("error: invalid argument: --mlock\n", encoding="utf-8")
    assert cli("doctor", "--log", str(path), "--json").json["engine"] == "llama.cpp"
