"""What `--model` may say, files found in the places that other programs keep them in, and downloads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_llama.errors import ModelError, UsageError
from plan_llama.models import locate
from plan_llama.models.catalog_models import resolve
from plan_llama.models.resolve import resolve_model
from plan_llama.models.writer import write_header
from tests import gguf_builder as build

REPO = "unsloth/GLM-5.1-GGUF"
FILES = tuple(f"UD-IQ2_M/GLM-5.1-UD-IQ2_M-{n:05d}-of-00006.gguf" for n in range(1, 7))
CACHES = (
    "LLAMA_CACHE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HOME",
    "XDG_CACHE_HOME",
    "OLLAMA_MODELS",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and no cache settings: a test sees none of the user's files."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    return folder


def touch(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder / names[0]


def test_nothing_is_there(home: Path) -> None:
    spec = resolve_model("glm-5.1", "UD-IQ2_M")
    assert not spec.present
    assert spec.source == "catalog"
    assert spec.download
    folder = home / "models" / REPO
    assert spec.download.argv == (
        *("hf", "download", REPO, "--include", "UD-IQ2_M/*"),
        *("--local-dir", str(folder)),
    )
    assert spec.download.files == FILES
    assert spec.download.size_bytes == 236_000_000_000
    assert spec.path == spec.download.path == str(folder / FILES[0])


def test_another_download_folder(tmp_path: Path) -> None:
    spec = resolve_model("glm-5", "UD-TQ1_0", download_dir=tmp_path / "big disk")
    assert spec.path == str(tmp_path / "big disk" / "GLM-5-UD-TQ1_0.gguf")
    assert spec.download
    assert spec.download.argv[-2:] == ("--local-dir", str(tmp_path / "big disk"))
    assert spec.download.argv[4] == "GLM-5-UD-TQ1_0.gguf"


def test_names_of_the_files_unknown() -> None:
    spec = resolve_model("glm-5.1", "Q4_K_M")
    assert spec.path is None
    assert spec.download
    assert spec.download.files == ()
    assert spec.download.argv[3:5] == ("--include", "*Q4_K_M*")


@pytest.mark.parametrize(
    ("variable", "parts"),
    [
        ("", ("home", ".cache", "huggingface", "hub")),
        ("HF_HOME", ("hf", "hub")),
        ("HF_HUB_CACHE", ("hub2",)),
        ("LLAMA_CACHE", ("llama",)),
        ("XDG_CACHE_HOME", ("xdg", "huggingface", "hub")),
    ],
)
def test_hub_cache(
    variable: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / parts[0]))
    snapshot = tmp_path.joinpath(*parts) / "models--unsloth--GLM-5.1-GGUF" / "snapshots" / ("a" * 40)
    first = touch(snapshot, FILES)
    assert locate.find(REPO, FILES) == first
    (snapshot / FILES[3]).unlink()
    assert locate.find(REPO, FILES) is None


def test_old_flat_cache_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    names = tuple(f"unsloth_GLM-5.1-GGUF_{name.replace('/', '_')}" for name in FILES)
    assert locate.find(REPO, FILES) is None
    first = touch(tmp_path, names)
    assert locate.find(REPO, FILES) == first


def test_lm_studio_keeps_files_side_by_side(home: Path) -> None:
    names = tuple(name.rpartition("/")[2] for name in FILES)
    first = touch(home / ".lmstudio" / "models" / REPO, names)
    assert locate.find(REPO, FILES) == first


def test_own_download_folder(home: Path) -> None:
    assert locate.find(REPO, FILES) is None
    first = touch(home / "models" / REPO, FILES)
    assert locate.find(REPO, FILES) == first


def test_unknown_file_names_are_found_by_pattern(home: Path) -> None:
    folder = home / "models" / "AesSedai/GLM-5.1-GGUF"
    names = tuple(f"Q4_K_M/GLM-5.1-Q4_K_M-{n:05d}-of-00003.gguf" for n in range(1, 4))
    first = touch(folder, names)
    touch(folder, ("IQ4_XS/GLM-5.1-IQ4_XS-00001-of-00002.gguf",))
    assert locate.find("AesSedai/GLM-5.1-GGUF", (), include="*Q4_K_M*") == first
    assert locate.find("AesSedai/GLM-5.1-GGUF", (), include="*IQ4_XS*") is None  # a part is missing


def test_ollama_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    manifest = tmp_path / "manifests" / "hf.co" / "unsloth" / "GLM-5-GGUF" / "UD-TQ1_0"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "ab" * 32, "size": 1}
    manifest.write_text(
        json.dumps({"schemaVersion": 2, "layers": [{"mediaType": "x", "digest": "y"}, layer]})
    )
    files = ("GLM-5-UD-TQ1_0.gguf",)
    assert locate.find("unsloth/GLM-5-GGUF", files, quant="UD-TQ1_0") is None  # no blob
    blob = touch(tmp_path / "blobs", ("sha256-" + "ab" * 32,))
    assert locate.find("unsloth/GLM-5-GGUF", files, quant="UD-TQ1_0") == blob
    for bad in (
        "[]",
        "{",
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../x"}]}',
    ):
        manifest.write_text(bad)
        assert locate.find("unsloth/GLM-5-GGUF", files, quant="UD-TQ1_0") is None


def test_a_found_files_header_is_read(home: Path) -> None:
    """The real header beats the modelled table, and says that its data is not there."""
    folder = home / "models" / "unsloth/GLM-5-GGUF"
    folder.mkdir(parents=True)
    size = write_header(resolve("glm-5", "UD-TQ1_0"), folder / "GLM-5-UD-TQ1_0.gguf")
    spec = resolve_model("glm-5", "UD-TQ1_0")
    assert (spec.source, spec.path) == ("file", str(folder / "GLM-5-UD-TQ1_0.gguf"))
    assert spec.file_bytes == size
    assert not spec.present
    assert spec.download  # the data is still to be had
    assert (spec.catalog_id, dict(spec.sampling)) == ("glm-5", {"temperature": 1.0, "top_p": 0.95})


def test_an_unreadable_found_file_falls_back_to_the_catalog(home: Path) -> None:
    touch(home / "models" / "unsloth/GLM-5-GGUF", ("GLM-5-UD-TQ1_0.gguf",))
    spec = resolve_model("glm-5", "UD-TQ1_0")
    assert spec.source == "catalog"
    assert spec.data_note
    assert "unreadable" in spec.data_note


def test_a_file(tmp_path: Path) -> None:
    path = build.write(tmp_path / "tiny-q8_0.gguf")
    spec = resolve_model(str(path))
    assert (spec.source, spec.catalog_id, spec.download) == ("file", None, None)
    assert resolve_model(str(path), "q8_0") == spec
    with pytest.raises(UsageError, match="--quant Q4_K_M does not go with the file"):
        resolve_model(str(path), "Q4_K_M")


def test_a_file_without_the_suffix(tmp_path: Path) -> None:
    assert resolve_model(str(build.write(tmp_path / "sha256-abc"))).name == "Tiny Llama"


def test_a_known_models_file_gets_what_the_catalog_knows(tmp_path: Path) -> None:
    spec = resolve_model(str(build.oracle_file("glm-5.1-ud-iq2", tmp_path)))
    assert spec.catalog_id == "glm-5.1"
    assert spec.kv_quantisation_breaks
    assert spec.licence == "mit"
    assert spec.sources["sampling"] == "catalog"


def test_a_fine_tune_with_a_known_name_is_not_the_known_model(tmp_path: Path) -> None:
    path = build.write(tmp_path / "glm-5.1-ud-iq2_m.gguf", {**build.TINY_KEYS, "general.name": "GLM-5.1"})
    assert resolve_model(str(path)).catalog_id is None


@pytest.mark.parametrize("text", ["", "  "])
def test_empty(text: str) -> None:
    with pytest.raises(UsageError, match="--model is empty"):
        resolve_model(text)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder"):
        resolve_model(str(tmp_path))
    build.write(tmp_path / "m.gguf")
    with pytest.raises(UsageError) as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path / "m.gguf") in caught.value.line()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(str(tmp_path))


def test_unknown_names() -> None:
    with pytest.raises(ModelError, match="no model 'nonesuch'"):
        resolve_model("nonesuch")
    with pytest.raises(ModelError, match="no such file"):
        resolve_model("/nowhere/x.gguf")
    with pytest.raises(ModelError) as caught:
        resolve_model("a\0b\nc")
    assert caught.value.line().isprintable()
