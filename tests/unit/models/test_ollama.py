"""`ollama:name`: a store as `ollama pull` leaves it, and what can be wrong with one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plan_llama.errors import PlanLlamaError
from plan_llama.models.resolve import resolve_model
from tests import gguf_builder as build

HOST = "registry.ollama.ai"
LAYER = "application/vnd.ollama.image."


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one model in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    folder = tmp_path / "ollama store"
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    pull(folder, "library/tiny/latest", {"model": model(), "template": b"{{ .Prompt }}"})
    return folder


def model(**keys: object) -> bytes:
    raw, size = build.header({**build.TINY_KEYS, **keys})
    return raw + b"\0" * size


def blob(store: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    path = store / "blobs" / f"sha256-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def pull(
    store: Path,
    name: str,
    layers: dict[str, bytes],
    *,
    host: str = HOST,
    config: dict[str, Any] | None = None,
) -> Path:
    """What `ollama pull` writes: blobs, and a manifest in the format of a container image."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            **blob(store, json.dumps(config or {"model_format": "gguf"}).encode()),
        },
        "layers": [{"mediaType": LAYER + kind, **blob(store, data)} for kind, data in layers.items()],
    }
    path = store / "manifests" / host / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


def refusal(text: str, quant: str | None = None) -> str:
    with pytest.raises(PlanLlamaError) as caught:
        resolve_model(text, quant)
    return caught.value.line()


@pytest.mark.parametrize(
    "name", ["tiny", "tiny:latest", "library/tiny", "registry.ollama.ai/library/tiny:latest", "Tiny:Latest"]
)
def test_a_model_of_the_library(store: Path, name: str) -> None:
    spec = resolve_model(f"ollama:{name}")
    assert spec.present
    assert spec.architecture == "llama"
    assert spec.quant == "Q8_0"
    assert spec.path
    assert Path(spec.path).parent == store / "blobs"
    assert Path(spec.path).read_bytes() == model()


def test_names_of_other_places(store: Path) -> None:
    pull(store, "someone/Tiny-GGUF/Q4_K_M", {"model": model(**{"llama.context_length": 77})}, host="hf.co")
    pull(store, "someone/tiny/8b", {"model": model(**{"llama.context_length": 78})})
    assert resolve_model("ollama:hf.co/someone/Tiny-GGUF:Q4_K_M").context_train == 77
    assert resolve_model("ollama:someone/tiny:8b").context_train == 78


def test_what_its_author_set(store: Path) -> None:
    parameters = {"temperature": 0.6, "top_p": 0.95, "stop": ["</s>"], "num_ctx": 4096}
    layers = {"model": model(), "params": json.dumps(parameters).encode(), "projector": b"clip"}
    pull(store, "library/tiny/vision", layers)
    spec = resolve_model("ollama:tiny:vision")
    assert spec.sampling == {"temperature": 0.6, "top_p": 0.95}
    assert spec.origin_note
    assert "--mmproj" in spec.origin_note
    assert "num_ctx 4096" in spec.origin_note


def test_a_model_without_a_name(store: Path) -> None:
    keys = {key: value for key, value in build.TINY_KEYS.items() if key != "general.name"}
    raw, size = build.header(keys)
    pull(store, "library/plain/7b", {"model": raw + b"\0" * size})
    assert resolve_model("ollama:plain:7b").name == "plain:7b"


def test_models_without_weights(store: Path) -> None:
    cloud = {"remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b"}
    pull(store, "library/gpt-oss/120b-cloud", {"params": b"{}"}, config=cloud)
    line = refusal("ollama:gpt-oss:120b-cloud")
    assert "a cloud model, which runs on https://ollama.com:443" in line
    pull(store, "library/new/mlx", {"tensor; name=x; dtype=bf16; shape=1": b"x"})
    assert "kept as safetensors" in refusal("ollama:new:mlx")
    pull(store, "library/odd/latest", {"template": b"x"})
    assert "names no model; `ollama pull odd`" in refusal("ollama:odd")


def test_what_is_not_installed(store: Path) -> None:
    line = refusal("ollama:qwen3:8b")
    assert "not installed (looked in" in line
    assert "`ollama pull qwen3:8b` fetches it" in line
    assert "did you mean tiny:latest" in refusal("ollama:tiny:7b")


def test_no_store(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "nowhere"))
    assert "ollama:tiny: not installed" in refusal("ollama:tiny")


def test_the_quant_is_in_the_tag(store: Path) -> None:
    assert resolve_model("ollama:tiny", "q8_0").quant == "Q8_0"
    assert "the tag names the quant" in refusal("ollama:tiny", "Q4_0")


@pytest.mark.parametrize(
    "name",
    ["", ":latest", "tiny:", "../tiny", "a/../b", "/etc/passwd", "a/b/c/d", "tiny:../x", "a//b", "t\n"],
)
def test_names_that_are_none(store: Path, name: str) -> None:
    line = refusal(f"ollama:{name}")
    assert "not a name of Ollama's" in line or "not installed" in line
    assert name.strip() == name or "not installed" in line


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"layers": 3}', b'{"layers": [3, null, {}]}', b"[" * 100_000, b" " * (2 << 20)],
)
def test_manifests_that_are_none(store: Path, content: bytes) -> None:
    (store / "manifests" / HOST / "library" / "tiny" / "latest").write_bytes(content)
    assert "`ollama pull tiny`" in refusal("ollama:tiny")


def test_a_digest_that_leads_elsewhere(store: Path, tmp_path: Path) -> None:
    path = store / "manifests" / HOST / "library" / "tiny" / "latest"
    manifest = json.loads(path.read_text())
    for layer in manifest["layers"]:
        layer["digest"] = "sha256:../../../etc/passwd"
    path.write_text(json.dumps(manifest))
    assert "names no model" in refusal("ollama:tiny")


def test_a_blob_that_is_gone(store: Path) -> None:
    for path in (store / "blobs").iterdir():
        path.unlink()
    assert "is missing; `ollama pull tiny` fetches it again" in refusal("ollama:tiny")
