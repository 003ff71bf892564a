"""A hub on 127.0.0.1 and a home without anything in it, for the tests that ask for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http_server import Site, serving
from tests.unit.models.remote_helpers import REPO, gguf


@pytest.fixture
def remote_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, an own cache, no proxy: nothing of the person who runs the tests is seen or sent."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "OLLAMA_", "LLAMA_", "XDG_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # it would know the user's own token
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def site(remote_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A hub with one repository of two quants and a projector."""
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.hub(REPO, {"README.md": b"#", "Tiny-Q8_0.gguf": gguf(), "mmproj-F16.gguf": b"x" * 9})
        yield running
