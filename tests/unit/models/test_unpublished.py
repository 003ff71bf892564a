"""Quants that nobody publishes: planned as llama.cpp's own tools make them, with the command that does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from plan_llama.cli.app import run
from plan_llama.cli.launcher import launcher_files
from plan_llama.cli.model_notes import about_file
from plan_llama.errors import EXIT_OK, ModelError, ProfileError, UsageError
from plan_llama.models import quant_mix, unpublished
from plan_llama.models.catalog_models import build as build_catalog
from plan_llama.models.catalog_models import model, model_ids
from plan_llama.models.resolve import resolve_model
from plan_llama.models.spec import load
from plan_llama.models.writer import write_header
from tests import gguf_builder as build

# https://huggingface.co/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF/tree/bf5b95e; 7,840,928 bytes of each are header.
HEADER = 7_840_928
PUBLISHED = {"Q4_K_M": 4_920_739_232, "Q6_K": 6_596_011_424, "IQ2_M": 2_948_285_856, "Q8_0": 8_540_775_840}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    for name in ("LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def bf16(tmp_path: Path) -> Path:
    """A header of Llama 3.1 8B as the converter writes it."""
    captured = load(build.oracle_file("llama-3.1-8b-q4_k_m", tmp_path))
    shapes = [(tensor.name, tensor.shape) for tensor in captured.tensors]
    path = tmp_path / "Meta-Llama-3.1-8B-BF16.gguf"
    write_header(
        replace(captured, quant="BF16", tensors=quant_mix.converted(captured.architecture, shapes)), path
    )
    return path


@pytest.mark.parametrize("mix", sorted(PUBLISHED))
def test_what_is_made_of_a_file(mix: str, bf16: Path) -> None:
    spec = resolve_model(str(bf16), mix.lower())
    assert sum(tensor.nbytes for tensor in spec.tensors) == PUBLISHED[mix] - HEADER
    # The header's vocabulary is made up and shorter than the real one.
    assert 0 < PUBLISHED[mix] - spec.file_bytes < HEADER
    assert (spec.quant, spec.source, spec.present, spec.download) == (mix, "modelled", False, None)
    target = bf16.with_name(f"{spec.catalog_id}-{mix}.gguf")  # the catalog knows these shapes
    assert spec.path == str(target)
    matrix = ("--imatrix", str(bf16.with_name("imatrix.gguf"))) if mix == "IQ2_M" else ()
    assert spec.made_with == ("llama-quantize", *matrix, str(bf16), str(target), mix)


def test_a_quantised_file_is_not_quantised_again(bf16: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    write_header(resolve_model(str(bf16), "Q4_K_M"), made)
    with pytest.raises(UsageError, match="does not go with the file"):
        resolve_model(str(made), "Q8_0")
    with pytest.raises(ModelError, match="is made from a BF16"):
        unpublished.of_file(load(made), "Q8_0")
    with pytest.raises(UsageError, match="does not go with the file"):
        resolve_model(str(bf16), "UD-Q4_K_XL")


def test_a_catalog_model_in_a_mix_that_is_not_published(home: Path) -> None:
    spec = resolve_model("glm-5.1", "q3_k_m")
    folder = home / "models"
    target = folder / "glm-5.1" / "glm-5.1-Q3_K_M.gguf"
    source = folder / "unsloth" / "GLM-5.1-GGUF" / "BF16" / "GLM-5.1-BF16-00001-of-00033.gguf"
    assert spec.made_with == ("llama-quantize", str(source), str(target), "Q3_K_M")
    assert (spec.path, spec.quant, spec.catalog_id) == (str(target), "Q3_K_M", "glm-5.1")
    assert spec.parameters == 753_864_139_008
    assert [item.path for item in launcher_files(spec)] == [str(target)]
    (said,) = about_file(spec)
    assert (said.id, said.fix) == ("model-not-published", shlex.join(spec.made_with))


def test_without_a_published_16_bit_file_the_command_starts_from_the_converted_one(home: Path) -> None:
    folder = home / "models" / "glm-5"
    assert resolve_model("glm-5", "IQ1_S").made_with == (
        *("llama-quantize", "--imatrix", str(folder / "imatrix.gguf")),
        *(str(folder / "glm-5-BF16.gguf"), str(folder / "glm-5-IQ1_S.gguf"), "IQ1_S"),
    )
    assert resolve_model("glm-5", "f16").made_with == (
        *("convert_hf_to_gguf.py", "--outtype", "f16", "--outfile"),
        *(str(folder / "glm-5-F16.gguf"), str(folder / "hf")),
    )


def test_a_file_that_was_made_is_found(home: Path) -> None:
    spec = resolve_model("glm-5.1", "Q3_K_M")
    assert spec.path is not None
    Path(spec.path).parent.mkdir(parents=True)
    write_header(spec, Path(spec.path))
    found = resolve_model("glm-5.1", "Q3_K_M")
    assert (found.source, found.catalog_id, found.made_with) == ("file", "glm-5.1", ())
    assert found.tensors == spec.tensors


def test_another_spelling_of_a_published_quant_is_that_quant(home: Path) -> None:
    spec = resolve_model("glm-5.1", "q4_k")
    assert (spec.quant, spec.source, spec.made_with) == ("Q4_K_M", "catalog", ())
    assert spec.download


def test_publishers_mixes_are_not_made(home: Path) -> None:
    with pytest.raises(ModelError, match="no quant 'UD-IQ1_S' of GLM"):
        resolve_model("glm-5.1", "UD-IQ1_S")
    with pytest.raises(ModelError, match="makes no UD-IQ1_S"):
        unpublished.of_known(model("glm-5.1"), "UD-IQ1_S")


def test_inspect_shows_how_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "glm-5.1", "--quant", "IQ2_XXS"]) == EXIT_OK
    shown = capsys.readouterr().out
    assert "not published" in shown
    assert "llama-quantize --imatrix" in shown


@pytest.mark.slow
def test_a_plan_of_what_is_not_published(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = ("--gpu", "24GiB", "--ram", "256GiB", "--cpu-cores", "16")
    asked = ("--model", "glm-5.1", "--quant", "IQ2_XXS", *machine, "--json", "--write", str(tmp_path / "out"))
    assert run(list(asked)) == EXIT_OK
    answer = json.loads(capsys.readouterr().out)
    target = home / "models" / "glm-5.1" / "glm-5.1-IQ2_XXS.gguf"
    assert answer["model"]["source"] == "modelled"
    assert answer["model"]["download"] is None
    assert str(target) in answer["command"]["argv"]
    (said,) = [item for item in answer["findings"] if item["id"] == "model-not-published"]
    assert "--imatrix" in said["fix"]
    (launcher,) = answer["written"]
    assert str(target) in Path(launcher).read_text()


PROFILE = """
name = "Llama 3.1 8B Instruct"
architecture = "llama"
licence = "llama3.1"
vocab_size = 128256
source = "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct"
default_quant = "Q4_K_M"
[hparams]
block_count = 32
context_length = 131072
embedding_length = 4096
feed_forward_length = 14336
"attention.head_count" = 32
"attention.head_count_kv" = 8
"tensors.rope_freqs" = true
[[quant]]
quant = "Q4_K_M"
repo = "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"
source = "https://huggingface.co/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"
mix = "llama-quantize"
imatrix = true
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own profile, `mine`."""
    path = tmp_path / "profiles" / "models" / "mine.toml"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("PLAN_LLAMA_PROFILES", str(path.parents[1]))
    path.write_text(PROFILE)
    for kept in (model_ids, model):
        kept.cache_clear()
    yield path
    for kept in (model_ids, model):
        kept.cache_clear()


@pytest.mark.parametrize("mix", sorted(PUBLISHED))
def test_a_published_llama_quantize_mix_needs_no_size(mix: str, profile: Path) -> None:
    """Types and size come from the shapes; the header's vocabulary is an estimate."""
    profile.write_text(PROFILE.replace("Q4_K_M", mix))
    item = model("mine").quants[0]
    assert item.plannable
    assert item.size_bytes == pytest.approx(PUBLISHED[mix], abs=3_000_000)
    assert item.size_stated.startswith("about ")
    spec = build_catalog(model("mine"), item)
    assert sum(tensor.nbytes for tensor in spec.tensors) == pytest.approx(PUBLISHED[mix] - HEADER, abs=400)
    assert spec.file_bytes == item.size_bytes


