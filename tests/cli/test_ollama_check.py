"""Ollama's commands, judged by the llama-server that it would start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import Cli
from tests.cli.test_schema import SCHEMA
from tests.gguf_builder import TINY_KEYS, TINY_TENSORS, header

CARD = ("--gpu", "24GiB", "--ram", "64GiB", "--cpu-cores", "16")
LLAMA = ("--model", "llama-3.1-8b", "--quant", "Q4_K_M")


def test_a_cloud_model_is_said_to_be_one(cli: Cli) -> None:
    ended = cli("check", *CARD, "--json", "--", "ollama", "run", "glm-5.1")
    assert ended.code == 3
    answer = ended.json
    Draft202012Validator(SCHEMA).validate(answer)
    assert [item["id"] for item in answer["findings"]] == ["ollama-cloud-tag"]


def test_a_server_is_judged_by_its_environment(cli: Cli) -> None:
    words = (
        "OLLAMA_CONTEXT_LENGTH=8192",
        "OLLAMA_NUM_PARALLEL=2",
        "OLLAMA_KV_CACHE_TYPE=q8_0",
        "ollama",
        "serve",
    )
    ended = cli("check", *CARD, *LLAMA, "--json", "--", *words)
    assert ended.code == 0
    answer = ended.json
    Draft202012Validator(SCHEMA).validate(answer)
    settings = answer["settings"]
    assert (settings["context_per_slot"], settings["context_pool"], settings["parallel"]) == (8192, 16384, 2)
    assert settings["kv_type_v"] == "q8_0"
    assert settings["batch"] == settings["ubatch"] == 1024
    assert answer["command"]["engine"] == "ollama"
    assert answer["command"]["argv"] == list(words)


def test_context_is_that_of_the_cards_where_nobody_says(cli: Cli) -> None:
    """32768 from 23 GiB, 4096 below (server/routes.go, Serve)."""
    for size, context in (("24GiB", 32768), ("12GiB", 4096)):
        answer = cli("check", "--gpu", size, "--ram", "64GiB", *LLAMA, "--json", "--", "ollama", "serve").json
        assert answer["settings"]["context_per_slot"] == context
        assert "ollama-automatic" in {item["id"] for item in answer["findings"]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("OLLAMA_NUM_PARALEL=4", "ollama", "serve"), "did you mean OLLAMA_NUM_PARALLEL"),
        (("OLLAMA_GPU_OVERHEAD=1000", "ollama", "serve"), "keeps nothing free on the cards"),
        (("OLLAMA_CONTEXT_LENGTH=32k", "ollama", "serve"), "it takes it for the default"),
        (("OLLAMA_FLASH_ATTENTION=yes", "ollama", "serve"), "it takes it for on"),
        (("OLLAMA_NUM_PARALLEL=4", "ollama", "run", "x"), "read by `ollama serve`, not by `ollama run`"),
        (("LLAMA_ARG_CTX_SIZE=9000", "ollama", "serve"), "--ctx-size on the command line replaces it"),
    ],
)
def test_variables_are_judged(cli: Cli, words: tuple[str, ...], says: str) -> None:
    assert says in cli("check", *CARD, *LLAMA, "--", *words).flat


def test_what_does_not_run_gets_a_plan(cli: Cli) -> None:
    words = ("OLLAMA_KV_CACHE_TYPE=q8_0", "OLLAMA_FLASH_ATTENTION=0", "ollama", "serve")
    answer = cli("check", *CARD, *LLAMA, "--json", "--", *words).json
    assert answer["verdict"] == "invalid"
    assert "kv-quant-needs-fa" in {item["id"] for item in answer["findings"]}
    assert answer["command"]["env"]["OLLAMA_FLASH_ATTENTION"] == "1"
    assert answer["command"]["files"][0]["name"] == "Modelfile"


def model_file(home: Path, text: str) -> str:
    (home / "Modelfile").write_text(text, encoding="utf-8")
    return str(home / "Modelfile")


def test_create_reads_the_modelfile(cli: Cli, home: Path) -> None:
    given = model_file(
        home, "FROM ./x.gguf\nPARAMETER num_ctx 4096\nPARAMETER num_gpu 20\nPARAMETER use_mlock 1\n"
    )
    answer = cli("check", *CARD, *LLAMA, "--json", "--", "ollama", "create", "mine", "-f", given).json
    assert (answer["settings"]["context_per_slot"], answer["settings"]["gpu_layers"]) == (4096, 20)
    assert "modelfile-parameter-dropped" in {item["id"] for item in answer["findings"]}
    given = model_file(home, "FROM ./x.gguf\nPARAMETER num_ctx 128k\n")
    ended = cli("check", *CARD, *LLAMA, "--", "ollama", "create", "mine", "-f", given)
    assert ended.code == 3
    assert "invalid int value [128k]" in ended.out


def test_create_wants_all_parts(cli: Cli, home: Path) -> None:
    given = model_file(home, "FROM ./m-00001-of-00003.gguf\n")
    answer = cli("check", *CARD, *LLAMA, "--json", "--", "ollama", "create", "mine", "-f", given).json
    assert answer["verdict"] == "invalid"
    assert "ollama-split-file" in {item["id"] for item in answer["findings"]}


def test_an_installed_model_brings_its_parameters(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ollama run` finds them: manifest, blob of the model, blob of its parameters (server/manifest.go)."""
    store = home / "store"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    data, size = header(TINY_KEYS, TINY_TENSORS)
    layers = {
        "model": ("a" * 64, data + b"\0" * size),
        "params": ("b" * 64, b'{"num_ctx": 1024, "num_gpu": 0}'),
    }
    (store / "blobs").mkdir(parents=True)
    for digest, content in layers.values():
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    manifest = store / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    kinds = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
        for kind, (digest, _) in layers.items()
    ]
    manifest.write_text(json.dumps({"layers": kinds}), encoding="utf-8")
    answer = cli("check", *CARD, "--json", "--", "ollama", "run", "tiny").json
    assert (answer["settings"]["context_per_slot"], answer["settings"]["gpu_layers"]) == (1024, 0)


def test_a_command_that_loads_nothing_is_refused(cli: Cli) -> None:
    ended = cli("check", *CARD, "--", "ollama", "ps")
    assert ended.code == 2
    assert "`ollama ps` loads no model" in ended.err


def test_a_unit_is_read_with_its_environment(cli: Cli, home: Path) -> None:
    """As `systemctl edit ollama` writes it (docs/faq.mdx of Ollama 0.33)."""
    (home / "ollama.service").write_text(
        '[Service]\nEnvironment="OLLAMA_KV_CACHE_TYPE=q8_0"\nEnvironment="OLLAMA_CONTEXT_LENGTH=4096"\n'
        "ExecStart=/usr/local/bin/ollama serve\nUser=ollama\n",
        encoding="utf-8",
    )
    answer = cli("check", *CARD, *LLAMA, "--json", "--file", str(home / "ollama.service")).json
    assert (answer["settings"]["kv_type_k"], answer["settings"]["context_per_slot"]) == ("q8_0", 4096)


def test_a_program_in_a_container_is_found(cli: Cli) -> None:
    words = ("docker", "exec", "-it", "ollama", "ollama", "run", "glm-5.1")
    assert "cloud model" in cli("check", *CARD, "--", *words).out
