"""Specs from files: captured headers of real-size models, split files, odd names, other kinds of GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from plan_llama.errors import ModelError
from plan_llama.models.ggml_types import quant_in_name
from plan_llama.models.spec import active_parameters, class_totals, load
from tests import gguf_builder as build


@pytest.mark.parametrize("name", sorted(build.oracle_index()))
def test_real_size_models(name: str, tmp_path: Path) -> None:
    """Against the engine's own account of the same files (index.json)."""
    known = build.oracle_index()[name]
    spec = load(build.oracle_file(name, tmp_path))
    assert spec.architecture == known["arch"]
    assert spec.parameters == known["params"]
    assert spec.layers == known["n_layer"]
    assert spec.int_param("nextn_predict_layers", 0) == known["n_layer_nextn"]
    assert spec.context_train == known["n_ctx_train"]
    assert spec.vocab_size == known["n_vocab"]
    assert spec.int_param("expert_count", 0) == known["n_expert"]
    assert spec.file_bytes == known["apparent_size"]
    assert not spec.present
    assert spec.data_note
    assert "sparse" in spec.data_note


# Published: GLM-5.1 744B-A40B, DeepSeek V3.1 37B active, GLM-4.5-Air A12B, gpt-oss-20b 3.6B, Granite 9B,
# Qwen3-30B-A3B 3.3B with the embedding.
@pytest.mark.parametrize(
    ("name", "published_billions", "tolerance"),
    [
        ("glm-5.1-ud-iq2", 40, 0.03),
        ("deepseek-v3.1-iq2_xxs", 37, 0.03),
        ("glm-4.5-air-q4_k_m", 12, 0.08),
        ("gpt-oss-20b-mxfp4", 3.6, 0.03),
        ("granite-4.0-h-small-q4_k_m", 9, 0.03),
        ("qwen3-30b-a3b-q4_k_m", 3.3, 0.1),
    ],
)
def test_active_parameters(name: str, published_billions: float, tolerance: float, tmp_path: Path) -> None:
    active = active_parameters(load(build.oracle_file(name, tmp_path)))
    assert active == pytest.approx(published_billions * 1e9, rel=tolerance)


def test_tied_embeddings_count_as_the_head(tmp_path: Path) -> None:
    """gemma-3 has no output.weight: the embedding runs for every token."""
    spec = load(build.oracle_file("gemma-3-27b-q4_0", tmp_path))
    assert active_parameters(spec) == spec.parameters


def test_whole_file_is_present(tmp_path: Path) -> None:
    spec = load(build.write(tmp_path / "tiny-q8_0.gguf"))
    assert (spec.present, spec.data_note) == (True, None)
    assert (spec.name, spec.quant, spec.vocab_size, spec.layers) == ("Tiny Llama", "Q8_0", 4, 1)
    assert spec.hparams["context_length"] == 2048
    assert "general.name" not in spec.hparams


def test_short_file_is_a_note_with_both_sizes(tmp_path: Path) -> None:
    path = build.write(tmp_path / "tiny.gguf")
    raw = path.read_bytes()
    path.write_bytes(raw[:-1000])
    spec = load(path)
    assert not spec.present
    assert spec.data_note
    assert f"{len(raw) - 1000:,} of {len(raw):,} bytes" in spec.data_note
    assert "did not finish" in spec.data_note
    assert spec.file_bytes == len(raw)


def test_header_alone_is_enough(tmp_path: Path) -> None:
    spec = load(build.write(tmp_path / "tiny.gguf", data=False))
    assert not spec.present
    assert len(spec.tensors) == 3


@pytest.mark.parametrize("given", [0, 1, 2])
def test_split_from_any_part(given: int, tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "Tiny-UD-Q8_0", [[], build.TINY_TENSORS[:2], build.TINY_TENSORS[2:]])
    spec = load(parts[given])
    assert spec.path == str(parts[0])
    assert [tensor.name for tensor in spec.tensors] == [row[0] for row in build.TINY_TENSORS]
    assert spec.quant == "UD-Q8_0"
    assert spec.present
    assert spec.file_bytes == sum(part.stat().st_size for part in parts)


def test_missing_parts_are_all_named(tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:2], [], []])
    parts[0].unlink()
    parts[2].unlink()
    with pytest.raises(ModelError) as caught:
        load(parts[1])
    assert f"2 of 4 parts are missing: {parts[0].name}, {parts[2].name};" in caught.value.line()
    assert str(tmp_path) in caught.value.line()


