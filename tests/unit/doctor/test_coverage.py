"""An engine's messages: what scripts/doctor_coverage.py takes out of a source, and what doctor says."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.doctor.logs import book

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "doctor_coverage.py"))
LOADING = "llama_model_load: error loading model: "
SOURCE = r"""
static void load() {
    GGML_ASSERT(n > 0 && "no \"layers\"");  // GGML_ABORT("not this one")
    throw std::runtime_error(format("tensor '%s' data is not within the file bounds, "
                                    "model is corrupted or incomplete", name));
    throw std::runtime_error("unknown thing " + name + " here");
    LLAMA_LOG_ERROR("%s: failed to decode, ret = %d\n", __func__, ret);
    GGML_ASSERT(n > 0 && "no \"layers\"");
}
"""


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "llama-x.cpp").write_text(SOURCE, encoding="utf-8")
    messages: Callable[[Path], Any] = SCRIPT["messages"]
    return [item.printed() for item in messages(tmp_path)]


def test_messages_are_taken_out_once_and_printed_as_the_engine_does(lines: list[str]) -> None:
    assert lines == [
        '/src/src/llama-x.cpp:123: GGML_ASSERT(n > 0 && "no "layers"") failed',
        f"{LOADING}tensor 'word' data is not within the file bounds, model is corrupted or incomplete",
        f"{LOADING}unknown thing word here",
        "graph_compute: failed to decode, ret = 123",
    ]


def test_what_doctor_says_of_them(lines: list[str]) -> None:
    read: Callable[..., str] = SCRIPT["read"]
    assert [read(line, book()) for line in lines] == ["general", "special", "general", "general"]
    assert read("slot release: id 0 | task 1 | stop processing", book()) == "none"


GO = """
package server
// errors.New("not this one")
var errQueue = errors.New("server busy, please try again.  maximum pending requests exceeded")
func pull() error {
    slog.Warn("model was still loaded", "model", name)
    c.JSON(400, gin.H{"error": fmt.Sprintf("model %q not found", name)})
    return fmt.Errorf("pull model manifest: %s", err)
}
"""


def test_messages_of_go_are_taken_out_as_the_program_prints_them(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module example\n", encoding="utf-8")
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "download.go").write_text(GO, encoding="utf-8")
    (tmp_path / "server" / "download_test.go").write_text(GO, encoding="utf-8")
    messages: Callable[[Path], Any] = SCRIPT["messages"]
    time = "time=2026-01-01T00:00:00Z"
    assert [item.printed() for item in messages(tmp_path)] == [
        "pulling manifest\nError: server busy, please try again. maximum pending requests exceeded",
        f'{time} level=WARN source=download.go:123 msg="model was still loaded" error=word',
        "pulling manifest\nError: model word not found",
        "pulling manifest\nError: pull model manifest: word",
    ]
