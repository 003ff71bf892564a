"""Plans and checks for ik_llama.cpp, as a person asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from plan_llama.engines import ik_llama
from plan_llama.engines.commandline import parse
from tests.cli.conftest import GLM, ONE_CARD, Cli
from tests.cli.test_schema import SCHEMA
from tests.gguf_builder import TINY_KEYS, header

IK = ("--engine", "ik_llama.cpp")
GIVEN = (
    "./llama-server",
    "-m",
    "GLM-5.1-UD-IQ2_M.gguf",
    "-c",
    "32768",
    "-mla",
    "3",
    "-amb",
    "512",
    "-ngl",
    "99",
)


@pytest.mark.slow
def test_a_plan_is_in_its_own_arguments(cli: Cli) -> None:
    answer = cli(*GLM, *ONE_CARD, *IK, "--json").json
    Draft202012Validator(SCHEMA).validate(answer)
    command = answer["command"]
    assert (command["engine"], command["build"]) == ("ik_llama.cpp", ik_llama.flags().build)
    assert parse(command["argv"], table=ik_llama.flags()).accepted
    argv = " ".join(command["argv"])
    assert "-mla 3" in argv
    assert "-ngl 999" in argv
    assert not {"-ncmoe", "--fit", "--load-mode", "-kvu"} & set(command["argv"])
    assert "memory-of-other-engine" in {item["id"] for item in answer["findings"]}


@pytest.mark.slow
def test_more_is_kept_free(cli: Cli) -> None:
    theirs = cli(*GLM, *ONE_CARD, *IK, "--json").json["memory"]["pools"][1]
    ours = cli(*GLM, *ONE_CARD, "--json").json["memory"]["pools"][1]
    # what was measured beyond the buffers (a hidden state of 4096 tokens, 8 MiB), and what was not
    kept = 6144 * 4096 * 4 + (8 + 256) * 1024**2
    assert theirs["margin_bytes"] - ours["margin_bytes"] == kept


def test_a_command_with_its_arguments_is_judged_as_it_would(cli: Cli) -> None:
    ended = cli("check", *ONE_CARD, "--", *GIVEN, "-ot", "exps=CPU")
    assert ended.code == 0
    assert ended.out.startswith("Checked against ik_llama.cpp's llama-server b")
    ended = cli("check", *ONE_CARD, "--json", "--", *GIVEN, "-fmoe", "-ot", "exps=CPU")
    assert ended.code == 3
    answer = ended.json
    assert [item["text"] for item in answer["findings"] if item["severity"] == "error"] == [
        f"-fmoe: removed: ik_llama.cpp b{ik_llama.flags().build} does not know it"
    ]
    corrected = answer["command"]["argv"]
    assert answer["command"]["engine"] == "ik_llama.cpp"
    assert "-fmoe" not in corrected
    assert corrected.count("-mla") == 1
    assert parse(corrected, table=ik_llama.flags()).accepted


def test_the_engine_can_be_said(cli: Cli) -> None:
    plain = ("llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf", "-ngl", "99", "-cmoe", "-c", "8192", "--no-mmap")
    assert cli("check", *ONE_CARD, "--", *plain).code == 3
    assert cli("check", *ONE_CARD, *IK, "--", *plain).code == 0


def file_of_its_own(home: Path) -> Path:
    """A model with a tensor of IQ4_KS, which llama.cpp does not have."""
    keys = {**TINY_KEYS, "llama.embedding_length": 256, "llama.feed_forward_length": 512}
    data, size = header(keys, [("output_norm.weight", (256,), 0), ("token_embd.weight", (256, 4), 144)])
    path = home / "Tiny-IQ4_KS.gguf"
    path.write_bytes(data + b"\0" * (size + 4096))
    return path


def test_its_types_are_read_and_refused_for_llama_cpp(cli: Cli, home: Path) -> None:
    path = str(file_of_its_own(home))
    assert "IQ4_KS" in cli("inspect", path).out
    for engine in ("llama.cpp", "ollama"):
        ended = cli("--model", path, *ONE_CARD, "--engine", engine)
        assert ended.code == 2
        assert ended.err.count("\n") == 1
        assert "iq4_ks" in ended.err
        assert "--engine ik_llama.cpp plans for it" in ended.err
    ended = cli("check", *ONE_CARD, "--json", "--", "llama-server", "-m", path, "-c", "2048")
    assert ended.code == 3
    assert ended.json["verdict"] == "invalid"
    assert "tensor-types-unknown" in {item["id"] for item in ended.json["findings"]}


def test_other_builds_are_not_known(cli: Cli) -> None:
    ended = cli(*GLM, *ONE_CARD, *IK, "--engine-build", "b4000")
    assert ended.code == 2
    assert "of one build" in ended.err


@pytest.mark.slow
def test_launchers_start_it_and_not_llama_cpp(cli: Cli, home: Path) -> None:
    assert cli(*GLM, *ONE_CARD, *IK, "--write", "out", "--launcher", "sh").code == 0
    assert "install ik_llama.cpp b" in (home / "out/start-llama-server.sh").read_text(encoding="utf-8")
    for name in ("compose", "k8s", "preset"):
        ended = cli(*GLM, *ONE_CARD, *IK, "--write", "out", "--launcher", name)
        assert ended.code == 2
        assert "is llama.cpp's, not ik_llama.cpp's" in ended.err
