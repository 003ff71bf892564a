"""Every profile under profiles/models: what it builds, against what publishers state of it."""

from __future__ import annotations

import fnmatch
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from plan_llama import catalog
from plan_llama.models import catalog_models, quant_mix, tables
from plan_llama.models.catalog_models import MADE, KnownModel
from plan_llama.units import GB, GIB
from tests.slow import slow_but

ROOT = Path(__file__).resolve().parents[3]


def shipped() -> Iterator[KnownModel]:
    return (catalog_models.model(path.stem) for path in sorted((catalog.root() / "models").glob("*.toml")))


MODELS = {known.id: known for known in shipped()}


def weights(known: KnownModel) -> int:
    named = tables.tensors(known.architecture, known.hparams, known.vocab_size)
    assert named is not None, known.architecture
    return sum(math.prod(shape) for _, shape in named)


def test_sixty_models_of_twenty_architectures() -> None:
    assert len(MODELS) >= 60
    assert len({known.architecture for known in MODELS.values()}) >= 20
    asked = (
        "glm-5 glm-5.1 glm-5.2 glm-4.5v glm-4.6v glm-4.1v-9b-thinking gemma-3-27b qwen2.5-vl-72b kimi-vl-a3b "
        "deepseek-v3 llama-3.1-405b llama-3.1-70b"
    )
    assert set(asked.split()) <= set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_as_many_weights_as_published(model: str) -> None:
    """Exactly, or within the rounding of what is published, after what a GGUF has more or less."""
    known = MODELS[model]
    published = known.parameters
    assert published is not None
    assert published.source.startswith("https://")
    found = weights(known)
    if published.rounding == 0:
        assert found == published.expected
    assert abs(found - published.expected) <= max(published.rounding, 0)
    assert published.rounding <= published.total * (
        0.02 if published.total < 10**12 else 0.035
    )  # "1.6T", "2.4T"


@pytest.mark.parametrize("model", slow_but(MODELS, *list(MODELS)[::8]))
def test_sizes_are_what_llama_quantize_makes(model: str) -> None:
    known = MODELS[model]
    for item in known.quants:
        if item.mix != MADE or not item.size_stated.startswith("about"):
            continue
        assert item.ftype is not None
        tensors = quant_mix.tensors_of(
            known.architecture,
            {**known.hparams, **item.hparams},
            known.vocab_size,
            item.ftype,
            imatrix=item.imatrix,
        )
        assert tensors is not None
        assert quant_mix.file_size(tensors, vocab_size=known.vocab_size).total_bytes == item.size_bytes


# As the repositories state the size of their files: two decimals of GB, or of GiB one, or bytes.
PUBLISHED_SIZES = [
    ("llama-3.1-8b", "Q8_0", 8.54 * GB),
    ("llama-3.1-8b", "Q6_K", 6.60 * GB),
    ("llama-3.1-8b", "Q5_K_M", 5.73 * GB),
    ("llama-3.1-8b", "Q4_K_M", 4.92 * GB),
    ("llama-3.1-8b", "IQ4_XS", 4.45 * GB),
    ("llama-3.1-8b", "Q2_K", 3.18 * GB),
    ("llama-3.1-8b", "IQ2_M", 2.95 * GB),
    ("llama-3.1-70b", "Q4_K_M", 42.52 * GB),
    ("llama-3.1-70b", "Q2_K", 26.38 * GB),
    ("llama-3.1-70b", "IQ2_M", 24.12 * GB),
    ("qwen2.5-7b", "Q4_K_M", 4.68 * GB),
    ("qwen2.5-32b", "Q4_K_M", 19.85 * GB),
    ("qwen2.5-72b", "Q4_K_M", 47.42 * GB),
    ("gemma-2-27b", "Q4_K_M", 16.65 * GB),
    ("gemma-3-27b", "Q4_K_M", 16.55 * GB),
    ("mistral-7b", "Q4_K_M", 4.37 * GB),
    ("mistral-nemo-12b", "Q4_K_M", 7.48 * GB),
    ("mistral-large-123b", "Q4_K_M", 73.22 * GB),
    ("mixtral-8x7b", "Q4_K_M", 28.45 * GB),
    ("mixtral-8x22b", "Q4_K_M", 79.7 * GIB),
    ("phi-4", "Q4_K_M", 9.05 * GB),
    ("qwen3-30b-a3b", "Q4_K_M", 18.56 * GB),
    ("gpt-oss-20b", "MXFP4_MOE", 12_109_566_560),
    ("gpt-oss-120b", "MXFP4_MOE", 63_387_346_464),
    ("command-r-08-2024", "Q4_K_M", 18.4 * GIB),
    ("command-r-plus-08-2024", "Q4_K_M", 58.4 * GIB),
    ("command-a", "Q4_K_M", 62.5 * GIB),
    ("minimax-m2.5", "Q4_K_M", 128.8 * GIB),
    ("minimax-m2.7", "Q4_K_M", 129.3 * GIB),
    ("nemotron-3-super-120b-a12b", "Q4_K_M", 80.1 * GIB),
    ("glm-4.7", "Q4_K_M", 201.6 * GIB),
]


@pytest.mark.parametrize(("model", "quant", "size"), PUBLISHED_SIZES)
def test_sizes_are_those_of_the_published_files(model: str, quant: str, size: float) -> None:
    item = MODELS[model].named(quant)
    assert item is not None
    assert item.size_bytes == pytest.approx(size, rel=0.005)