def test_a_published_size_and_another_name_of_the_mix(profile: Path) -> None:
    named = PROFILE.replace('quant = "Q4_K_M"', 'quant = "i1-Q4_K_M"').replace(
        "imatrix = true", 'imatrix = true\nftype = "Q4_K_M"\nsize = "4.92 GB"'
    )
    profile.write_text(named)
    item = model("mine").quants[0]
    assert (item.quant, item.ftype, item.size_bytes, item.size_stated) == (
        *("i1-Q4_K_M", "Q4_K_M"),
        *(4_920_000_000, "4.92 GB"),
    )
    total = sum(tensor.nbytes for tensor in build_catalog(model("mine"), item).tensors)
    assert total == pytest.approx(PUBLISHED["Q4_K_M"] - HEADER, abs=400)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("imatrix = true", 'ftype = "UD-Q4_K_XL"', "llama-quantize makes no 'UD-Q4_K_XL'"),
        ("imatrix = true", 'types = [{ match = "", type = "q8_0" }]', "'types' come with mix"),
        ('mix = "llama-quantize"\n', 'size = "4.92 GB"\n', "'ftype' and 'imatrix' go with mix"),
        ("imatrix = true", "imatrix = 1", "'imatrix' must be bool"),
        ('architecture = "llama"', 'architecture = "unheard-of"', "no tensor table for"),
        ('"attention.head_count" = 32', '"attention.head_count" = "many"', "'attention.head_count' must be"),
    ],
)
def test_a_wrong_mix_names_the_place(old: str, new: str, message: str, profile: Path) -> None:
    assert old in PROFILE
    profile.write_text(PROFILE.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        model("mine")
    assert message in caught.value.line()
    assert "mine.toml" in caught.value.line()
