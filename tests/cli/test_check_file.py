"""`check --file`: the commands that people publish, judged as the real engine judges them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import GIB, ONE_CARD, Cli
from tests.cli.test_schema import SCHEMA

FOLDER = Path(__file__).parents[1] / "data/commands"
# What llama-server b11434 itself said of them (tests/engine/record_commands.py).
CASES = json.loads((FOLDER / "cases.json").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(CASES))
def test_published_commands_are_judged_as_the_engine_judges_them(cli: Cli, name: str) -> None:
    ended = cli("check", *ONE_CARD, "--json", "--file", str(FOLDER / name))
    answer = ended.json
    Draft202012Validator(SCHEMA).validate(answer)
    each = [answer, *answer["also"]]
    assert [item["accepted"] for item in each] == [status == 0 for status in CASES[name]["exit"]]
    for item in each:
        assert item["accepted"] or item["verdict"] == "invalid"
        # what is refused is named as it is written
        refused = [f["text"] for f in item["findings"] if f["id"].startswith(("flag-", "flash-"))]
        assert item["accepted"] or refused
    assert ended.code == (0 if all(item["verdict"] in ("fits", "tight") for item in each) else 3)


@pytest.mark.parametrize(
    ("name", "machine", "verdict"),
    [
        ("claim-24gb.sh", ["--gpu", "24GiB", "--ram", "256GiB"], "invalid"),
        ("claim-20gb.sh", ["--gpu", "20GiB", "--ram", "256GiB"], "invalid"),
        pytest.param(
            "claim-two-cards.sh",
            ["--gpu", "RTX 4090*2", "--ram", "256GiB"],
            "invalid",
            marks=pytest.mark.slow,
        ),
        ("claim-rocm.sh", ["--gpu", "RX 7900 XTX", "--ram", "256GiB"], "invalid"),
        ("claim-8x80gb.sh", ["--gpu", "H100*8", "--ram", "512GiB"], "fits"),
        (
            "claim-glm-4.5v.sh",
            ["--gpu", "48GiB", "--ram", "64GiB", "--model", "glm-4.5v", "--quant", "F16"],
            "does-not-fit",
        ),
    ],
)
def test_the_claims_on_their_hardware(cli: Cli, name: str, machine: list[str], verdict: str) -> None:
    answer = cli("check", *machine, "--cpu-cores", "16", "--json", "--file", str(FOLDER / name)).json
    assert answer["verdict"] == verdict
    if name == "claim-24gb.sh":
        # llama.cpp b11434 puts 131,494 MiB of weights on the card for -ngl 47 (a mix of 233.9 GB)
        assert 128 * GIB < answer["memory"]["devices"][0]["weights_bytes"] < 133 * GIB
    if name == "claim-glm-4.5v.sh":
        assert answer["memory"]["devices"][0]["weights_bytes"] > 190 * GIB


@pytest.mark.slow
def test_no_build_takes_the_guides_command(cli: Cli) -> None:
    """It names b3942, which knows neither the architecture nor --mmap; later ones want a value for --flash-attn."""
    for build in ("b3942", "b6324", "b8643", "b11434"):
        answer = cli(
            "check", *ONE_CARD, "--engine-build", build, "--json", "--file", str(FOLDER / "claim-24gb.sh")
        ).json
        assert answer["verdict"] == "invalid"
        errors = " ".join(item["text"] for item in answer["findings"] if item["severity"] == "error")
        unknown = "glm-dsa" in errors
        assert unknown is (build in ("b3942", "b6324"))


def test_standard_input_and_several_commands(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    script = b"M=GLM-5.1-UD-IQ2_M.gguf\nllama-server -m $M -cmoe -c 8192\n"
    script += b"LLAMA_ARG_CTX_SIZE=4096 llama-server -m $M --mlock\n"

    class Stdin:
        buffer = io.BytesIO(script)

    monkeypatch.setattr("sys.stdin", Stdin())
    ended = cli("check", *ONE_CARD, "--file", "-")
    assert ended.code == 3
    assert ended.out.index("Read from line 2:") < ended.out.index("Read from line 3:")
    assert "LLAMA_ARG_CTX_SIZE=4096 \\" in ended.out


def test_what_is_known_only_when_it_runs(cli: Cli, home: Path) -> None:
    (home / "x.sh").write_text(
        'llama-server -m GLM-5.1-UD-IQ2_M.gguf -cmoe -c 8192 -t $(nproc) "$1"\n', "utf-8"
    )
    answer = cli("check", *ONE_CARD, "--json", "--file", "x.sh").json
    assert answer["verdict"] == "fits"
    (found,) = [item for item in answer["findings"] if item["id"] == "value-unknown"]
    assert found["text"].endswith(": -t $(nproc), $1")
    assert answer["given"]["argv"] == ["llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-cmoe", "-c", "8192"]


def test_the_corrected_command_keeps_sampling_and_environment(cli: Cli, home: Path) -> None:
    text = "services:\n  a:\n    image: ghcr.io/ggml-org/llama.cpp:server-cuda\n"
    text += "    command: -m GLM-5.1-UD-IQ2_M.gguf -c 8192 --mlock --temp 0.3 --api-key-file /run/k\n"
    text += "    environment: {CUDA_VISIBLE_DEVICES: 1, LLAMA_ARG_N_GPU_LAYERS: 99, LLAMA_ARG_ENDPOINT_METRICS: 1}\n"
    (home / "compose.yml").write_text(text, "utf-8")
    answer = cli("check", *ONE_CARD, "--json", "--file", "compose.yml").json
    assert answer["command"]["env"] == {"CUDA_VISIBLE_DEVICES": "1", "LLAMA_ARG_ENDPOINT_METRICS": "1"}
    argv = answer["command"]["argv"]
    assert argv[argv.index("--temp") + 1] == "0.3"
    assert "--top-p" not in argv
    assert argv[-4:] == ["--host", "0.0.0.0", "--port", "8080"]  # noqa: S104 - what the image listens on
    assert not [item for item in answer["findings"] if item["id"] == "no-api-key"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--file", "absent.sh"], "absent.sh: cannot be read (No such file or directory)"),
        (["--file", "."], ".: cannot be read (Is a directory)"),
        (["--file", "binary"], "binary: not a text"),
        (["--file", "empty.sh"], "empty.sh: no command of llama.cpp in it"),
        (["--file", "bad.yml"], "bad.yml: line 1: not YAML"),
        (["--file", "open.sh"], "open.sh: line 1: a quote ' is never closed"),
        (
            ["--file", "empty.sh", "--", "llama-server"],
            "check: --file and a command behind -- exclude each other",
        ),
    ],
)
def test_files_that_cannot_be_checked(cli: Cli, home: Path, argv: list[str], line: str) -> None:
    (home / "binary").write_bytes(b"\x7fELF\0\0")
    (home / "empty.sh").write_text("echo\n", "utf-8")
    (home / "bad.yml").write_text("services: [", "utf-8")
    (home / "open.sh").write_text("llama-server 'x", "utf-8")
    ended = cli("check", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"plan-llama: {line}")
    assert ended.err.count("\n") == 1


CLASH = ("llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-c", "8192")


@pytest.mark.parametrize(
    ("arguments", "found", "text"),
    [
        (["-cmoe", "-ncmoe", "4"], "flags-contradict", "-ncmoe 4 has no effect beside -cmoe"),
        (["-ngl", "0", "-cmoe"], "flags-contradict", "-cmoe has no effect beside -ngl 0"),
        (["-ngl", "9", "-dev", "none"], "flags-contradict", "-ngl 9 has no effect beside -dev none"),
        (["-cmoe", "-sm", "none", "-ts", "1,1"], "flags-contradict", "-ts 1,1 has no effect beside -sm none"),
        (["-cmoe", "-ts", "1,1"], "flags-contradict", "2 shares for 1 device"),
        (["-cmoe", "-sm", "none", "-mg", "1"], "unknown-device", "-mg 1: 1 device to choose from"),
        (["-cmoe", "-ub", "4096"], "flags-contradict", "the micro-batch is cut to the batch, 2048 tokens"),
        (["-cmoe", "-hf", "a/b"], "flags-contradict", "both name a model"),
        (["-cmoe", "--host", "0.0.0.0"], "no-api-key", "--host 0.0.0.0 lets other machines in"),  # noqa: S104
        (["-cmoe", "--host", "::", "--api-key", "k"], "api-key-visible", "the key stands in the command"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(cli: Cli, arguments: list[str], found: str, text: str) -> None:
    answer = cli("check", *ONE_CARD, "--json", "--", *CLASH, *arguments).json
    assert [item for item in answer["findings"] if item["id"] == found and text in item["text"]]
    quiet = cli("check", *ONE_CARD, "--json", "--", *CLASH, "-cmoe", "--host", "127.0.0.2").json
    ids = {item["id"] for item in quiet["findings"]}
    assert not ids & {"flags-contradict", "no-api-key", "api-key-visible"}


def test_a_command_of_vllm(cli: Cli, home: Path) -> None:
    text = "services:\n  a:\n    image: vllm/vllm-openai:v0.33.0\n"
    text += "    command: /models/none --max-model-len 4096 --no-such-argument\n"
    (home / "compose.yml").write_text(text, "utf-8")
    ended = cli("check", *ONE_CARD, "--file", "compose.yml")
    assert ended.code in (2, 3)
    answer = ended.out + ended.err
    assert "vllm serve /models/none \\\n    --max-model-len 4096 --no-such-argument" in answer


def test_several_commands_of_several_engines(cli: Cli, home: Path) -> None:
    """Each has an answer of its own, in the order of the file, with what the file sets for it."""
    lines = [
        "vllm serve meta-llama/Llama-3.1-8B-Instruct --max-model-len 8192",
        "CUDA_VISIBLE_DEVICES=1 vllm serve meta-llama/Llama-3.1-8B-Instruct --swap-space 4 -tp $(nproc)",
        "vllm serve /models/none",
        "llama-server -m GLM-5.1-UD-IQ2_M.gguf -cmoe -c 8192",
        "ollama run qwen3:8b",
    ]
    (home / "all.sh").write_text("\n".join(lines) + "\n", "utf-8")
    ended = cli("check", *ONE_CARD, "--json", "--file", "all.sh")
    Draft202012Validator(SCHEMA).validate(ended.json)
    each = [ended.json, *ended.json["also"]]
    assert [item["given"]["where"] for item in each] == [f"line {number}" for number in range(1, 6)]
    assert [item["accepted"] for item in each[:4]] == [True, False, True, True]
    assert (each[0]["verdict"], each[1]["verdict"], each[3]["verdict"]) == ("fits", "invalid", "fits")
    assert each[0]["settings"]["context_per_slot"] == 8192
    assert each[1]["given"]["env"] == {"CUDA_VISIBLE_DEVICES": "1"}
    assert [f["text"] for f in each[1]["findings"] if f["id"] == "value-unknown"] == [
        "known only when it runs, so it is left out here: -tp $(nproc)"
    ]
    assert each[2]["memory"] is None
    assert ended.code == 3
