"""Bad input gets one line that says what is wrong and what to do, exit code 2, and no traceback."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

from tests.cli.conftest import GLM, Cli
from tests.gguf_builder import TINY_KEYS, TINY_TENSORS, header, write, write_split

HERE = ("--gpu", "24GiB", "--ram", "64GiB")


def refused(cli: Cli, *argv: str) -> str:
    ended = cli(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("plan-llama: ")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err
    return ended.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--model", "glm-51"), "did you mean glm-5.1"),
        (("--model", "glm-5.1", "--quant", "UD-IQ2_X"), "did you mean UD-IQ2_XXS"),
        (("--model", "glm-5.1", "--quant", "smol-IQ4_K"), "needs ik_llama.cpp"),
        (("--model", "nowhere.gguf"), "no such file"),
        (("--model", ""), "--model is empty"),
        (("--model", "."), "a folder"),
        (("--model", "hf:someone"), "expected hf:OWNER/REPO"),
        (("--model", "ollama:no-such-model"), "`ollama pull no-such-model` fetches it"),
        (("--model", "https://example.org/page.html"), "not a link to a .gguf file"),
        ((*GLM, "--gpu", "24"), "such as 24GiB"),
        ((*GLM, "--gpu", "-24GiB"), "24GiB"),
        ((*GLM, "--gpu", "RTX 9090"), "no card is called 'RTX 9090'"),
        ((*GLM, "--gpu", "24GiB", "--gpu-free", "30GiB"), "more than card 0 has"),
        ((*GLM, "--gpu", "24GiB", "--gpu-free", "0GiB"), "no card has free memory"),
        ((*GLM, "--ctx", "4K", "--prompt-tokens", "5000"), "does not go into 4,096"),
        ((*GLM, "--write", ""), "--write is empty"),
        ((*GLM, "--ram", "lots"), "--ram"),
        ((*GLM, "--ram", "9e99GiB"), "--ram"),
        ((*GLM, "--hardware", "no-such-machine"), "no-such-machine"),
        ((*GLM, "--ctx", "many"), "--ctx 'many'"),
        ((*GLM, "--ctx", "0"), "--ctx '0'"),
        ((*GLM, "--ctx", "99999999999"), "at most"),
        ((*GLM, "--parallel", "0"), "--parallel"),
        ((*GLM, "--workload", "sleep"), "there are chat"),
        ((*GLM, "--objective", "nice"), "it is one of balanced"),
        ((*GLM, "--kv-type", "q3_0"), "it is one of f32, f16"),
        ((*GLM, "--pin", "ubatch"), "KEY=VALUE"),
        ((*GLM, "--pin", "ubatch=-1"), "takes a number"),
        ((*GLM, "--engine", "vllm"), "no checkpoint of GLM-5.1 for vLLM is known"),
        ((*GLM, "--engine", "sglang"), "is not known"),
        ((*GLM, "--engine-build", "latest"), "expected a build such as b11434"),
        (("--no-such-option",), "--no-such-option"),
        ((), "--model is missing"),
        (("nonsense",), "nonsense"),
        (("check", "llama-server", "-m", "x.gguf"), "stands behind --"),
        (("check", "--"), "no command to check"),
        (("inspect", "nowhere.gguf"), "no such file"),
        (("inspect", "glm-5.1", "--quant", "none"), "no quant 'none'"),
    ],
)
def test_words_that_cannot_be_meant(cli: Cli, argv: tuple[str, ...], said: str) -> None:
    assert said in refused(cli, *argv)


@pytest.mark.parametrize(
    "option",
    ["--gpu=24GiB", "--model=glm-5.1", "--ctx=8K", "--json", "--force", "--version", "--engine-build=b1"],
)
def test_options_before_a_command_are_an_error(cli: Cli, option: str) -> None:
    line = refused(cli, option, "hardware")
    assert f"{option.partition('=')[0]} stands before the command 'hardware'" in line


def test_not_a_gguf(cli: Cli, home: Path) -> None:
    (home / "model.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not a GGUF file" in refused(cli, "--model", "model.gguf", *HERE)
    (home / "model.gguf").write_bytes(b"")
    assert "model.gguf" in refused(cli, "--model", "model.gguf", *HERE)


@pytest.mark.parametrize("length", [4, 20, 60, 200])
def test_a_header_cut_inside_itself(cli: Cli, home: Path, length: int) -> None:
    raw, _ = header()
    assert length < len(raw)
    (home / "model.gguf").write_bytes(raw[:length])
    assert "model.gguf" in refused(cli, "--model", "model.gguf", *HERE)


def test_a_missing_part(cli: Cli, home: Path) -> None:
    parts = write_split(home, "tiny", [TINY_TENSORS[:1], TINY_TENSORS[1:2], TINY_TENSORS[2:]])
    parts[1].unlink()
    assert "tiny-00002-of-00003.gguf" in refused(cli, "--model", str(parts[0]), *HERE)


@pytest.mark.parametrize(
    "lie", [{"tensor_count": 1 << 40}, {"key_count": 1 << 62}, {"offsets": (0, 1 << 60, 64)}]
)
def test_counts_that_lie(cli: Cli, home: Path, lie: dict[str, object]) -> None:
    raw, size = header(TINY_KEYS, TINY_TENSORS, **lie)  # type: ignore[arg-type]  # one keyword each
    (home / "model.gguf").write_bytes(raw + bytes(size))
    assert "model.gguf" in refused(cli, "--model", "model.gguf", *HERE)


def test_a_string_longer_than_the_file(cli: Cli, home: Path) -> None:
    raw = b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 50) + b"general.architecture"
    (home / "model.gguf").write_bytes(raw)
    assert "model.gguf" in refused(cli, "--model", "model.gguf", *HERE)


def test_control_characters_of_a_name_stay_visible_on_one_line(cli: Cli) -> None:
    line = refused(cli, "--model", "bad\nname\x1b[31m.gguf")
    assert "bad\\nname\\x1b[31m.gguf" in line


def test_a_header_with_infinity(cli: Cli, home: Path) -> None:
    keys = {**TINY_KEYS, "llama.gate_lower_bound": -math.inf, "llama.rope.freq_base": math.nan}
    write(home / "model.gguf", keys)
    facts = cli("inspect", "model.gguf", "--json").json["hparams"]
    assert facts["gate_lower_bound"] is facts["rope.freq_base"] is None


def test_a_name_that_would_steer_the_terminal(cli: Cli, home: Path) -> None:
    keys = {**TINY_KEYS, "general.name": "evil\x1b]0;title\x07\nFITS"}
    write(home / "model.gguf", keys)
    out = cli("inspect", "model.gguf").out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.startswith("evil ]0;title FITS\n")
