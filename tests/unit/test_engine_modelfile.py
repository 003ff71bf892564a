"""Modelfiles against what Ollama's own parser made of them (tests/data/engines/modelfiles.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_llama.engines import modelfile
from plan_llama.errors import InputError

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "data/engines/modelfiles.json").read_text(encoding="utf-8")
)


def verdict(text: str) -> str:
    """Ollama's message, or nothing where it takes the file."""
    try:
        modelfile.read(text)
    except InputError as error:
        return error.message.removeprefix("Modelfile: ")
    return ""


def test_every_file_is_judged_as_ollama_judges_it() -> None:
    assert len(RECORDED["files"]) == 150
    assert sum(bool(row["error"]) for row in RECORDED["files"]) > 60
    for row in RECORDED["files"]:
        assert verdict(row["text"]) == row["error"], row["text"]


def test_instructions_are_read_as_ollama_reads_them() -> None:
    for row in RECORDED["files"]:
        if "commands" not in row:
            continue
        found = [
            ["model" if item.name == "from" and not item.parameter else item.name, item.value]
            for item in modelfile.parse(row["text"])
        ]
        assert found == row["commands"], row["text"]


def test_parameters_are_those_of_the_request() -> None:
    checked = 0
    for row in RECORDED["files"]:
        if row["error"] or not row.get("parameters"):
            continue
        assert {name for name, _ in modelfile.read(row["text"]).parameters} == set(row["parameters"])
        checked += 1
    assert checked >= 8


def test_deprecated_parameters_are_named() -> None:
    assert modelfile.read("FROM x\nPARAMETER low_vram true\nPARAMETER use_mlock true\n").ignored == (
        "low_vram",
        "use_mlock",
    )


@pytest.mark.parametrize("row", RECORDED["paths"], ids=lambda row: ascii(row["path"]))
def test_paths_are_quoted_as_recorded(row: dict[str, Any]) -> None:
    assert row["commands"][0][1] == row["path"]
    assert f"FROM {modelfile.quoted(row['path'])}\n" == row["text"].partition("PARAMETER")[0]


@pytest.mark.parametrize("path", ["/a\u00a0b.gguf", "/a\u200bb.gguf", "/a\rb", "/\udcff.gguf", '/a"""\nb'])
def test_what_no_modelfile_can_hold_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="a Modelfile cannot hold"):
        modelfile.quoted(path)


@given(st.text(alphabet='ab/ "\n\t#\\.', min_size=1, max_size=12), st.integers(1, 10**6))
def test_what_is_written_reads_back(path: str, context: int) -> None:
    try:
        text = modelfile.written([path], [("num_ctx", str(context))], comments=("a\nb",))
    except InputError:
        assert '"""' in path
        return
    read = modelfile.read(text)
    assert read.sources == (path,)
    assert read.number("num_ctx") == context