def test_every_name_means_one_model() -> None:
    names = Counter(name for known in MODELS.values() for name in catalog_models.index_of([known])["names"])
    assert [name for name, count in names.items() if count > 1] == []
    for known in MODELS.values():
        for name in (known.id, known.name, known.name.upper(), *known.aliases):
            found = catalog_models.find(name)
            assert found is not None
            assert found.id == known.id


def test_the_index_is_up_to_date() -> None:
    script = ROOT / "scripts" / "model_index.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_name_is_found_at_once() -> None:
    """Without reading the other profiles: in 10 ms on any machine, best of a few."""
    best = math.inf
    for _ in range(5):
        catalog_models.model.cache_clear()
        catalog_models._shipped_index.cache_clear()
        catalog_models._index.cache_clear()
        start = time.perf_counter()
        known = catalog_models.find("meta-llama/Llama-3.1-405B-Instruct")
        best = min(best, time.perf_counter() - start)
        assert known is not None
        assert catalog_models.model.cache_info().currsize == 1
    assert best <= 0.010


def test_sources_and_dates() -> None:
    for known in MODELS.values():
        assert known.source.startswith("https://huggingface.co/"), known.id
        assert known.licence, known.id
        assert known.context_train >= 2048, known.id
        assert known.released is None or known.released.year >= 2023, known.id
        assert set(known.sampling) <= {"temperature", "top_p", "top_k", "min_p"}, known.id
        for item in known.quants:
            assert item.source.startswith("https://"), known.id
            assert "{" not in item.include + "".join(item.files), known.id


@pytest.mark.parametrize(
    ("model", "parameters"),
    [  # all weights as published, less those of the language model
        ("llama-4-scout", 108_641_793_536 - 107_769_861_120),
        ("gemma-3-27b", 27_432_406_640 - 27_009_002_240 - 64 * 5376),
        ("qwen2.5-vl-7b", 8_292_166_656 - 7_615_616_512),
        ("qwen3-vl-8b", 8_767_123_696 - 8_190_735_360),
        ("glm-4.5v", 107_710_933_120 - 106_852_251_264),
    ],
)
def test_projectors(model: str, parameters: int) -> None:
    projector = MODELS[model].projector
    assert projector is not None
    assert projector.parameters == parameters
    assert (projector.tokens_per_image is None) != (projector.pixels_per_token is None)


def test_what_breaks_with_a_quantised_cache_is_said() -> None:
    for model in ("glm-5", "glm-5.1", "glm-5.2", "glm-4.7", "gemma-2-27b", "gemma-3-27b"):
        assert "https://github.com/" in (MODELS[model].kv_quantisation_breaks or ""), model


OWN = """
name = "Mine"
aliases = ["my-own", "llama-3.1-8b-instruct"]
architecture = "llama"
licence = "mit"
vocab_size = 32000
source = "https://example.org"
default_quant = "Q8_0"
[hparams]
context_length = 4096
block_count = 2
embedding_length = 256
feed_forward_length = 512
"attention.head_count" = 4
"attention.head_count_kv" = 4
[[llama_quantize]]
repo = "me/Mine-GGUF"
source = "https://example.org"
file = "mine-{quant}.gguf"
bytes = { Q8_0 = 20_000_000 }
"""


def test_a_users_profile_is_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes over an alias, replaces a shipped model of its id, and is found by its repository."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "mine.toml").write_text(OWN)
    (folder / "phi-4.toml").write_text(OWN.replace("my-own", "other").replace("llama-3.1-8b-instruct", "xx"))
    monkeypatch.setenv("PLAN_LLAMA_PROFILES", str(tmp_path))
    cached = (catalog_models.model_ids, catalog_models.model)
    for kept in cached:
        kept.cache_clear()
    try:
        for name in ("mine", "My Own", "Llama-3.1-8B-Instruct"):
            found = catalog_models.find(name)
            assert found is not None
            assert found.id == "mine"
        replaced = catalog_models.get("phi-4")
        assert (replaced.name, replaced.vocab_size) == ("Mine", 32_000)
        assert catalog_models.find("microsoft/phi-4") is None
        assert [known.id for known in catalog_models.by_repository("ME/mine-gguf")] == ["mine", "phi-4"]
        assert catalog_models.guess("my-own-q8_0.gguf") == ("mine", "Q8_0")
        spec = catalog_models.resolve("mine")
        assert spec.parameters == weights(replaced)
    finally:
        for kept in cached:
            kept.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bytes = { Q8_0 = 20_000_000 }", "bytes = { Q9 = 1 }", "llama-quantize makes no 'Q9'"),
        ("bytes = { Q8_0 = 20_000_000 }", 'bytes = { Q8_0 = "1 GB" }', "'Q8_0' must be int"),
        ("[hparams]", '[parameters]\ntotal = "8 billion"\n[hparams]', "'total' must be a number or like"),
        ("[hparams]", "[projector]\nparameters = 1\n[hparams]", "required value 'source' is missing"),
        (
            "[hparams]",
            '[projector]\nparameters = 1\nsource = "https://example.org"\n[hparams]',
            "'tokens_per_image' or 'pixels_per_token' is needed",
        ),
    ],
)
def test_a_wrong_profile_names_the_place(old: str, new: str, message: str, tmp_path: Path) -> None:
    from plan_llama.errors import ProfileError
    from plan_llama.models.known_models import parse

    assert old in OWN
    path = tmp_path / "wrong.toml"
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        parse("wrong", path)
    assert message in caught.value.line()
    assert "wrong.toml" in caught.value.line()


@pytest.mark.slow
def test_the_download_takes_the_files_that_are_named() -> None:
    for known in catalog_models.list_models():
        for quant in known.quants:
            assert all(fnmatch.fnmatch(file, quant.include) for file in quant.files), (known.id, quant.quant)
