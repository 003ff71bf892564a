"""Plans for Ollama, as a person asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from plan_llama.engines import modelfile
from tests.cli.conftest import GLM, ONE_CARD, Cli
from tests.cli.test_schema import SCHEMA

OLLAMA = ("--engine", "ollama")


@pytest.mark.slow
def test_experts_on_the_cpu_get_a_server_of_their_own(cli: Cli) -> None:
    answer = cli(*GLM, *ONE_CARD, *OLLAMA, "--json").json
    Draft202012Validator(SCHEMA).validate(answer)
    command = answer["command"]
    assert (command["engine"], command["argv"]) == ("ollama", ["ollama", "serve"])
    assert command["env"]["OLLAMA_HOST"] == "127.0.0.1:11435"
    assert int(command["env"]["LLAMA_ARG_N_CPU_MOE"]) > 60
    assert command["env"]["LLAMA_ARG_FIT"] == "off"
    create, run, shown, beside = command["further"]
    assert create["argv"] == ["ollama", "create", "glm-5.1:ud-iq2_m", "-f", "Modelfile"]
    assert run["argv"] == ["ollama", "run", "glm-5.1:ud-iq2_m"]
    assert create["env"] == run["env"] == shown["env"] == {"OLLAMA_HOST": "127.0.0.1:11435"}
    assert Path(beside["argv"][0]).name == "llama-server"
    read = modelfile.read(command["files"][0]["text"])
    assert len(read.sources) == 6
    assert read.sources[0].endswith("GLM-5.1-UD-IQ2_M-00001-of-00006.gguf")
    assert (read.number("num_ctx"), read.number("num_gpu")) == (32768, 80)
    ids = {item["id"] for item in answer["findings"]}
    assert {"ollama-cloud-tag", "ollama-own-server", "ollama-import", "ollama-read-back"} <= ids


@pytest.mark.slow
def test_memory_is_that_of_its_build(cli: Cli) -> None:
    ours = cli(*GLM, *ONE_CARD, *OLLAMA, "--json").json
    same = cli(*GLM, *ONE_CARD, "--engine-build", "b10488", "--pin", "batch=1024", "--json").json
    assert ours["settings"]["ubatch"] == 1024
    assert ours["memory"]["devices"] == same["memory"]["devices"]


@pytest.mark.slow
def test_a_dense_model_needs_no_server_of_its_own(cli: Cli) -> None:
    argv = (
        "--model",
        "llama-3.1-8b",
        "--quant",
        "Q4_K_M",
        "--gpu",
        "24GiB",
        "--ram",
        "64GiB",
        "--users",
        "2",
    )
    answer = cli(*argv, "--kv-type", "q8_0", *OLLAMA, "--json").json
    env = answer["command"]["env"]
    assert not {"OLLAMA_HOST", "LLAMA_ARG_FIT"} & set(env)
    assert (env["OLLAMA_NUM_PARALLEL"], env["OLLAMA_KV_CACHE_TYPE"]) == ("2", "q8_0")
    settings = answer["settings"]
    assert settings["context_pool"] == 2 * settings["context_per_slot"]
    assert settings["kv_unified"] is False
    assert settings["batch"] == settings["ubatch"]


@pytest.mark.slow
def test_an_architecture_with_one_slot_is_planned_with_one(cli: Cli) -> None:
    argv = ("--model", "qwen3.5-35b-a3b", "--quant", "Q4_K_M", "--gpu", "24GiB", "--ram", "64GiB")
    answer = cli(*argv, "--parallel", "4", *OLLAMA, "--json").json
    assert answer["settings"]["parallel"] == 1
    assert "ollama-one-slot" in {item["id"] for item in answer["findings"]}


def test_what_cannot_be_told_is_refused(cli: Cli) -> None:
    for pin in (("--pin", "batch=512"), ("--ctx", "300000"), ("--engine-build", "b11434")):
        ended = cli(*GLM, *ONE_CARD, *OLLAMA, *pin)
        assert ended.code == 2
        assert ended.err.count("\n") == 1
        assert "Ollama" in ended.err


@pytest.mark.slow
def test_what_has_no_variable_is_said(cli: Cli) -> None:
    ended = cli(*GLM, *ONE_CARD, *OLLAMA, "--pin", "op-offload=off")
    assert "neither a Modelfile nor a variable of Ollama's says: --no-op-offload" in ended.flat


def test_the_modelfile_is_written(cli: Cli, home: Path) -> None:
    ended = cli(*GLM, *ONE_CARD, *OLLAMA, "--write", "out")
    assert ended.code == 0
    assert modelfile.read((home / "out/Modelfile").read_text(encoding="utf-8")).number("num_ctx") == 32768
    assert cli(*GLM, *ONE_CARD, *OLLAMA, "--write", "out").code == 2
    assert cli(*GLM, *ONE_CARD, *OLLAMA, "--write", "out", "--force").code == 0


def test_screen_shows_what_to_run(cli: Cli) -> None:
    out = cli(*GLM, *ONE_CARD, *OLLAMA).out
    for line in (
        "Modelfile  (a file):",
        "Command  (ollama, 0.33.0):",
        "  OLLAMA_HOST=127.0.0.1:11435 ollama run glm-5.1:ud-iq2_m",
        "  PARAMETER num_ctx 32768",
    ):
        assert line in out.splitlines()
