"""Units are read as systemd reads them: recorded answers of its own functions, and whole files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_llama.command_files import unit
from plan_llama.errors import InputError

RECORDED = json.loads((Path(__file__).parents[2] / "data/launchers/systemd_words.json").read_text("utf-8"))


@pytest.mark.parametrize("case", RECORDED["words"], ids=lambda case: case["text"][:20])
def test_words_are_those_of_systemd(case: dict[str, object]) -> None:
    text = str(case["text"])
    if case["words"] is None:
        with pytest.raises(InputError):
            unit.words(text)
    else:
        assert unit.words(text) == case["words"]


@pytest.mark.parametrize("case", RECORDED["expanded"], ids=range(len(RECORDED["expanded"])))
def test_variables_are_those_of_systemd(case: dict[str, list[str]]) -> None:
    pairs = [item.split("=", 1) for item in RECORDED["environment"]]
    lines = "".join(f'Environment="{name}={value}"\n' for name, value in pairs)
    quoted = " ".join(f'"{word}"' for word in case["argv"][1:])
    (item,) = unit.commands(f"[Service]\n{lines}ExecStart=llama-server {quoted}\n")
    # a variable that no line sets may still be set from outside
    assert [word.text for word in item.words[1:] if word.known] == case["words"][1:]


UNIT = """\
# a comment
[Unit]
Description=llama-server -m not.gguf

[Service]
Environment="LLAMA_ARG_CTX_SIZE=4096" MODELS=/srv/models
Environment=EXTRA='--jinja -np 2'
EnvironmentFile=-/etc/default/llama
ExecStartPre=/bin/sleep 1
ExecStart=-@/usr/bin/llama-server \\
  # a comment between
  -m "${MODELS}/a b.gguf" \\
  --alias %i $EXTRA --temp 0.7
LimitMEMLOCK=infinity

[Install]
WantedBy=default.target
"""


def test_a_whole_unit() -> None:
    (item,) = unit.commands(UNIT)
    words = ["/usr/bin/llama-server", "-m", "/srv/models/a b.gguf", "--alias", "%i"]
    assert [word.text for word in item.words] == [*words, "--jinja", "-np", "2", "--temp", "0.7"]
    assert [word.text for word in item.words if not word.known] == ["%i"]
    assert item.env["LLAMA_ARG_CTX_SIZE"] == "4096"
    assert (item.where, item.notes) == ("line 10", ("variables of -/etc/default/llama are not read",))


def test_a_shell_in_a_unit_and_a_reset() -> None:
    text = "[Service]\nExecStart=/bin/llama-server -m x\nExecStart=\n"
    assert unit.commands(text) == []
    (item,) = unit.commands(text + "ExecStart=/bin/sh -c 'exec llama-server -m \"a b\" -c $$((1))'\n")
    assert [word.text for word in item.words] == ["exec", "llama-server", "-m", "a b", "-c", "$((1))"]


def test_a_quadlet() -> None:
    text = "[Container]\nImage=ghcr.io/ggml-org/llama.cpp:server-vulkan\nEnvironment=LLAMA_ARG_NP=2\n"
    text += "Exec=-m /m.gguf -c 1\n"
    (item,) = unit.commands(text)
    assert [word.text for word in item.words] == ["llama-server", "-m", "/m.gguf", "-c", "1"]
    assert dict(item.env)["LLAMA_ARG_NP"] == "2"
