"""Models on a server, from the command line: the best quant that fits, what is listed, what is said."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plan_llama.models.gguf import read_file
from plan_llama.models.progress import Progress
from plan_llama.models.writer import write_header
from tests.cli.conftest import GIB, Cli
from tests.gguf_builder import TINY_KEYS, header
from tests.http_server import Site, serving, status
from tests.small_models import llama_like

REPO = "someone/Likely-GGUF"
KINDS = {"F16": "f16", "Q8_0": "q8_0", "Q4_0": "q4_0"}
CARD = ("--gpu", "24GiB", "--ram", "12GiB", "--cpu-cores", "8")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A repository with a decoder of 20 billion weights in three quants and one for another engine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # it would know the user's own token
    monkeypatch.setenv("PLAN_LLAMA_CACHE", str(tmp_path / "cache"))
    files: dict[str, bytes] = {}
    with serving() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        for quant, kind in KINDS.items():
            name = f"Likely-{quant}.gguf"
            path = tmp_path / name
            write_header(llama_like(layers=104, width=4096, heads=32, kv_heads=8, kind=kind), path)
            with path.open("rb") as file:
                files[name] = file.read(read_file(path).data_offset)
            site.sizes[f"/{REPO}/resolve/main/{name}"] = path.stat().st_size
        odd, size = header(TINY_KEYS, [("token_embd.weight", (256, 4), 144)])  # IQ4_KS of ik_llama.cpp
        files["Likely-IQ4_KS.gguf"] = odd + b"\0" * size
        files["mmproj-F16.gguf"] = b"x" * 99
        site.hub(REPO, files)
        yield site


def test_the_largest_that_fits_is_chosen(cli: Cli, hub: Site, home: Path) -> None:
    ended = cli("--model", f"hf:{REPO}", *CARD, "--ctx", "4096", "--json")
    assert ended.code == 0, ended.err
    answer = ended.json
    assert answer["model"]["quant"] == "Q8_0"
    assert answer["model"]["source"] == "file"
    assert not answer["model"]["present"]
    assert answer["model"]["path"] == str(home / "models" / REPO / "Likely-Q8_0.gguf")
    assert answer["model"]["download"]["argv"][:3] == ["hf", "download", REPO]
    assert answer["command"]["argv"][2] == answer["model"]["path"]
    said = {item["id"]: item["text"] for item in answer["findings"]}
    assert "too large: F16" in said["quant-chosen"]
    assert "its header was read from" in said["model-origin"]
    read = [asked.path for asked in hub.asked if asked.path.endswith(".gguf")]
    projector = f"/{REPO}/resolve/main/mmproj-F16.gguf"
    # what is too large by its size is not read
    assert read == [f"/{REPO}/resolve/main/Likely-Q8_0.gguf", projector]
    assert "its projector cannot be read, and images are not counted" in said["model-origin"]


@pytest.mark.slow
def test_a_smaller_one_is_offered(cli: Cli, hub: Site) -> None:
    ended = cli("--model", f"hf:{REPO}:F16", *CARD, "--ctx", "4096", "--json")
    assert ended.code == 3
    assert any(item["what"] == "--quant Q8_0" for item in ended.json["alternatives"])


def test_what_another_engine_needs_is_passed_over(cli: Cli, hub: Site) -> None:
    for name in ("Q8_0", "Q4_0", "F16"):
        del hub.files[f"/{REPO}/resolve/main/Likely-{name}.gguf"]
    small = {"Likely-IQ4_KS.gguf": hub.files[f"/{REPO}/resolve/main/Likely-IQ4_KS.gguf"]}
    hub.hub(REPO, small)
    ended = cli("--model", f"hf:{REPO}", *CARD)
    assert ended.code == 2
    assert "ik_llama.cpp" in ended.err
    assert ended.err.count("\n") == 1


def test_the_plan_in_words(cli: Cli, hub: Site) -> None:
    ended = cli("--model", f"hf:{REPO}:q4_0", *CARD)
    assert ended.code == 0, ended.err
    assert f"hf download {REPO} --include Likely-Q4_0.gguf" in ended.out
    assert "not on this machine: its header was read from" in ended.flat
    assert ended.err == ""  # progress is for terminals


def test_a_launcher_for_a_file_that_is_not_here_yet(cli: Cli, hub: Site, home: Path) -> None:
    ended = cli("--model", f"hf:{REPO}:Q4_0", *CARD, "--write", "launch")
    assert ended.code == 0, ended.err
    assert "Likely-Q4_0.gguf" in (home / "launch" / "start-llama-server.sh").read_text()


def test_check(cli: Cli, hub: Site) -> None:
    argv = ("--", "llama-server", "-hf", f"{REPO}:Q8_0", "-c", "4096", "-ngl", "99")
    ended = cli("check", *CARD, "--model", f"hf:{REPO}:Q8_0", *argv, "--fit", "off")
    assert ended.code in (0, 3), ended.err
    assert "memory and speed are unknown" not in ended.flat
    hub.asked.clear()
    ended = cli("check", *CARD, *argv)
    assert hub.asked == []  # a command that names a repository is no wish to ask the hub
    assert f"--model hf:{REPO}:Q8_0 asks the hub" in ended.flat


def test_inspect(cli: Cli, hub: Site) -> None:
    ended = cli("inspect", f"hf:{REPO}", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["quant"] == "Q8_0"  # as -hf without a tag would choose
    offered = ended.json["repository"]
    assert [item["quant"] for item in offered["quants"]] == ["F16", "Q8_0", "Q4_0", "IQ4_KS"]
    assert offered["projectors"] == [{"file": "mmproj-F16.gguf", "size_bytes": 99}]
    text = cli("inspect", f"hf:{REPO}:Q4_0").out
    assert "Likely-Q4_0.gguf, once it is downloaded" in text
    assert "a projector for images or sound" in text


def test_the_listing(cli: Cli, hub: Site) -> None:
    text = cli("models", f"hf:{REPO}").out
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == [REPO]
    assert [line[0] for line in lines[1:5]] == ["F16", "Q8_0", "Q4_0", "IQ4_KS"]
    assert lines[2][1] == f"{hub.sizes[f'/{REPO}/resolve/main/Likely-Q8_0.gguf'] / 1e9:.1f}"
    ended = cli("models", f"hf:{REPO}", "--json")
    assert len(ended.json["repository"]["quants"]) == 4
    hub.answers["/api/models/someone/Other/tree/main"] = status(401)
    ended = cli("models", "hf:someone/Other")
    assert ended.code == 2
    assert "HF_TOKEN" in ended.err


def test_a_header_written_from_a_server(cli: Cli, hub: Site, home: Path) -> None:
    ended = cli("inspect", f"hf:{REPO}:Q4_0", "--write-header", "own.gguf")
    assert ended.code == 0, ended.err
    assert (home / "own.gguf").stat().st_size > 3 * GIB
    assert {tensor.type.name for tensor in read_file(home / "own.gguf").tensors} == {"f32", "q4_0"}


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for kind, wanted in ((io.StringIO, ""), (Terminal, "\rreading: 2 of 6 files\x1b[K\r\x1b[K")):
        stream = kind()
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("read\x1bing") as progress:
            progress.show("2 of 6 files")
        assert stream.getvalue() == wanted