def test_cut_part_is_named(tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    parts[1].write_bytes(parts[1].read_bytes()[:30])
    with pytest.raises(ModelError, match=r"00002-of-00002\.gguf: the header is cut"):
        load(parts[0])


def test_short_part_is_named(tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    parts[1].write_bytes(parts[1].read_bytes()[:-600])
    note = load(parts[0]).data_note
    assert note
    assert note.startswith(parts[1].name)


def test_parts_of_different_models(tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    shutil.copy(parts[0], parts[1])
    with pytest.raises(ModelError, match="says part 1 of 2, expected part 2 of 2"):
        load(parts[0])


def test_same_tensor_in_two_parts(tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS, build.TINY_TENSORS[1:]])
    with pytest.raises(ModelError, match=r"'output_norm\.weight' is in an earlier part"):
        load(parts[0])


def test_part_lacks_tensors(tmp_path: Path) -> None:
    keys = {"split.tensors.count": build.scalar(build.I32, 9)}
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    split = {"split.no": build.scalar(build.U16, 0), "split.count": build.scalar(build.U16, 2)}
    build.write(parts[0], {**build.TINY_KEYS, **split, **keys}, build.TINY_TENSORS[:1])
    with pytest.raises(ModelError, match=r"'split\.tensors\.count' is 9, and the parts hold 3"):
        load(parts[0])


def test_renamed_part(tmp_path: Path) -> None:
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    odd = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="says one of 2 parts, but its name lacks -0000N-of-00002"):
        load(odd)


def test_hub_cache_links_are_not_resolved(tmp_path: Path) -> None:
    """In the hub cache a part is a link to a blob whose name says nothing."""
    parts = build.write_split(tmp_path, "m", [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for index, part in enumerate(parts):
        blob = part.rename(tmp_path / f"blob{index}")
        (snapshot / part.name).symlink_to(blob)
    spec = load(snapshot / parts[1].name)
    assert spec.path == str(snapshot / parts[0].name)


@pytest.mark.parametrize("stem", ["with blank", 'it\'s "quoted"', "new\nline", "$(touch x)", "-m", "é中"])
def test_odd_file_names(stem: str, tmp_path: Path) -> None:
    path = build.write(tmp_path / f"{stem}.gguf")
    assert load(path).path == str(path)
    parts = build.write_split(tmp_path, stem, [build.TINY_TENSORS[:1], build.TINY_TENSORS[1:]])
    assert load(parts[1]).path == str(parts[0])
    parts[0].unlink()
    with pytest.raises(ModelError) as caught:
        load(parts[1])
    assert "\n" not in caught.value.line()


def test_no_such_file_offers_near_names(tmp_path: Path) -> None:
    build.write(tmp_path / "Qwen3-8B-Q4_K_M.gguf")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "Qwen3-8B-Q4_K.gguf")
    assert caught.value.line().endswith("no such file; did you mean Qwen3-8B-Q4_K_M.gguf")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "none" / "other.gguf")
    assert caught.value.line().endswith("no such file; check the path")


def keys_with(**changes: Any) -> dict[str, Any]:
    return {**build.TINY_KEYS, **{key.replace("__", "."): value for key, value in changes.items()}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (keys_with(general__architecture="clip"), "a multimodal projector"),
        (keys_with(general__type="mmproj"), "--mmproj"),
        (keys_with(general__type="adapter"), "a LoRA adapter"),
        (keys_with(general__type="imatrix"), "an importance matrix"),
        (keys_with(general__architecture="eagle3"), "a draft head"),
        ({"general.name": "x"}, "'general.architecture' is missing"),
        ({"general.architecture": "llama"}, "'llama.block_count' is missing"),
        (keys_with(llama__block_count=0), "0 blocks"),
        (keys_with(llama__block_count=1 << 31), "2,147,483,648 blocks"),
        (keys_with(llama__nextn_predict_layers=1), "fewer for drafting"),
        (keys_with(llama__expert_count=8, llama__expert_used_count=9), "9 experts used of 8"),
    ],
)
def test_not_a_model(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = build.write(tmp_path / "x.gguf", keys)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert message in caught.value.line()


def test_vocabulary_only(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only a vocabulary"):
        load(build.write(tmp_path / "vocab.gguf", build.TINY_KEYS, []))


def test_only_the_draft_blocks(tmp_path: Path) -> None:
    keys = keys_with(llama__block_count=2, llama__nextn_predict_layers=1)
    tensors = [("token_embd.weight", (64, 4), 1), ("blk.1.nextn.eh_proj.weight", (128, 64), 1)]
    with pytest.raises(ModelError, match="only the blocks for drafting"):
        load(build.write(tmp_path / "mtp.gguf", keys, tensors))


def test_control_characters_in_the_models_name(tmp_path: Path) -> None:
    spec = load(build.write(tmp_path / "m.gguf", keys_with(general__name="Evil\x1b[31m\nModel")))
    assert spec.name == "Evil [31m Model"


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("GLM-5.1-UD-IQ2_M-00001-of-00006.gguf", "UD-IQ2_M"),
        ("glm-5.1-744b-ud-iq2_m.gguf", "UD-IQ2_M"),
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.i1-IQ3_XXS.gguf", "i1-IQ3_XXS"),
        ("GLM-5.1-smol-IQ4_K-00001-of-00009.gguf", "smol-IQ4_K"),
        ("gemma-3-27b-it-qat-q4_0.gguf", "Q4_0"),
        ("Llama-3.1-8B-Instruct-f16.gguf", "F16"),
        ("DeepSeek-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("glm-5.1-ud-iq2.gguf", None),
        ("Q4Kids-story-model.gguf", None),
        ("bf16ish.gguf", None),
    ],
)
def test_quant_in_name(name: str, quant: str | None) -> None:
    assert quant_in_name(name) == quant


def test_classes_of_the_worked_example(tmp_path: Path) -> None:
    """Sums from the shapes: 75 layers of 3 × 256 experts of 6144 × 2048 run, one more drafts."""
    totals = {
        total.name: total for total in class_totals(load(build.oracle_file("glm-5.1-ud-iq2", tmp_path)))
    }
    assert totals["routed experts"].elements == 75 * 3 * 256 * 6144 * 2048
    assert totals["shared experts"].elements == 75 * 3 * 6144 * 2048
    assert totals["token embedding"].elements == totals["output head"].elements == 6144 * 154_880
    assert sum(total.elements for total in totals.values()) == 753_864_139_008
    assert "other" not in totals


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.write(tmp_path / "m.gguf")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"cannot be read \(Permission denied\)"):
        load(path)
