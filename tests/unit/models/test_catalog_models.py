"""The catalog against published sizes and the measured header of the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_llama import catalog
from plan_llama.errors import ModelError, ProfileError
from plan_llama.models import catalog_models
from plan_llama.models.spec import active_parameters, class_totals, is_draft, is_expert, load
from plan_llama.models.types import ModelSpec
from tests import gguf_builder as build

MIB = 1 << 20


def gpu_weights(spec: ModelSpec) -> int:
    """What `-ngl 99 -cmoe` puts on the GPU: all that is loaded but the routed experts and the embedding."""
    return sum(
        tensor.nbytes
        for tensor in spec.tensors
        if not is_draft(spec, tensor) and not is_expert(tensor) and tensor.name != "token_embd.weight"
    )


def test_the_tensor_table_is_the_measured_one(tmp_path: Path) -> None:
    """Names, shapes and order of the header that llama.cpp loads; 753,864,139,008 parameters as published."""
    real = load(build.oracle_file("glm-5.1-ud-iq2", tmp_path))
    spec = catalog_models.resolve("glm-5.1", "UD-IQ2_M")
    assert [(t.name, t.shape) for t in spec.tensors] == [(t.name, t.shape) for t in real.tensors]
    assert len(spec.tensors) == 1809
    assert spec.parameters == 753_864_139_008
    assert active_parameters(spec) == active_parameters(real)
    stated = {key: value for key, value in real.hparams.items() if key != "vocab_size"}
    assert dict(spec.hparams) == pytest.approx(stated)
    assert spec.vocab_size == real.vocab_size
    assert (spec.layers, spec.context_train) == (78, 202_752)


def test_ud_iq2_m_by_class() -> None:
    """Published: 236 GB. By class: the file of that name for GLM-5.3, which has the same shapes."""
    spec = catalog_models.resolve("glm-5.1", "ud-iq2_m")
    experts = sum(tensor.nbytes for tensor in spec.tensors if is_expert(tensor))
    total = sum(tensor.nbytes for tensor in spec.tensors)
    assert total == pytest.approx(236e9, rel=0.01)
    assert experts == pytest.approx(222_868_537_344, rel=0.01)
    assert experts / total == pytest.approx(222_868_537_344 / 238_577_585_701, rel=0.01)
    totals = {entry.name: entry.nbytes for entry in class_totals(spec)}
    assert totals["token embedding"] == 654_213_120
    assert totals["output head"] == 535_265_280
    shared = sum(tensor.nbytes for tensor in spec.tensors if "shexp" in tensor.name)
    assert shared == pytest.approx(2_105_769_984, rel=0.01)


def test_ud_iq2_m_on_the_gpu() -> None:
    """Measured on a 233.9 GB mix of the same kind."""
    lines = (build.ORACLE / "cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["model"] == "glm-5.1-ud-iq2" and "bytes" in case]
    measured = {
        case["bytes"]["GPU0"]["model"]
        for case in cases
        if "-cmoe" in case["flags"] and len(case["sim_gpus"]) == 1 and "99" in case["flags"]
    }
    assert {value // MIB for value in measured} == {12_622}
    assert gpu_weights(catalog_models.resolve("glm-5.1", "UD-IQ2_M")) == pytest.approx(12_622 * MIB, rel=0.05)


@pytest.mark.parametrize("name", ["glm-5.1", "GLM-5.1", "GLM 5.1", "glm5.1", "zai-org/GLM-5.1", " glm_5.1 "])
def test_names(name: str) -> None:
    assert catalog_models.get(name).id == "glm-5.1"


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError) as caught:
        catalog_models.get("glm-5.l")
    assert "did you mean glm-5" in caught.value.line()
    with pytest.raises(ModelError) as caught:
        catalog_models.get("qqqqqq")
    assert f"the catalog has {len(catalog_models.model_ids())} models" in caught.value.line()


def test_unknown_quant_names_what_exists() -> None:
    with pytest.raises(ModelError) as caught:
        catalog_models.resolve("glm-5.1", "UD-IQ2_XM")
    line = caught.value.line()
    assert "did you mean UD-IQ2_M" in line
    assert "Q4_K_M" in line


def test_another_engines_quant_is_refused_by_name() -> None:
    with pytest.raises(ModelError) as caught:
        catalog_models.resolve("glm-5.1", "IQ3_KS")
    assert "needs ik_llama.cpp" in caught.value.line()
    assert "320.216 GiB" in caught.value.line()


def test_two_publishers_of_one_quant() -> None:
    known = catalog_models.get("glm-5.1")
    first = catalog_models.get_quant(known, "IQ4_XS")
    second = catalog_models.get_quant(known, "aessedai/iq4_xs")
    assert (first.publisher, second.publisher) == ("batiai", "AesSedai")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glm-5.1-744b-ud-iq2_m.gguf", ("glm-5.1", "UD-IQ2_M")),
        ("GLM-5.1-UD-IQ2_M-00001-of-00006.gguf", ("glm-5.1", "UD-IQ2_M")),
        ("/models/some dir/GLM-5.1-UD-IQ2_M-00001-of-00006.gguf", ("glm-5.1", "UD-IQ2_M")),
        ("C:\\models\\glm-5-ud-tq1_0.gguf", ("glm-5", "UD-TQ1_0")),
        ("GLM-5.1-Q8_0.gguf", ("glm-5.1", "Q8_0")),
        ("glm-5.1.gguf", None),
        ("glm-5.1-q2_k.gguf", None),
        ("glm-5.12-ud-iq2_m.gguf", None),
        ("glm-5.1-ud-iq2_m", None),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", ("llama-3.1-8b", "Q4_K_M")),
        ("qwen3-30b-a3b-instruct-2507-q8_0.gguf", ("qwen3-30b-a3b-2507", "Q8_0")),
        ("somebodys-8b-q4_k_m.gguf", None),
    ],
)
def test_guess(name: str, expected: tuple[str, str] | None) -> None:
    assert catalog_models.guess(name) == expected


def test_what_is_known_to_break_has_its_source() -> None:
    breaks = catalog_models.get("glm-5.1").kv_quantisation_breaks
    assert breaks
    assert "https://github.com/ggml-org/llama.cpp/issues/" in breaks
    assert dict(catalog_models.get("glm-5.1").sampling) == {"temperature": 1.0, "top_p": 0.95}


PROFILE = """
name = "X"
architecture = "glm-dsa"
licence = "mit"
vocab_size = 4
source = "https://example.org"
default_quant = "Q8_0"
[hparams]
block_count = 1
[[quant]]
quant = "Q8_0"
repo = "a/b"
size = "1 GB"
source = "https://example.org"
mix = "modelled"
types = [{ match = "", type = "q8_0" }]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('size = "1 GB"', 'size = "1 gigabyte"', "'size' must be like"),
        ('type = "q8_0"', 'type = "iq4_ks"', "no tensor type 'iq4_ks'"),
        ('match = ""', 'match = "("', "'match' is not a pattern"),
        ('default_quant = "Q8_0"', 'default_quant = "Q9"', "default_quant 'Q9' is not among"),
        ('mix = "modelled"\n', "", "'types' come with mix"),
        ('repo = "a/b"', 'repo = "a/b"\ncolour = 1', "unknown key colour"),
        ('repo = "a/b"', 'repo = "a/b"\nfile = "x-{part}.gguf"', "needs 'parts'"),
        ("block_count = 1", "block_count = {}", "'block_count' must be a number"),
        ('name = "X"', "name = 1", "'name' must be str"),
    ],
)
def test_a_wrong_profile_names_the_place(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    assert old in PROFILE
    (folder / "x.toml").write_text(PROFILE.replace(old, new))
    monkeypatch.setenv("PLAN_LLAMA_PROFILES", str(tmp_path))
    catalog_models.model_ids.cache_clear()
    catalog_models.model.cache_clear()
    try:
        with pytest.raises(ProfileError) as caught:
            catalog_models.model("x")
    finally:
        catalog_models.model_ids.cache_clear()
        catalog_models.model.cache_clear()
    assert message in caught.value.line()
    assert "x.toml" in caught.value.line()


def test_a_users_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "mine.toml").write_text(PROFILE)
    monkeypatch.setenv("PLAN_LLAMA_PROFILES", str(tmp_path))
    catalog_models.model_ids.cache_clear()
    try:
        assert catalog.files("models")["mine"] == folder / "mine.toml"
        assert catalog.file("models", "mine") == folder / "mine.toml"
        assert catalog.file("models", "glm-5.1") == catalog.root() / "models" / "glm-5.1.toml"
        for name in ("yours", "../models/mine", ""):
            with pytest.raises(KeyError):
                catalog.file("models", name)
        assert catalog_models.get("mine").name == "X"
        with pytest.raises(ProfileError, match="hyperparameter 'embedding_length' must be an integer"):
            catalog_models.resolve("mine")
    finally:
        catalog_models.model_ids.cache_clear()
        catalog_models.model.cache_clear()
